"""Means of a pretraining's losses over an epoch and over an evaluation."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn
from torchmetrics import MeanMetric

from peas.objectives.composition import Losses
from peas.training.nonfinite import counted


class LossMeters(nn.Module):
    """Counts what the sum, each objective and its other metrics come to.

    Args:
        names: Of objectives and metrics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        names = ["loss", *names]
        self.training_means = nn.ModuleDict({name: MeanMetric() for name in names})
        self.evaluation_means = nn.ModuleDict({name: MeanMetric() for name in names})
        for mean in self.training_means.values():
            # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
            cast(MeanMetric, mean).persistent(True)

    def count(
        self, losses: Losses, clips: int, *, first: bool
    ) -> Iterator[tuple[str, MeanMetric, Tensor]]:
        """Counts a training batch; yields each loss's name, running mean and value."""
        for name, value, weight in _values(losses, clips):
            mean = cast(MeanMetric, self.training_means[name])
            if first:
                mean.reset()
            mean.update(*counted(value.detach(), weight))
            yield name, mean, value.detach()

    def evaluate(self, losses: Losses, clips: int) -> None:
        """Counts a batch of evaluation."""
        for name, value, weight in _values(losses, clips):
            if weight:
                cast(MeanMetric, self.evaluation_means[name]).update(value, weight)

    def compute(self) -> dict[str, Tensor]:
        """Means of the evaluation by name; begins anew."""
        found: dict[str, Tensor] = {}
        for name, mean in self.evaluation_means.items():
            found[name] = cast(MeanMetric, mean).compute()
            cast(MeanMetric, mean).reset()
        return found


def _values(losses: Losses, clips: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, value and number of clips of the sum, of each objective and of its metrics."""
    yield "loss", losses.total, clips
    for name, term in losses.terms.items():
        counted = clips if term.clips is None else term.clips
        yield name, term.loss, counted
        for metric, value in term.metrics.items():
            yield metric, value, counted
