"""Files that a user writes: a CSV of clips as columns of text, and a file with the class order."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from peas.data.columns import Rows
from peas.data.folder.spelling import composed, one_spelling
from peas.errors import DataError
from peas.utils.text import some

_DELIMITERS = (",", ";", "\t")
_NAMES = ("name", "label", "display_name")


class TextTable:
    """The columns of a CSV that have a meaning here, as trimmed text in one spelling. N rows.

    The first line names the columns and decides between commas, semicolons and tabs. A byte order
    mark, either line ending, quoted fields and empty lines are fine. Columns are Arrow arrays: a
    million rows are read in about a second and leave no Python objects.

    Args:
        file: The CSV.
        expected: Names of the columns to read; others are left alone.

    Attributes:
        columns: Arrow array of strings for each column that is there.
        others: Names of the columns that were left alone.

    Raises:
        DataError: The file is missing, empty, not UTF-8, or its rows have different lengths.
    """

    def __init__(self, file: Path, expected: Collection[str]) -> None:
        self.file = file
        self.expected = expected
        self.delimiter, names = self._head()
        doubled = {name for name in names if names.count(name) > 1 and name in expected}
        if doubled:
            raise DataError(
                f"{file} has several columns {some(sorted(doubled))}: keep one of each name"
            )
        self.others = [name for name in names if name not in expected]
        # Arrow takes no present column for all of them.
        present = [name for name in names if name in expected]
        table = self._read(names, present) if present else pa.table({})
        self.columns: dict[str, pa.Array] = {
            name: composed(pc.utf8_trim_whitespace(column.combine_chunks()))
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        self._rows: int = table.num_rows

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __getitem__(self, column: str) -> pa.Array:
        return self.columns[column]

    def lookalikes(self, column: str) -> list[str]:
        """Columns left alone whose names look like that of a column that is not there."""
        if column in self.columns:
            return []
        plain = {name.lower(): name for name in self.others}
        return [plain[name] for name in get_close_matches(column, plain, cutoff=0.8)]

    def refuse(self, wrong: ArrayLike, column: str, what: str) -> None:
        """Raise an error that names the first of the rows that are wrong.

        Args:
            wrong: `[N]` bool.
            column: Column of the wrong field.
            what: What is wrong and what to do; `{value}` is the field, `{more}` the
                number of further rows.

        Raises:
            DataError: Any row is wrong.
        """
        rows = np.flatnonzero(np.asarray(wrong))
        if not len(rows):
            return
        value = self.columns[column][int(rows[0])].as_py()
        more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise DataError(
            f"{self.file} line {self.line(int(rows[0]))}: column {column} "
            + what.format(value=repr(value), more=more)
        )

    def line(self, row: int) -> int:
        """Number of the line on which a row ends, counted from 1."""
        # A column that nobody reads may be in another encoding.
        with self.file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.reader(lines, delimiter=self.delimiter)
            rows = (reader.line_num for fields in reader if fields)
            return next(islice(rows, row + 1, None), 0)

    def _head(self) -> tuple[str, list[str]]:
        """Delimiter, and names of the columns."""
        try:
            with self.file.open(encoding="utf-8-sig", newline="") as lines:
                first = lines.readline()
        except UnicodeDecodeError:
            raise self._not_utf8() from None
        except OSError as error:
            raise DataError(
                f"{self.file} cannot be opened ({error.strerror}): check the path"
            ) from None
        if not first.strip():
            raise DataError(f"{self.file}: the first line is empty: it must name the columns")
        # A CSV of one column has no delimiter at all.
        delimiter = max(_DELIMITERS, key=first.count)
        try:
            names = next(csv.reader([first], delimiter=delimiter))
        except csv.Error as error:
            raise DataError(
                f"{self.file} cannot be read as a table ({error}): its first line must name the "
                "columns"
            ) from None
        return delimiter, [name.strip() for name in names]

    def _read(self, names: list[str], present: list[str]) -> pa.Table:
        # Slow to import, and `peas --help` imports this room with the sets.
        from pyarrow import csv as arrow_csv

        # Columns by number: the file's names may be repeated or padded.
        numbers = [str(number) for number in range(len(names))]
        included = [str(names.index(name)) for name in present]
        options: dict[str, Any] = {
            "read_options": arrow_csv.ReadOptions(column_names=numbers, skip_rows=1),
            "parse_options": arrow_csv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True
            ),
            "convert_options": arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(numbers, pa.large_string()),
                include_columns=included,
                strings_can_be_null=False,
            ),
        }
        try:
            table = arrow_csv.read_csv(self.file, **options)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise self._not_utf8() from None
            raise DataError(
                f"{self.file} cannot be read as a table: {str(error).splitlines()[0]}; each row "
                f"needs {len(names)} fields as in the first line, and a field that holds "
                f"{self.delimiter!r} needs quotes"
            ) from None
        if not table.num_rows:
            raise DataError(f"{self.file} lists no clips: 0 rows below its first line")
        return table.rename_columns(present)

    def _not_utf8(self) -> DataError:
        with self.file.open("rb") as lines:
            number = next((n for n, line in enumerate(lines, 1) if not _is_utf8(line)), 1)
        return DataError(
            f"{self.file} line {number}: not UTF-8 text; save it as CSV UTF-8, or convert it: "
            f"iconv -f latin1 -t utf-8 {self.file.name}"
        )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_class_order(file: Path) -> list[str]:
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
            raise DataError(f"{file}: the row {short[0]} has fewer fields than the first line")
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
    present = [str(number) for number in range(len(rows))]
    if set(by_index) != set(present):
        raise DataError(
            f"{file} column index: {len(rows)} classes must be numbered 0 to {len(rows) - 1}, each "
            f"once, but there is {some(sorted(set(by_index) - set(present)) or by_index)}"
        )
    return [by_index[number] for number in present]


def class_numbers(names: Sequence[str], order: Sequence[str], source: Path, file: Path) -> Rows:
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
    unknown = [name for name in names if name not in numbers]
    if unknown:
        alike = get_close_matches(unknown[0], order, n=1)
        hint = f" (is it {alike[0]!r}?)" if alike else ""
        raise DataError(
            f"{source} has {len(unknown)} classes that {file} does not name: "
            f"{some(map(repr, unknown))}{hint}; add them or correct the clips' labels"
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)
