"""DataLoaders: batches for the loop, resuming inside an epoch, and a record of bad clips."""

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

from peas.data.batch import Batch, Item, Unreadable, collate
from peas.data.clips import ClipDataset
from peas.data.distributed_samplers import ClipKey, TrainSampler
from peas.data.fingerprint import hash_strings
from peas.errors import AudioError, ConfigError, DataError
from peas.utils.processes import CONTEXT, kill_workers, why_killed

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds beyond a loader's timeout after which its workers are killed."""


class Packet(NamedTuple):
    """What a worker sends: a batch, or None when no clip of it is readable, and its bad clips."""

    batch: Batch | None
    unreadable: list[Unreadable]
    silent: list[str]
    short: list[str]
    cut: list[str]


class CollateClips(NamedTuple):
    """Collate function of the loader.

    Attributes:
        global_size: Rows of the global micro-batch; None in evaluation.
    """

    global_size: int | None = None

    def __call__(self, items: Sequence[Item | Unreadable]) -> Packet:
        """Collate the readable clips and note the bad ones."""
        clips = [item for item in items if isinstance(item, Item)]
        return Packet(
            batch=collate(items, self.global_size) if clips else None,
            unreadable=[item for item in items if isinstance(item, Unreadable)],
            silent=[clip.id for clip in clips if clip.silent],
            short=[clip.id for clip in clips if clip.short],
            cut=[clip.id for clip in clips if clip.cut],
        )


@dataclass
class BadClips:
    """Names of the clips of a run that are unreadable, silent, too short or too long.

    Attributes:
        on_error: `raise` stops at an unreadable clip; `skip` warns, counts it and continues.
        unreadable: Clips that could not be read.
        silent: Clips that hold only zeros; they are used.
        short: Clips shorter than one frame; they are used.
        cut: Clips longer than the model's input, which loses their end.
    """

    on_error: Literal["raise", "skip"] = "raise"
    unreadable: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)

    def note(self, packet: Packet) -> None:
        """Count the bad clips of a packet.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
        """
        self.silent.update(packet.silent)
        self.short.update(packet.short)
        self.cut.update(packet.cut)
        for clip in packet.unreadable:
            if self.on_error == "raise":
                raise AudioError(clip.message)
            if clip.id not in self.unreadable:
                log.warning("left out: %s", clip.message)
            self.unreadable.add(clip.id)

    def join(self, other: BadClips) -> None:
        """Add those of another process."""
        self.unreadable |= other.unreadable
        self.silent |= other.silent
        self.short |= other.short
        self.cut |= other.cut

    def __bool__(self) -> bool:
        return bool(self.unreadable or self.silent or self.short or self.cut)

    def __str__(self) -> str:
        text = (
            f"{len(self.silent)} silent, {len(self.short)} shorter than one frame, "
            f"{len(self.unreadable)} unreadable"
        )
        if self.cut:
            text += f", {len(self.cut)} longer than the input, which lose their end"
        return text


class ClipLoader(DataLoader[Any]):
    """`DataLoader` whose errors arrive in the main process as one clear message.

    Its workers are forked once and persist over epochs: forking a process that has threads can
    deadlock.

    Args:
        dataset: Usually a `ClipDataset`.
        odd_clips: counts bad clips.
        root: Folder of the clips, which messages name.
        num_workers: Worker processes; 0 = this one.
        timeout: Seconds after which a missing batch is an error.
        **settings: Of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Item | Unreadable],
        bad_clips: BadClips,
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
        self.bad_clips = bad_clips
        self.root = root

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate over the batches; one without a readable clip is left out.

        Raises:
            AudioError: A clip could not be read, and the policy is `raise`.
            DataError: A worker does not respond.
        """
        for packet in self._packets():
            self.bad_clips.note(packet)
            if packet.batch is not None:
                yield packet.batch

    def _packets(self, first: int = 0) -> Iterator[Packet]:
        """Packets of the workers, from a batch of the epoch on."""
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
                    # PyTorch has no error type of its own for that.
                    if "timed out after" not in str(error):
                        raise
                    raise DataError(self._stuck(number, first)) from error
            yield packet
            number += 1

    @contextmanager
    def _watched(self, number: int, first: int) -> Iterator[None]:
        """Kill the workers when a batch takes too long.

        PyTorch's timeout ends when a batch is announced. Its tensors are then fetched from the
        worker, and one that has stopped in between never sends them.
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
            # No worker may be forked while the thread runs.
            clock.join()

    def _stuck(self, number: int, first: int) -> str:
        """Message that names the worker and the clips it was reading."""
        # PyTorch assigns batches in turn.
        worker = f"worker {(number - first) % self.num_workers} of {self.num_workers}"
        size = self.batch_size or 1
        keys = list(islice(iter(self.sampler), number * size, (number + 1) * size))
        rows = [key.clip if isinstance(key, ClipKey) else key for key in keys]
        table = getattr(self.dataset, "table", None)
        names = [table.ids[row] for row in rows] if table is not None else []
        clips = f", clips {', '.join(names[:8])}{' …' if names[8:] else ''}" if names else ""
        return (
            f"{self.root}: {worker} has not delivered a batch for {self.timeout:g} s{clips}. The "
            "disk, or one of these files, hangs: check them with `peas data verify`; if reading is "
            "only slow, raise data.init_args.timeout. A saved run resumes with `--ckpt_path last`"
        )


class TrainLoader(ClipLoader):
    """`ClipLoader` that resumes inside an epoch, with no clip repeated or lost.

    The order of an epoch and a clip's random numbers follow from seed, epoch and position alone,
    so the state is the epoch and the number of batches read. Lightning saves it in checkpoints.

    The state holds for one global batch size and one order of the clips: with others, clips would
    come twice or never, and resuming is refused.

    A state counts in its own epoch only: a checkpoint of an epoch's last batch names an epoch that
    is over, and the next one starts at its beginning.
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
                of steps, so the batch cannot be left out. Or a worker does not respond.
        """
        # A generator runs from the first `next` on: Lightning makes the iterator before it sets
        # the sampler's epoch, and workers read ahead at once.
        sampler = self.sampler
        self._epoch, self._read = 0, 0
        if isinstance(sampler, TrainSampler):
            self._epoch = sampler.epoch
            if self._resume is not None and self._resume["epoch"] == sampler.epoch:
                self._require_same_order(self._resume)
                self._read = self._resume["read"]
            sampler.skip = self._read * sampler.batch_size
        self._resume = None
        for packet in self._packets(self._read):
            self.bad_clips.note(packet)
            if packet.batch is None:
                raise DataError(
                    "no clip of a training batch could be read, the first being: "
                    f"{packet.unreadable[0].message}; repair the files or raise "
                    "data.init_args.batch_size"
                )
            self._read += 1
            yield packet.batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, number of batches read, and what that number depends on."""
        if self._resume is not None:
            return self._resume
        state: dict[str, Any] = {"epoch": self._epoch, "read": self._read}
        if isinstance(self.sampler, TrainSampler):
            state |= {"batch": self.sampler.global_size, "order": self._digest(self._epoch)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state, if the next epoch is the state's."""
        self._resume = state or None

    def _require_same_order(self, state: dict[str, Any]) -> None:
        """Refuse to resume inside an epoch with another order of clips.

        Raises:
            ConfigError: The global batch size, or the order of the clips, has changed.
        """
        sampler = self.sampler
        # States of earlier versions have neither.
        if not state["read"] or not isinstance(sampler, TrainSampler) or "batch" not in state:
            return
        remedy = (
            f"finish epoch {state['epoch'] + 1} with the former settings, or resume from a "
            "checkpoint of an epoch's end"
        )
        if state["batch"] != sampler.global_size:
            raise ConfigError(
                f"the checkpoint is inside an epoch, after {state['read']} batches of "
                f"{state['batch']} clips, and the global batch is now {sampler.global_size} "
                "(`data.init_args.batch_size` x processes): clips would be lost or come twice. "
                f"Give {state['batch']} in all, or {remedy}"
            )
        if state["order"] != self._digest(sampler.epoch):
            raise ConfigError(
                f"the checkpoint is inside an epoch, after {state['read']} batches, and the order "
                "of its clips is another one now, as the training clips or their sampling "
                f"(sampling, epoch_clips, replacement, label_fraction) changed: {remedy}"
            )

    def _digest(self, epoch: int) -> str:
        """Hash of the clips of an epoch in their order."""
        if self._order is None or self._order[0] != epoch:
            assert isinstance(self.sampler, TrainSampler)
            digest = hashlib.blake2b(digest_size=8)
            if isinstance(self.dataset, ClipDataset):
                digest.update(hash_strings(self.dataset.table.ids).tobytes())
            digest.update(self.sampler.epoch_order(epoch).numpy().tobytes())
            self._order = (epoch, digest.hexdigest())
        return self._order[1]
