"""Findings that follow from the columns of checked clips: odd clips, shared ones, bare classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from peas.data.checks.clips import UNREADABLE, Checks, Odd
from peas.data.checks.findings import Finding
from peas.data.checks.matching import across, coded, coded_hashes, joined, several
from peas.data.clips import Inventory
from peas.data.columns import Rows, Strings
from peas.errors import DataError

_OF_CLIPS = {
    "missing": Odd.MISSING,
    "undecodable": Odd.UNDECODABLE,
    "truncated": Odd.TRUNCATED,
    "nan": Odd.NAN,
    "short": Odd.SHORT,
    "silent": Odd.SILENT,
    "clipped": Odd.CLIPPED,
    "rate": Odd.RATE,
    "channels": Odd.CHANNELS,
}


class Named(NamedTuple):
    """Columns of clips that may be tied to each other. N clips.

    Attributes:
        ids: `[N]` names of the clips.
        places: Names of parts or data sets.
        place: `[N]` number of each clip's place.
    """

    ids: Strings
    places: Sequence[str]
    place: Rows

    def places_of(self, rows: Rows) -> Strings:
        """Names of the places of some clips."""
        names = pa.array(self.places, pa.large_string())
        return Strings(names.take(pa.array(self.place[rows])))


def of_clips(inventory: Inventory, checks: Checks) -> Iterator[Finding]:
    """What single clips are odd in."""
    clips = Named(inventory.table.ids, inventory.parts, inventory.part)
    for kind, odd in _OF_CLIPS.items():
        rows = checks.rows(odd)
        names, places = clips.ids.take(rows), clips.places_of(rows)
        messages = [
            checks.messages[row] for row in sorted(checks.messages) if checks.odd[row] & odd
        ]
        if kind == "missing":
            names = joined(names, absent(inventory))
            places = joined(places, Strings([""] * len(inventory.absent)))
        if len(names):
            yield Finding(kind, names, places, messages=messages)


def absent(inventory: Inventory) -> Strings:
    """Names of clips that a set lists and has no sound of, as a column."""
    names = inventory.absent
    return names if isinstance(names, Strings) else Strings(names)


def of_parts(inventory: Inventory, checks: Checks) -> Iterator[Finding]:
    """What clips of one set share that they should not."""
    clips = Named(inventory.table.ids, inventory.parts, inventory.part)
    codes = coded(inventory.table.ids)
    yield from _grouped("listed_twice", clips, codes, several(codes))
    for kind, column in (
        ("shared_recording", inventory.recordings),
        ("shared_speaker", inventory.speakers),
    ):
        if column is not None:
            codes = coded(column)
            yield from _grouped(kind, clips, codes, across(codes, clips.place), column)
    codes = coded_hashes(checks.digest)
    shared = across(codes, clips.place)
    yield from _grouped("shared_audio", clips, codes, shared)
    yield from _grouped("doubled_audio", clips, codes, several(codes) & ~shared)


def of_two_sets(
    sets: tuple[str, str], inventories: tuple[Inventory, Inventory], checks: tuple[Checks, Checks]
) -> Iterator[Finding]:
    """What two data sets share, of which one pretrains a model that the other one tests.

    Args:
        sets: What reports call the two.
        inventories: Their clips.
        checks: Of these clips.
    """
    sizes = [len(inventory.table) for inventory in inventories]
    ids = joined(*(inventory.table.ids for inventory in inventories))
    clips = Named(ids, sets, np.repeat(np.arange(2), sizes))
    for kind, columns in (
        ("against_recording", [inventory.recordings for inventory in inventories]),
        ("against_speaker", [inventory.speakers for inventory in inventories]),
    ):
        one, other = columns
        if one is not None and other is not None:
            column = joined(one, other)
            codes = coded(column)
            yield from _grouped(kind, clips, codes, across(codes, clips.place), column)
    codes = coded_hashes(np.concatenate([part.digest for part in checks]))
    yield from _grouped("against_audio", clips, codes, across(codes, clips.place))


def unread(inventory: Inventory, checks: Checks, name: str) -> Iterator[Finding]:
    """Clips of the other set whose sound could not be compared.

    Args:
        inventory: Of the other set.
        checks: Of its clips.
        name: What reports call it.
    """
    names = joined(inventory.table.ids.take(checks.rows(UNREADABLE)), absent(inventory))
    if len(names):
        yield Finding("against_unread", names, Strings([name] * len(names)))


def of_classes(inventory: Inventory, labels: Sequence[str]) -> Iterator[Finding]:
    """Classes with no clip, all clips or a single one; nothing where no clip has a class."""
    counts = class_counts(inventory, len(labels))
    total = counts.sum(axis=0)
    if not total.any():
        return
    names = Strings(labels)
    nowhere = np.flatnonzero(total == 0)
    empty = [(part, number) for part, number in np.argwhere(counts == 0) if total[number]]
    rows = [*nowhere, *(number for _, number in empty)]
    places = ["every part"] * len(nowhere) + [inventory.parts[part] for part, _ in empty]
    if rows:
        yield Finding("empty_class", names.take(rows), Strings(places), unit="classes")
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
    cells = part * classes + targets.classes
    parts = len(inventory.parts)
    return np.bincount(cells, minlength=parts * classes).reshape(parts, classes)


def _grouped(
    kind: str,
    clips: Named,
    codes: Rows,
    wanted: NDArray[np.bool_],
    column: Strings | None = None,
) -> Iterator[Finding]:
    """The finding of the wanted clips, those of one code together; none when there are none."""
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return
    rows = rows[np.argsort(codes[rows], kind="stable")]
    # A hash says nothing to a reader: the first clip that has it stands for it.
    leaders = rows[np.searchsorted(codes[rows], codes[rows])]
    shared = clips.ids.take(leaders) if column is None else column.take(rows)
    yield Finding(kind, clips.ids.take(rows), clips.places_of(rows), shared)
