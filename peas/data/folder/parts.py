"""Which clips of a user's recordings train, validate and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings
from peas.data.folder.holdout import assign_parts
from peas.data.folder.table import Listing
from peas.data.module import SPLITS, Split
from peas.errors import ConfigError, DataError
from peas.utils.text import some

TRAIN, VALIDATION, TEST = range(len(SPLITS))


@dataclass(frozen=True)
class Division:
    """The user's choice among the ways to divide clips; see `peas.data.folder.module.AudioFolder`.

    Attributes:
        fold: Fold that is tested; None = by splits.
        split: What validates where a fold is tested.
        holdout: Share of the clips that is drawn; None = none.

    Raises:
        ConfigError: A value is out of its range, or of no use beside the others.
    """

    fold: str | None
    split: Literal["official", "3/1/1"]
    holdout: float | None

    def __post_init__(self) -> None:
        if self.split not in ("official", "3/1/1"):
            raise ConfigError(f"data.init_args.split is {self.split!r}: give official or 3/1/1")
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
            return _drawn(listing, every, (self.holdout, self.holdout))
        if listing.fold is not None:
            raise ConfigError(
                f"data.init_args.fold is null, and {listing.source} has the folds "
                f"{some(listing.folds, 12)}: say which one is tested"
            )
        return np.full(len(listing), TRAIN, dtype=np.int8)

    def why_empty(self, listing: Listing, split: Split) -> str:
        """What to say of a split without clips."""
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
            "and data.init_args.fold; or data.init_args.holdout, a share that is drawn, such as "
            "0.1"
        )

    def _by_fold(self, listing: Listing) -> NDArray[np.int8]:
        if listing.fold is None or self.fold not in listing.folds:
            has = f"the folds {some(listing.folds, 12)}" if listing.folds else "no column fold"
            raise DataError(f"data.init_args.fold is {self.fold}, but {listing.source} has {has}")
        tested = listing.folds.index(self.fold)
        parts = np.full(len(listing), TRAIN, dtype=np.int8)
        if self.split == "3/1/1":
            parts[listing.fold == (tested + 1) % len(listing.folds)] = VALIDATION
        parts[listing.fold == tested] = TEST
        return parts

    def _by_split(self, listing: Listing, told: NDArray[np.int8]) -> NDArray[np.int8]:
        if self.holdout is None:
            return told
        if (told == VALIDATION).any():
            raise ConfigError(
                f"data.init_args.holdout is {self.holdout}, but {listing.source} says which clips "
                "validate: set it to null"
            )
        rows = np.flatnonzero(told == TRAIN)
        parts = told.copy()
        parts[rows] = _drawn(listing, rows, (self.holdout,))
        return parts


def _drawn(listing: Listing, rows: Rows, shares: tuple[float, ...]) -> NDArray[np.int8]:
    """Parts of some clips; parts 1 and 2 are validation and test."""
    origins = listing.ids.array
    if listing.recordings is not None:
        named = listing.recordings.array
        origins = pc.if_else(pc.equal(named, ""), origins, named)
    speakers = None if listing.speakers is None else listing.speakers.take(rows)
    return assign_parts(Strings(origins).take(rows), speakers, listing.targets.take(rows), shares)
