"""Losses as pure functions of tensors, and the objectives of pretraining that are made of them."""

from peas.objectives.base import BuildInfo, Objective, Rows, Term, View
from peas.objectives.feature_distillation import FeatureDistillation
from peas.objectives.label_classification import LabelClassification
from peas.objectives.losses import (
    ClassificationLoss,
    FeatureLoss,
    InfoNCE,
    LabelLoss,
    NCEAxis,
    TargetNorm,
    as_soft,
    classification_loss,
    feature_loss,
    feature_targets,
    info_nce,
    label_loss,
    masked_mse,
    masked_patch_error,
    patch_errors,
    soft_cross_entropy,
    take_patches,
)
from peas.objectives.patch_contrast import PatchContrast
from peas.objectives.reconstruction import Reconstruction

__all__ = [
    "BuildInfo",
    "ClassificationLoss",
    "FeatureDistillation",
    "FeatureLoss",
    "InfoNCE",
    "LabelClassification",
    "LabelLoss",
    "NCEAxis",
    "Objective",
    "PatchContrast",
    "Reconstruction",
    "Rows",
    "TargetNorm",
    "Term",
    "View",
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
