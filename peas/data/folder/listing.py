"""Clips listed by a user's CSV: classes, splits, folds, segments and recordings."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings, Targets, duplicates, joined
from peas.data.folder.csv_file import TextTable
from peas.data.folder.spelling import case_twins, composed
from peas.data.module import SPLITS, Split
from peas.data.walk import PassedOver
from peas.errors import DataError
from peas.utils.text import some

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What splits are called, in small letters."""

COLUMNS = ("path", "label", "labels", "split", "fold", "start", "end")
ORIGINS = ("freesound_id", "youtube_id", "video_id", "recording", "speaker")

# Other tables' names for the columns that cannot be done without.
_MEANT = {
    "path": ("file", "filename", "file_name", "filepath", "fname", "audio", "name"),
    "label": ("class", "classname", "category", "target", "tag", "tags", "classes"),
}


@dataclass(frozen=True)
class Listing:
    """Clips that a folder or a CSV lists, by column. N clips, C classes.

    Attributes:
        source: The folder or CSV, for messages.
        paths: Path of each clip's file, absolute or from the data set's folder.
        targets: Classes of each clip.
        labels: Names of the classes.
        split: `[N]` number of each clip's split in `SPLITS`; None = unknown.
        fold: `[N]` number of each clip's fold in `folds`; None = unknown.
        folds: Names of the folds.
        start: `[N]` seconds at which the clips begin in their files; None = all at 0.
        end: `[N]` seconds at which they end, NaN = at the file's end; None = all there.
        recordings: Name of the recording that each clip is from; None = not known.
        speakers: Name of each clip's speaker; None = not known.
        notes: What a user should know of the clips, one sentence each.
        passed: What was found and is no clip.
    """

    source: Path
    paths: Strings
    targets: Targets
    labels: list[str]
    split: NDArray[np.int8] | None = None
    fold: Rows | None = None
    folds: list[str] = field(default_factory=list)
    start: NDArray[np.float64] | None = None
    end: NDArray[np.float64] | None = None
    recordings: Strings | None = None
    speakers: Strings | None = None
    notes: list[str] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def ids(self) -> Strings:
        """Names of the clips: the path, and the segment where the set has segments.

        They are in one spelling, whatever the file system's is.
        """
        paths = composed(self.paths.array)
        if self.start is None or self.end is None:
            return Strings(paths)
        stop = pa.array(self.end, from_pandas=True).cast(pa.large_string())
        start = pa.array(self.start).cast(pa.large_string())
        segment = joined(start, "-", pc.fill_null(stop, ""))
        return Strings(joined(paths, "#", segment))

    @property
    def lookalikes(self) -> list[str]:
        """A sentence for each kind of names of which some differ by case only."""
        notes = case_twins("classes", self.labels)
        if self.speakers is not None:
            notes += case_twins("speakers", pc.unique(self.speakers.array).to_pylist())
        files = pc.unique(composed(self.paths.array))
        # A million files: Python sees those that are alike alone.
        lower = pc.utf8_lower(files)
        if alike := duplicates(lower):
            twins = files.filter(pc.is_in(lower, pa.array(alike, lower.type))).to_pylist()
            notes += case_twins("files", twins)
        return notes


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted by their letters, and by value when all are integers."""
    listed = sorted(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in listed):
        listed.sort(key=int)
    return listed


def require_different(listing: Listing) -> None:
    """Check that no two clips have one name.

    Raises:
        DataError: The names of two files differ in their Unicode spelling alone.
    """
    doubled = duplicates(listing.ids.array)
    if doubled:
        raise DataError(
            f"{listing.source} has files whose names differ in their Unicode spelling only: "
            f"{some(doubled)}; rename one of each"
        )


def list_csv(file: Path, root: Path, separator: str) -> Listing:
    """Clips of a CSV.

    Args:
        file: The CSV.
        root: Folder of the data set.
        separator: Separates the classes in a field of the column `labels`.

    Raises:
        DataError: The CSV cannot be read or contradicts itself.
    """
    table = TextTable(file, (*COLUMNS, *ORIGINS))
    _require_columns(table)
    table.refuse(pc.equal(table["path"], ""), "path", "is empty{more}: name a sound file")
    targets, labels = _targets(table, separator)
    fold, folds = _folds(table)
    start, end = _segments(table)
    paths = _paths(table["path"], root)
    recordings = _recordings(table, root)
    if recordings is None and start is not None:
        # Stretches of one file are one recording, whatever else is known.
        recordings = _named(root, paths)
    listing = Listing(
        source=file,
        paths=Strings(paths),
        targets=targets,
        labels=labels,
        split=_split(table),
        fold=fold,
        folds=folds,
        start=start,
        end=end,
        recordings=None if recordings is None else Strings(recordings),
        speakers=Strings(_named(root, table["speaker"])) if "speaker" in table else None,
    )
    _require_once(table, listing)
    return listing


def _require_columns(table: TextTable) -> None:
    for column in (*COLUMNS, *ORIGINS):
        # One of the two columns of classes is enough.
        if column in ("label", "labels") and ("label" in table or "labels" in table):
            continue
        meant = [name for name in table.others if name.lower() in _MEANT.get(column, ())]
        alike = [*table.lookalikes(column), *meant]
        if column == "path" and column not in table:
            hint = f"; rename {alike[0]} if that is it" if alike else ""
            raise DataError(
                f"{table.file} has no column path (its columns are {some(table.others, 8)}): its "
                f"first line must name path, and label or labels{hint}"
            )
        if alike:
            raise DataError(
                f"{table.file} has a column {alike[0]}, which is not known: is it {column}? "
                "Rename or remove it"
            )
    if "label" in table and "labels" in table:
        raise DataError(f"{table.file} has the columns label and labels: keep one")


def _paths(column: pa.Array, root: Path) -> pa.Array:
    """Paths in one spelling, from `root` where they lie below it."""
    untidy = pc.match_substring_regex(column, r"(^|/)\.{1,2}/|//|^~")
    if pc.any(untidy).as_py():
        tidy = [
            posixpath.normpath(os.path.expanduser(path))
            for path in column.filter(untidy).to_pylist()
        ]
        column = pc.replace_with_mask(column, untidy, pa.array(tidy, pa.large_string()))
    prefix = f"{os.path.abspath(root)}/"
    below = pc.starts_with(column, prefix)
    if not pc.any(below).as_py():
        return column
    return pc.if_else(below, pc.utf8_slice_codeunits(column, len(prefix)), column)


def _targets(table: TextTable, separator: str) -> tuple[Targets, list[str]]:
    """Classes of the clips, and their names in order."""
    if "labels" in table:
        lists = pc.split_pattern(table["labels"], separator)
        clip = np.repeat(np.arange(len(table)), np.diff(lists.offsets.to_numpy()))
        names = pc.utf8_trim_whitespace(lists.flatten())
        filled = np.asarray(pc.not_equal(names, ""))
        names, clip = names.filter(pa.array(filled)), clip[filled]
    elif "label" in table:
        names, clip = table["label"], np.arange(len(table))
        table.refuse(pc.equal(names, ""), "label", "is empty{more}: name the clip's class")
    else:
        return Targets.none(len(table)), []
    coded = pc.dictionary_encode(names)
    names_found: list[str] = coded.dictionary.to_pylist()
    labels = in_order(names_found)
    number_of = {name: number for number, name in enumerate(labels)}
    numbers = np.array([number_of[name] for name in names_found], dtype=np.int64)
    classes = numbers[coded.indices.to_numpy()]
    # A class that a field names twice is one class of the clip.
    both = np.unique(clip * len(labels) + classes) if len(labels) else classes
    clip, classes = np.divmod(both, max(1, len(labels)))
    sizes = np.bincount(clip, minlength=len(table))
    return Targets(np.concatenate([[0], np.cumsum(sizes)]), classes), labels


def _split(table: TextTable) -> NDArray[np.int8] | None:
    if "split" not in table:
        return None
    coded = pc.dictionary_encode(pc.utf8_lower(table["split"]))
    splits = [SPLIT_NAMES.get(name) for name in coded.dictionary.to_pylist()]
    numbers = np.array([-1 if name is None else SPLITS.index(name) for name in splits], np.int8)
    split: NDArray[np.int8] = numbers[coded.indices.to_numpy()]
    table.refuse(split < 0, "split", f"is {{value}}{{more}}: give one of {', '.join(SPLIT_NAMES)}")
    return split


def _folds(table: TextTable) -> tuple[Rows | None, list[str]]:
    if "fold" not in table:
        return None, []
    table.refuse(pc.equal(table["fold"], ""), "fold", "is empty{more}: name the clip's fold")
    coded = pc.dictionary_encode(table["fold"])
    names: list[str] = coded.dictionary.to_pylist()
    folds = in_order(names)
    numbers = np.array([folds.index(name) for name in names], dtype=np.int64)
    return numbers[coded.indices.to_numpy()], folds


def _segments(
    table: TextTable,
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Where the clips begin and end in their files, in seconds."""
    if "start" not in table and "end" not in table:
        return None, None
    empty = np.full(len(table), np.nan)
    start, end = (_seconds(table, name) if name in table else empty for name in ("start", "end"))
    start = np.nan_to_num(start)
    for name, seconds in (("start", start), ("end", end)):
        if name in table:
            table.refuse(seconds < 0, name, "is {value}{more}: give seconds, 0 or more")
    if "end" in table:
        table.refuse(end <= start, "end", "is {value}{more}, which is not after the clip's start")
    return start, end


def _seconds(table: TextTable, column: str) -> NDArray[np.float64]:
    """Numbers of a column; NaN where it is empty."""
    # Arrow would read nan and inf as numbers.
    number = pc.match_substring_regex(table[column], r"^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)?$")
    table.refuse(pc.invert(number), column, "is {value}{more}: give a number of seconds")
    text = pc.if_else(pc.equal(table[column], ""), None, table[column])
    text = pc.replace_substring_regex(text, r"^\+", "")
    seconds: NDArray[np.float64] = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return seconds


def _recordings(table: TextTable, root: Path) -> pa.Array | None:
    """Name of each clip's recording, by the first column that has it."""
    named = [
        _prefixed(prefix, table[column])
        for prefix, column in (
            ("freesound", "freesound_id"),
            ("youtube", "youtube_id"),
            ("youtube", "video_id"),
        )
        if column in table
    ]
    if "recording" in table:
        named.append(_named(root, table["recording"]))
    if not named:
        return None
    return pc.fill_null(pc.coalesce(*(_or_null(column) for column in named)), "")


def _named(root: Path, column: pa.Array) -> pa.Array:
    """Values that mean something in this data set alone."""
    return _prefixed(root.resolve().name, column)


def _prefixed(prefix: str, column: pa.Array) -> pa.Array:
    full = joined(f"{prefix}:", column)
    return pc.if_else(pc.equal(column, ""), "", full)


def _or_null(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), None, column)


def _require_once(table: TextTable, listing: Listing) -> None:
    ids = listing.ids.array
    if len(pc.unique(ids)) == len(ids):
        return
    doubled = duplicates(ids)
    first, second = np.flatnonzero(np.asarray(pc.equal(ids, doubled[0])))[:2].tolist()
    where = f"lines {table.line(first)} and {table.line(second)}"
    advice = "keep one row for each clip (the column labels takes several classes)"
    if listing.split is not None and listing.split[first] != listing.split[second]:
        splits = f"{SPLITS[listing.split[first]]} and {SPLITS[listing.split[second]]}"
        advice = f"it is in {splits}, and a clip belongs to one split"
    raise DataError(
        f"{table.file} lists {doubled[0]} twice ({where}): {advice}"
        + (f"; so it does {len(doubled) - 1} other clips" if len(doubled) > 1 else "")
    )
