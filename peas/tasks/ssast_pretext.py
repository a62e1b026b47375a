"""SSAST's pretext task: what a model and masks make of a batch, without a trainer."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from peas.models.grid import patchify
from peas.models.patch_masking import hidden_ids
from peas.models.ssast import SSAST
from peas.objectives import NCEAxis, info_nce, patch_errors, take_patches

Objective = Literal["joint", "discriminative", "generative"]


class Drawn(NamedTuple):
    """Hidden patches that were drawn.

    Attributes:
        ids: `[B, M]` int64, which.
        errors: `[B, M]`, mean squared error of each.
        patches: `[B, M, P]`, the patches themselves.
    """

    ids: Tensor
    errors: Tensor
    patches: Tensor


class Pretext(NamedTuple):
    """What the pretext task gives.

    Attributes:
        values: Scalars: `loss`, and of the objectives asked for `nce` and `accuracy` of InfoNCE
            and `mse`.
        drawn: The drawn patches; None without the generative objective.
    """

    values: dict[str, Tensor]
    drawn: Drawn | None


def pretext(
    model: SSAST,
    log_mel: Tensor,
    masks: Sequence[Tensor],
    *,
    objective: Objective = "joint",
    mse_weight: float = 10.0,
    nce_axis: NCEAxis = "code",
) -> Pretext:
    """Hide patches, tell them apart and draw them.

    Args:
        model: A pretraining model.
        log_mel: `[B, T, F]` normalised.
        masks: `[B, N]` bool each, hidden patches of each pass, equally many in each row. With two,
            the joint objective has a pass and a mask for each of its parts, as the official code
            has it; with one they share it, as in the paper's algorithm.
        objective: `joint`, or one of its parts.
        mse_weight: Weight of the generative loss in the joint one.
        nce_axis: Of `info_nce`.
    """
    patches = patchify(log_mel, model.patch)
    values: dict[str, Tensor] = {}
    tokens, ids = _encode(model, log_mel, masks[0])
    target = take_patches(patches, ids)
    if objective != "generative":
        nce = info_nce(model.contrastive_head(tokens), target, nce_axis)
        values = {"loss": nce.loss, "nce": nce.loss, "accuracy": nce.accuracy}
        if objective == "discriminative":
            return Pretext(values, None)
        if len(masks) > 1:
            tokens, ids = _encode(model, log_mel, masks[1])
            target = take_patches(patches, ids)
    errors = patch_errors(model.generative_head(tokens), target)
    mse = errors.mean()
    loss = values["loss"] + mse_weight * mse if values else mse
    return Pretext(values | {"loss": loss, "mse": mse}, Drawn(ids, errors.detach(), target))


def _encode(model: SSAST, log_mel: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[B, M, D]` of the hidden patches after the encoder, and their ids `[B, M]`."""
    # Where the mask is made, on the CPU, nobody waits for the number of ids.
    ids = hidden_ids(hidden).to(log_mel.device, non_blocking=True)
    tokens = model.forward_features(log_mel, hidden.to(log_mel.device, non_blocking=True))
    return take_patches(tokens[:, model.encoder.special :], ids), ids
