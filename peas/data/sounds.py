"""The sound of each clip of a table: where it is, and how it is read by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from peas.data.cache import ResampledCache
from peas.data.columns import Rows, Strings


class Source(NamedTuple):
    """Where one clip's sound lies.

    Attributes:
        data: Path of a sound file, or the bytes of one.
        name: What messages call it.
        start: Where the clip begins in it, in seconds.
        stop: Where it ends, in seconds; None = at the end of the file.
    """

    data: Path | bytes
    name: str
    start: float = 0.0
    stop: float | None = None


class Sounds(ABC):
    """Sound of the clips of a table, by row.

    Args:
        decoder: Decodes, resamples and remembers.

    Attributes:
        costly: Whether `extents` asks the file system for every clip.
    """

    costly: bool = False

    def __init__(self, decoder: ResampledCache) -> None:
        self.decoder = decoder

    @abstractmethod
    def __len__(self) -> int:
        """Number of clips."""

    @abstractmethod
    def source(self, row: int, crop: float | None = None) -> Source:
        """Where a clip's sound lies.

        Args:
            row: Row of the table.
            crop: In training a random number in [0, 1) of this clip in this epoch, for sound
                that is cropped at random; None in evaluation.

        Raises:
            AudioError: The file that should hold the sound cannot be read.
        """

    def load(self, row: int, crop: float | None = None, rate: int | None = None) -> Tensor:
        """Waveform of a clip, mono.

        Args:
            row: Row of the table.
            crop: As for `source`.
            rate: Sampling rate in Hz, from the original sound; None = the decoder's.

        Returns:
            `[S]` float32.

        Raises:
            AudioError: The sound cannot be used.
        """
        return self.decoder.load(*self.source(row, crop), rate=rate)

    def file(self, row: int) -> str:
        """Path of the file that holds a clip; empty where it is not a file of its own."""
        return ""

    def extents(self, rows: Rows) -> Rows:
        """A number for the sound of some rows, which changes with its size; without decoding.

        Args:
            rows: `[R]` rows of the table.

        Returns:
            `[R]`; 0 where it is unknown.
        """
        return np.zeros(len(rows), dtype=np.int64)

    def take(self, rows: ArrayLike) -> Sounds:
        """The sound of some rows, in their order."""
        return _Chosen(self, np.asarray(rows, dtype=np.int64))


class SoundFiles(Sounds):
    """Clips that are sound files, or stretches of them.

    Args:
        decoder: Decodes, resamples and remembers.
        root: Folder that the paths start from.
        paths: Path of each clip's file, absolute or from `root`.
        start: `[N]` seconds at which the clips begin in their files; None = all at 0.
        stop: `[N]` seconds at which they end; NaN, or None for all = at the file's end.
    """

    costly = True

    def __init__(
        self,
        decoder: ResampledCache,
        root: Path,
        paths: Strings,
        start: NDArray[np.float64] | None = None,
        stop: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(decoder)
        self.root = root
        self.paths = paths
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return len(self.paths)

    def source(self, row: int, crop: float | None = None) -> Source:
        """Path and stretch of a clip."""
        path = Path(self.file(row))
        start = 0.0 if self.start is None else float(self.start[row])
        stop = None if self.stop is None or np.isnan(self.stop[row]) else float(self.stop[row])
        return Source(path, str(path), start, stop)

    def file(self, row: int) -> str:
        """Path of a clip's file."""
        return str(self.root / self.paths[row])

    def extents(self, rows: Rows) -> Rows:
        """Sizes of the files, and where the clips begin and end in them."""
        sizes = np.array([_size(self.root / self.paths[int(row)]) for row in rows], dtype=np.int64)
        values = sizes
        for cut in (self.start, self.stop):
            if cut is not None:
                values = values * 1_000_003 + np.nan_to_num(cut[rows] * 1e6, nan=-1.0).astype(
                    np.int64
                )
        return np.where(sizes == 0, 0, values)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class JoinedSounds(Sounds):
    """The clips of several tables, one after the other."""

    def __init__(self, parts: Sequence[Sounds]) -> None:
        super().__init__(parts[0].decoder)
        self.parts = list(parts)
        self._ends: Rows = np.cumsum([len(part) for part in parts])
        self.costly = any(part.costly for part in parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, row: int) -> tuple[Sounds, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        return self.parts[part], row - before

    def source(self, row: int, crop: float | None = None) -> Source:
        """Where the clip's own table says."""
        part, own = self._locate(row)
        return part.source(own, crop)

    def load(self, row: int, crop: float | None = None, rate: int | None = None) -> Tensor:
        """As the clip's own table reads it."""
        part, own = self._locate(row)
        return part.load(own, crop, rate)

    def file(self, row: int) -> str:
        """As the clip's own table has it."""
        part, own = self._locate(row)
        return part.file(own)

    def extents(self, rows: Rows) -> Rows:
        """As in the clips' own tables."""
        values = np.zeros(len(rows), dtype=np.int64)
        parts = np.searchsorted(self._ends, rows, side="right")
        for number, part in enumerate(self.parts):
            here = parts == number
            values[here] = part.extents(rows[here] - int(self._ends[number]) + len(part))
        return values


class _Chosen(Sounds):
    """Some rows of other sounds."""

    def __init__(self, base: Sounds, rows: Rows) -> None:
        super().__init__(base.decoder)
        self.base: Sounds = base
        self.rows = rows
        if isinstance(base, _Chosen):
            self.base, self.rows = base.base, base.rows[rows]
        self.costly = self.base.costly

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, row: int, crop: float | None = None) -> Source:
        return self.base.source(int(self.rows[row]), crop)

    def load(self, row: int, crop: float | None = None, rate: int | None = None) -> Tensor:
        return self.base.load(int(self.rows[row]), crop, rate)

    def file(self, row: int) -> str:
        return self.base.file(int(self.rows[row]))

    def extents(self, rows: Rows) -> Rows:
        return self.base.extents(self.rows[rows])
