"""Samplers of training and evaluation under DDP: no clip is lost, padded or counted twice.

The order is the same for every number of workers and restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from peas.data.class_balance import EpochSampler
from peas.errors import DataError
from peas.training.randomness import generator


class ClipKey(NamedTuple):
    """Key of a training clip with its position, so that workers need no state of their own.

    Attributes:
        epoch: Epoch, from 0.
        position: Position in the epoch's order over all processes.
        clip: Row in the table of clips.
    """

    epoch: int
    position: int
    clip: int


class _Rows(Dataset[int]):
    """Data set of a length, which is all that `DistributedSampler` uses."""

    def __init__(self, clips: int) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return self.clips


# Both subclass DistributedSampler, as Lightning replaces every other sampler under DDP.
class TrainSampler(DistributedSampler[ClipKey]):
    """Order that depends on the seed and the epoch only.

    Process r of W gets the positions r, r + W, r + 2 W, … of one global order, so that its
    j-th batch of `batch_size` clips is part of the j-th global micro-batch. Clips that do not
    fill a last global micro-batch are left out, others in each epoch.

    Args:
        sampler: Samples the clips of an epoch.
        batch_size: Clips of one process's batch.
        rank: Number of this process.
        world: Number of processes.
        seed: Seed of the run.

    Raises:
        DataError: An epoch does not fill one global micro-batch.
    """

    def __init__(
        self,
        sampler: EpochSampler,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        clips = sampler.count
        super().__init__(_Rows(clips), num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.sampler = sampler
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

    def epoch_order(self, epoch: int) -> Tensor:
        """Rows of all clips of an epoch, in their order."""
        return self.sampler.sample(generator(self.seed, "order", epoch, 0))

    def __iter__(self) -> Iterator[ClipKey]:
        """Yield this process's keys of the epoch given to `set_epoch`.

        The first `skip` of them are left out, once: a restarted run had them already.
        """
        skip, self.skip = self.skip, 0
        order = self.epoch_order(self.epoch)
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
