"""Whether the index of a packed folder says what its manifest says, before any row of it is used.

A number that leads out of a column reads foreign memory or ends the process, and a class that was
damaged would be trained on. The checks here read offsets, parts, places and classes, a tenth of a
second for two million clips; `peas data verify` compares the checksum of the whole file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.packed.manifest import Manifest

_KINDS: dict[str, pa.DataType] = {
    "id": pa.large_string(),
    "labels": pa.large_list(pa.int32()),
    "recording": pa.large_string(),
    "speaker": pa.large_string(),
    "sum": pa.large_string(),
    "part": pa.int32(),
    "place": pa.int64(),
}
_VARIABLE = ("id", "labels", "recording", "speaker", "sum")
_OPTIONAL = ("recording", "speaker")


def index_fault(index: pa.RecordBatch, manifest: Manifest, *, every: bool = False) -> str:
    """What is wrong with an index, or nothing.

    Args:
        index: As mapped; nothing in it has been followed yet.
        manifest: Of the same folder.
        every: Whether columns are checked too that training does not use.
    """
    if index.num_rows != manifest.clips:
        return f"{index.num_rows} clips, and the manifest has {manifest.clips}"
    for name, kind in _KINDS.items():
        if name not in index.schema.names or index.schema.field(name).type != kind:
            return f"its column {name} is missing or of another type than {kind}"
        column = index.column(name)
        if name not in _OPTIONAL and column.null_count:
            return f"its column {name} has rows without a value"
        # The others are followed by `peas data verify` alone.
        if name in (("id", "labels") if not every else _VARIABLE):
            fault = _offset_fault(column)
            if fault:
                return f"its column {name} {fault}"
    part, place = (index.column(name).to_numpy() for name in ("part", "place"))
    counts = _counts(part, len(manifest.parts))
    if counts is None or counts.tolist() != [one.clips for one in manifest.parts]:
        return "its clips are of other parts than the manifest says"
    places = _counts(place, len(place))
    if places is None or (places != 1).any():
        return "its column place names a clip twice, or one that no shard has"
    return _class_fault(index, part, manifest)


def manifest_fault(manifest: Manifest) -> str:
    """What of a manifest has another type or range than it can have, or nothing.

    Args:
        manifest: As read; its numbers decide what is opened and built.
    """
    recipe = manifest.recipe
    if not isinstance(recipe.labels, list) or not all(isinstance(n, str) for n in recipe.labels):
        return "its labels are no list of names"
    if not _count(recipe.frames) or not recipe.frames:
        return f"its frames are {recipe.frames!r}, no positive number"
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        found = getattr(manifest, key)
        number = isinstance(found, int | float) and math.isfinite(found) and found > least
        if found is not None and not number:
            return f"its {key} is {found!r}"
    for one in (manifest.index, *manifest.shards):
        named = isinstance(one.file, str) and Path(one.file).name == one.file
        if not named or not _count(one.rows) or not _count(one.bytes):
            return f"its file {one.file!r} has no plain name or count"
    for part in manifest.parts:
        counted = isinstance(part.classes, list) and len(part.classes) == len(recipe.labels)
        if not isinstance(part.name, str) or not _count(part.clips) or not counted:
            return f"its part {part.name!r} has no counts of its classes"
    rows = sum(one.rows for one in manifest.shards)
    clips = sum(part.clips for part in manifest.parts)
    if not rows == clips == manifest.clips:
        return f"its shards have {rows} clips, its parts {clips}, and it says {manifest.clips}"
    return ""


def _count(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**62


def _offset_fault(column: pa.Array) -> str:
    """Whether the offsets of a column of strings or lists stay inside of its values."""
    if not len(column):
        return ""
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    if pa.types.is_large_list(column.type):
        most = len(column.values)
    else:
        data = column.buffers()[2]
        most = 0 if data is None else data.size
    if len(offsets) != len(column) + 1 or offsets[0] < 0 or offsets[-1] > most:
        return "leads outside of its values"
    return "has offsets that run backwards" if (offsets[1:] < offsets[:-1]).any() else ""


def _class_fault(index: pa.RecordBatch, part: NDArray[np.int32], manifest: Manifest) -> str:
    labels = index.column("labels")
    offsets = np.asarray(labels.offsets)
    numbers = np.asarray(labels.values)[offsets[0] : offsets[-1]]
    classes, parts = len(manifest.recipe.labels), manifest.parts
    outside = len(numbers) and not (numbers.min() >= 0 and numbers.max() < classes)
    if outside or labels.values.null_count:
        return f"it has classes beyond the {classes} of the manifest"
    # Parts times classes at once.
    cells = np.repeat(part.astype(np.int64) * classes, np.diff(offsets))
    cells += numbers
    counts = np.bincount(cells, minlength=len(parts) * classes).reshape(len(parts), classes)
    for one, found in zip(parts, counts.tolist(), strict=True):
        if found != list(one.classes):
            return f"its classes of the part {one.name} are other ones than the manifest counted"
    return ""


def _counts(numbers: NDArray[Any], most: int) -> NDArray[np.int64] | None:
    """How often each number below `most` comes; None when there is another one."""
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < most):
        return None
    return np.bincount(numbers, minlength=most)
