"""Findings: kinds, their severity and advice; what clips of different parts or sets share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.checks.clips import CLIPPED_RUN, CLIPPED_SHARE, UNREADABLE, Checks, Issue
from peas.data.clips import Inventory
from peas.data.columns import Rows, Strings
from peas.data.module import RATE
from peas.errors import DataError

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: An `error` spoils a result or stops training; a `warning` may be as it should.
        title: What it is, in a few words that follow "3 clips".
        advice: What to do about it.
    """

    severity: Severity
    title: str
    advice: str


KINDS = {
    "tables": Kind("error", "in the tables of the set", "correct what the message names"),
    "missing": Kind(
        "error",
        "listed without sound",
        "copy or fetch the files again, or remove their rows",
    ),
    "undecodable": Kind(
        "error",
        "cannot be decoded",
        "copy or fetch the files again; on_error: skip trains without them",
    ),
    "truncated": Kind(
        "error",
        "cut short",
        "copy or fetch the files again; other programs read them without an error",
    ),
    "nan": Kind(
        "error",
        "with NaN, infinite or huge samples",
        "export them again from their source",
    ),
    "listed_twice": Kind("error", "listed more than once", "remove the rows that are too many"),
    "shared_recording": Kind(
        "error",
        "of recordings that are in several parts",
        "move all clips of a recording into one part: a test must not reward remembering it",
    ),
    "shared_audio": Kind(
        "error",
        "with the same sound in several parts",
        "keep one of the copies: a test must not reward remembering it",
    ),
    "against_recording": Kind(
        "error",
        "of recordings that are in both sets",
        "leave them out of pretraining: a test must not reward remembering them",
    ),
    "against_audio": Kind(
        "error",
        "with the same sound in both sets",
        "leave them out of pretraining: a test must not reward remembering them",
    ),
    "short": Kind(
        "warning",
        "shorter than one frame of 25 ms",
        "check whether they should be; they are padded with zeros to one frame",
    ),
    "silent": Kind(
        "warning", "silent", "check whether they should be: a label may promise what is not there"
    ),
    "clipped": Kind(
        "warning",
        f"clipped (at least {CLIPPED_SHARE:.1%} of the samples in runs of {CLIPPED_RUN} or more "
        "at full scale)",
        "what was cut off is lost; look for better copies if they are many",
    ),
    "rate": Kind(
        "warning",
        f"of another rate than {RATE // 1000} kHz",
        "they are resampled and cached; the top of the spectrum is empty if their rate is lower",
    ),
    "channels": Kind(
        "warning",
        "of several channels",
        "the argument channels chooses how they are mixed: mean, or first",
    ),
    "doubled_audio": Kind(
        "warning", "with the same sound within one part", "keep one of the copies, or leave it so"
    ),
    "shared_speaker": Kind(
        "warning",
        "of speakers who are in several parts",
        "split by speaker if results should generalise to new speakers",
    ),
    "against_speaker": Kind(
        "warning",
        "of speakers who are in both sets",
        "leave them out of pretraining if results should generalise to new speakers",
    ),
    "against_unread": Kind(
        "warning",
        "of the other set that could not be compared",
        "verify the other set by itself first",
    ),
    "empty_class": Kind(
        "warning",
        "without a clip in a part",
        "check whether the split should have them; metrics leave them out",
    ),
    "one_class": Kind(
        "warning",
        "that is the only one of all clips",
        "a classifier learns nothing from one class: check whether ROOT is one level too high",
    ),
    "single_clip_class": Kind(
        "warning", "with a single clip", "one clip cannot be both trained on and tested"
    ),
}
"""Every kind of finding, worst first."""


@dataclass(frozen=True)
class Finding:
    """One kind of finding in a set, with all clips or classes that it concerns, N of them.

    Attributes:
        kind: Key of `KINDS`.
        names: `[N]` ids of the clips, or names of classes.
        parts: `[N]` part, or data set, that each belongs to; empty if there is none.
        shared: `[N]` what each has in common with others: a recording, a speaker, the first clip
            with the same sound. Equal ones are adjacent. Empty if nothing is shared.
        messages: Details of a few of them.
        unit: What `names` holds.
    """

    kind: str
    names: Strings
    parts: Strings = field(default_factory=lambda: Strings([]))
    shared: Strings = field(default_factory=lambda: Strings([]))
    messages: Sequence[str] = ()
    unit: Literal["clips", "classes", "faults"] = "clips"

    @property
    def severity(self) -> Severity:
        """`error` or `warning`."""
        return KINDS[self.kind].severity

    @property
    def count(self) -> int:
        """Number of clips, of different classes, or of faults."""
        if self.unit == "classes":
            return len(set(self.names))
        return len(self.messages) if self.unit == "faults" else len(self.names)


def of_tables(messages: Sequence[str]) -> Finding:
    """Tables cannot be read or contradict themselves."""
    return Finding("tables", Strings([]), messages=messages, unit="faults")


_ISSUES = {
    "missing": Issue.MISSING,
    "undecodable": Issue.UNDECODABLE,
    "truncated": Issue.TRUNCATED,
    "nan": Issue.NAN,
    "short": Issue.SHORT,
    "silent": Issue.SILENT,
    "clipped": Issue.CLIPPED,
    "rate": Issue.RATE,
    "channels": Issue.CHANNELS,
}


class _Clips(NamedTuple):
    """Clips of one or two sets: `[N]` ids, names of the parts, `[N]` number of the part."""

    ids: Strings
    parts: Sequence[str]
    part: Rows

    def parts_of(self, rows: Rows) -> Strings:
        """Names of the parts of some clips."""
        names = pa.array(self.parts, pa.large_string())
        return Strings(names.take(pa.array(self.part[rows])))

    def shared(
        self, kind: str, codes: Rows, selected: NDArray[np.bool_], column: Strings | None = None
    ) -> Iterator[Finding]:
        """The finding of the selected clips, those of one code together; none if there are none."""
        rows = np.flatnonzero(selected)
        if not len(rows):
            return
        rows = rows[np.argsort(codes[rows], kind="stable")]
        # A hash is meaningless to people: the first clip that has it is shown instead.
        leaders = rows[np.searchsorted(codes[rows], codes[rows])]
        shared = self.ids.take(leaders) if column is None else column.take(rows)
        yield Finding(kind, self.ids.take(rows), self.parts_of(rows), shared)


def of_clips(inventory: Inventory, checks: Checks) -> Iterator[Finding]:
    """Issues of single clips."""
    clips = _Clips(inventory.table.ids, inventory.parts, inventory.part)
    for kind, issue in _ISSUES.items():
        rows = checks.rows(issue)
        names, parts = clips.ids.take(rows), clips.parts_of(rows)
        messages = [
            checks.messages[row]
            for row in sorted(checks.messages)
            if checks.columns["issues"][row] & issue
        ]
        if kind == "missing":
            names = concatenate(names, _absent(inventory))
            parts = concatenate(parts, Strings([""] * len(inventory.absent)))
        if len(names):
            yield Finding(kind, names, parts, messages=messages)


def of_parts(inventory: Inventory, checks: Checks) -> Iterator[Finding]:
    """What clips of different parts of a set share."""
    clips = _Clips(inventory.table.ids, inventory.parts, inventory.part)
    codes = coded(inventory.table.ids)
    yield from clips.shared("listed_twice", codes, several(codes))
    for kind, column in (
        ("shared_recording", inventory.recordings),
        ("shared_speaker", inventory.speakers),
    ):
        if column is not None:
            codes = coded(column)
            yield from clips.shared(kind, codes, across(codes, clips.part), column)
    codes = coded_hashes(checks.columns["digest"])
    shared = across(codes, clips.part)
    yield from clips.shared("shared_audio", codes, shared)
    yield from clips.shared("doubled_audio", codes, several(codes) & ~shared)


def of_two_sets(
    sets: tuple[str, str], inventories: tuple[Inventory, Inventory], checks: tuple[Checks, Checks]
) -> Iterator[Finding]:
    """What two data sets share, one for pretraining and one for evaluation.

    Args:
        sets: Their names in reports.
        inventories: Their clips.
        checks: Of these clips.
    """
    sizes = [len(inventory.table) for inventory in inventories]
    ids = concatenate(*(inventory.table.ids for inventory in inventories))
    clips = _Clips(ids, sets, np.repeat(np.arange(2), sizes))
    for kind, columns in (
        ("against_recording", [inventory.recordings for inventory in inventories]),
        ("against_speaker", [inventory.speakers for inventory in inventories]),
    ):
        first, second = columns
        if first is not None and second is not None:
            column = concatenate(first, second)
            codes = coded(column)
            yield from clips.shared(kind, codes, across(codes, clips.part), column)
    codes = coded_hashes(np.concatenate([part.columns["digest"] for part in checks]))
    yield from clips.shared("against_audio", codes, across(codes, clips.part))


def unread(inventory: Inventory, checks: Checks, name: str) -> Iterator[Finding]:
    """Clips of the other set, called `name` in reports, whose sound could not be compared."""
    names = concatenate(inventory.table.ids.take(checks.rows(UNREADABLE)), _absent(inventory))
    if len(names):
        yield Finding("against_unread", names, Strings([name] * len(names)))


def of_classes(inventory: Inventory, labels: Sequence[str]) -> Iterator[Finding]:
    """Classes with no clip, all clips or a single one; nothing if no clip has a class."""
    counts = class_counts(inventory, len(labels))
    total = counts.sum(axis=0)
    if not total.any():
        return
    names = Strings(labels)
    nowhere = np.flatnonzero(total == 0)
    empty = [(part, number) for part, number in np.argwhere(counts == 0) if total[number]]
    rows = [*nowhere, *(number for _, number in empty)]
    parts = ["every part"] * len(nowhere) + [inventory.parts[part] for part, _ in empty]
    if rows:
        yield Finding("empty_class", names.take(rows), Strings(parts), unit="classes")
    alone = np.flatnonzero(total)
    if len(alone) == 1:
        yield Finding("one_class", names.take(alone), unit="classes")
    single = np.flatnonzero(total == 1)
    if len(single):
        yield Finding("single_clip_class", names.take(single), unit="classes")


def class_counts(inventory: Inventory, classes: int) -> Rows:
    """Number of clips of each class in each part, `[parts, C]`.

    Raises:
        DataError: A clip has a class that the set has no label for.
    """
    targets = inventory.table.targets
    if len(targets.classes) and not 0 <= targets.classes.min() <= targets.classes.max() < classes:
        wrong = np.flatnonzero((targets.classes < 0) | (targets.classes >= classes))[0]
        row = int(np.searchsorted(targets.offsets, wrong, side="right")) - 1
        raise DataError(
            f"{inventory.table.ids[row]} has class {targets.classes[wrong]}, and there are "
            f"{classes} labels, 0 to {classes - 1}: correct its row or the table of labels"
        )
    part = np.repeat(inventory.part, targets.sizes)
    pairs = part * classes + targets.classes
    parts = len(inventory.parts)
    return np.bincount(pairs, minlength=parts * classes).reshape(parts, classes)


def coded(column: Strings) -> Rows:
    """A number for each different string, `[N]`; -1 for empty ones."""
    array = column.array
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    encoded = array.dictionary_encode()
    codes: Rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    empty = encoded.dictionary.index("").as_py()
    if empty >= 0:
        codes[codes == empty] = -1
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
    return _repeated(codes, codes)


def across(codes: Rows, part: Rows) -> NDArray[np.bool_]:
    """Which clips have a code that occurs in another part as well, `[N]`."""
    if not len(codes):
        return np.zeros(0, bool)
    parts = int(part.max()) + 1
    # Each pair of code and part once.
    pairs = np.unique((codes + 1) * parts + part)
    return _repeated(pairs // parts - 1, codes)


def _repeated(codes: Rows, of: Rows) -> NDArray[np.bool_]:
    """Whether each code in `of` occurs several times in `codes`; -1 never does."""
    counts = np.bincount(codes + 1, minlength=1)
    counts[0] = 0
    repeated: NDArray[np.bool_] = counts[of + 1] > 1
    return repeated


def concatenate(*columns: Strings) -> Strings:
    """Several columns, one after the other."""
    arrays = [column.array.cast(pa.large_string()) for column in columns]
    chunks = [c for a in arrays for c in (a.chunks if isinstance(a, pa.ChunkedArray) else [a])]
    return Strings(pa.chunked_array(chunks, pa.large_string()))


def _absent(inventory: Inventory) -> Strings:
    """Names of clips that a set lists without having their sound."""
    names = inventory.absent
    return names if isinstance(names, Strings) else Strings(names)
