"""One pass of masked audio modelling: what is encoded, predicted and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from peas.data.batch import Batch
from peas.models.mae import MaskedAutoencoder
from peas.models.mam_heads import FeatureHead, LabelBranch
from peas.models.masked import gather_tokens
from peas.objectives import (
    FeatureLoss,
    LabelLoss,
    NCEAxis,
    as_soft,
    feature_loss,
    info_nce,
    label_loss,
    masked_patch_error,
    patch_errors,
)
from peas.trivial import valid_patches


class Heads(nn.Module):
    """What pretraining needs beside the model; None where no objective asks for it.

    Attributes:
        feature: h of MAM-CLAP.
        label: SupMAM's branch.
        contrastive: W to P cells, for InfoNCE.
    """

    feature: FeatureHead | None
    label: LabelBranch | None
    contrastive: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.feature = None
        self.label = None
        self.contrastive = None


@dataclass(frozen=True)
class Composition:
    """Objectives and their choices, as in `MaskedAudioModeling`.

    Attributes:
        weights: Objective to its weight, those above 0.
        feature_loss: Kind of the feature loss.
        visible_path: Where Y of visible patches comes from.
        label_loss: Kind of the branch's loss.
        temperature: tau.
        nce_axis: Axis of InfoNCE.
    """

    weights: dict[str, float]
    feature_loss: FeatureLoss
    visible_path: Literal["direct", "decoder"]
    label_loss: LabelLoss
    temperature: float
    nce_axis: NCEAxis


class Rows(NamedTuple):
    """Predictions to be held against the trivial predictor. K rows a clip, X cells a row."""

    errors: Tensor
    """`[B, K]` mean squared error."""
    targets: Tensor
    """`[B, K, X]`."""
    valid: Tensor
    """`[B, K]` bool, rows that count."""


class Losses(NamedTuple):
    """What one pass gave."""

    total: Tensor
    terms: dict[str, Tensor]
    """Objective to its loss, before the weight."""
    weights: dict[str, float]
    tokens: Tensor
    """`[B, 1 + V, D]`, the encoder's output."""
    labelled: Tensor | None = None
    """`[L, C]` targets of the clips that a classification branch took."""
    unlabelled: Tensor | None = None
    """Number of clips that it left out."""
    patches: Rows | None = None
    features: Rows | None = None
    predicted_features: Tensor | None = None
    """`[B, N, D]` Y, with distillation."""

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each weighted objective's gradient at the encoder's output."""
        norms = {}
        for name, term in self.terms.items():
            (gradient,) = torch.autograd.grad(
                self.weights[name] * term, self.tokens, retain_graph=True, allow_unused=True
            )
            zero = torch.zeros((), device=term.device)
            norms[name] = zero if gradient is None else gradient.float().norm()
        return norms


def compose(
    model: MaskedAutoencoder,
    heads: Heads,
    batch: Batch,
    visible: Tensor,
    parts: Composition,
    *,
    features: Tensor | None,
    keep_padding: bool,
    pooled: Tensor | None,
    all_processes: Callable[[Tensor], Tensor],
    processes: int,
) -> Losses:
    """Encode the visible patches and take every objective.

    Args:
        model: The autoencoder.
        heads: Those that the objectives need.
        batch: With `log_mel`, `valid`, `hidden_patches`, and `target` and `labelled` for the
            branch.
        visible: `[B, V]` indices of the visible patches.
        parts: The objectives.
        features: T, `[B, N, D]`, for distillation.
        keep_padding: Whether patches without sound count in the feature loss.
        pooled: `[B, K]` indices among the visible patches that the branch pools; None = all.
        all_processes: A number here to its sum over all processes.
        processes: How many they are.
    """
    hidden, weights = batch["hidden_patches"], parts.weights
    patches = model.encoder.patches(batch["log_mel"])
    tokens = model.encoder.norm(model.encoder(patches, visible))
    decoded = None
    if model.decoder is not None:
        decoded = model.decoder(tokens, visible, patches.shape[1])
    sound = _sound(model, batch["valid"])
    terms: dict[str, Tensor] = {}
    rows: dict[str, Rows] = {}
    y: Tensor | None = None
    if "reconstruction" in weights:
        assert decoded is not None
        assert model.decoder is not None
        targets, drawn = model.targets(patches), model.decoder.pred(decoded)
        terms["reconstruction"] = masked_patch_error(drawn, targets, hidden)
        rows["patches"] = Rows(patch_errors(drawn.detach(), targets), targets, sound & hidden)
    if "distillation" in weights:
        assert features is not None
        y = _predicted_features(model, heads, tokens, decoded, visible, parts.visible_path)
        counted = torch.ones_like(hidden) if keep_padding else sound
        terms["distillation"] = feature_loss(y, features, hidden, counted, parts.feature_loss)
        rows["features"] = Rows(patch_errors(y.detach(), features), features, sound)
    if "contrastive" in weights:
        assert heads.contrastive is not None
        assert decoded is not None
        places = hidden.nonzero()[:, 1].view(len(hidden), -1)
        told = gather_tokens(heads.contrastive(decoded), places)
        terms["contrastive"] = info_nce(told, gather_tokens(patches, places), parts.nce_axis).loss
    labelled = unlabelled = None
    if "classification" in weights:
        assert heads.label is not None
        seen = tokens[:, 1:] if pooled is None else gather_tokens(tokens[:, 1:], pooled)
        terms["classification"], labelled, unlabelled = _classify(
            heads.label, seen.mean(dim=1), batch, parts, all_processes, processes
        )
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return Losses(
        total,
        terms,
        weights,
        tokens,
        labelled,
        unlabelled,
        rows.get("patches"),
        rows.get("features"),
        None if y is None else y.detach(),
    )


def _sound(model: MaskedAutoencoder, valid: Tensor) -> Tensor:
    """`[B, N]` bool: patches all of whose frames are real sound."""
    rows, columns = model.grid
    if model.stride == model.patch:
        covered = valid[:, : columns * model.patch[1]]
        return valid_patches(covered, (rows, columns), time_major=True)
    frames = valid.unfold(1, model.patch[1], model.stride[1])[:, :columns].all(dim=2)
    return frames.unsqueeze(2).expand(-1, -1, rows).flatten(1)


def _predicted_features(
    model: MaskedAutoencoder,
    heads: Heads,
    tokens: Tensor,
    decoded: Tensor | None,
    visible: Tensor,
    path: Literal["direct", "decoder"],
) -> Tensor:
    """Y of every patch, `[B, N, D]`."""
    assert heads.feature is not None
    assert decoded is not None
    assert model.decoder is not None
    if path == "direct":
        own = model.decoder.embed(tokens[:, 1:]).to(decoded.dtype)
        decoded = decoded.scatter(1, visible.unsqueeze(-1).expand_as(own), own)
    told: Tensor = heads.feature(decoded)
    return told


def _classify(
    branch: LabelBranch,
    pooled: Tensor,
    batch: Batch,
    parts: Composition,
    all_processes: Callable[[Tensor], Tensor],
    processes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The branch's loss, targets `[L, C]` of the clips that it took, and number of the others."""
    known = batch["labelled"]
    target = as_soft(batch["target"], branch.fc2.out_features)[known]
    count = known.sum().float()
    everywhere = all_processes(count)
    # A BatchNorm cannot do with one clip. One over all processes waits for each of them, so all
    # take part, or none.
    needed = 2 if branch.training and not isinstance(branch.norm, nn.Identity) else 1
    enough = everywhere if isinstance(branch.norm, nn.SyncBatchNorm) else count
    if int(enough) < needed:
        left_out = torch.full_like(count, len(known))
        return branch.nothing() + 0.0 * pooled.sum(), target[:0], left_out
    logits = branch(pooled[known])
    if not len(target):
        return branch.nothing() + 0.0 * (logits.sum() + pooled.sum()), target, len(known) - count
    loss = label_loss(logits, target, parts.label_loss, parts.temperature)
    # DDP averages over processes: so each clip weighs the same, whichever process has it.
    return loss * count * processes / everywhere, target, len(known) - count
