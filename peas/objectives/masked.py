"""Losses of AudioMAE, MAM-CLAP and SupMAM, as pure functions.

B clips, N patches, P cells of a patch, D width of a teacher's features, C classes.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from peas.objectives.classification import soft_cross_entropy

FeatureLoss = Literal["mse", "l2", "frobenius", "cosine", "smooth_l1"]
TargetNorm = Literal["l2", "layer", "none"]
LabelLoss = Literal["soft", "multi_hot", "bce"]


def masked_patch_error(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """AudioMAE's loss: mean squared error of the hidden patches.

    Args:
        predictions: `[B, N, P]`; compared in float32 whatever their precision.
        targets: `[B, N, P]`.
        hidden: `[B, N]` bool.
    """
    errors = (predictions.float() - targets.detach().float()).square().mean(dim=2)
    return (errors * hidden).sum() / hidden.sum()


def feature_targets(maps: Tensor, matrix: Tensor, norm: TargetNorm = "l2") -> Tensor:
    """A teacher's map at the places of the patches: T of SupMAM-CLAP's equation 1.

    Args:
        maps: `[B, D, F', T']`.
        matrix: `[N, F' * T']`, whose rows sum to 1.
        norm: What each patch's target gets: `l2`, unit length; `layer`, mean 0 and variance 1
            over D; or `none`.

    Returns:
        `[B, N, D]` float32.
    """
    flat = maps.flatten(2).float()
    targets = (flat @ matrix.t().to(flat)).transpose(1, 2)
    if norm == "l2":
        return F.normalize(targets, dim=-1)
    if norm == "layer":
        return F.layer_norm(targets, targets.shape[-1:])
    return targets


def feature_loss(
    predictions: Tensor,
    targets: Tensor,
    hidden: Tensor,
    counted: Tensor,
    kind: FeatureLoss = "mse",
) -> Tensor:
    """Loss of features at visible and hidden patches: SupMAM-CLAP's equation 1.

    The visible and the hidden patches are two sets; each is averaged by its own number and the
    two are added, so at 20 % hidden a hidden patch weighs four times a visible one. Means are per
    clip, then over the clips. A set without a counted patch adds nothing.

    Args:
        predictions: Y, `[B, N, D]`; compared in float32 whatever their precision.
        targets: T, `[B, N, D]`; no gradient reaches them.
        hidden: `[B, N]` bool.
        counted: `[B, N]` bool, patches that count: those on sound.
        kind: `mse`, squared error by element; `l2`, Euclidean distance of each patch;
            `frobenius`, the printed norm over the whole set divided by its number; `cosine`, one
            minus the similarity; `smooth_l1` by element.
    """
    y, t = predictions.float(), targets.detach().float()
    if kind == "cosine":
        errors = 1 - F.cosine_similarity(y, t, dim=-1)
    elif kind == "smooth_l1":
        errors = F.smooth_l1_loss(y, t, reduction="none").mean(dim=-1)
    elif kind == "mse":
        errors = (y - t).square().mean(dim=-1)
    else:
        errors = (y - t).square().sum(dim=-1)
    total = errors.new_zeros(())
    for part in (counted & ~hidden, counted & hidden):
        count = part.sum(dim=1)
        if kind == "l2":
            # The small term keeps the root's slope finite where a patch is met exactly.
            sums = ((errors + 1e-12).sqrt() * part).sum(dim=1)
        elif kind == "frobenius":
            sums = ((errors * part).sum(dim=1) + 1e-12).sqrt()
        else:
            sums = (errors * part).sum(dim=1)
        clips = (count > 0).sum().clamp(min=1)
        total = total + (sums * (count > 0) / count.clamp(min=1)).sum() / clips
    return total


def label_loss(
    logits: Tensor, target: Tensor, kind: LabelLoss = "soft", temperature: float = 10.0
) -> Tensor:
    """Loss of SupMAM's classification branch on clips with labels: its equation 2.

    Args:
        logits: p_v, `[B, C]`.
        target: `[B, C]`, share or presence of each class; every clip has at least one.
        kind: `soft`, cross entropy against the labels divided by their number; `multi_hot`,
            against the labels as they are; `bce`, binary cross entropy, mean over the classes.
        temperature: tau; SupMAE's published code divides the logits by 10.

    Returns:
        Scalar, mean over the clips.
    """
    scaled, labels = logits.float() / temperature, target.float()
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(scaled, labels)
    if kind == "soft":
        labels = labels / labels.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return soft_cross_entropy(scaled, labels)
