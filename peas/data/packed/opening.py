"""Packed sets: one index and a few large shards, opened at once however many clips there are.

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

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings, Targets
from peas.data.fetch.download import file_sum
from peas.data.inventory import Inventory
from peas.data.packed.index_checks import index_fault, manifest_fault
from peas.data.packed.manifest import AGAIN, INDEX, MANIFEST, Manifest, read_manifest
from peas.data.packed.sounds import PackedSounds, Shards, size_fault
from peas.errors import DataError
from peas.utils.text import some

__all__ = ["Manifest", "PackedFolder", "PackedSounds", "open_part", "open_split", "read_manifest"]

_INSTEAD = {"validation": ("evaluation", "test"), "test": ("evaluation",)}


def open_part(root: str | Path, part: str, decoder: ResampledCache) -> ClipTable:
    """Clips of one part of a packed folder.

    Args:
        root: The folder.
        part: Name of the part.
        decoder: Decodes and resamples.

    Raises:
        DataError: The folder is damaged, or has no such part.
    """
    return PackedFolder(root, decoder).table([part])


def open_split(root: str | Path, split: str, decoder: ResampledCache) -> ClipTable:
    """Clips of a split: of the part of its name, or of one that serves in its place.

    The part `evaluation` validates and tests where there is no other, and last `test` validates.

    Args:
        root: The folder.
        split: `train`, `validation` or `test`.
        decoder: Decodes and resamples.

    Raises:
        DataError: The folder is damaged, or has no part for the split.
    """
    folder = PackedFolder(root, decoder)
    return folder.table(folder.parts_of(split))


class PackedFolder:
    """A packed folder, open.

    Nothing is held for single clips: the columns are views of the mapped index, which a forked
    worker shares, and a shard is mapped when its first clip is read.

    Args:
        root: The folder.
        decoder: Decodes and resamples.

    Attributes:
        manifest: What the folder says about itself.

    Raises:
        DataError: There is no packed set, or it is damaged.
    """

    def __init__(self, root: str | Path, decoder: ResampledCache) -> None:
        self.root = Path(root).expanduser()
        self.decoder = decoder
        self.manifest = read_manifest(self.root)
        fault = manifest_fault(self.manifest)
        if fault:
            raise DataError(f"{self.root / MANIFEST}: damaged: {fault}; {AGAIN}")
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
            f"{self.root} has no part {split}; its parts are {some(self.parts, 10)}: name those "
            f"that are meant, as data.init_args.{split}"
        )

    def table(self, parts: Sequence[str]) -> ClipTable:
        """Clips of some parts, in the order of the set that was packed.

        Raises:
            DataError: There is no such part, it is empty, or a file is missing or cut short.
        """
        strange = [part for part in parts if part not in self.parts]
        if strange:
            raise DataError(
                f"{self.root} has no part {some(strange)}; its parts are {some(self.parts, 10)}"
            )
        for shard in self.manifest.shards:
            if shard.part in parts:
                _require(self.root / shard.file, shard.bytes)
        wanted = [self.parts.index(part) for part in parts]
        rows = np.flatnonzero(np.isin(self._array("part"), wanted))
        if not len(rows):
            raise DataError(f"{self.root}: no clip of {some(parts)} was packed")
        return self._table(rows)

    def inventory(self) -> Inventory:
        """Every clip once; reading one compares its bytes with their checksum.

        Raises:
            DataError: The index is damaged.
        """
        manifest = self.manifest
        file = self.root / INDEX
        _require(file, manifest.index.bytes)
        if file_sum(file) != manifest.index.checksum:
            raise DataError(f"{file}: damaged, its checksum is not the manifest's; {AGAIN}")
        fault = index_fault(self._index, manifest, every=True)
        if fault:
            raise DataError(f"{file}: damaged: {fault}; {AGAIN}")
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
        ids, places = Strings(self._index.column("id")), self._array("place")
        labels = self._index.column("labels")
        targets = Targets(np.asarray(labels.offsets), np.asarray(labels.values))
        first, last = int(rows[0]), int(rows[-1]) + 1
        if len(rows) < last - first:
            ids, places, targets = ids.take(rows), places[rows], targets.take(rows)
        else:
            # Slices leave the columns where they are: no page of them is copied, or even read.
            ids, places = Strings(ids.array.slice(first, last - first)), places[first:last]
            offsets = targets.offsets[first : last + 1]
            classes = targets.classes[offsets[0] : offsets[-1]]
            targets = Targets(offsets - offsets[0] if offsets[0] else offsets, classes)
        return ClipTable(ids, targets, PackedSounds(self.decoder, self._shards, ids, places, sums))

    def _array(self, column: str) -> NDArray[Any]:
        values: NDArray[Any] = self._index.column(column).to_numpy()
        return values

    @cached_property
    def _index(self) -> pa.RecordBatch:
        file = self.root / INDEX
        _require(file, self.manifest.index.bytes)
        try:
            with pa.memory_map(str(file)) as mapped:
                batch = pa.ipc.open_file(mapped).get_batch(0)
                batch.validate()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise DataError(f"{file}: damaged ({error}); {AGAIN}") from None
        fault = index_fault(batch, self.manifest)
        if fault:
            raise DataError(f"{file}: damaged: {fault}; {AGAIN}")
        return batch


def _require(file: Path, size: int) -> None:
    fault = size_fault(file, size)
    if fault:
        raise DataError(f"{file}: {fault}; {AGAIN}")
