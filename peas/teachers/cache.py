"""Reads a target cache: a teacher's maps by clip id, from memory-mapped files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas.data.columns import Rows
from peas.data.shards import LeftOut, StoredFile, read_json, size_fault
from peas.errors import ConfigError, DataError
from peas.teachers.grid import Extent
from peas.utils.text import some

FORMAT = "peas-targets"
VERSION = 1
"""Of the folder's layout; other versions are refused."""

MANIFEST = "manifest.json"
IDS = "ids.npy"
ROWS = "rows.npy"

AGAIN = "run the same `peas data targets` again, which writes what is missing or damaged"

# Ids that are looked up at once: more would only hold more of them as Python strings.
_BATCH = 65_536


@dataclass(frozen=True)
class TargetSettings:
    """Everything that decides the content of a cache.

    Attributes:
        teacher: Name of the teacher, for results.
        fingerprint: Hash of the teacher's weights and front end, or of ready maps.
        first_centre: Of the maps' `Extent`.
        step: Likewise.
        freq_edges: Likewise.
        shape: (F', T', D) of a map.
        sound: How the sound was read for the teacher; empty for ready maps.
        set: Name of the set in `peas data`.
        clips: Number of clips.
        ids: Checksum of their ids.
        shard_clips: Clips of a shard; the last one has the rest.
    """

    teacher: str
    fingerprint: str
    first_centre: float
    step: float
    freq_edges: list[float]
    shape: list[int]
    sound: str
    set: str
    clips: int
    ids: str
    shard_clips: int

    @property
    def extent(self) -> Extent:
        """Position of a map's bins in time and frequency."""
        return Extent(self.first_centre, self.step, tuple(self.freq_edges))

    @property
    def shards(self) -> list[range]:
        """Rows of each shard, in the order of the ids."""
        firsts = range(0, self.clips, self.shard_clips)
        return [range(first, min(first + self.shard_clips, self.clips)) for first in firsts]


@dataclass(frozen=True)
class TargetFile(StoredFile):
    """A shard, or a file of the index.

    Attributes:
        left_out: Clips of a shard that could not be read; their rows are zeros.
    """

    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> TargetFile:
        """File of a manifest's entry."""
        return cls(**{**entry, "left_out": [LeftOut(**clip) for clip in entry["left_out"]]})

    def to_json(self) -> dict[str, Any]:
        """Its entry in a manifest."""
        return {**vars(self), "left_out": [clip.to_json() for clip in self.left_out]}


@dataclass
class Manifest:
    """Metadata of a cache.

    Attributes:
        peas: Version that wrote it.
        settings: What decides its content.
        shards: The shards in order; None = not written yet.
        index: The files of ids and rows; empty while shards are missing.
        left_out: Clips of the set that have no map.
    """

    peas: str
    settings: TargetSettings
    shards: list[TargetFile | None]
    index: list[TargetFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every clip has its map."""
        return bool(self.index) and None not in self.shards

    @property
    def files(self) -> list[TargetFile]:
        """All files that are complete."""
        return [*self.index, *(shard for shard in self.shards if shard is not None)]

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Manifest:
        """Manifest of the file's content.

        Raises:
            KeyError, TypeError, ValueError, ConfigError: It contradicts itself.
        """
        settings = TargetSettings(**content["recipe"])
        rows, _, _ = settings.shape
        if settings.extent.rows != rows:
            raise ValueError(f"maps of {rows} rows and an extent of {settings.extent.rows}")
        shards = [None if one is None else TargetFile.parse(one) for one in content["shards"]]
        if len(shards) != len(settings.shards):
            raise ValueError(f"{len(shards)} shards instead of {len(settings.shards)}")
        index = [TargetFile.parse(entry) for entry in content["index"]]
        left_out = [LeftOut(**clip) for clip in content["left_out"]]
        return cls(content["peas"], settings, shards, index, left_out)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "peas": self.peas,
            "recipe": asdict(self.settings),
            "shards": [shard and shard.to_json() for shard in self.shards],
            "index": [stored.to_json() for stored in self.index],
            "left_out": [clip.to_json() for clip in self.left_out],
        }


def read_manifest(folder: Path) -> Manifest:
    """Manifest of a cache, complete or not.

    Raises:
        DataError: The folder is no cache, or one that is damaged or of another version.
    """
    file = folder / MANIFEST
    content = read_json(file, format=FORMAT, version=VERSION, command="peas data targets")
    try:
        return Manifest.parse(content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(
            f"{file}: damaged ({error}); delete {folder} and run `peas data targets` again"
        ) from None


class TargetCache:
    """A folder that `peas data targets` wrote.

    Nothing is kept for a clip: its id is found by bisection in a sorted column, and its map is
    copied out of a shard. Column and shards are mapped into memory, so all processes share them.

    Args:
        folder: The folder.

    Attributes:
        fingerprint: Hash of the teacher's weights and front end, or of ready maps.
        teacher: Name of the teacher, for results.
        extent: Position of a map's bins in time and frequency.
        shape: (F', T', D) of a map.

    Raises:
        DataError: The folder is no cache, an unfinished one, or a file of it is missing or of
            another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        manifest = read_manifest(self.folder)
        if not manifest.complete:
            done = sum(shard is not None for shard in manifest.shards)
            raise DataError(
                f"{self.folder}: the cache is not finished, it has {done} of "
                f"{len(manifest.shards)} shards; {AGAIN}"
            )
        self.manifest: Manifest = manifest
        self._require_complete(manifest.files)
        self.fingerprint = manifest.settings.fingerprint
        self.teacher = manifest.settings.teacher
        self.extent: Extent = manifest.settings.extent
        rows, columns, width = manifest.settings.shape
        self.shape: tuple[int, int, int] = (rows, columns, width)
        self._open: list[NDArray[np.float16] | None] = [None] * len(manifest.shards)
        self._files = [str(self.folder / one.file) for one in manifest.shards if one is not None]
        self._ids: NDArray[np.bytes_] = self._mapped(IDS)
        self._rows: NDArray[np.int64] = self._mapped(ROWS)
        if self._ids.dtype.kind != "S" or self._rows.shape != self._ids.shape:
            raise DataError(f"{self.folder}: {IDS} and {ROWS} do not fit each other; {AGAIN}")

    def __len__(self) -> int:
        """Number of clips that have a map."""
        return len(self._ids)

    def __reduce__(self) -> tuple[type[TargetCache], tuple[Path]]:
        # A process that is not forked maps the files itself.
        return TargetCache, (self.folder,)

    def take(self, ids: Iterable[str]) -> Tensor:
        """Maps of some clips.

        Args:
            ids: Ids of the clips; one may come several times.

        Returns:
            `[B, D, F', T']` float16: a view whose memory lies as stored, `[B, F', T', D]`.

        Raises:
            DataError: A clip has no map, or a shard has changed since it was opened.
        """
        rows = self._find(list(ids))
        maps = np.empty((len(rows), *self.shape), dtype=np.float16)
        numbers, offsets = np.divmod(rows, self.manifest.settings.shard_clips)
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            maps[chosen] = self._shard(number)[offsets[chosen]]
        return torch.from_numpy(maps).permute(0, 3, 1, 2)

    def require(self, ids: Iterable[str]) -> None:
        """Check before training that every clip has a map.

        Args:
            ids: Ids of any number of clips.

        Raises:
            DataError: Some have none; it names a few and says how many.
        """
        rest = iter(ids)
        missing: list[str] = []
        total = 0
        while batch := list(islice(rest, _BATCH)):
            total += len(batch)
            missing += [batch[row] for row in np.flatnonzero(self._rows_of(batch) < 0).tolist()]
        if missing:
            raise self._missing(missing, total)

    def verify(self) -> None:
        """Read all files and compare their checksums.

        Raises:
            DataError: A file is missing or damaged.
        """
        self._require_complete(self.manifest.files, checksums=True)

    def _require_complete(self, files: Iterable[StoredFile], *, checksums: bool = False) -> None:
        faults = [fault for one in files if (fault := one.fault(self.folder, checksums=checksums))]
        if faults:
            more = f", and {len(faults) - 1} more files" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}; {AGAIN}")

    def _find(self, ids: list[str]) -> Rows:
        """Rows of some clips.

        Raises:
            DataError: A clip has no map.
        """
        rows = self._rows_of(ids)
        if (rows < 0).any():
            missing = [ids[row] for row in np.flatnonzero(rows < 0).tolist()]
            raise self._missing(missing, len(ids))
        return rows

    def _rows_of(self, ids: list[str]) -> Rows:
        """Row of each clip's map; -1 = it has none."""
        names = np.array([name.encode() for name in ids], dtype=bytes)
        column = self._ids
        if not len(names) or not len(column):
            return np.full(len(names), -1, dtype=np.int64)
        fits = np.char.str_len(names) <= column.dtype.itemsize
        # In the column's own width: NumPy would else copy all of it to compare.
        names = names.astype(column.dtype)
        positions = np.minimum(np.searchsorted(column, names), len(column) - 1)
        return np.where(fits & (column[positions] == names), self._rows[positions], -1)

    def _missing(self, ids: list[str], total: int) -> DataError:
        reasons = {clip.id: clip.reason for clip in self.manifest.left_out}
        reason = f" ({ids[0]}: {reasons[ids[0]]})" if ids[0] in reasons else ""
        return DataError(
            f"{self.folder} has no target of {len(ids)} of {total} clips: {some(ids)}{reason}. Run "
            "`peas data targets` on the set that is trained on, or leave these clips out of it"
        )

    def _shard(self, number: int) -> NDArray[np.float16]:
        stored = self.manifest.shards[number]
        assert stored is not None
        # Checked each time, in microseconds: reading beyond the end of a file that was cut while
        # it is mapped would end the process.
        if size_fault(self._files[number], stored.bytes):
            self._require_complete([stored])
        shard = self._open[number]
        if shard is None:
            clips = len(self.manifest.settings.shards[number])
            shard = self._mapped(stored.file)
            if shard.shape != (clips, *self.shape) or shard.dtype != np.float16:
                raise DataError(
                    f"{self.folder / stored.file} holds {shard.dtype} of {shard.shape} instead "
                    f"of float16 of {(clips, *self.shape)}; {AGAIN}"
                )
            self._open[number] = shard
        return shard

    def _mapped(self, name: str) -> NDArray[Any]:
        file = self.folder / name
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file} is damaged ({error}); {AGAIN}") from None
        # A plain view: the class `memmap` makes every indexing several times slower.
        return array.view(np.ndarray)
