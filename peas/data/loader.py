"""The loader: batches for the loop, and a record of the odd clips among them."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from torch.utils.data import DataLoader, Dataset

from peas.data.batch import Batch, Broken, Item, collate
from peas.data.clips import ClipDataset
from peas.data.fingerprint import hash_strings
from peas.data.samplers import ClipKey, TrainSampler
from peas.errors import AudioError, ConfigError, DataError
from peas.utils.processes import CONTEXT, kill_workers, why_killed

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds beyond a loader's time limit after which its workers are killed."""


class Packet(NamedTuple):
    """What a worker sends: a batch, None when no clip of it could be read, and what was odd."""

    batch: Batch | None
    broken: list[Broken]
    silent: list[str]
    short: list[str]
    cut: list[str]


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
            cut=[clip.id for clip in clips if clip.cut],
        )


@dataclass
class OddClips:
    """Names of the clips of one run that are broken, silent, too short or too long, counted once.

    Attributes:
        on_error: `raise` stops at a broken clip; `skip` warns, counts it and goes on without it.
        broken: Clips that could not be read.
        silent: Clips that hold only zeros: fine, but worth knowing.
        short: Clips shorter than one frame: fine as well.
        cut: Clips longer than the model's input, which does not see their end.
    """

    on_error: Literal["raise", "skip"] = "raise"
    broken: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)

    def note(self, packet: Packet) -> None:
        """Count a packet's odd clips.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
        """
        self.silent.update(packet.silent)
        self.short.update(packet.short)
        self.cut.update(packet.cut)
        for clip in packet.broken:
            if self.on_error == "raise":
                raise AudioError(clip.message)
            if clip.id not in self.broken:
                log.warning("left out: %s", clip.message)
            self.broken.add(clip.id)

    def join(self, other: OddClips) -> None:
        """Count those of another process too."""
        self.broken |= other.broken
        self.silent |= other.silent
        self.short |= other.short
        self.cut |= other.cut

    def __bool__(self) -> bool:
        return bool(self.broken or self.silent or self.short or self.cut)

    def __str__(self) -> str:
        text = (
            f"{len(self.silent)} silent, {len(self.short)} shorter than one frame, "
            f"{len(self.broken)} unreadable"
        )
        if self.cut:
            text += f", {len(self.cut)} longer than the input, which lose their end"
        return text


class ClipLoader(DataLoader[Any]):
    """`DataLoader` whose errors arrive in the main process as one clear message.

    Its workers are forked once, and read every later epoch too: each fork of a process that has
    threads is one that a lock of theirs can stop.

    Args:
        dataset: Usually a `ClipDataset`.
        odd_clips: Where odd clips are counted.
        root: Folder of the clips, which messages name.
        num_workers: Worker processes; 0 = read in this one.
        timeout: Seconds after which a batch that a worker does not deliver is an error.
        **settings: Of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Item | Broken],
        odd_clips: OddClips,
        *,
        root: object = "the data set",
        num_workers: int = 0,
        timeout: float = 600.0,
        **settings: Any,
    ) -> None:
        if num_workers:
            settings |= {
                "persistent_workers": True,
                "multiprocessing_context": CONTEXT,
                "timeout": timeout,
            }
        super().__init__(dataset, num_workers=num_workers, **settings)
        self.odd_clips = odd_clips
        self.root = root

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches; one of which no clip can be read is left out.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
            DataError: A worker does not answer.
        """
        for packet in self._packets():
            self.odd_clips.note(packet)
            if packet.batch is not None:
                yield packet.batch

    def _packets(self, first: int = 0) -> Iterator[Packet]:
        """What the workers send, from a batch of the epoch on."""
        number, batches = first, super().__iter__()
        while True:
            with self._watched(number, first):
                try:
                    packet = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    if reason := why_killed():
                        raise DataError(reason) from error
                    # As PyTorch words it; it has no error of its own for that.
                    if "timed out after" not in str(error):
                        raise
                    raise DataError(self._stuck(number, first)) from error
            yield packet
            number += 1

    @contextmanager
    def _watched(self, number: int, first: int) -> Iterator[None]:
        """Kills the workers when a batch takes too long.

        PyTorch's own time limit ends where a batch is announced. What it holds is then fetched
        from the worker, and one that has stopped in between never sends it.
        """
        if not self.num_workers:
            yield
            return
        clock = threading.Timer(
            self.timeout + GRACE, lambda: kill_workers(self._stuck(number, first))
        )
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()
            # No worker is forked while it is there.
            clock.join()

    def _stuck(self, number: int, first: int) -> str:
        """Says which worker gave no batch, and what it was to read."""
        # PyTorch deals the batches out in turn.
        who = f"worker {(number - first) % self.num_workers} of {self.num_workers}"
        size = self.batch_size or 1
        keys = list(islice(iter(self.sampler), number * size, (number + 1) * size))
        rows = [key.clip if isinstance(key, ClipKey) else key for key in keys]
        table = getattr(self.dataset, "table", None)
        names = [table.ids[row] for row in rows] if table is not None else []
        clips = f", clips {', '.join(names[:8])}{' …' if names[8:] else ''}" if names else ""
        return (
            f"{self.root}: {who} has not delivered a batch for {self.timeout:g} s{clips}. The "
            "disk, or one of these files, does not answer: look at them with `peas data verify`; "
            "where reading only is slow, raise data.init_args.timeout. A run that was saved "
            "resumes with `--ckpt_path last`"
        )


class TrainLoader(ClipLoader):
    """`ClipLoader` that goes on inside an epoch after a restart, with nothing repeated or lost.

    The order of an epoch and every draw for a clip follow from the seed and the place alone, so
    the state is the epoch and the number of batches read; neither the number of workers nor the
    place where the loop was stopped matters. Lightning keeps this state in its checkpoints.

    The place is told in batches, so it belongs to one size of the global batch and to one order of
    the clips: with another, clips would come twice or never, and it is refused.

    A saved place counts in its own epoch only. Checkpoints of an epoch's last batch name an epoch
    that is already over when the run goes on, and the next one must then be read from its start.
    """

    _epoch = 0
    _read = 0
    _resume: dict[str, Any] | None = None
    _order: tuple[int, str] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches of the sampler's epoch.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
            DataError: No clip of a batch could be read; every process must make the same number
                of steps, so the batch cannot be left out. Or a worker does not answer.
        """
        # This is a generator, so all of it waits for the first batch: Lightning asks for the
        # iterator before it tells the sampler the epoch, and workers read ahead at once.
        sampler = self.sampler
        self._epoch, self._read = 0, 0
        if isinstance(sampler, TrainSampler):
            self._epoch = sampler.epoch
            if self._resume is not None and self._resume["epoch"] == sampler.epoch:
                self._require_place(self._resume)
                self._read = self._resume["read"]
            sampler.skip = self._read * sampler.batch_size
        self._resume = None
        for packet in self._packets(self._read):
            self.odd_clips.note(packet)
            if packet.batch is None:
                raise DataError(
                    "no clip of a training batch could be read, the first being: "
                    f"{packet.broken[0].message}; repair the files or raise "
                    "data.init_args.batch_size"
                )
            self._read += 1
            yield packet.batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, number of its batches that were read, and what that number depends on."""
        if self._resume is not None:
            return self._resume
        place: dict[str, Any] = {"epoch": self._epoch, "read": self._read}
        if isinstance(self.sampler, TrainSampler):
            place |= {"batch": self.sampler.global_size, "order": self._digest(self._epoch)}
        return place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken, if the next epoch to be read is the state's."""
        self._resume = state or None

    def _require_place(self, place: dict[str, Any]) -> None:
        """Refuse a place inside an epoch that means other clips now.

        Raises:
            ConfigError: The global batch, or the order of the clips, is another one.
        """
        sampler = self.sampler
        # The place of an older version tells neither.
        if not place["read"] or not isinstance(sampler, TrainSampler) or "batch" not in place:
            return
        remedy = (
            f"go on as before until epoch {place['epoch'] + 1} is over, or from a checkpoint of an "
            "epoch's end"
        )
        if place["batch"] != sampler.global_size:
            raise ConfigError(
                f"the run stands inside an epoch, {place['read']} batches of {place['batch']} "
                f"clips after its beginning, and a batch over all processes now has "
                f"{sampler.global_size} (`data.init_args.batch_size` x processes): clips would be "
                f"lost or come twice. Give {place['batch']} in all, or {remedy}"
            )
        if place["order"] != self._digest(sampler.epoch):
            raise ConfigError(
                f"the run stands inside an epoch, {place['read']} batches after its beginning, and "
                "its order is another one now, since the training clips or how they are drawn "
                f"(sampling, epoch_clips, replacement, label_fraction) changed: {remedy}"
            )

    def _digest(self, epoch: int) -> str:
        """One word for the clips of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            assert isinstance(self.sampler, TrainSampler)
            sum_ = hashlib.blake2b(digest_size=8)
            if isinstance(self.dataset, ClipDataset):
                sum_.update(hash_strings(self.dataset.table.ids).tobytes())
            sum_.update(self.sampler.draw(epoch).numpy().tobytes())
            self._order = (epoch, sum_.hexdigest())
        return self._order[1]
