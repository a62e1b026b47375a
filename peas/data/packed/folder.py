"""Opens packed folders: an index and a few large shards, mapped into memory.

A packed folder holds

* `manifest.json`: what was packed, how, into which files, and their checksums;
* `index.arrow`: every column but the sound, in the order of the set that was packed, as one
  uncompressed record batch. It is mapped into memory: opening checks its numbers against the
  manifest and copies nothing, and all processes share its pages;
* `shard-00000-PART.arrow`: the clips with their sound, part after part, as Arrow streams that
  `datasets.Dataset.from_file` opens as well. The sound is a plain struct of bytes and path, as
  writing the `Audio` feature of `datasets` would need another decoder.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Rows, Strings, Targets
from peas.data.packed.encoding import bytes_sum
from peas.data.packed.manifest import AGAIN, INDEX, Manifest, PackedFile, read_manifest
from peas.data.shards import size_fault
from peas.data.sounds import Sounds, Source
from peas.errors import AudioError, DataError
from peas.training.randomness import stable_hash
from peas.utils.text import some

_INSTEAD = {"validation": ("evaluation", "test"), "test": ("evaluation",)}
_TYPES: dict[str, pa.DataType] = {
    "id": pa.large_string(),
    "labels": pa.large_list(pa.int32()),
    "recording": pa.large_string(),
    "speaker": pa.large_string(),
    "sum": pa.large_string(),
    "part": pa.int32(),
    "place": pa.int64(),
}
"""Types of the index's columns."""
_OPTIONAL = ("recording", "speaker")


class PackedFolder:
    """An open packed folder.

    Nothing is held for single clips: the columns are views of the mapped index, which a forked
    worker shares, and a shard is mapped when its first clip is read.

    Args:
        root: The folder.
        decoder: Decodes and resamples.

    Attributes:
        manifest: Metadata of the folder.

    Raises:
        DataError: There is no packed set, or it is damaged.
    """

    def __init__(self, root: str | Path, decoder: ResampledCache) -> None:
        self.root = Path(root).expanduser()
        self.decoder = decoder
        self.manifest = read_manifest(self.root)
        self._shards = Shards(self.root, self.manifest.shards)

    @property
    def parts(self) -> list[str]:
        """Names of the parts."""
        return [part.name for part in self.manifest.parts]

    def parts_of(self, split: str) -> list[str]:
        """Parts that serve as a split unless the user says otherwise.

        Raises:
            DataError: There are none.
        """
        for name in (split, *_INSTEAD.get(split, ())):
            if name in self.parts:
                return [name]
        raise DataError(
            f"{self.root} has no part {split}; its parts are {some(self.parts, 10)}: name the "
            f"right ones as data.init_args.{split}"
        )

    def table(self, parts: Sequence[str]) -> ClipTable:
        """Clips of some parts, in the order of the set that was packed.

        Raises:
            DataError: There is no such part, it is empty, or a file is missing or cut short.
        """
        unknown = [part for part in parts if part not in self.parts]
        if unknown:
            raise DataError(
                f"{self.root} has no part {some(unknown)}; its parts are {some(self.parts, 10)}"
            )
        for shard in self.manifest.shards:
            if shard.part in parts:
                self._require(shard)
        numbers = [self.parts.index(part) for part in parts]
        rows = np.flatnonzero(np.isin(self._array("part"), numbers))
        if not len(rows):
            raise DataError(f"{self.root}: no clip of {some(parts)} was packed")
        return self._table(rows)

    def inventory(self) -> Inventory:
        """Every clip once; reading one compares its bytes with their checksum.

        Raises:
            DataError: The index is damaged.
        """
        manifest = self.manifest
        self._require(manifest.index, checksums=True)
        notes = list(manifest.notes)
        if manifest.left_out:
            names = some(clip.id for clip in manifest.left_out)
            notes.append(f"{len(manifest.left_out)} clips were left out when packing: {names}.")
        every = np.arange(manifest.clips)
        return Inventory(
            self._table(every, sums=Strings(self._index.column("sum"))),
            self.parts,
            self._array("part").astype(np.int64),
            Strings(self._index.column("recording")) if manifest.recordings else None,
            Strings(self._index.column("speaker")) if manifest.speakers else None,
            absent=manifest.absent,
            notes=notes,
        )

    def _table(self, rows: Rows, sums: Strings | None = None) -> ClipTable:
        ids, positions = Strings(self._index.column("id")), self._array("place")
        labels = self._index.column("labels")
        targets = Targets(np.asarray(labels.offsets), np.asarray(labels.values))
        first, last = int(rows[0]), int(rows[-1]) + 1
        if len(rows) < last - first:
            ids, positions, targets = ids.take(rows), positions[rows], targets.take(rows)
        else:
            # Slices leave the columns where they are: no page of them is copied, or even read.
            ids, positions = Strings(ids.array.slice(first, last - first)), positions[first:last]
            offsets = targets.offsets[first : last + 1]
            classes = targets.classes[offsets[0] : offsets[-1]]
            targets = Targets(offsets - offsets[0] if offsets[0] else offsets, classes)
        return ClipTable(
            ids, targets, PackedSounds(self.decoder, self._shards, ids, positions, sums)
        )

    def _array(self, column: str) -> NDArray[Any]:
        values: NDArray[Any] = self._index.column(column).to_numpy()
        return values

    @cached_property
    def _index(self) -> pa.RecordBatch:
        file = self.root / INDEX
        self._require(self.manifest.index)
        try:
            with pa.memory_map(str(file)) as mapped:
                batch = pa.ipc.open_file(mapped).get_batch(0)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise DataError(f"{file}: damaged ({error}); {AGAIN}") from None
        fault = index_fault(batch, self.manifest)
        if fault:
            raise DataError(f"{file}: damaged: {fault}; {AGAIN}")
        return batch

    def _require(self, stored: PackedFile, *, checksums: bool = False) -> None:
        fault = stored.fault(self.root, checksums=checksums)
        if fault:
            raise DataError(f"{fault}; {AGAIN}")


class PackedSounds(Sounds):
    """Clips of a packed folder.

    Args:
        decoder: Decodes and resamples.
        shards: The folder's shards.
        ids: Name of each clip.
        positions: `[N]` number of each clip among those of all shards.
        sums: Checksum of each clip's bytes, to be compared whenever they are read; None = trust
            them, as a decoder notices most damage itself.
    """

    def __init__(
        self,
        decoder: ResampledCache,
        shards: Shards,
        ids: Strings,
        positions: Rows,
        sums: Strings | None = None,
    ) -> None:
        super().__init__(decoder)
        self.shards = shards
        self.ids = ids
        self.positions = positions
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
        data, name = self.shards.read(int(self.positions[row]), self.ids[row])
        if self.sums is not None and bytes_sum(data) != self.sums[row]:
            raise AudioError(f"{name}: damaged, its checksum is not the one packed; {AGAIN}")
        return Source(data, name)

    def extents(self, rows: Rows) -> Rows:
        """The checksums of the clips' shards: of a set packed anew, all differ."""
        sums = np.array([stable_hash(shard.checksum) for shard in self.shards.stored])
        return sums[np.searchsorted(self.shards.ends, self.positions[rows], side="right")]


class Shards:
    """The shards of a folder, each mapped into memory when it is first needed."""

    def __init__(self, root: Path, shards: list[PackedFile]) -> None:
        self.stored = shards
        self.files = [str(root / shard.file) for shard in shards]
        self.ends: list[int] = np.cumsum([0, *(shard.rows for shard in shards)])[1:].tolist()
        self._open: list[pa.ChunkedArray | None] = [None] * len(shards)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not forked maps them itself.
        return {**self.__dict__, "_open": [None] * len(self.stored)}

    def read(self, position: int, clip: str) -> tuple[bytes, str]:
        """Bytes of a clip by its number, and its name for messages.

        Raises:
            AudioError: The shard cannot be read.
        """
        number = bisect_right(self.ends, position)
        shard, file = self.stored[number], self.files[number]
        name = f"clip {clip} in {file}"
        # Checked each time, in microseconds: reading beyond the end of a file that was cut while
        # it is mapped would end the process.
        fault = size_fault(file, shard.bytes)
        if fault:
            raise AudioError(f"{name}: {fault}; {AGAIN}")
        column = self._open[number]
        if column is None:
            try:
                column = self._open[number] = _audio(file, shard.rows)
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise AudioError(f"{name}: the shard is damaged ({error}); {AGAIN}") from None
        data: bytes | None = column[position - self.ends[number] + shard.rows]["bytes"].as_py()
        if data is None:
            raise AudioError(f"{name}: the shard is damaged (it has no sound); {AGAIN}")
        return data, name


def _audio(file: str, rows: int) -> pa.ChunkedArray:
    """The sound of a shard."""
    # What `Dataset.from_file` holds, in a fifth of its time.
    from datasets.table import MemoryMappedTable

    column = MemoryMappedTable.from_file(file).table.column("audio")
    if len(column) != rows:
        raise ValueError(f"{len(column)} clips instead of {rows}")
    # Damaged offsets would lead outside of the file.
    column.validate(full=True)
    return column


def index_fault(index: pa.RecordBatch, manifest: Manifest) -> str:
    """What is wrong with an index, or nothing.

    A number that leads out of a column reads foreign memory or ends the process, and a damaged
    class would be trained on, so both are checked before any row is used.

    Args:
        index: As mapped.
        manifest: Of the same folder.
    """
    if index.num_rows != manifest.clips:
        return f"{index.num_rows} clips, and the manifest has {manifest.clips}"
    for name, kind in _TYPES.items():
        if name not in index.schema.names or index.schema.field(name).type != kind:
            return f"its column {name} is missing or of another type than {kind}"
        if name not in _OPTIONAL and index.column(name).null_count:
            return f"its column {name} has rows without a value"
    try:
        # Offsets too.
        index.validate(full=True)
    except pa.ArrowException as error:
        return str(error)
    part, position = (index.column(name).to_numpy() for name in ("part", "place"))
    counts = _counts(part, len(manifest.parts))
    if counts is None or counts.tolist() != [one.clips for one in manifest.parts]:
        return "its parts are not those of the manifest"
    once = _counts(position, len(position))
    if once is None or (once != 1).any():
        return "its column place names a clip twice, or one that no shard has"
    return _class_fault(index, part, manifest)


def _class_fault(index: pa.RecordBatch, part: NDArray[np.int32], manifest: Manifest) -> str:
    labels = index.column("labels")
    offsets = np.asarray(labels.offsets)
    numbers = np.asarray(labels.values)[offsets[0] : offsets[-1]]
    classes, parts = len(manifest.settings.labels), manifest.parts
    outside = len(numbers) and not (numbers.min() >= 0 and numbers.max() < classes)
    if outside or labels.values.null_count:
        return f"it has classes beyond the {classes} of the manifest"
    # Parts times classes at once.
    pairs = np.repeat(part.astype(np.int64) * classes, np.diff(offsets))
    pairs += numbers
    counts = np.bincount(pairs, minlength=len(parts) * classes).reshape(len(parts), classes)
    for entry, counted in zip(parts, counts.tolist(), strict=True):
        if counted != list(entry.classes):
            return f"its classes of the part {entry.name} are not those of the manifest"
    return ""


def _counts(numbers: NDArray[Any], most: int) -> NDArray[np.int64] | None:
    """How often each number below `most` comes; None when there is another one."""
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < most):
        return None
    return np.bincount(numbers, minlength=most)
