"""Packs a set: shard after shard, each whole or not there, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from peas.audio.frontend import LogMel
from peas.data.columns import Rows
from peas.data.inventory import Inventory
from peas.data.module import RATE, ClipDataModule
from peas.data.packed.encoding import (
    Coding,
    Encoded,
    bytes_sum,
    encode,
    source_content,
    source_state,
)
from peas.data.packed.info import manifest_of, recipe_of, stated_moments
from peas.data.packed.journal import (
    LOCK,
    Done,
    Journal,
    finished,
    refuse_foreign,
    states_sum,
    write_text,
)
from peas.data.packed.manifest import JOURNAL, MANIFEST, LeftOut, Manifest
from peas.data.packed.shards import ShardWriter, shard_name, stored
from peas.data.sounds import Source
from peas.data.statistics import Moments
from peas.data.workers import WorkerDied, in_order
from peas.errors import AudioError, DataError, PeasError
from peas.utils.files import disk_errors, lock
from peas.utils.text import some

# Clips that a worker encodes before it answers.
_CHUNK = 8


class Outcome(NamedTuple):
    """What became of a clip.

    Attributes:
        place: Its place in the order in which clips are packed.
        state: What changes whenever its file does.
        content: What changes with its file's content or time of modification.
        clip: What is stored, or why it cannot be.
    """

    place: int
    state: str
    content: str
    clip: Encoded | str


def pack(
    module: ClipDataModule,
    name: str,
    out: Path,
    coding: Coding,
    *,
    shard_bytes: int,
    workers: int,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Pack every clip of a set, or what is left of it after a run that was killed.

    The files depend on the set and the coding alone: not on the number of workers, nor on how
    often the work was broken off. A folder that is complete stays as it is.

    Args:
        module: The set.
        name: Its name in `peas data`.
        out: Folder of the packed set: new, empty, or begun by the same call.
        coding: How the sound is stored.
        shard_bytes: Bytes of sound after which a shard is closed.
        workers: Processes that decode and encode; 0 = this one.
        on_error: `raise` stops at a clip that cannot be read; `skip` leaves it out and lists it.
        progress: Called with the clips done and the clips in all.

    Raises:
        DataError: The folder holds something else, was begun with other settings or from other
            files, is at work already, or its disk is full.
        AudioError: A clip cannot be read.
        PeasError: A worker died.
    """
    inventory = module.inventory()
    if not len(inventory.table):
        raise DataError(f"{module.root}: the set has no clip with sound; nothing was packed")
    coding = replace(coding, max_samples=module.max_samples)
    if stated_moments(module) is None:
        # Raw values: mean 0 and twice the deviation 1.
        coding = replace(
            coding, front_end=LogMel(rate=RATE, frames=module.frames, mean=0.0, std=0.5)
        )
    recipe = recipe_of(module, name, inventory, coding, shard_bytes)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        refuse_foreign(out)
        complete = finished(out, recipe)
        if complete is not None:
            return complete
    order = np.argsort(inventory.part, kind="stable")
    # Workers are forked before the lock is taken: they would hold it as well, until they notice
    # that this process was killed. So how far an earlier run came is looked up twice.
    begun = Journal(out, recipe).next
    outcomes = _outcomes(inventory, order, coding, begun, workers)
    with closing(outcomes), lock(out / LOCK, out), disk_errors(out):
        journal = Journal(out, recipe)
        if journal.next < begun:
            raise DataError(
                f"{out}: finished or emptied by another process just now; run this again"
            )
        journal.require_policy(on_error)
        journal.require_unchanged(inventory, order)
        journal.save()
        first = journal.next
        wanted = dropwhile(lambda outcome: outcome.place < first, outcomes)
        while journal.next < len(order):
            stretch = _Stretch(inventory, order, journal.next, wanted, on_error, progress)
            journal.done.append(stretch.write(out, len(journal.shards), shard_bytes))
            journal.save()
        manifest = manifest_of(module, inventory, journal)
        write_text(out / MANIFEST, manifest.text())
        (out / JOURNAL).unlink(missing_ok=True)
        return manifest


def _outcomes(
    inventory: Inventory, order: Rows, coding: Coding, first: int, workers: int
) -> Generator[Outcome]:
    """What becomes of the clips, from a place in the order on. The workers are there at once."""
    find = inventory.table.sounds.source

    def work(chunk: range) -> list[Outcome]:
        # The first chunk has no clips: its answer only shows that the workers are there.
        places = range(first + chunk.start - _CHUNK, first + chunk.stop - _CHUNK)
        return [_outcome(find, order, place, coding) for place in places if chunk.start]

    chunks = in_order(work, len(order) - first + _CHUNK, size=_CHUNK, workers=workers)
    next(chunks)
    return _each(chunks, inventory, order, first)


def _outcome(find: Callable[[int], Source], order: Rows, place: int, coding: Coding) -> Outcome:
    state = content = ""
    try:
        source = find(int(order[place]))
        # Before the file is read, so that a change while it is read is noticed by the next run.
        state, content = source_state(source), source_content(source)
        return Outcome(place, state, content, encode(source, coding))
    except AudioError as error:
        return Outcome(place, state, content, str(error))


def _each(
    chunks: Generator[list[Outcome]], inventory: Inventory, order: Rows, first: int
) -> Generator[Outcome]:
    """The clips of the chunks; to close it ends the workers."""
    with closing(chunks):
        try:
            for chunk in chunks:
                yield from chunk
        except WorkerDied as error:
            places = [first + row - _CHUNK for row in error.rows if row >= _CHUNK]
            raise PeasError(
                f"{error}: {some(inventory.table.ids.take(order[places]), _CHUNK)}"
            ) from None


class _Stretch:
    """Clips on their way into one shard.

    Args:
        inventory: The set.
        order: Rows of the set in the order in which they are packed.
        first: Place in the order of the first clip.
        outcomes: What becomes of the clips from there on.
        on_error: `raise` or `skip`.
        progress: Called with the clips done and the clips in all.
    """

    def __init__(
        self,
        inventory: Inventory,
        order: Rows,
        first: int,
        outcomes: Iterator[Outcome],
        on_error: str,
        progress: Callable[[int, int], None],
    ) -> None:
        self.inventory = inventory
        self.order = order
        self.next = first
        self.outcomes = outcomes
        self.on_error = on_error
        self.progress = progress
        self.left_out: list[LeftOut] = []
        self.states: list[str] = []
        self.contents: list[str] = []
        self.saturated = 0
        self.cells = Moments()
        number = int(inventory.part[order[first]])
        self.part = inventory.parts[number]
        # The order is that of the parts.
        self.end = int(np.count_nonzero(np.asarray(inventory.part) <= number))

    def write(self, out: Path, number: int, shard_bytes: int) -> Done:
        """Write the shard.

        Args:
            out: Folder of the packed set.
            number: Number of shards before this one.
            shard_bytes: Bytes of sound after which it is closed.

        Raises:
            AudioError: A clip cannot be read, and none may be left out.
        """
        shard = None
        row = self._readable()
        if row is not None:
            file = out / shard_name(number, self.part)
            with ShardWriter(file) as writer:
                while row is not None:
                    writer.add(row)
                    row = self._readable() if writer.sound < shard_bytes else None
            shard = stored(file, writer.rows, self.part, self.saturated)
        sums = states_sum(self.states), states_sum(self.contents)
        return Done(shard, self.next, self.left_out, *sums, self.cells)

    def _readable(self) -> dict[str, Any] | None:
        """The next clip that can be read, as a row of the shard; None at the part's end."""
        while self.next < self.end:
            outcome = next(self.outcomes)
            assert outcome.place == self.next
            self.next += 1
            self.progress(self.next, len(self.order))
            self.states.append(outcome.state)
            self.contents.append(outcome.content)
            row = int(self.order[outcome.place])
            name = self.inventory.table.ids[row]
            if isinstance(outcome.clip, Encoded):
                self.saturated += outcome.clip.saturated
                self.cells += outcome.clip.cells
                return self._row(row, name, outcome.clip)
            if self.on_error == "raise":
                raise AudioError(
                    f"{outcome.clip} (clip {name}). To leave out such clips give --on-error skip; "
                    "the same command goes on behind the shards that are finished"
                )
            self.left_out.append(LeftOut(name, self.part, outcome.clip))
        return None

    def _row(self, row: int, name: str, clip: Encoded) -> dict[str, Any]:
        recordings, speakers = self.inventory.recordings, self.inventory.speakers
        return {
            "row": row,
            "id": name,
            "audio": {"bytes": clip.data, "path": name.removesuffix(clip.ending) + clip.ending},
            "labels": self.inventory.table.targets[row],
            "recording": "" if recordings is None else recordings[row],
            "speaker": "" if speakers is None else speakers[row],
            "seconds": clip.seconds,
            "rate": clip.rate,
            "sum": bytes_sum(clip.data),
        }
