"""Packs a data set into Arrow shards and an index; a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch

from peas import __version__
from peas.audio import decode as audio
from peas.data.clips import Inventory
from peas.data.columns import Rows
from peas.data.module import ClipDataModule
from peas.data.packed.arrow_files import arrow_shard, packed_file, shard_name, write_index
from peas.data.packed.encoding import (
    Coding,
    Encoded,
    bytes_sum,
    encode,
    source_content,
    source_state,
)
from peas.data.packed.manifest import (
    INDEX,
    JOURNAL,
    MANIFEST,
    Manifest,
    PackedFile,
    PackSettings,
    Part,
    read_manifest,
)
from peas.data.shards import LeftOut, Progress, Shard, ShardWriter, write_json
from peas.data.sounds import Sounds, Source
from peas.data.statistics import Moments, raw_log_mel
from peas.data.workers import WorkerDied, in_order
from peas.errors import AudioError, DataError, PeasError
from peas.utils.text import some

# Clips that a worker encodes at once.
_CHUNK = 8


def pack(
    module: ClipDataModule,
    name: str,
    out: Path,
    coding: Coding,
    *,
    shard_bytes: int,
    workers: int,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Pack every clip of a set, or what a killed run did not.

    The files depend on the set and the coding alone: not on the number of workers, nor on
    restarts. A complete folder stays as it is.

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
            files, or its disk is full.
        AudioError: A clip cannot be read.
        PeasError: Another process is writing there, or a worker died.
    """
    inventory = module.inventory()
    if not len(inventory.table):
        raise DataError(f"{module.root}: the set has no clip with sound; nothing was packed")
    coding = replace(coding, max_samples=module.max_samples)
    if known_statistics(module) is None:
        coding = replace(coding, front_end=raw_log_mel(module.frames))
    settings = settings_of(module, name, inventory, coding, shard_bytes)
    skip = on_error == "skip"
    return PackWriter(
        out, module, inventory, coding, settings, workers=workers, skip=skip, progress=progress
    ).run()


def known_statistics(module: ClipDataModule) -> tuple[float, float] | None:
    """Mean and standard deviation of the log-mel by a module, unless it would measure them.

    Args:
        module: The set.
    """
    # A class that measures them has properties of these names in place of attributes.
    mean, std = (vars(module).get(key, math.nan) for key in ("mean", "std"))
    return None if math.isnan(mean) else (mean, std)


def settings_of(
    module: ClipDataModule, name: str, inventory: Inventory, coding: Coding, shard_bytes: int
) -> PackSettings:
    """Everything that decides the packed folder's content.

    Args:
        module: The set.
        name: Its name in `peas data`.
        inventory: Its clips.
        coding: How the sound is stored.
        shard_bytes: Bytes of sound after which a shard is closed.
    """
    return PackSettings(
        set=name,
        clips=len(inventory.table),
        table=_table_sum(inventory),
        labels=module.labels,
        multi_label=module.multi_label,
        frames=module.frames,
        rate=coding.rate,
        audio=coding.audio,
        channels=coding.channels,
        resampler=audio.RESAMPLER,
        shard_bytes=shard_bytes,
        software=(
            f"libsndfile {soundfile.__libsndfile_version__}, pyarrow {pa.__version__}, "
            f"torch {torch.__version__}"
        ),
    )


def _table_sum(inventory: Inventory) -> str:
    """Checksum over all columns but the sound."""
    digest = hashlib.blake2b("\0".join(inventory.parts).encode(), digest_size=16)
    for strings in (inventory.table.ids, inventory.recordings, inventory.speakers):
        digest.update(b"\0")
        if strings is not None:
            array = strings.array.cast(pa.large_binary())
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            digest.update(pc.binary_length(array).to_numpy().tobytes())
            _, ends, data = array.buffers()
            first, last = np.frombuffer(ends, np.int64)[[array.offset, array.offset + len(array)]]
            if data is not None:
                digest.update(memoryview(data)[first:last])
    targets = inventory.table.targets
    for numbers in (inventory.part, targets.sizes, targets.classes):
        digest.update(np.asarray(numbers, dtype=np.int64).tobytes())
    return digest.hexdigest()


class Outcome(NamedTuple):
    """A clip that was encoded, or why it could not be.

    Attributes:
        state: What changes whenever the clip's file does.
        content: What changes with its file's content or time of modification.
        clip: What is stored, or the reason.
    """

    state: str
    content: str
    clip: Encoded | str


class Provenance(NamedTuple):
    """What a finished shard was made of.

    Attributes:
        state: Checksum over the states of the clips' files; empty = not all are files.
        content: Checksum over their contents, compared where the states differ.
        moments: Moments of their log-mel, if they were measured.
    """

    state: str = ""
    content: str = ""
    moments: Moments = Moments()


class PackWriter(ShardWriter[Manifest, Outcome]):
    """Shards are Arrow streams of one part each, closed after so many bytes of sound.

    Args:
        out: Folder of the packed set.
        module: The set.
        inventory: Its clips.
        coding: How the sound is stored.
        settings: Of `settings_of`.
        workers: Processes that decode and encode; 0 = this one.
        skip: Whether clips that cannot be read are left out.
        progress: Called with the clips done and the clips in all.
    """

    state_file = JOURNAL
    skip_option = "--on_error skip"
    option_names = {  # noqa: RUF012
        "set": "SET",
        "frames": "--frames",
        "rate": "--rate",
        "audio": "--format",
        "channels": "--channels",
        "shard_bytes": "--shard_mb (in bytes)",
    }

    def __init__(
        self,
        out: Path,
        module: ClipDataModule,
        inventory: Inventory,
        coding: Coding,
        settings: PackSettings,
        *,
        workers: int = 0,
        skip: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> None:
        rows = len(inventory.table)
        super().__init__(out, asdict(settings), rows, skip=skip, progress=progress)
        self.module = module
        self.inventory = inventory
        self.coding = coding
        self.workers = workers
        # Rows of the set, part after part.
        self.order = np.argsort(inventory.part, kind="stable")

    def resume(self) -> Manifest | None:
        """Read manifest or journal.

        Raises:
            DataError: The journal is damaged, or a sound file was changed after it was packed.
        """
        journal = self.out / JOURNAL
        if (self.out / MANIFEST).is_file():
            manifest = read_manifest(self.out)
            # Other versions of the libraries might write other bytes, but these are complete.
            self.require_settings(asdict(manifest.settings), but=("software",))
            journal.unlink(missing_ok=True)
            self.skip = True
            return manifest
        if not journal.is_file():
            return None
        try:
            content = json.loads(journal.read_text(encoding="utf-8"))
            begun, shards = content["recipe"], list(_journal_shards(content["done"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{journal}: damaged ({error}); delete {self.out} and pack again"
            ) from None
        self.require_settings(begun)
        for shard in shards:
            self._require_unchanged(shard)
            if not self.fault(shard):
                self.shards.append(shard)
        return None

    def encode(self, missing: list[range]) -> Generator[Outcome]:
        """Encode clips in worker processes.

        Raises:
            PeasError: A worker died.
        """
        rows = np.concatenate(
            [self.order[:0], *(self.order[clips.start : clips.stop] for clips in missing)]
        )
        sounds = self.inventory.table.sounds

        def work(chunk: range) -> list[Outcome]:
            return [
                _encoded(sounds, int(row), self.coding) for row in rows[chunk.start : chunk.stop]
            ]

        chunks = in_order(work, len(rows), size=_CHUNK, workers=self.workers)
        return self._outcomes(chunks, rows)

    def _outcomes(self, chunks: Generator[list[Outcome]], rows: Rows) -> Generator[Outcome]:
        with closing(chunks):
            try:
                for chunk in chunks:
                    yield from chunk
            except WorkerDied as error:
                clips = self.inventory.table.ids.take(rows[error.rows.start : error.rows.stop])
                raise PeasError(f"{error}: {some(clips, _CHUNK)}") from None

    def write(self, encoded: Generator[Outcome], rows: range) -> Shard:
        """Write the clips of one part up to the limit of bytes.

        Raises:
            AudioError: A clip cannot be read, and none may be left out.
        """
        number = int(self.inventory.part[self.order[rows.start]])
        part = self.inventory.parts[number]
        end = min(rows.stop, int(np.count_nonzero(np.asarray(self.inventory.part) <= number)))
        used = {one.file.file for one in self.shards if one.file}
        index = sum(1 for one in self.shards if one.file and one.rows.start < rows.start)
        # A gap may become more shards than it was.
        while shard_name(index, part) in used:
            index += 1
        file = self.out / shard_name(index, part)
        left_out: list[LeftOut] = []
        states: list[str] = []
        contents: list[str] = []
        moments, saturated, row = Moments(), 0, rows.start
        limit = self.settings["shard_bytes"]
        with arrow_shard(file) as shard:
            while row < end and shard.sound < limit:
                outcome = next(encoded)
                states.append(outcome.state)
                contents.append(outcome.content)
                clip = int(self.order[row])
                if isinstance(outcome.clip, Encoded):
                    shard.add(self._columns(clip, outcome.clip))
                    saturated += outcome.clip.saturated
                    moments += outcome.clip.moments
                else:
                    left_out.append(
                        LeftOut(self._require_skip(clip, outcome.clip), outcome.clip, part)
                    )
                row += 1
                self.advance()
        stored = packed_file(file, shard.rows, part, saturated) if shard.rows else None
        if stored is None:
            file.unlink()
        provenance = Provenance(states_sum(states), states_sum(contents), moments)
        return Shard(range(rows.start, row), stored, left_out, provenance)

    def _require_skip(self, row: int, reason: str) -> str:
        """Name of a clip that cannot be read, if it may be left out."""
        name = self.inventory.table.ids[row]
        if not self.skip:
            raise AudioError(
                f"{reason} (clip {name}). To leave out such clips give {self.skip_option}; the "
                "same command resumes after the finished shards"
            )
        return name

    def _columns(self, row: int, clip: Encoded) -> dict[str, Any]:
        inventory = self.inventory
        name = inventory.table.ids[row]
        return {
            "row": row,
            "id": name,
            "audio": {"bytes": clip.data, "path": name.removesuffix(clip.suffix) + clip.suffix},
            "labels": inventory.table.targets[row],
            "recording": "" if inventory.recordings is None else inventory.recordings[row],
            "speaker": "" if inventory.speakers is None else inventory.speakers[row],
            "seconds": clip.seconds,
            "rate": clip.rate,
            "sum": bytes_sum(clip.data),
        }

    def state(self) -> dict[str, Any]:
        """The journal."""
        done = [
            {
                "shard": asdict(shard.file) if shard.file else None,
                "first": shard.rows.start,
                "next": shard.rows.stop,
                "left_out": [clip.to_json() for clip in shard.left_out],
                "state": shard.info.state,
                "content": shard.info.content,
                "cells": asdict(shard.info.moments),
            }
            for shard in self.shards
        ]
        return {"recipe": self.settings, "done": done}

    def finish(self) -> Manifest:
        """Write the index and the manifest.

        Raises:
            DataError: Not one clip could be read.
        """
        files = [shard.file for shard in self.shards if isinstance(shard.file, PackedFile)]
        if not files:
            raise DataError(
                f"{self.module.root}: not one clip could be read, the first being: "
                f"{self.left_out[0].reason}"
            )
        inventory = self.inventory
        mean, std = known_statistics(self.module) or (None, None)
        index = write_index(self.out, files, inventory.parts)
        seconds = index.column("seconds")
        manifest = Manifest(
            peas=__version__,
            settings=PackSettings(**self.settings),
            mean=mean,
            std=std,
            parts=self._parts(index),
            clips=index.num_rows,
            seconds=_total(seconds),
            shortest=pc.min(seconds).as_py(),
            longest=pc.max(seconds).as_py(),
            recordings=inventory.recordings is not None,
            speakers=inventory.speakers is not None,
            index=packed_file(self.out / INDEX, index.num_rows),
            shards=files,
            left_out=self.left_out,
            absent=list(inventory.absent),
            notes=list(inventory.notes),
        )
        write_json(self.out / MANIFEST, manifest.to_json())
        (self.out / JOURNAL).unlink(missing_ok=True)
        return manifest

    def _parts(self, index: pa.RecordBatch) -> list[Part]:
        moments = dict.fromkeys(self.inventory.parts, Moments())
        for shard in self.shards:
            if isinstance(shard.file, PackedFile):
                moments[shard.file.part] += shard.info.moments
        part = index.column("part").to_numpy()
        labels = index.column("labels")
        part_of_label = np.repeat(part, np.diff(labels.offsets.to_numpy()))
        parts = []
        for number, name in enumerate(self.inventory.parts):
            classes = labels.values.to_numpy()[part_of_label == number]
            counts = np.bincount(classes, minlength=len(self.settings["labels"])).tolist()
            seconds = _total(index.column("seconds").filter(pa.array(part == number)))
            clips = int((part == number).sum())
            parts.append(Part(name, clips, seconds, counts, astuple(moments[name])))
        return parts

    def _require_unchanged(self, shard: Shard) -> None:
        """Compare the files that went into a shard with what they were."""
        rows = self.order[shard.rows.start : shard.rows.stop]
        # The state is a file's own: it also changes with permissions, or a set that is moved.
        if (
            shard.info.state
            and self._sum_now(rows, source_state) != shard.info.state
            and self._sum_now(rows, source_content) != shard.info.content
        ):
            ids = self.inventory.table.ids
            raise DataError(
                f"{self.out}: a sound file of the clips {ids[int(rows[0])]} to "
                f"{ids[int(rows[-1])]}, which are packed already, has changed since; delete the "
                "folder and pack again"
            )

    def _sum_now(self, rows: Rows, state_of: Callable[[Source], str]) -> str:
        states = []
        for row in rows.tolist():
            state = ""
            with suppress(AudioError):
                state = state_of(self.inventory.table.sounds.source(row))
            states.append(state)
        return states_sum(states)


def _journal_shards(done: list[dict[str, Any]]) -> Generator[Shard]:
    """Finished shards of a journal; release 0.1 had no `first`."""
    first = 0
    for entry in done:
        yield Shard(
            range(entry.get("first", first), entry["next"]),
            PackedFile(**entry["shard"]) if entry["shard"] else None,
            [LeftOut(**clip) for clip in entry["left_out"]],
            Provenance(entry["state"], entry["content"], Moments(**entry["cells"])),
        )
        first = entry["next"]


def _encoded(sounds: Sounds, row: int, coding: Coding) -> Outcome:
    state = content = ""
    try:
        source = sounds.source(row)
        # Before the file is read, so that the next run notices a change while it was read.
        state, content = source_state(source), source_content(source)
        return Outcome(state, content, encode(source, coding))
    except AudioError as error:
        return Outcome(state, content, str(error))


def states_sum(states: Iterable[str]) -> str:
    """Checksum over the states of some sources; empty when one of them is not a file."""
    digest = hashlib.blake2b(digest_size=16)
    for state in states:
        if not state:
            return ""
        digest.update(f"{state}\n".encode())
    return digest.hexdigest()


def _total(seconds: pa.Array) -> float:
    """Sum of a column, to the millisecond."""
    return round(float(seconds.to_numpy().sum(dtype=np.float64)), 3)
