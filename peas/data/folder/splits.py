"""Training, validation and test clips of a user's recordings: by column, fold or holdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings, Targets
from peas.data.folder.listing import Listing
from peas.data.folds import folds_of, require_fold_scheme
from peas.data.module import SPLITS, Split
from peas.errors import ConfigError, DataError
from peas.training.randomness import stable_hash
from peas.utils.text import some

TRAIN, VALIDATION, TEST = range(len(SPLITS))


@dataclass(frozen=True)
class Division:
    """How clips are split; see `peas.data.folder.module.AudioFolder`.

    Attributes:
        fold: Fold that is tested; None = by splits.
        split: What validates where a fold is tested.
        holdout: Share of the clips that is held out; None = none.

    Raises:
        ConfigError: A value is out of its range, or of no use beside the others.
    """

    fold: str | None
    split: Literal["official", "3/1/1"]
    holdout: float | None

    def __post_init__(self) -> None:
        require_fold_scheme(self.split)
        if self.split == "3/1/1" and self.fold is None:
            raise ConfigError(
                "data.init_args.split is 3/1/1, which needs data.init_args.fold: say which fold "
                "is tested"
            )
        if self.holdout is not None and not 0 < self.holdout < 0.5:
            raise ConfigError(
                f"data.init_args.holdout is {self.holdout}: give a share between 0 and 0.5, such "
                "as 0.1, or null to hold out none"
            )
        if self.holdout is not None and self.fold is not None:
            raise ConfigError(
                "data.init_args.fold and data.init_args.holdout both say what is tested: set one "
                "of them to null"
            )

    def parts(self, listing: Listing) -> NDArray[np.int8]:
        """Number in `SPLITS` of each clip's split, `[N]`.

        Raises:
            ConfigError: The choice does not fit the set.
            DataError: The set has no such fold.
        """
        if self.fold is not None:
            return self._by_fold(listing)
        if listing.split is not None:
            return self._by_split(listing, listing.split)
        if self.holdout is not None:
            every = np.arange(len(listing))
            return _held_out(listing, every, (self.holdout, self.holdout))
        if listing.fold is not None:
            raise ConfigError(
                f"data.init_args.fold is null, and {listing.source} has the folds "
                f"{some(listing.folds, 12)}: name the one that is tested"
            )
        return np.full(len(listing), TRAIN, dtype=np.int8)

    def why_empty(self, listing: Listing, split: Split) -> str:
        """Message for a split without clips."""
        source = listing.source
        if self.fold is not None:
            return (
                f"{source} has only the folds {some(listing.folds)}: none is left for {split} "
                f"with data.init_args.split {self.split}"
            )
        if self.holdout is not None and (listing.split is None or split == "validation"):
            return (
                f"data.init_args.holdout {self.holdout} leaves no clip of {source} for {split}: "
                "clips of one recording or speaker stay together; give another share"
            )
        if listing.split is not None and split != "validation":
            return f"{source} has no clip of the split {split}"
        return (
            f"{source} does not say which clips are for {split}. There are three ways: folders "
            "train, validation and test, or a column split of the CSV; a column fold of the CSV, "
            "and data.init_args.fold; or data.init_args.holdout, a random share, such as "
            "0.1"
        )

    def _by_fold(self, listing: Listing) -> NDArray[np.int8]:
        if listing.fold is None or self.fold not in listing.folds:
            has = f"the folds {some(listing.folds, 12)}" if listing.folds else "no column fold"
            raise DataError(f"data.init_args.fold is {self.fold}, but {listing.source} has {has}")
        parts = np.full(len(listing), TRAIN, dtype=np.int8)
        for split, part in (("validation", VALIDATION), ("test", TEST)):
            for fold in folds_of(split, listing.folds, self.fold, self.split):
                parts[listing.fold == listing.folds.index(fold)] = part
        return parts

    def _by_split(self, listing: Listing, given: NDArray[np.int8]) -> NDArray[np.int8]:
        if self.holdout is None:
            return given
        if (given == VALIDATION).any():
            raise ConfigError(
                f"data.init_args.holdout is {self.holdout}, but {listing.source} says which clips "
                "validate: set it to null"
            )
        rows = np.flatnonzero(given == TRAIN)
        parts = given.copy()
        parts[rows] = _held_out(listing, rows, (self.holdout,))
        return parts


def _held_out(listing: Listing, rows: Rows, shares: tuple[float, ...]) -> NDArray[np.int8]:
    """Parts of some clips; parts 1 and 2 are validation and test."""
    origins = listing.ids.array
    if listing.recordings is not None:
        named = listing.recordings.array
        origins = pc.if_else(pc.equal(named, ""), origins, named)
    speakers = None if listing.speakers is None else listing.speakers.take(rows)
    return assign_parts(Strings(origins).take(rows), speakers, listing.targets.take(rows), shares)


def assign_parts(
    origins: Strings, speakers: Strings | None, targets: Targets, shares: Sequence[float]
) -> NDArray[np.int8]:
    """Assign clips to parts such that no origin and no speaker is in two of them.

    Clips that share an origin or a speaker, even through others, are a group and stay together.
    Within a class, groups are sorted by a hash of their first name and assigned in that order: the
    result is the same everywhere, and clips that are added later move few others. A group of
    several classes counts for its rarest.

    Args:
        origins: Name of each clip's recording, or of the clip. N clips.
        speakers: Name of each clip's speaker, empty = not known; None = none is known.
        targets: Classes of the clips.
        shares: Wanted share of the clips of part 1, 2, …; what is left is part 0.

    Returns:
        `[N]` part of each clip.
    """
    coded = pc.dictionary_encode(origins.array)
    order = pc.sort_indices(coded.dictionary)
    names = coded.dictionary.take(order)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(names))
    origin: Rows = rank[coded.indices.to_numpy()]
    groups, group = np.unique(_groups(origin, speakers), return_inverse=True)
    # A group bears the rank of its first name.
    first = names.take(pa.array(groups)).to_pylist()
    hashes = np.array([stable_hash("holdout", name) for name in first])
    sizes = np.bincount(group)
    classes = _rarest(group, len(groups), targets)
    parts = np.zeros(len(groups), dtype=np.int8)
    dealt = np.lexsort((hashes, classes))
    ends = np.flatnonzero(np.diff(classes[dealt])) + 1
    for rows in np.split(dealt, ends):
        parts[rows] = _deal(sizes[rows], shares)
    return parts[group]


def _groups(origin: Rows, speakers: Strings | None) -> Rows:
    """Number of each clip's group: the least origin that speakers tie it to."""
    if speakers is None:
        return origin
    voice = pc.dictionary_encode(speakers.array).indices.to_numpy().astype(np.int64)
    # Clips of unknown speakers are tied by their origin alone.
    unknown = np.asarray(pc.equal(speakers.array, ""))
    voice[unknown] = len(origin) + origin[unknown]
    group = origin
    while True:
        before = group
        for tie in (np.unique(voice, return_inverse=True)[1], origin):
            least = np.full(tie.max() + 1, len(origin))
            np.minimum.at(least, tie, group)
            group = least[tie]
        if np.array_equal(group, before):
            return group


def _rarest(group: Rows, groups: int, targets: Targets) -> Rows:
    """Class of each group by which it is dealt out, `[groups]`: 0 the rarest, and so on."""
    counts = np.bincount(targets.classes)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    least = np.full(groups, len(counts))
    np.minimum.at(least, np.repeat(group, targets.sizes), rank[targets.classes])
    return least


def _deal(sizes: Rows, shares: Sequence[float]) -> NDArray[np.int8]:
    """Parts of the groups of one class, in their order."""
    parts = np.zeros(len(sizes), dtype=np.int8)
    remaining = [share * float(sizes.sum()) for share in shares]
    for row, size in enumerate(sizes.tolist()):
        for part, missing in enumerate(remaining, 1):
            # A group goes in if that brings the part nearer to its share.
            if size < 2 * missing:
                parts[row] = part
                remaining[part - 1] -= size
                break
        if max(remaining) <= 0.5:
            break
    return parts
