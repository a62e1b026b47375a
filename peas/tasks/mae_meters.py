"""Means of masked audio modelling over an epoch and over an evaluation."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torchmetrics import MeanMetric

from peas.objectives import LabelLoss
from peas.tasks.finite import counted
from peas.tasks.mae_objectives import Losses
from peas.trivial import AgainstTrivial, LabelPrior


class MaeMeters(nn.Module):
    """Counts what each objective comes to, beside its trivial predictor.

    Args:
        objectives: Names of the objectives.
        cells: Cells P of a patch.
        features: Width D of a teacher's features; 0 without.
        classes: Number of classes C.
        label_loss: Kind of the branch's loss.
    """

    def __init__(
        self,
        objectives: list[str],
        *,
        cells: int,
        features: int,
        classes: int,
        label_loss: LabelLoss,
    ) -> None:
        super().__init__()
        names = ["loss", *objectives]
        self.training_means = nn.ModuleDict({name: MeanMetric() for name in names})
        self.evaluation_means = nn.ModuleDict({name: MeanMetric() for name in names})
        for mean in self.training_means.values():
            # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
            cast(MeanMetric, mean).persistent(True)
        self.patches = AgainstTrivial(cells) if "reconstruction" in objectives else None
        self.features = AgainstTrivial(features) if "distillation" in objectives else None
        branch = "classification" in objectives
        self.prior = LabelPrior(classes, label_loss) if branch else None

    def count(
        self, losses: Losses, clips: int, *, first: bool
    ) -> Iterator[tuple[str, MeanMetric, Tensor]]:
        """Counts a training batch; yields each objective's name, running mean and value."""
        for name, value in {"loss": losses.total, **losses.terms}.items():
            mean = cast(MeanMetric, self.training_means[name])
            if first:
                mean.reset()
            mean.update(*counted(value.detach(), _weight(name, losses, clips)))
            yield name, mean, value.detach()

    def evaluate(self, losses: Losses, clips: int) -> None:
        """Counts a batch of evaluation."""
        for name, value in {"loss": losses.total, **losses.terms}.items():
            if weight := _weight(name, losses, clips):
                cast(MeanMetric, self.evaluation_means[name]).update(value, weight)
        if self.patches is not None and losses.patches is not None:
            self.patches.update(*losses.patches)
        if self.features is not None and losses.features is not None:
            self.features.update(*losses.features)
        if self.prior is not None and losses.labelled is not None:
            self.prior.update(losses.labelled)

    def compute(self) -> dict[str, Tensor]:
        """Figures of the evaluation by name; begins anew."""
        found: dict[str, Tensor] = {}
        for name, mean in self.evaluation_means.items():
            found[name] = cast(MeanMetric, mean).compute()
            cast(MeanMetric, mean).reset()
        if self.patches is not None:
            found |= self.patches.compute()
            self.patches.reset()
        if self.features is not None:
            scores = self.features.compute()
            found["feature_mse"] = scores["valid_mse"]
            found["trivial_feature_mse"] = scores["trivial_mse"]
            self.features.reset()
        if self.prior is not None:
            found["trivial_classification"] = self.prior.compute()
            self.prior.reset()
        return found


def _weight(name: str, losses: Losses, clips: int) -> int:
    """Clips that an objective's value stands for."""
    if name == "classification" and losses.labelled is not None:
        return len(losses.labelled)
    return clips
