"""Losses as pure functions of tensors: of classes, of hidden patches told apart, and drawn."""

from peas.objectives.classification import (
    ClassificationLoss,
    as_soft,
    classification_loss,
    soft_cross_entropy,
)

__all__ = [
    "ClassificationLoss",
    "as_soft",
    "classification_loss",
    "soft_cross_entropy",
]
