"""Which rows of a column agree with other rows, without a Python object per row. N rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings


def coded(column: Strings) -> Rows:
    """A number for each different string, `[N]`; -1 for empty ones."""
    array = column.array
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    encoded = array.dictionary_encode()
    codes: Rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    nothing = encoded.dictionary.index("").as_py()
    if nothing >= 0:
        codes[codes == nothing] = -1
    return codes


def coded_hashes(digest: NDArray[np.uint8]) -> Rows:
    """A number for each different hash of `[N, 16]`; -1 for zeros."""
    first, second = np.ascontiguousarray(digest).view(np.uint64).reshape(-1, 2).T
    order = np.lexsort((second, first))
    new = (np.diff(first[order], prepend=0) != 0) | (np.diff(second[order], prepend=0) != 0)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(new)
    codes[(first == 0) & (second == 0)] = -1
    return codes


def several(codes: Rows) -> NDArray[np.bool_]:
    """Which clips have a code that others have as well, `[N]`."""
    counts = np.bincount(codes + 1, minlength=1)
    counts[0] = 0
    found: NDArray[np.bool_] = counts[codes + 1] > 1
    return found


def across(codes: Rows, place: Rows) -> NDArray[np.bool_]:
    """Which clips have a code that occurs at another place as well, `[N]`."""
    if not len(codes):
        return np.zeros(0, bool)
    places = int(place.max()) + 1
    # One entry for each pair of code and place.
    pairs = np.unique((codes + 1) * places + place)
    counts = np.bincount(pairs // places, minlength=int(codes.max()) + 2)
    counts[0] = 0
    found: NDArray[np.bool_] = counts[codes + 1] > 1
    return found


def joined(*columns: Strings) -> Strings:
    """Several columns, one after the other."""
    arrays = [column.array.cast(pa.large_string()) for column in columns]
    chunks = [c for a in arrays for c in (a.chunks if isinstance(a, pa.ChunkedArray) else [a])]
    return Strings(pa.chunked_array(chunks, pa.large_string()))
