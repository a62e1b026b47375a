"""The loader: batches for the loop, and a record of the odd clips among them."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from peas.data.batch import Batch, Broken, Item, collate
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


class ClipLoader(StatefulDataLoader):  # type: ignore[misc]
    """`StatefulDataLoader` whose errors arrive in the main process as one clear message.

    Args:
        dataset: Usually a `ClipDataset`.
        odd_clips: Where odd clips are counted.
        training: A training batch of which no clip can be read is an error, since every process
            must make the same number of steps; in evaluation it is left out.
        **settings: Of `StatefulDataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Item | Broken],
        odd_clips: OddClips,
        training: bool = False,
        **settings: Any,  # noqa: ANN401 - the parent's arguments
    ) -> None:
        with warnings.catch_warnings():
            # torchdata calls a function that newer releases of torch deprecate.
            warnings.filterwarnings("ignore", message=".*set_vital.*")
            super().__init__(dataset, **settings)
        self.odd_clips = odd_clips
        self.training = training

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
            DataError: No clip of a training batch could be read.
        """
        # Not a generator: the parent's iterator, and with it the workers and the order of the
        # epoch, must start here and not at the first batch.
        return filter(None, map(self._unpack, super().__iter__()))

    def _unpack(self, packet: Packet) -> Batch | None:
        self.odd_clips.note(packet)
        if packet.batch is None and self.training:
            raise DataError(
                f"no clip of a training batch could be read, the first being: "
                f"{packet.broken[0].message}; repair the files or raise data.init_args.batch_size"
            )
        return packet.batch
