"""Writes a target cache: maps of a live teacher, or of any other source, in shards."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from peas import __version__
from peas.audio import decode as audio
from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings
from peas.data.module import RATE, ClipDataModule
from peas.data.shards import LeftOut, Progress, Shard, ShardWriter
from peas.data.workers import WorkerDied, in_order
from peas.errors import AudioError, ConfigError, DataError, PeasError
from peas.teachers import Teacher
from peas.teachers.cache import (
    IDS,
    MANIFEST,
    ROWS,
    Manifest,
    TargetFile,
    TargetSettings,
    read_manifest,
)
from peas.utils.files import atomic_write, checksum, require_space
from peas.utils.text import some

log = logging.getLogger(__name__)

# Clips that a worker reads at once. Several results wait in memory for each worker, and ten
# seconds at 48 kHz are 2 MB.
_CHUNK = 2

Sound = NDArray[np.float32] | str
"""A waveform, or why there is none."""


class Block(NamedTuple):
    """Maps of consecutive clips.

    Attributes:
        maps: `[n, F', T', D]` float16; rows of clips that could not be read are zeros.
        left_out: Those clips.
    """

    maps: NDArray[np.float16]
    left_out: list[LeftOut]


class MapSource(Protocol):
    """A source of maps."""

    def blocks(self, shards: Sequence[range]) -> Generator[Block]:
        """Maps of the clips of some shards, in order; no block reaches beyond its shard.

        Args:
            shards: Rows in the sorted ids.

        Raises:
            PeasError: There is no map of a clip.
        """
        ...


def sorted_ids(ids: Strings) -> Rows:
    """Rows of a column of ids in the order of a cache: by their UTF-8 bytes.

    Raises:
        DataError: An id is there twice, so that it names no map.
    """
    names = np.array([name.encode() for name in ids], dtype=bytes)
    order = np.argsort(names, kind="stable")
    duplicates = np.flatnonzero(names[order][1:] == names[order][:-1])
    if len(duplicates):
        clips = sorted({ids[int(order[row])] for row in duplicates})
        raise DataError(
            f"{len(clips)} ids name more than one clip of the set: {some(clips)}; a map is kept by "
            "its clip's id, so give each clip its own"
        )
    return order


def ids_sum(ids: Sequence[str]) -> str:
    """Checksum over some ids in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()


def write_targets(
    out: Path,
    settings: TargetSettings,
    ids: Strings,
    source: MapSource,
    *,
    left_out: Sequence[LeftOut] = (),
    allow_missing: bool = False,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Write a cache, or what is missing or damaged in it.

    Every file of an earlier run is compared with its size and checksum, so the same call resumes
    after a kill, repairs a folder, and leaves a complete one as it is.

    Args:
        out: Folder of the cache: new, empty, or begun by the same call.
        settings: What decides its content.
        ids: Ids of the clips, sorted; see `sorted_ids`.
        source: Where the maps come from.
        left_out: Clips of the set for which no map exists.
        allow_missing: Whether shards may lack clips that cannot be read.
        progress: Called with the clips done and the clips in all.

    Raises:
        ConfigError: An earlier run left clips out, and none may be missing.
        DataError: The folder holds something else or was begun with other settings, or its disk is
            full.
        PeasError: The source has no map of a clip, or another process is writing there.
    """
    writer = TargetWriter(
        out, settings, ids, source, left_out, skip=allow_missing, progress=progress
    )
    return writer.run()


class TargetWriter(ShardWriter[Manifest, Block]):
    """Shards are npy files of a fixed number of clips."""

    state_file = MANIFEST
    skip_option = "--allow_missing"
    checksums = True
    option_names = {"set": "SET", "shard_clips": "--shard_clips"}  # noqa: RUF012

    def __init__(
        self,
        out: Path,
        settings: TargetSettings,
        ids: Strings,
        source: MapSource,
        without_map: Sequence[LeftOut] = (),
        **common: Any,
    ) -> None:
        super().__init__(out, asdict(settings), settings.clips, **common)
        self.ids = ids
        self.source = source
        self.without_map = without_map
        self.manifest = Manifest(__version__, settings, [None] * len(settings.shards))

    def resume(self) -> Manifest | None:
        """Read the manifest, and drop what is damaged."""
        if not (self.out / MANIFEST).is_file():
            return None
        manifest = read_manifest(self.out)
        self.require_settings(asdict(manifest.settings))
        for rows, stored in zip(manifest.settings.shards, manifest.shards, strict=True):
            if stored is None:
                continue
            shard = Shard(rows, stored, stored.left_out)
            if fault := self.fault(shard):
                log.warning("%s: written again", fault)
            else:
                self.shards.append(shard)
        damaged = any(one.fault(self.out, checksums=True) for one in manifest.index)
        complete = manifest.complete and not damaged and not self._missing()
        return manifest if complete else None

    def prepare(self, missing: list[range]) -> None:
        """Check the disk space."""
        size = 2 * math.prod(self.settings["shape"]) * sum(map(len, missing))
        require_space(self.out / MANIFEST, size)

    def encode(self, missing: list[range]) -> Generator[Block]:
        """Maps of the missing shards."""
        shards = self.manifest.settings.shards
        return self.source.blocks(
            [rows for rows in shards if any(rows.start in gap for gap in missing)]
        )

    def write(self, encoded: Generator[Block], rows: range) -> Shard:
        """Write one shard."""
        size = self.settings["shard_clips"]
        rows = range(rows.start, min(rows.start + size, rows.stop))
        file = self.out / f"shard-{rows.start // size:05d}.npy"
        left_out: list[LeftOut] = []
        shape = (len(rows), *self.settings["shape"])
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        with atomic_write(file) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            written = 0
            while written < len(rows):
                block = next(encoded)
                # Not mapped and filled: a full disk would end the process.
                stream.write(np.ascontiguousarray(block.maps, dtype="<f2").data)
                left_out += block.left_out
                written += len(block.maps)
                self.advance(len(block.maps))
        return Shard(rows, _target_file(file, left_out), left_out)

    def state(self) -> dict[str, Any]:
        """The manifest."""
        files = {shard.rows.start: shard.file for shard in self.shards}
        shards = [files.get(rows.start) for rows in self.manifest.settings.shards]
        self.manifest.shards = [one if isinstance(one, TargetFile) else None for one in shards]
        return self.manifest.to_json()

    def finish(self) -> Manifest:
        """Write the index, with which the cache is complete."""
        unreadable = {clip.id for clip in self.left_out}
        if len(unreadable) == len(self.ids):
            raise DataError(
                f"{self.out}: not one of the {len(self.ids)} clips could be read: there is no map"
            )
        rows: Rows = np.arange(len(self.ids))
        names = np.array([name.encode() for name in self.ids], dtype=bytes)
        if unreadable:
            kept = np.array([name not in unreadable for name in self.ids])
            rows, names = rows[kept], names[kept]
        for name, array in ((IDS, names), (ROWS, rows)):
            with atomic_write(self.out / name) as stream:
                np.save(stream, array, allow_pickle=False)
            self.manifest.index.append(_target_file(self.out / name))
        self.manifest.left_out = [*self.without_map, *self.left_out]
        self.save()
        return self.manifest


def _target_file(file: Path, left_out: Sequence[LeftOut] = ()) -> TargetFile:
    return TargetFile(file.name, file.stat().st_size, checksum(file), list(left_out))


def teacher_samples(frames: int, rate: int) -> int:
    """Samples at a teacher's rate that cover a model's input.

    The columns of a map depend on the length of the sound, and all maps of a cache have one size:
    so every clip is cut or padded to the model's input.

    Args:
        frames: Frames of the model's input: 25 ms every 10 ms at 16 kHz.
        rate: Sampling rate in Hz.
    """
    return round((frames * 160 + 240) * rate / RATE)


def describe_input(module: ClipDataModule, rate: int) -> str:
    """How the sound is read for a teacher, for the cache's manifest."""
    samples = teacher_samples(module.frames, rate)
    return f"{samples} samples at {rate} Hz, channels {module.channels}, {audio.RESAMPLER}"


class TeacherMaps:
    """Maps that a teacher makes of the clips of a table.

    Args:
        teacher: The teacher, on its device.
        table: The clips, in the order of a cache.
        samples: Samples at the teacher's rate that it gets of each clip; shorter clips are padded
            with zeros.
        device: Device of the teacher.
        batch_size: Clips that the teacher gets at once.
        workers: Worker processes that decode; 0 = this one.
        allow_missing: Whether clips that cannot be read are left out.

    Attributes:
        shape: (F', T', D) of a map.

    Raises:
        ConfigError: The teacher's maps do not fit its width and extent.
    """

    def __init__(
        self,
        teacher: Teacher,
        table: ClipTable,
        *,
        samples: int,
        device: torch.device,
        batch_size: int,
        workers: int,
        allow_missing: bool = False,
    ) -> None:
        self.teacher = teacher
        self.table = table
        self.samples = samples
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.allow_missing = allow_missing
        self.shape = self._shape()

    def _shape(self) -> tuple[int, int, int]:
        """Size of a map: it depends on the number of samples alone, so any sound will do."""
        tone = torch.sin(torch.arange(self.samples) * 0.1)
        shape = self.teacher(
            tone[None].to(self.device), torch.tensor([self.samples], device=self.device)
        ).shape
        width, rows = self.teacher.width, self.teacher.extent.rows
        if len(shape) != 4 or shape[1:3] != (width, rows):
            raise ConfigError(
                f"--teacher {type(self.teacher).__name__} gives {list(shape)} for one clip, and "
                f"its width is {width} and its extent has {rows} rows: it has to give "
                "[B, D, F', T']"
            )
        return shape[2], shape[3], shape[1]

    def blocks(self, shards: Sequence[range]) -> Generator[Block]:
        """Maps of the clips of some shards, in order.

        Raises:
            AudioError: A clip cannot be read, and none may be left out.
            DataError: Maps are not finite in float16.
            PeasError: A worker died.
        """
        rows = [row for shard in shards for row in shard]

        def work(chunk: range) -> list[Sound]:
            return [self._read(row) for row in rows[chunk.start : chunk.stop]]

        chunks = in_order(work, len(rows), size=_CHUNK, workers=self.workers)
        return self._blocks(chunks, shards, rows)

    def _read(self, row: int) -> Sound:
        try:
            waveform = self.table.sounds.load(row, None, self.teacher.rate)
        except AudioError as error:
            return str(error)
        return waveform[: self.samples].numpy()

    def _blocks(
        self, chunks: Generator[list[Sound]], shards: Sequence[range], rows: list[int]
    ) -> Generator[Block]:
        with closing(chunks):
            sounds = self._each(chunks, rows)
            for shard in shards:
                for first in range(shard.start, shard.stop, self.batch_size):
                    batch = range(first, min(first + self.batch_size, shard.stop))
                    yield self._block(batch, list(islice(sounds, len(batch))))

    def _each(self, chunks: Generator[list[Sound]], rows: list[int]) -> Generator[Sound]:
        try:
            for chunk in chunks:
                yield from chunk
        except WorkerDied as error:
            clips = self.table.ids.take([rows[row] for row in error.rows])
            raise PeasError(f"{error}: {some(clips)}") from None

    def _block(self, batch: range, sounds: list[Sound]) -> Block:
        """Maps of a batch; rows of zeros where there is no sound."""
        names = self.table.ids.take(batch)
        rows = [row for row, sound in enumerate(sounds) if not isinstance(sound, str)]
        left_out = [
            LeftOut(name, sound)
            for name, sound in zip(names, sounds, strict=True)
            if isinstance(sound, str)
        ]
        if left_out and not self.allow_missing:
            raise AudioError(
                f"{left_out[0].reason} (clip {left_out[0].id}). To leave out such clips give "
                "--allow_missing; the same command resumes after the finished shards"
            )
        block = np.zeros((len(batch), *self.shape), np.float16)
        if rows:
            block[rows] = self._maps([sounds[row] for row in rows], names.take(rows))
        return Block(block, left_out)

    def _maps(self, sounds: Sequence[Sound], names: Sequence[str]) -> NDArray[np.float16]:
        """`[n, F', T', D]` of some waveforms."""
        waveform = torch.zeros(len(sounds), self.samples)
        length = torch.zeros(len(sounds), dtype=torch.int64)
        for row, sound in enumerate(sounds):
            assert not isinstance(sound, str)
            waveform[row, : len(sound)] = torch.from_numpy(sound)
            length[row] = len(sound)
        try:
            maps = self.teacher(waveform.to(self.device), length.to(self.device))
        except DataError as error:
            raise DataError(f"{error} (clips {', '.join(names)})") from None
        half = maps.permute(0, 2, 3, 1).to("cpu", torch.float16).numpy()
        finite = np.isfinite(half).all(axis=(1, 2, 3))
        if not finite.all():
            bad = [name for name, ok in zip(names, finite.tolist(), strict=True) if not ok]
            raise DataError(
                f"the teacher's maps of {some(bad)} hold NaN, or values beyond float16's 65504: "
                "look at these clips with `peas data verify`; a teacher whose features are that "
                "large cannot be cached"
            )
        return half
