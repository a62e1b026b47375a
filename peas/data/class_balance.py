"""Which clips an epoch has, in which order: uniform, class-balanced, or several sets by weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from peas.data.columns import Targets
from peas.errors import ConfigError

# Keeps the weight of a class without clips finite (official AST, SSAST and AudioMAE lists).
_SOFTENER = 0.01


class EpochSampler(Protocol):
    """Samples the clips of an epoch.

    Attributes:
        count: Clips of an epoch.
        repeats: Whether a clip may come several times in an epoch.
    """

    count: int
    repeats: bool

    def sample(self, generator: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        ...


class UniformSampler:
    """Every clip once, in random order.

    Args:
        clips: Number of clips.
    """

    repeats = False

    def __init__(self, clips: int) -> None:
        self.count = clips

    def sample(self, generator: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        return torch.randperm(self.count, generator=generator)


def clip_weights(targets: Targets, classes: int) -> NDArray[np.float64]:
    """Weights with which rare classes are sampled as often as common ones.

    A class of n clips weighs 1000 / (n + 0.01), and a clip the sum of its classes (the weight
    lists of the official AST, SSAST and AudioMAE repositories).

    Args:
        targets: Classes of each clip.
        classes: Number of classes.

    Returns:
        `[N]`; 0 for a clip without a class.
    """
    rare = 1000.0 / (targets.counts(classes) + _SOFTENER)
    sums = np.concatenate([[0.0], np.cumsum(rare[targets.classes])])
    weights: NDArray[np.float64] = sums[targets.offsets[1:]] - sums[targets.offsets[:-1]]
    return weights


class WeightedSampler:
    """Clips sampled by weight.

    Args:
        weights: `[N]`, not negative.
        count: Clips of an epoch.
        replacement: With it a clip may come several times in an epoch, as in the official
            repositories; without it each clip at most once.

    Raises:
        ConfigError: There are too few clips with a weight.
    """

    def __init__(self, weights: ArrayLike, count: int, *, replacement: bool = True) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.count = count
        self.repeats = replacement
        weighted = int(np.count_nonzero(self.weights))
        if not weighted or (count > weighted and not replacement):
            raise ConfigError(
                f"data.init_args.epoch_clips is {count} without replacement, and the training set "
                f"has {weighted} clips with a class: give at most {weighted}, or set "
                "data.init_args.replacement to true"
                if weighted
                else "data.init_args.sampling is balanced, and no training clip has a class: "
                "set it to uniform"
            )

    def sample(self, generator: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        if self.repeats:
            total = np.cumsum(self.weights)
            u = torch.rand(self.count, generator=generator, dtype=torch.float64).numpy()
            # Rounding may give the sum itself, beyond the last clip with a weight.
            heights = np.minimum(u * total[-1], np.nextafter(total[-1], 0))
            # Searched in ascending order, two million clips take a quarter of the time.
            ascending = np.argsort(heights)
            clips = np.empty(self.count, dtype=np.int64)
            clips[ascending] = np.searchsorted(total, heights[ascending], "right")
            return torch.from_numpy(clips)
        # The clips with the least exponential times of rate `weight` are a weighted sample
        # without replacement (Efraimidis and Spirakis, 2006).
        u = torch.rand(len(self.weights), generator=generator, dtype=torch.float64).numpy()
        with np.errstate(divide="ignore"):
            times = -np.log1p(-u) / self.weights
        # 0 / 0 for a clip without a weight.
        times[self.weights == 0] = np.inf
        chosen = np.argpartition(times, self.count - 1)[: self.count]
        # Heavy clips have short times, which the epoch's order must not show.
        order = torch.randperm(self.count, generator=generator)
        return torch.from_numpy(np.sort(chosen).astype(np.int64))[order]


class MixtureSampler:
    """Several sets one after the other, each as often as its weight says, in random order.

    Weight 1 takes every clip of a set once an epoch, 2 twice, and 0.25 another random quarter of
    the set in every epoch.

    Args:
        sizes: Clips of each set.
        weights: Weight of each set.

    Raises:
        ConfigError: A weight is negative, or no set has a clip left.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        if len(sizes) != len(weights):
            raise ConfigError(
                f"data.init_args.weights has {len(weights)} entries for {len(sizes)} sets: "
                "give one each"
            )
        if min(weights) < 0:
            raise ConfigError(f"data.init_args.weights has {min(weights)}: give 0 or more")
        self.sizes = list(sizes)
        self.counts = [round(size * weight) for size, weight in zip(sizes, weights, strict=True)]
        self.count = sum(self.counts)
        self.repeats = any(
            count > size for count, size in zip(self.counts, self.sizes, strict=True)
        )
        if not self.count:
            raise ConfigError("data.init_args.weights leave no clip of any set: give larger ones")

    def sample(self, generator: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        parts = []
        first = 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            repeats, rest = divmod(count, size) if size else (0, 0)
            random = torch.randperm(size, generator=generator)[:rest]
            parts.append(first + torch.cat([torch.arange(size).repeat(repeats), random]))
            first += size
        clips = torch.cat(parts)
        return clips[torch.randperm(len(clips), generator=generator)]
