"""Maps made by another program: an npz of maps and a JSON with their extent."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings
from peas.errors import ConfigError, DataError
from peas.teachers.grid import Extent
from peas.teachers.target_writer import Block, sorted_ids
from peas.utils.files import checksum
from peas.utils.text import some

_IDS = "ids"
_REQUIRED = ("first_centre", "step", "freq_edges", "teacher")
_OPTIONAL = ("columns", "sha256")
_BLOCK = 256
"""Maps that are converted at once."""


@dataclass(frozen=True)
class ReadyMaps:
    """Ready maps of N clips.

    Attributes:
        file: The npz.
        ids: Id of each clip.
        maps: `[N, F', T', D]` floating point.
        teacher: Name of the teacher, for results.
        extent: Position of a map's bins in time and frequency.
        fingerprint: Hash of ids, maps and extent.
    """

    file: Path
    ids: Strings
    maps: NDArray[np.floating[Any]]
    teacher: str
    extent: Extent
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F', T', D) of a map."""
        rows, columns, width = self.maps.shape[1:]
        return rows, columns, width

    def of(self, ids: Strings) -> tuple[Rows, list[str]]:
        """The maps of some clips.

        Args:
            ids: Ids of the clips.

        Returns:
            Row of each clip's map, -1 where there is none; and the ids of those clips.
        """
        order = sorted_ids(self.ids)
        column = np.array([name.encode() for name in self.ids], dtype=bytes)[order]
        names = np.array([name.encode() for name in ids], dtype=bytes)
        positions = np.minimum(np.searchsorted(column, names), len(column) - 1)
        rows = np.where(column[positions] == names, order[positions], -1)
        return rows, list(ids.take(np.flatnonzero(rows < 0)))


class ReadyMapSource:
    """Ready maps in the order of a cache.

    Args:
        ready: The maps.
        rows: Row of the map of each clip of the cache.
    """

    def __init__(self, ready: ReadyMaps, rows: Rows) -> None:
        self.ready = ready
        self.rows = rows

    def blocks(self, shards: Sequence[range]) -> Generator[Block]:
        """Maps of the clips of some shards, in order."""
        for shard in shards:
            for first in range(shard.start, shard.stop, _BLOCK):
                rows = self.rows[first : min(first + _BLOCK, shard.stop)]
                yield Block(self.ready.maps[rows].astype(np.float16), [])


def read_ready(file: Path, extent_file: Path, key: str | None = None) -> ReadyMaps:
    """Reads ready maps and their extent, and checks that they fit each other.

    The JSON has `first_centre` and `step` in seconds, `freq_edges` in Hz, `teacher` (its name in
    results), and may have `columns` (T') and `sha256` (of the npz), which are compared.

    Args:
        file: An npz with `ids` `[N]` and an array `[N, F', T', D]`.
        extent_file: The JSON.
        key: Name of the array; None = there is only one of four dimensions.

    Raises:
        DataError: A file is missing, damaged or lacks something, or the maps hold values that are
            not finite in float16.
        ConfigError: The maps and the extent do not fit each other, or the key is not there.
    """
    metadata, extent = _read_extent(extent_file)
    if not file.is_file():
        raise DataError(f"there is no file {file}: give the npz of the ready maps as --from")
    expected = metadata.get("sha256")
    if expected is not None and checksum(file) != f"sha256:{str(expected).removeprefix('sha256:')}":
        raise DataError(
            f"{file} is not the file that {extent_file} describes: its sha256 is "
            f"{checksum(file).removeprefix('sha256:')}, and the JSON says {expected}"
        )
    ids, maps, name = _read_arrays(file, key)
    rows, columns = maps.shape[1:3]
    if rows != extent.rows:
        raise ConfigError(
            f"{file}: {name} has maps of {rows} rows, and freq_edges of {extent_file} are the "
            f"borders of {extent.rows}: give one more border than there are rows"
        )
    if "columns" in metadata and columns != metadata["columns"]:
        raise ConfigError(
            f"{file}: {name} has maps of {columns} columns, and {extent_file} says "
            f"{metadata['columns']}: correct one of them"
        )
    _require_finite(file, ids, maps)
    return ReadyMaps(
        file,
        Strings(ids.tolist()),
        maps,
        metadata["teacher"],
        extent,
        _fingerprint(ids, maps, extent),
    )


def _read_extent(file: Path) -> tuple[dict[str, Any], Extent]:
    if not file.is_file():
        raise DataError(
            f"there is no file {file}: give as --extent a JSON with {', '.join(_REQUIRED)}"
        )
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); correct it") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{file}: give an object with {', '.join(_REQUIRED)}")
    missing = [key for key in _REQUIRED if key not in metadata]
    unknown = sorted(set(metadata) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has an unknown key {unknown[0]!r}"
        raise DataError(
            f"{file} {what}: it needs {', '.join(_REQUIRED)}, and may have {', '.join(_OPTIONAL)}"
        )
    if not isinstance(metadata["teacher"], str) or not metadata["teacher"]:
        raise DataError(f"{file}: teacher is {metadata['teacher']!r}; give its name, for results")
    try:
        edges = tuple(float(edge) for edge in metadata["freq_edges"])
        return metadata, Extent(float(metadata["first_centre"]), float(metadata["step"]), edges)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file}: first_centre and step are seconds, and freq_edges a list of Hz ({error})"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _read_arrays(
    file: Path, key: str | None
) -> tuple[NDArray[np.str_], NDArray[np.floating[Any]], str]:
    """Ids, maps, and the name of the maps' array."""
    try:
        with np.load(file, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: not an npz that can be read ({error}); write it with numpy.savez, the ids as "
            "strings"
        ) from None
    if _IDS not in arrays or arrays[_IDS].ndim != 1 or arrays[_IDS].dtype.kind not in "US":
        raise DataError(f"{file}: needs an array {_IDS!r}, one string for each clip")
    ids = arrays[_IDS].astype(str)
    names = [name for name, array in arrays.items() if array.ndim == 4]
    if key is None and len(names) != 1:
        raise ConfigError(
            f"{file} has {len(names)} arrays of four dimensions ({some(names) or 'none'}): give "
            "the maps' name as --key"
        )
    name = names[0] if key is None else key
    if name not in names:
        raise ConfigError(
            f"{file}: --key {name} is no array of four dimensions [N, F', T', D]; it has "
            f"{', '.join(names) or 'none'}"
        )
    maps = arrays[name]
    if maps.dtype.kind != "f" or len(maps) != len(ids) or not maps.size:
        raise DataError(
            f"{file}: {name} is {maps.dtype} {maps.shape} beside {len(ids)} ids: give floating "
            "point [N, F', T', D], a map for each id"
        )
    return ids, maps, name


def _require_finite(file: Path, ids: NDArray[np.str_], maps: NDArray[np.floating[Any]]) -> None:
    bad: list[str] = []
    for first in range(0, len(maps), _BLOCK):
        with np.errstate(over="ignore"):
            block = maps[first : first + _BLOCK].astype(np.float16)
        finite = np.isfinite(block).all(axis=(1, 2, 3))
        bad += ids[first : first + _BLOCK][~finite].tolist()
    if bad:
        raise DataError(
            f"{file}: the maps of {len(bad)} clips hold NaN, or values beyond float16's 65504: "
            f"{some(bad)}; make them again"
        )


def _fingerprint(ids: NDArray[np.str_], maps: NDArray[np.floating[Any]], extent: Extent) -> str:
    digest = hashlib.sha256(repr((extent, maps.dtype.str, maps.shape)).encode())
    digest.update("\n".join(ids.tolist()).encode())
    digest.update(np.ascontiguousarray(maps).data)
    return f"maps:{digest.hexdigest()}"
