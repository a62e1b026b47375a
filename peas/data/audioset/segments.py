"""AudioSet's official segment lists: one line a clip, read by column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.audioset.classes import ClassTable
from peas.data.columns import Rows, Targets
from peas.errors import DataError

_LINE = 'YTID, start_seconds, end_seconds, "mid,mid"'


@dataclass(frozen=True)
class Segments:
    """Rows of a segment list. N clips.

    Attributes:
        file: The list.
        ids: `[N]` YouTube ids.
        starts: `[N]` where the clip begins in its video, in seconds.
        targets: Classes of each clip.
        lines: `[N]` line of the file, from 1.
    """

    file: Path
    ids: pa.Array
    starts: NDArray[np.float64]
    targets: Targets
    lines: Rows

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.file} line {self.lines[row]}"


def read_segments(file: Path, classes: ClassTable) -> Segments:
    """Read a `*_segments.csv`.

    Lines that begin with `#` (the official three at the top) and empty ones are passed over, so a
    list without them reads the same. The official lines have a space after each comma, by which
    CSV readers miss the quotes of the last field; here the first three commas part the fields.

    Args:
        file: The list.
        classes: Numbers of the classes.

    Raises:
        DataError: The file cannot be read, a line has another form, or a class is unknown.
    """
    lines = _lines(file)
    said = pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#")))
    kept = np.flatnonzero(said.to_numpy(zero_copy_only=False))
    if len(kept) and lines[kept[0]].as_py().lower().startswith("ytid"):
        kept = kept[1:]
    if not len(kept):
        raise DataError(f"{file} lists no clips: its lines must be {_LINE}; fetch it again")
    fields = pc.split_pattern(lines.take(pa.array(kept)), ",", max_splits=3)
    counts = pc.list_value_length(fields).to_numpy(zero_copy_only=False)
    short = np.flatnonzero(counts < 4)
    if len(short):
        _refuse(file, int(kept[short[0]]), lines)
    flat = pc.list_flatten(fields)
    ids, starts, ends, labels = (
        pc.ascii_trim(flat.take(pa.array(np.arange(column, 4 * len(kept), 4))), characters=' \t"')
        for column in range(4)
    )
    try:
        begin = starts.cast(pa.float64()).to_numpy(zero_copy_only=False)
        ends.cast(pa.float64())
    except pa.ArrowInvalid:
        number = r"^[0-9]+(\.[0-9]*)?$"
        right = pc.and_(*(pc.match_substring_regex(column, number) for column in (starts, ends)))
        wrong = np.flatnonzero(~right.to_numpy(zero_copy_only=False))
        _refuse(file, int(kept[wrong[0] if len(wrong) else 0]), lines)
    nameless = np.flatnonzero(pc.equal(ids, "").to_numpy(zero_copy_only=False))
    if len(nameless):
        _refuse(file, int(kept[nameless[0]]), lines)

    def place(row: int) -> str:
        return f"{file} line {kept[row] + 1}"

    targets = classes.targets(pc.split_pattern(labels, ","), place)
    return Segments(file, ids, begin, targets, kept + 1)


def _lines(file: Path) -> pa.Array:
    """Lines of a text file, without white space around them."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    try:
        text = pa.array([data.removeprefix(b"\xef\xbb\xbf")], pa.large_binary())
        text = text.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise DataError(f"{file}: is no text in UTF-8; fetch it again") from None
    return pc.ascii_trim_whitespace(pc.list_flatten(pc.split_pattern(text, "\n")))


def _refuse(file: Path, line: int, lines: pa.Array) -> NoReturn:
    text = lines[line].as_py()
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    raise DataError(
        f"{file} line {line + 1} is {shown!r}: it must be {_LINE}; correct it or fetch the list "
        "again"
    )
