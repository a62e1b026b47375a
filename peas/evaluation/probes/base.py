"""What a probe is, and how its setting is chosen."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from peas.errors import DataError
from peas.evaluation.metrics import class_scores
from peas.evaluation.probes.data import Partition, ProbeSet


class Probe(ABC):
    """A classifier on frozen embeddings.

    Attributes:
        grid: Values of the setting that is chosen without the test clips; empty = none is.
        most_choices: How many of a partition's choices are used; None = all.
        seeded: Whether random numbers change the scores.

    Args:
        layer: Number of the layer, where a probe takes one; None = the last.
    """

    grid: ClassVar[tuple[float, ...]] = ()
    most_choices: ClassVar[int | None] = None
    seeded: ClassVar[bool] = False

    def __init__(self, layer: int | None = None) -> None:
        self.layer = layer

    def check(self, data: ProbeSet) -> None:
        """Refuses a set.

        Raises:
            ConfigError: The probe needs what the set lacks.
        """
        data.layer(self.layer)

    def layers(self, data: ProbeSet) -> list[int]:
        """Indices in `data.layers` of the layers that it uses."""
        return [data.layer(self.layer)]

    @abstractmethod
    def scores(
        self, data: ProbeSet, train: Tensor, test: Tensor, value: float | None, seed: int
    ) -> Tensor:
        """Trains on some clips and scores others.

        Args:
            data: The set.
            train: Rows to train on.
            test: Rows to score.
            value: Of the grid; None without one.
            seed: Of the random numbers.

        Returns:
            `[K, C]`, higher means more likely.
        """


def choose(probe: Probe, data: ProbeSet, partition: Partition) -> float | None:
    """The value of a probe's grid with the best mean score; the first of equally good ones.

    Raises:
        DataError: No clip that is left for the choice has a class.
    """
    best: tuple[float, float | None] = (-1.0, None)
    # Without a clip of any class there is no mAP.
    usable = [(train, out) for train, out in partition.choices if data.targets[out].any()]
    if probe.grid and not usable:
        parts = {data.split[row] for _, out in partition.choices for row in out.tolist()}
        raise DataError(
            f"{data.name}: no clip of {', '.join(sorted(parts))} has a class, and the setting of a "
            f"probe for {partition.name} is chosen on these: embed a set in which some have"
        )
    for value in probe.grid:
        total = 0.0
        for train, out in usable[: probe.most_choices]:
            scores = probe.scores(data, train, out, value, seed=0)
            total += float(metric(scores, data.targets[out], data.multi_label))
        if total > best[0]:
            best = (total, value)
    return best[1]


def metric(scores: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Top-1 accuracy, or mAP over the classes with clips.

    Args:
        scores: `[K, C]`.
        targets: `[K, C]` bool.
        multi_label: Whether clips may be of any number of classes.
    """
    if multi_label:
        return class_scores(scores, targets).average_precision.nanmean()
    return hits(scores, targets).double().mean()


def hits(scores: Tensor, targets: Tensor) -> Tensor:
    """Whether the highest of each clip's scores is of its class, `[K]` bool."""
    return torch.gather(targets, 1, scores.argmax(dim=1, keepdim=True))[:, 0]
