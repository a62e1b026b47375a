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
from peas.objectives.masked import (
    FeatureLoss,
    LabelLoss,
    TargetNorm,
    feature_loss,
    feature_targets,
    label_loss,
    masked_patch_error,
)

__all__ = [
    "ClassificationLoss",
    "FeatureLoss",
    "InfoNCE",
    "LabelLoss",
    "NCEAxis",
    "TargetNorm",
    "as_soft",
    "classification_loss",
    "feature_loss",
    "feature_targets",
    "info_nce",
    "label_loss",
    "masked_mse",
    "masked_patch_error",
    "patch_errors",
    "soft_cross_entropy",
    "take_patches",
]
