"""One spelling of names: a letter with an accent may be one character of Unicode, or two."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.utils.text import some


def one_spelling(name: str) -> str:
    """A name in composed form (NFC), without white space around it."""
    return unicodedata.normalize("NFC", name).strip()


def composed(column: pa.Array) -> pa.Array:
    """Strings in composed form (NFC)."""
    not_ascii = pc.invert(pc.string_is_ascii(column))
    if not pc.any(not_ascii).as_py():
        return column
    names = [unicodedata.normalize("NFC", name) for name in column.filter(not_ascii).to_pylist()]
    return pc.replace_with_mask(column, not_ascii, pa.array(names, column.type))


def case_twins(kind: str, names: Iterable[str]) -> list[str]:
    """A sentence where names differ by case only; none where none do.

    Args:
        kind: What the names are of, in plural.
        names: Different names.
    """
    alike = defaultdict(list)
    for name in names:
        alike[name.casefold()].append(name)
    twins = [", ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1]
    if not twins:
        return []
    return [f"{kind} whose names differ by case only are different ones: {some(sorted(twins))}"]


def on_disk(root: Path, paths: pa.Array, absent: NDArray[np.int64]) -> dict[int, str]:
    """Paths of files that are there under another Unicode spelling.

    Args:
        root: Folder that the paths start from.
        paths: `[N]` paths in composed form.
        absent: Rows of those that are not there as they are spelled.

    Returns:
        Path on the disk, by row.
    """
    spelled_as = {}
    names: dict[Path, dict[str, str]] = {}
    missing = paths.take(pa.array(absent))
    not_ascii = np.flatnonzero(~np.asarray(pc.string_is_ascii(missing)))
    for row, path in zip(
        absent[not_ascii].tolist(), missing.take(pa.array(not_ascii)).to_pylist(), strict=True
    ):
        here, steps = (Path("/") if path.startswith("/") else root), []
        for step in path.strip("/").split("/"):
            if here not in names:
                names[here] = _composed_names(here)
            steps.append(names[here].get(step, step))
            here /= steps[-1]
        if here.exists():
            spelled_as[row] = ("/" if path.startswith("/") else "") + "/".join(steps)
    return spelled_as


def _composed_names(folder: Path) -> dict[str, str]:
    """Names in a folder by their composed form; the composed one itself goes first."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    spelled = {unicodedata.normalize("NFC", name): name for name in names}
    return {**spelled, **{name: name for name in names if name in spelled}}
