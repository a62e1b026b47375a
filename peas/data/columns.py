"""Columns of a table of clips, without a Python object per clip.

Workers are forked: a list of two million strings would be copied page by page as soon as its
reference counts are touched. A column is one buffer, shared by all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]


class Strings(Sequence[str]):
    """A column of strings.

    Args:
        values: Strings, or an Arrow array of them (memory-mapped, say), which is kept as it is.
    """

    def __init__(self, values: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array(values, pa.large_string())
        self.array = values

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Strings: ...

    def __getitem__(self, row: int | slice) -> str | Strings:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        value: str = self.array[row].as_py()
        return value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return list(self) == list(other)
        return isinstance(other, list) and list(self) == other

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def concatenate(cls, parts: Sequence[Strings]) -> Strings:
        """The strings of several columns, one after the other."""
        chunks: list[pa.Array] = []
        for part in parts:
            array = part.array.cast(pa.large_string())
            chunks += array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        return cls(pa.chunked_array(chunks, pa.large_string()))

    def take(self, rows: ArrayLike) -> Strings:
        """The column of some rows, in their order."""
        return Strings(self.array.take(pa.array(np.asarray(rows, dtype=np.int64))))


def joined(*parts: pa.Array | pa.ChunkedArray | str) -> pa.Array:
    """Concatenate columns and constant texts row by row: `joined("youtube:", ids)`."""
    # Arrow joins texts of one type only.
    texts = [pa.scalar(one, pa.large_string()) if isinstance(one, str) else one for one in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string()))


def duplicates(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """Values that a column holds more than once."""
    counted = pc.value_counts(column)
    values: list[str] = (
        counted.field("values").filter(pc.greater(counted.field("counts"), 1)).to_pylist()
    )
    return values


class Targets:
    """Classes of each clip: none, one or several. N clips.

    Args:
        offsets: `[N + 1]` int64; clip n has the classes `classes[offsets[n]:offsets[n + 1]]`.
        classes: Class numbers, clip after clip.
    """

    def __init__(self, offsets: ArrayLike, classes: ArrayLike) -> None:
        self.offsets: Rows = np.asarray(offsets, dtype=np.int64)
        self.classes: NDArray[np.int32] = np.asarray(classes, dtype=np.int32)

    @classmethod
    def one_each(cls, classes: ArrayLike) -> Targets:
        """One class for each clip."""
        values = np.asarray(classes, dtype=np.int32)
        return cls(np.arange(len(values) + 1), values)

    @classmethod
    def several(cls, classes: Iterable[Sequence[int]]) -> Targets:
        """Any number of classes for each clip."""
        lists = list(classes)
        flat = [number for numbers in lists for number in numbers]
        return cls(np.cumsum([0, *map(len, lists)]), np.array(flat, dtype=np.int32))

    @classmethod
    def none(cls, clips: int) -> Targets:
        """No class for any clip."""
        return cls(np.zeros(clips + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Targets]) -> Targets:
        """The clips of several columns, one after the other."""
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(_offsets(sizes), np.concatenate([part.classes for part in parts]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """Class numbers of a clip."""
        return self.classes[self.offsets[row] : self.offsets[row + 1]]

    @property
    def sizes(self) -> Rows:
        """Number of classes of each clip, `[N]`."""
        return np.diff(self.offsets)

    def counts(self, classes: int) -> Rows:
        """Number of clips of each class, `[C]`."""
        return np.bincount(self.classes, minlength=classes).astype(np.int64)

    def take(self, rows: ArrayLike) -> Targets:
        """The column of some rows, in their order."""
        index = np.asarray(rows, dtype=np.int64)
        sizes = self.sizes[index]
        offsets = _offsets(sizes)
        # Start of its clip's classes plus its number among them.
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], sizes)
        return Targets(offsets, self.classes[positions])

    def renumbered(self, numbers: ArrayLike) -> Targets:
        """The same clips with class c called `numbers[c]`."""
        return Targets(self.offsets, np.asarray(numbers, dtype=np.int32)[self.classes])


def _offsets(sizes: Rows) -> Rows:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
