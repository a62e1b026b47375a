"""One pass of masked audio modelling: patches are masked, encoded, and every objective is taken."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from peas.data.batch import Batch
from peas.evaluation.baselines import valid_patches
from peas.masking.sampling import masked_ids
from peas.models.encoder import Encoder
from peas.models.patches import visible_places
from peas.objectives.base import Objective, Term, View


class Losses(NamedTuple):
    """What the passes of a batch gave."""

    total: Tensor
    terms: dict[str, Term]
    weights: dict[str, float]
    views: dict[str, View]
    """The pass of each objective; one and the same where they share it."""

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each weighted objective's gradient at the encoder's output."""
        norms = {}
        for name, term in self.terms.items():
            (gradient,) = torch.autograd.grad(
                self.weights[name] * term.loss,
                self.views[name].tokens,
                retain_graph=True,
                allow_unused=True,
            )
            zero = torch.zeros((), device=term.loss.device)
            norms[name] = zero if gradient is None else gradient.float().norm()
        return norms


def encode(
    model: Encoder,
    batch: Batch,
    masked: Tensor,
    *,
    rand: Callable[[str, int], Tensor],
    total: Callable[[Tensor], Tensor],
    processes: int,
) -> View:
    """Encodes a batch with some patches masked, and decodes where the encoder does.

    Args:
        model: The encoder.
        batch: With `log_mel` and `valid`.
        masked: `[B, N]` bool; on the CPU, where nobody waits for the number of patches.
        rand: As in `View`.
        total: As in `View`.
        processes: As in `View`.
    """
    device = batch["log_mel"].device
    visible = visible_places(masked).to(device, non_blocking=True)
    masked_at = masked_ids(masked).to(device, non_blocking=True)
    on_device = masked.to(device, non_blocking=True)
    passed = model.pretext(batch["log_mel"], on_device, visible)
    return View(
        model=model,
        batch=batch,
        patches=model.patches(batch["log_mel"]),
        masked=on_device,
        masked_at=masked_at,
        visible=visible,
        tokens=passed.tokens,
        visible_tokens=passed.visible_tokens,
        decoded=passed.decoded,
        sound=sound_patches(model, batch["valid"]),
        rand=rand,
        total=total,
        processes=processes,
    )


def compose(objectives: Mapping[str, Objective], view: Callable[[str], View]) -> Losses:
    """Takes every objective, and their weighted sum.

    Args:
        objectives: By name.
        view: The pass of an objective, by its name.
    """
    terms, views = {}, {}
    for name, objective in objectives.items():
        views[name] = view(name)
        terms[name] = objective(views[name])
    weights = {name: objective.weight for name, objective in objectives.items()}
    total = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
    return Losses(total, terms, weights, views)


def sound_patches(model: Encoder, valid: Tensor) -> Tensor:
    """`[B, N]` bool: patches all of whose frames are real sound.

    Args:
        model: Knows the patches.
        valid: `[B, T]` bool.
    """
    rows, columns = model.grid
    if model.stride == model.patch:
        covered = valid[:, : columns * model.patch[1]]
        return valid_patches(covered, (rows, columns), time_major=model.time_major)
    frames = valid.unfold(1, model.patch[1], model.stride[1])[:, :columns].all(dim=2)
    if model.time_major:
        return frames.unsqueeze(2).expand(-1, -1, rows).flatten(1)
    return frames.unsqueeze(1).expand(-1, rows, -1).flatten(1)
