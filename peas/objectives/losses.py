"""Losses of class scores, as pure functions of tensors. B clips, C classes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ClassificationLoss = Literal["ce", "bce"]
LabelLoss = Literal["soft", "multi_hot", "bce"]


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
