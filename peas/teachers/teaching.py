"""Maps of a live teacher: worker processes read the sound, and this one asks the teacher."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from peas.audio import decode as audio
from peas.data.clips import ClipTable
from peas.data.module import RATE, ClipDataModule
from peas.data.workers import WorkerDied, in_order
from peas.errors import AudioError, ConfigError, DataError, PeasError
from peas.teachers import Teacher
from peas.teachers.manifest import LeftOut
from peas.teachers.writing import Block
from peas.utils.text import some

# Clips that a worker reads before it answers. Several answers wait in memory for each worker, and
# ten seconds at 48 kHz are 2 MB.
_UNIT = 2

Sound = NDArray[np.float32] | str
"""A waveform, or why there is none."""


def teacher_samples(frames: int, rate: int) -> int:
    """Samples at a teacher's rate that cover a model's input.

    A map has as many columns as the sound that the teacher is given, and all maps of a cache have
    one size: so every clip is cut or padded to what the model hears of it.

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
        samples: Samples at the teacher's rate that it is given of each clip; shorter clips are
            padded with zeros behind their stated length.
        device: Device of the teacher.
        batch_size: Clips that the teacher hears at once.
        workers: Processes that read sound; 0 = this one.
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
        """Maps of the clips of some shards, in order. The workers are forked at once.

        Raises:
            AudioError: A clip cannot be read, and none may be left out.
            DataError: Maps are not finite in float16.
            PeasError: A worker died.
        """
        places = [place for shard in shards for place in shard]

        def work(chunk: range) -> list[Sound]:
            return [self._read(place) for place in places[chunk.start : chunk.stop]]

        chunks = in_order(work, len(places), size=_UNIT, workers=self.workers)
        return self._blocks(chunks, shards, places)

    def _read(self, place: int) -> Sound:
        try:
            waveform = self.table.sounds.load(place, None, self.teacher.rate)
        except AudioError as error:
            return str(error)
        return waveform[: self.samples].numpy()

    def _blocks(
        self, chunks: Generator[list[Sound]], shards: Sequence[range], places: list[int]
    ) -> Generator[Block]:
        with closing(chunks):
            sounds = self._each(chunks, places)
            for shard in shards:
                for first in range(shard.start, shard.stop, self.batch_size):
                    batch = range(first, min(first + self.batch_size, shard.stop))
                    yield self._block(batch, list(islice(sounds, len(batch))))

    def _each(self, chunks: Generator[list[Sound]], places: list[int]) -> Generator[Sound]:
        try:
            for chunk in chunks:
                yield from chunk
        except WorkerDied as error:
            rows = [places[row] for row in error.rows]
            raise PeasError(f"{error}: {some(self.table.ids.take(rows))}") from None

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
                "--allow-missing; the same command goes on behind the shards that are finished"
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
        fine = np.isfinite(half).all(axis=(1, 2, 3))
        if not fine.all():
            bad = [name for name, good in zip(names, fine.tolist(), strict=True) if not good]
            raise DataError(
                f"the teacher's maps of {some(bad)} hold NaN, or values beyond float16's 65504: "
                "look at these clips with `peas data verify`; a teacher whose features are that "
                "large cannot be cached"
            )
        return half
