"""Reads a target cache: a clip's map by its id, from files that are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas.data.columns import Rows
from peas.data.packed.sounds import size_fault
from peas.errors import DataError
from peas.teachers.grid import Extent
from peas.teachers.manifest import AGAIN, IDS, ROWS, Manifest, Stored, read_manifest
from peas.utils.text import some

# Ids that are looked up at once: more would only hold more of them as Python strings.
_AT_ONCE = 65_536


class TargetCache:
    """A folder that `peas data targets` wrote.

    Nothing is kept for a clip: its id is found by bisection in a sorted column, and its map is
    copied out of a shard. Column and shards are mapped into memory, so all processes share them.

    Args:
        folder: The folder.

    Attributes:
        fingerprint: Hash of the teacher's weights and front end, or of ready maps.
        teacher: Name of the teacher, for results.
        extent: Where the cells of a map lie.
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
                f"{self.folder}: the cache is not finished, {done} of {len(manifest.shards)} "
                f"shards are there; {AGAIN}"
            )
        self.manifest: Manifest = manifest
        self._require_whole(manifest.files, sums=False)
        self.fingerprint = manifest.recipe.fingerprint
        self.teacher = manifest.recipe.teacher
        self.extent: Extent = manifest.recipe.extent
        rows, columns, width = manifest.recipe.shape
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
        numbers, places = np.divmod(rows, self.manifest.recipe.shard_clips)
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            maps[chosen] = self._shard(number)[places[chosen]]
        return torch.from_numpy(maps).permute(0, 3, 1, 2)

    def require(self, ids: Iterable[str]) -> None:
        """Check before training that every clip has a map.

        Args:
            ids: Ids of any number of clips.

        Raises:
            DataError: Some have none; it names a few and says how many.
        """
        rest = iter(ids)
        lost: list[str] = []
        seen = 0
        while some_ids := list(islice(rest, _AT_ONCE)):
            seen += len(some_ids)
            rows = self._places(some_ids)
            lost += [some_ids[place] for place in np.flatnonzero(rows < 0).tolist()]
        if lost:
            raise self._missing(lost, seen)

    def verify(self) -> None:
        """Read all files and compare their checksums.

        Raises:
            DataError: A file is missing or damaged.
        """
        self._require_whole(self.manifest.files, sums=True)

    def _require_whole(self, files: Iterable[Stored], *, sums: bool) -> None:
        faults = [fault for one in files if (fault := one.fault(self.folder, sums=sums))]
        if faults:
            more = f", and {len(faults) - 1} more files" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}; {AGAIN}")

    def _find(self, ids: list[str]) -> Rows:
        """Rows of some clips.

        Raises:
            DataError: A clip has no map.
        """
        rows = self._places(ids)
        if (rows < 0).any():
            lost = [ids[place] for place in np.flatnonzero(rows < 0).tolist()]
            raise self._missing(lost, len(ids))
        return rows

    def _places(self, ids: list[str]) -> Rows:
        """Row of each clip's map; -1 = it has none."""
        names = np.array([name.encode() for name in ids], dtype=bytes)
        known = self._ids
        if not len(names) or not len(known):
            return np.full(len(names), -1, dtype=np.int64)
        fits = np.char.str_len(names) <= known.dtype.itemsize
        # In the column's own width: NumPy would else copy all of it to compare.
        names = names.astype(known.dtype)
        places = np.minimum(np.searchsorted(known, names), len(known) - 1)
        found = fits & (known[places] == names)
        return np.where(found, self._rows[places], -1)

    def _missing(self, lost: list[str], asked: int) -> DataError:
        reasons = {clip.id: clip.reason for clip in self.manifest.left_out}
        why = reasons.get(lost[0])
        told = f" ({lost[0]}: {why})" if why else ""
        return DataError(
            f"{self.folder} has no target of {len(lost)} of {asked} clips: {some(lost)}{told}. Run "
            "`peas data targets` on the very set that is trained on, or leave these clips out of it"
        )

    def _shard(self, number: int) -> NDArray[np.float16]:
        stored = self.manifest.shards[number]
        assert stored is not None
        # Looked at each time, in microseconds: reading beyond the end of a file that was cut while
        # it is mapped would end the process.
        if size_fault(self._files[number], stored.bytes):
            self._require_whole([stored], sums=False)
        shard = self._open[number]
        if shard is None:
            clips = len(self.manifest.recipe.shards[number])
            shard = self._mapped(stored.file)
            if shard.shape != (clips, *self.shape) or shard.dtype != np.float16:
                raise DataError(
                    f"{self.folder / stored.file} holds {shard.dtype} of {shard.shape} in place "
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
