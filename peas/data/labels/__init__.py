"""Tables of classes: those of the public data sets (origins in the README), and how one is read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Targets
from peas.errors import DataError
from peas.utils.text import some

_COLUMNS = ("index", "mid", "display_name")


def read_labels(name: str) -> list[str]:
    """Display names of a data set's classes, in the order of their indices.

    Args:
        name: Start of the table's file name: `audioset`, `esc50` or `speech_commands_v2`.
    """
    table = resources.files(__name__).joinpath(f"{name}_class_labels_indices.csv")
    with table.open(encoding="utf-8") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: int(row["index"]))
    return [row["display_name"] for row in rows]


class ClassTable:
    """Class numbers by machine id (`/m/09x0r`) or by display name.

    Args:
        source: What messages call the table.
        mids: Machine ids, by class number.
        names: Display names, by class number.
    """

    def __init__(self, source: str, mids: list[str], names: list[str]) -> None:
        self.source = source
        self.mids = mids
        self.names = names
        # A display name never looks like a machine id, so one look-up serves both.
        self._keys = pa.array([*mids, *names], pa.large_string())

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def shipped(cls) -> ClassTable:
        """AudioSet's 527 classes, in the order of the official table."""
        with resources.as_file(
            resources.files(__name__) / "audioset_class_labels_indices.csv"
        ) as file:
            table = cls.read(file)
        table.source = f"AudioSet's table of {len(table)} classes"
        return table

    @classmethod
    def read(cls, file: Path) -> ClassTable:
        """Read a `class_labels_indices.csv`: columns index, mid, display_name.

        Raises:
            DataError: The file is missing, has other columns, or numbers its classes wrongly.
        """
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, restval="")
                columns = reader.fieldnames or []
                rows = list(reader)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}: cannot be read as a table of classes ({error}); "
                "correct data.init_args.class_labels"
            ) from error
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            raise DataError(
                f"{file} has no column {some(missing)}: its first line must be "
                f"{','.join(_COLUMNS)} (data.init_args.class_labels)"
            )
        numbers = [row["index"].strip() for row in rows]
        if not rows or numbers != [str(number) for number in range(len(rows))]:
            raise DataError(
                f"{file} column index: the classes must be numbered from 0 in order, and the "
                f"numbers are {some(numbers) or 'none'}"
            )
        mids = [row["mid"].strip() for row in rows]
        duplicates = sorted({mid for mid in mids if mids.count(mid) > 1})
        if duplicates:
            raise DataError(f"{file} lists {some(duplicates)} more than once: keep one row each")
        return cls(str(file), mids, [row["display_name"].strip() for row in rows])

    def numbers(self, values: pa.Array) -> NDArray[np.int64]:
        """Class number of each machine id or display name; -1 if there is none."""
        indices = pc.index_in(values.cast(pa.large_string()), value_set=self._keys)
        numbers = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(numbers >= 0, numbers % max(len(self), 1), -1)

    def targets(self, lists: pa.Array, where: Callable[[int], str]) -> Targets:
        """Classes of clips.

        Args:
            lists: `[N]` lists of machine ids or display names; empty names are ignored, and a
                class named twice counts once.
            where: Describes a row, for messages.

        Raises:
            DataError: A name is not in the table.
        """
        values = pc.utf8_trim_whitespace(pc.list_flatten(lists))
        rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        named = pc.fill_null(pc.not_equal(values, ""), False).to_numpy(zero_copy_only=False)
        numbers = self.numbers(values)
        unknown = np.flatnonzero(named & (numbers < 0))
        if len(unknown):
            first = unknown[0]
            raise DataError(
                f"{where(int(rows[first]))}: {values[first].as_py()!r} is none of the classes of "
                f"{self.source}; correct the list, or give its own table as "
                "data.init_args.class_labels"
            )
        return targets_of(rows[named], numbers[named], len(lists), len(self))


def targets_of(
    rows: NDArray[np.int64], numbers: NDArray[np.int64], clips: int, classes: int
) -> Targets:
    """Targets from pairs of a clip and a class, each counted once.

    Args:
        rows: Row of the clip of each pair.
        numbers: Class of each pair.
        clips: Number of clips.
        classes: Number of classes.
    """
    pairs = np.unique(rows * classes + numbers)
    sizes = np.bincount(pairs // classes, minlength=clips)
    return Targets(np.concatenate([[0], np.cumsum(sizes)]), pairs % classes)
