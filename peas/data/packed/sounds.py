"""The sound of a packed folder: large files, mapped into memory and read by row."""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from peas.data.cache import ResampledCache
from peas.data.columns import Rows, Strings
from peas.data.packed.encoding import bytes_sum
from peas.data.packed.manifest import AGAIN, Stored
from peas.data.sounds import Sounds, Source
from peas.errors import AudioError
from peas.training.randomness import stable_hash


class PackedSounds(Sounds):
    """Clips of a packed folder.

    Args:
        decoder: Decodes and resamples.
        shards: The folder's shards.
        ids: Name of each clip.
        places: `[N]` number of each clip among those of all shards.
        sums: Checksum of each clip's bytes, to be compared whenever they are read; None = trust
            them, as a decoder notices most damage itself.
    """

    def __init__(
        self,
        decoder: ResampledCache,
        shards: Shards,
        ids: Strings,
        places: Rows,
        sums: Strings | None = None,
    ) -> None:
        super().__init__(decoder)
        self.shards = shards
        self.ids = ids
        self.places = places
        self.sums = sums
        # Workers are forked: what is imported before is theirs at no cost, and it takes a second.
        import datasets  # noqa: F401

    def __len__(self) -> int:
        return len(self.ids)

    def source(self, row: int, crop: float | None = None) -> Source:
        """Bytes of a clip.

        Raises:
            AudioError: Its shard cannot be read, or the bytes are not those that were packed.
        """
        data, name = self.shards.read(int(self.places[row]), self.ids[row])
        if self.sums is not None and bytes_sum(data) != self.sums[row]:
            raise AudioError(f"{name}: damaged, its checksum is not the one packed; {AGAIN}")
        return Source(data, name)

    def extents(self, rows: Rows) -> Rows:
        """The checksums of the clips' shards: of a set packed anew, all differ."""
        sums = np.array([stable_hash(shard.checksum) for shard in self.shards.stored])
        return sums[np.searchsorted(self.shards.ends, self.places[rows], side="right")]


class Shards:
    """The shards of a folder, each mapped into memory when it is first needed."""

    def __init__(self, root: Path, shards: list[Stored]) -> None:
        self.stored = shards
        self.files = [str(root / shard.file) for shard in shards]
        self.ends: list[int] = np.cumsum([0, *(shard.rows for shard in shards)])[1:].tolist()
        self._open: list[pa.ChunkedArray | None] = [None] * len(shards)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not forked maps them itself.
        return {**self.__dict__, "_open": [None] * len(self.stored)}

    def read(self, place: int, clip: str) -> tuple[bytes, str]:
        """Bytes of the clip at a place, and what messages call it.

        Raises:
            AudioError: The shard cannot be read.
        """
        number = bisect_right(self.ends, place)
        shard, file = self.stored[number], self.files[number]
        name = f"clip {clip} in {file}"
        # Looked at each time, in microseconds: reading beyond the end of a file that was cut
        # while it is mapped would end the process.
        fault = size_fault(file, shard.bytes)
        if fault:
            raise AudioError(f"{name}: {fault}; {AGAIN}")
        column = self._open[number]
        if column is None:
            try:
                column = self._open[number] = _audio(file, shard.rows)
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise AudioError(f"{name}: the shard is damaged ({error}); {AGAIN}") from None
        data: bytes | None = column[place - self.ends[number] + shard.rows]["bytes"].as_py()
        if data is None:
            raise AudioError(f"{name}: the shard is damaged (it has no sound); {AGAIN}")
        return data, name


def _audio(file: str, rows: int) -> pa.ChunkedArray:
    """The sound of a shard."""
    # What `Dataset.from_file` holds, in a fifth of its time.
    from datasets.table import MemoryMappedTable

    column = MemoryMappedTable.from_file(file).table.column("audio")
    if len(column) != rows:
        raise ValueError(f"{len(column)} clips in place of {rows}")
    # Damaged offsets would lead outside of the file.
    column.validate(full=True)
    return column


def size_fault(file: str | Path, size: int) -> str:
    """What the file's size tells to be wrong, or nothing."""
    try:
        found = os.stat(file).st_size
    except OSError as error:
        return f"the file cannot be opened ({error.strerror})"
    return "" if found == size else f"the file has {found} of {size} bytes"
