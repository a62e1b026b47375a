"""The loader: batches for the loop, and a record of the odd clips among them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch.utils.data import DataLoader, Dataset

from peas.data.batch import Batch, Broken, Item, collate
from peas.data.samplers import TrainSampler
from peas.errors import AudioError, DataError

log = logging.getLogger(__name__)


class Packet(NamedTuple):
    """What a worker sends: a batch, None when no clip of it could be read, and what was odd."""

    batch: Batch | None
    broken: list[Broken]
    silent: list[str]
    short: list[str]


class Packer(NamedTuple):
    """Collate function of the loader.

    Attributes:
        global_size: Rows of the global micro-batch; None in evaluation.
    """

    global_size: int | None = None

    def __call__(self, items: Sequence[Item | Broken]) -> Packet:
        """Collate the readable clips and note the odd ones."""
        clips = [item for item in items if isinstance(item, Item)]
        return Packet(
            batch=collate(items, self.global_size) if clips else None,
            broken=[item for item in items if isinstance(item, Broken)],
            silent=[clip.id for clip in clips if clip.silent],
            short=[clip.id for clip in clips if clip.short],
        )


@dataclass
class OddClips:
    """Names of the clips of one run that are broken, silent or very short, each counted once.

    Attributes:
        on_error: `raise` stops at a broken clip; `skip` warns, counts it and goes on without it.
        broken: Clips that could not be read.
        silent: Clips that hold only zeros: fine, but worth knowing.
        short: Clips shorter than one frame: fine as well.
    """

    on_error: Literal["raise", "skip"] = "raise"
    broken: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)

    def note(self, packet: Packet) -> None:
        """Count a packet's odd clips.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
        """
        self.silent.update(packet.silent)
        self.short.update(packet.short)
        for clip in packet.broken:
            if self.on_error == "raise":
                raise AudioError(clip.message)
            if clip.id not in self.broken:
                log.warning("left out: %s", clip.message)
            self.broken.add(clip.id)

    def __str__(self) -> str:
        return (
            f"{len(self.silent)} silent, {len(self.short)} shorter than one frame, "
            f"{len(self.broken)} unreadable"
        )


class ClipLoader(DataLoader[Any]):
    """`DataLoader` whose errors arrive in the main process as one clear message.

    Args:
        dataset: Usually a `ClipDataset`.
        odd_clips: Where odd clips are counted.
        **settings: Of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Item | Broken],
        odd_clips: OddClips,
        **settings: Any,
    ) -> None:
        super().__init__(dataset, **settings)
        self.odd_clips = odd_clips

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches; one of which no clip can be read is left out.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
        """
        for packet in super().__iter__():
            self.odd_clips.note(packet)
            if packet.batch is not None:
                yield packet.batch


class TrainLoader(ClipLoader):
    """`ClipLoader` that goes on inside an epoch after a restart, with nothing repeated or lost.

    The order of an epoch and every draw for a clip follow from the seed and the place alone, so
    the state is the epoch and the number of batches read; neither the number of workers nor the
    place where the loop was stopped matters. Lightning keeps this state in its checkpoints.

    A saved place counts in its own epoch only. Checkpoints of an epoch's last batch name an epoch
    that is already over when the run goes on, and the next one must then be read from its start.
    """

    _epoch = 0
    _read = 0
    _resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches of the sampler's epoch.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
            DataError: No clip of a batch could be read; every process must make the same number
                of steps, so the batch cannot be left out.
        """
        # This is a generator, so all of it waits for the first batch: Lightning asks for the
        # iterator before it tells the sampler the epoch, and workers read ahead at once.
        sampler = self.sampler
        self._epoch, self._read = 0, 0
        if isinstance(sampler, TrainSampler):
            self._epoch = sampler.epoch
            if self._resume is not None and self._resume[0] == sampler.epoch:
                self._read = self._resume[1]
            sampler.skip = self._read * sampler.batch_size
        self._resume = None
        for packet in DataLoader.__iter__(self):
            self.odd_clips.note(packet)
            if packet.batch is None:
                raise DataError(
                    "no clip of a training batch could be read, the first being: "
                    f"{packet.broken[0].message}; repair the files or raise "
                    "data.init_args.batch_size"
                )
            self._read += 1
            yield packet.batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of its batches that were read."""
        epoch, read = self._resume or (self._epoch, self._read)
        return {"epoch": epoch, "read": read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a state was taken, if the next epoch to be read is the state's."""
        self._resume = (state["epoch"], state["read"]) if state else None
