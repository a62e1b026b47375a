"""Losses as pure functions of tensors: of classes, of hidden patches told apart, and drawn."""

from peas.objectives.classification import (
    ClassificationLoss,
    as_soft,
    classification_loss,
    soft_cross_entropy,
)
from peas.objectives.contrastive import (
    InfoNCE,
    NCEAxis,
    info_nce,
    masked_mse,
    patch_errors,
    take_patches,
)

__all__ = [
    "ClassificationLoss",
    "InfoNCE",
    "NCEAxis",
    "as_soft",
    "classification_loss",
    "info_nce",
    "masked_mse",
    "patch_errors",
    "soft_cross_entropy",
    "take_patches",
]
