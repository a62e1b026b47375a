"""Losses as pure functions of tensors.

B clips, N patches, M masked patches of each, P bins of a patch, D width of a teacher's features,
C classes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ClassificationLoss = Literal["ce", "bce"]


def as_soft(target: Tensor, num_classes: int) -> Tensor:
    """Class indices `[B]` as one-hot rows; soft or multi-label targets `[B, C]` as they are.

    Returns:
        `[B, C]` float32.
    """
    if target.ndim == 1:
        return F.one_hot(target, num_classes).float()
    return target.float()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy against a distribution over classes: mean over the batch.

    Equal to the ordinary cross entropy where the targets are one-hot. The official SSAST loop
    casts soft labels to integers first, so that every mixed clip becomes class 0; this does not.

    Args:
        logits: `[B, C]`.
        target: `[B, C]`, non-negative.
    """
    return -(target * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def classification_loss(
    logits: Tensor, target: Tensor, kind: ClassificationLoss, label_smoothing: float = 0.0
) -> Tensor:
    """Loss of fine-tuning: soft-target cross entropy (`ce`) or binary cross entropy (`bce`).

    Args:
        logits: `[B, C]`.
        target: `[B]` class indices or `[B, C]` soft or multi-label targets.
        kind: `ce` is the papers' choice for ESC-50, `bce` for Speech Commands and AudioSet.
        label_smoothing: Of `ce`: share of a target that is spread evenly over all classes, as
            torch and timm define it.

    Returns:
        Scalar; `bce` is the mean over clips and classes, as the official code has it.
    """
    soft = as_soft(target, logits.shape[-1])
    if kind == "ce":
        soft = soft * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
        return soft_cross_entropy(logits, soft)
    return F.binary_cross_entropy_with_logits(logits.float(), soft)


NCEAxis = Literal["code", "paper"]


class InfoNCE(NamedTuple):
    """How well the hidden patches of a clip are told apart.

    Attributes:
        loss: Scalar.
        accuracy: Scalar, share of hidden patches that are told right; without gradient.
    """

    loss: Tensor
    accuracy: Tensor


def take_patches(rows: Tensor, ids: Tensor) -> Tensor:
    """Some rows of each clip: `[B, N, X]` and ids `[B, M]` to `[B, M, X]`."""
    return rows.gather(1, ids.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


def info_nce(predictions: Tensor, targets: Tensor, axis: NCEAxis = "code") -> InfoNCE:
    """InfoNCE among the hidden patches of one clip: no temperature, no normalisation.

    The score of a patch and a prediction is their inner product. The SSAST paper's equation 1 asks
    of each prediction which patch it belongs to: its softmax runs over the patches. The official
    code's runs over the predictions, and asks of each patch which prediction is its own; and the
    accuracy compares those probabilities across the patches. The two losses differ: of random
    weights the code's is near ln M.

    Args:
        predictions: `[B, M, P]`; scored in float32 whatever their precision.
        targets: `[B, M, P]`, the patches themselves; no gradient reaches them.
        axis: `code` as the official code and its checkpoints have it, or `paper`.

    Returns:
        Means over the batch and the hidden patches.
    """
    # Autocast would round the scores, which grow with P, to eight bits.
    with torch.autocast(predictions.device.type, enabled=False):
        scores = targets.detach().float() @ predictions.float().transpose(1, 2)
    log_p = scores.log_softmax(dim=2 if axis == "code" else 1)
    loss = -log_p.diagonal(dim1=1, dim2=2).mean()
    own = torch.arange(scores.shape[1], device=scores.device)
    told = log_p.detach().argmax(dim=1)
    return InfoNCE(loss, (told == own).float().mean())


def patch_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each patch: two times `[B, M, P]` to `[B, M]` float32."""
    return (predictions.float() - targets.detach().float()).square().mean(dim=2)


def masked_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """SSAST's generative loss: mean squared error over clips, hidden patches and bins.

    Args:
        predictions: `[B, M, P]`; compared in float32 whatever their precision.
        targets: `[B, M, P]`, the patches of the normalised log-mel; no gradient reaches them.
    """
    return patch_errors(predictions, targets).mean()


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
