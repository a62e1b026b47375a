"""Which clips an epoch has, in which order, and on which process: class-balanced or uniform.

The same for every number of workers and restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from peas.data.columns import Targets
from peas.errors import ConfigError, DataError
from peas.training.randomness import generator

# Keeps the weight of a class without clips finite (official AST, SSAST and AudioMAE lists).
_SOFTENER = 0.01


class EpochSampler(Protocol):
    """Law by which epochs are drawn.

    Attributes:
        count: Places of an epoch.
        repeats: Whether one clip may have several places of an epoch.
    """

    count: int
    repeats: bool

    def sample(self, source: torch.Generator) -> Tensor:
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

    def sample(self, source: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        return torch.randperm(self.count, generator=source)


def clip_weights(targets: Targets, classes: int) -> NDArray[np.float64]:
    """Weights by which rare classes are drawn as often as common ones.

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
    """Some clips, drawn by weight.

    Args:
        weights: `[N]`, not negative.
        count: Clips of an epoch.
        replacement: With it a clip may come several times in an epoch, as in the official
            repositories; without it each draw leaves the clips that were not drawn yet.

    Raises:
        ConfigError: There are too few clips with a weight.
    """

    def __init__(self, weights: ArrayLike, count: int, *, replacement: bool = True) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.count = count
        self.repeats = replacement
        able = int(np.count_nonzero(self.weights))
        if not able or (count > able and not replacement):
            raise ConfigError(
                f"data.init_args.epoch_clips is {count} without replacement, and the training set "
                f"has {able} clips with a class: give at most {able}, or set "
                "data.init_args.replacement to true"
                if able
                else "data.init_args.sampling is balanced, and no training clip has a class: "
                "set it to uniform"
            )

    def sample(self, source: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        if self.repeats:
            heap = np.cumsum(self.weights)
            u = torch.rand(self.count, generator=source, dtype=torch.float64).numpy()
            # Rounding may put a draw at the heap's very top, beyond the last clip with a weight.
            heights = np.minimum(u * heap[-1], np.nextafter(heap[-1], 0))
            # Looked up from low to high, a heap of two million clips is read four times as fast.
            upwards = np.argsort(heights)
            drawn = np.empty(self.count, dtype=np.int64)
            drawn[upwards] = np.searchsorted(heap, heights[upwards], "right")
            return torch.from_numpy(drawn)
        # The clips whose exponential clocks of rate `weight` ring first are a weighted draw
        # without replacement (Efraimidis and Spirakis, 2006).
        u = torch.rand(len(self.weights), generator=source, dtype=torch.float64).numpy()
        with np.errstate(divide="ignore"):
            rings = -np.log1p(-u) / self.weights
        # No draw is exactly 0, or a clip without a weight would ring at 0 / 0.
        rings[self.weights == 0] = np.inf
        chosen = np.argpartition(rings, self.count - 1)[: self.count]
        # Heavy clips ring early: the epoch's order must not tell.
        places = torch.randperm(self.count, generator=source)
        return torch.from_numpy(np.sort(chosen).astype(np.int64))[places]


class MixtureSampler:
    """Several sets one after the other, each as often as its weight says, in random order.

    Weight 1 takes every clip of a set once an epoch, 2 twice, and 0.25 another random quarter of
    the set in every epoch.

    Args:
        sizes: Clips of each set.
        weights: Weight of each set.

    Raises:
        ConfigError: A weight is negative, or all sets come to nothing.
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

    def sample(self, source: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        parts = []
        first = 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            whole, rest = divmod(count, size) if size else (0, 0)
            some = torch.randperm(size, generator=source)[:rest]
            parts.append(first + torch.cat([torch.arange(size).repeat(whole), some]))
            first += size
        clips = torch.cat(parts)
        return clips[torch.randperm(len(clips), generator=source)]


class ClipKey(NamedTuple):
    """A training clip asked for by its place, so that workers need no state of their own.

    Attributes:
        epoch: Epoch, from 0.
        position: Place in the epoch's order over all processes.
        clip: Row in the table of clips.
    """

    epoch: int
    position: int
    clip: int


class _Rows(Dataset[int]):
    """Stands for the table of clips where only its length is asked for."""

    def __init__(self, clips: int) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return self.clips


# Both classes are kinds of DistributedSampler for one reason beside its interface: Lightning
# wraps or replaces every other sampler when a run has several processes.
class TrainSampler(DistributedSampler[ClipKey]):
    """Order that depends on the seed and the epoch only.

    Process r of W gets the positions r, r + W, r + 2 W, … of one global order, so that its
    j-th batch of `batch_size` clips is part of the j-th global micro-batch. Clips that do not
    fill a last global micro-batch wait for another epoch.

    Args:
        order: Law by which epochs are drawn.
        batch_size: Clips of one process's batch.
        rank: Number of this process.
        world: Number of processes.
        seed: Seed of the run.

    Raises:
        DataError: An epoch does not fill one global micro-batch.
    """

    def __init__(
        self, order: EpochSampler, batch_size: int, *, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:
        clips = order.count
        super().__init__(_Rows(clips), num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.order = order
        self.batch_size = batch_size
        self.skip = 0
        self.global_size = batch_size * world
        self.num_samples = clips // self.global_size * batch_size
        self.total_size = self.num_samples * world
        if not self.num_samples:
            raise DataError(
                f"an epoch of training has {clips} clips, fewer than one global batch of "
                f"{self.global_size} (batch size {batch_size} on {world} processes): "
                "lower data.init_args.batch_size or use fewer processes"
            )

    def sample(self, epoch: int) -> Tensor:
        """Rows of all clips of an epoch, in their order."""
        return self.order.sample(generator(self.seed, "order", epoch, 0))

    def __iter__(self) -> Iterator[ClipKey]:
        """Yield this process's keys of the epoch given to `set_epoch`.

        The first `skip` of them are left out, once: a restarted run had them already.
        """
        skip, self.skip = self.skip, 0
        order = self.sample(self.epoch)
        for position in range(self.rank, self.total_size, self.num_replicas)[skip:]:
            yield ClipKey(self.epoch, position, int(order[position]))


class EvaluationSampler(DistributedSampler[int]):
    """Every clip once, in order: process r of W gets r, r + W, …; nothing is padded.

    The stock sampler repeats clips until all processes have equally many, which counts some
    of them twice in the metrics.
    """

    def __init__(self, clips: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Rows(clips), num_replicas=world, rank=rank, shuffle=False)
        self.indices = range(rank, clips, world)
        self.num_samples = len(self.indices)
        self.total_size = clips

    def __iter__(self) -> Iterator[int]:
        """Yield this process's indices."""
        return iter(self.indices)
