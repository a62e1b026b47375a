"""The order of a user's classes, from a file."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from peas.data.columns import Rows
from peas.data.folder.spelling import one_spelling
from peas.errors import DataError
from peas.utils.text import some

_NAMES = ("name", "label", "display_name")


def read_order(file: Path) -> list[str]:
    """Names of the classes in order.

    Args:
        file: A name on each line; or a CSV whose first line names a column `name`, `label` or
            `display_name`, sorted by its column `index` if it has one.

    Raises:
        DataError: The file is missing, no UTF-8 text, or numbers or names the classes badly.
    """
    try:
        # Line ends as they are: a name may hold one.
        with file.open(encoding="utf-8-sig", newline="") as source:
            text = source.read()
    except OSError as error:
        raise DataError(
            f"{file} cannot be opened ({error.strerror}): check data.init_args.labels_file, a "
            "path from data.init_args.root or an absolute one"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, row))
        ]
    except csv.Error:
        rows = []
    head = [name.strip() for name in rows[0]] if rows else []
    column = next((head.index(name) for name in _NAMES if name in head), None)
    if column is None:
        names = [one_spelling(line) for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    else:
        rows = rows[1:]
        short = [row for row in rows if len(row) < len(head)]
        if short:
            raise DataError(f"{file}: the row {short[0]} has fewer cells than the first line")
        if "index" in head:
            rows = _sorted(rows, head.index("index"), file)
        names = [one_spelling(row[column]) for row in rows]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled or not names:
        what = f"names {some(doubled)} more than once" if names else "names no class"
        raise DataError(f"{file} {what}: it must name every class once")
    return names


def _sorted(rows: list[list[str]], column: int, file: Path) -> list[list[str]]:
    by_index = {row[column].strip(): row for row in rows}
    wanted = [str(number) for number in range(len(rows))]
    if set(by_index) != set(wanted):
        raise DataError(
            f"{file} column index: {len(rows)} classes must be numbered 0 to {len(rows) - 1}, each "
            f"once, but there is {some(sorted(set(by_index) - set(wanted)) or by_index)}"
        )
    return [by_index[number] for number in wanted]


def numbered(names: Sequence[str], order: Sequence[str], source: Path, file: Path) -> Rows:
    """Number in an order of each of some classes.

    Args:
        names: Classes that the clips have.
        order: All classes.
        source: Where `names` are from, for messages.
        file: Where `order` is from.

    Raises:
        DataError: A class is not in the order.
    """
    numbers = {name: number for number, name in enumerate(order)}
    strange = [name for name in names if name not in numbers]
    if strange:
        alike = get_close_matches(strange[0], order, n=1)
        hint = f" (is it {alike[0]!r}?)" if alike else ""
        raise DataError(
            f"{source} has {len(strange)} classes that {file} does not name: "
            f"{some(map(repr, strange))}{hint}; add them or correct the clips' labels"
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)
