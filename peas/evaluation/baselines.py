"""Constant baselines, against which a pretraining task shows that it learns.

The baseline predicts one patch everywhere: the mean of those that it is evaluated on, known only
afterwards. No constant is better, so a model that is has learnt something about the clip.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:
    from peas.objectives.losses import LabelLoss


class BaselineError(Metric):
    """Errors of a model and of the best constant over the same patches of an evaluation.

    Patches that hold padding, digital silence or a single value are left out: a constant
    predicts them well.
    """

    # Every batch is added in the same way, so a forward needs no second pass.
    full_state_update = False
    patches: Tensor
    error: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        for name in ("patches", "error", "squares"):
            # A tensor each: `add_state` keeps the very one that it is given, and sums are in place.
            zero = torch.tensor(0.0, dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, errors: Tensor, targets: Tensor, valid: Tensor) -> None:
        """Add a batch.

        Args:
            errors: `[B, M]`, mean squared error of each predicted patch.
            targets: `[B, M, P]`, the patches.
            valid: `[B, M]` bool, patches of real sound.
        """
        counted = valid & (targets.amax(dim=2) > targets.amin(dim=2))
        kept = targets[counted].double()
        self.patches += counted.sum()
        self.error += errors[counted].double().sum()
        self.total += kept.sum(dim=0)
        self.squares += kept.square().mean(dim=1).sum()

    def compute(self) -> dict[str, Tensor]:
        """`valid_mse` of the model and `baseline_mse` of the mean patch; NaN without patches."""
        mean = self.total / self.patches
        return {
            "valid_mse": self.error / self.patches,
            "baseline_mse": self.squares / self.patches - mean.square().mean(),
        }


class LabelPrior(Metric):
    """Loss of the constant prediction of the class frequencies."""

    full_state_update = False
    clips: Tensor
    total: Tensor

    def __init__(self, classes: int, kind: "LabelLoss") -> None:
        super().__init__()
        self.kind = kind
        zero = torch.zeros(classes, dtype=torch.float64)
        self.add_state("clips", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", zero, dist_reduce_fx="sum")

    def update(self, target: Tensor) -> None:
        """Add targets `[B, C]` of labelled clips."""
        labels = target.double()
        if self.kind == "soft":
            labels = labels / labels.sum(dim=1, keepdim=True).clamp(min=1e-12)
        self.clips += len(labels)
        self.total += labels.sum(dim=0)

    def compute(self) -> Tensor:
        """The least loss that one and the same prediction for all clips can have."""
        mean = self.total / self.clips
        if self.kind == "bce":
            return -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).mean()
        return -torch.xlogy(mean, mean / mean.sum()).sum()
