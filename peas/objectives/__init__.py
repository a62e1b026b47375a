"""Objectives of pretraining, and the losses that they are made of."""

from peas.objectives.base import BuildInfo, Objective, Rows, Term, View, patch_errors
from peas.objectives.feature_distillation import (
    FeatureDistillation,
    FeatureLoss,
    TargetNorm,
    feature_loss,
    feature_targets,
)
from peas.objectives.label_classification import LabelClassification
from peas.objectives.losses import (
    ClassificationLoss,
    LabelLoss,
    as_soft,
    classification_loss,
    label_loss,
    soft_cross_entropy,
)
from peas.objectives.patch_contrast import InfoNCE, NCEAxis, PatchContrast, info_nce
from peas.objectives.reconstruction import Reconstruction, masked_patch_error

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
    "masked_patch_error",
    "patch_errors",
    "soft_cross_entropy",
]
