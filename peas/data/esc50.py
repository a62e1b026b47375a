"""ESC-50 and ESC-10: 5-second environmental sounds in five folds."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.labels import read_labels
from peas.data.module import ClipDataModule, Split
from peas.errors import ConfigError, DataError
from peas.utils.text import some

FOLDS = range(1, 6)
# Fold, Freesound id, take, target: `1-100032-A-0.wav`.
_OFFICIAL_NAME = re.compile(r"\d+-(\d+)-[A-Z]+-\d+\.\w+")


@dataclass(frozen=True)
class _Index:
    """The rows of `meta/esc50.csv` by column, checked."""

    names: list[str]
    folds: list[int]
    targets: list[int]
    labels: list[str]


class ESC50(ClipDataModule):
    """ESC-50 (K. J. Piczak, 2015): 2,000 clips, 50 classes, five folds, in the official layout.

    `ROOT/meta/esc50.csv` lists the clips of `ROOT/audio/`; any format that can be read is fine, as
    the CSV names it. Labels are the official 50 when the CSV knows no other category, else the
    CSV's own. A clip's id is its file name.

    Statistics and length are the official SSAST recipe's.

    Args:
        root: Folder of the data set.
        fold: Fold that is tested, 1 to 5.
        split: `official` trains on the other four folds and validates and tests on this one, as
            the published numbers do; `3/1/1` validates on the next fold (after 5 comes 1), so that
            the choice of an epoch does not see the test clips, and trains on the other three.
        esc10: Only the clips marked as ESC-10, their labels renumbered in order.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range.
    """

    advice = (
        "fetch ESC-50 from https://github.com/karolpiczak/ESC-50 and put it so that "
        "{root}/meta/esc50.csv and {root}/audio/ exist (data.init_args.root)"
    )

    def __init__(
        self,
        root: str,
        *,
        fold: int = 1,
        split: Literal["official", "3/1/1"] = "official",
        esc10: bool = False,
        batch_size: int = 10,
        mean: float = -6.6268077,
        std: float = 5.358466,
        frames: int = 512,
        **common: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, mean=mean, std=std, frames=frames, **common)
        if split not in ("official", "3/1/1"):
            raise ConfigError(f"data.init_args.split is {split!r}: give official or 3/1/1")
        self.fold = fold
        self.split = split
        self.esc10 = esc10

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self._index.labels)

    @property
    def selects_on_test(self) -> bool:
        """Whether the tested fold validates too, as in the published numbers."""
        return self.split == "official"

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        index = self._index
        present = sorted(set(index.folds))
        if self.fold not in present:
            raise DataError(
                f"data.init_args.fold is {self.fold}, but {self._csv} has the folds {present}"
            )
        following = present[(present.index(self.fold) + 1) % len(present)]
        validation = self.fold if self.split == "official" else following
        held = {"validation": {validation}, "test": {self.fold}}
        wanted = held.get(split, set(present) - {validation, self.fold})
        rows = [row for row, fold in enumerate(index.folds) if fold in wanted]
        if not rows:
            raise DataError(
                f"{self._csv} has only the folds {present}: none is left for {split} "
                f"with data.init_args.split {self.split}"
            )
        self._require_files()
        return self._table.take(rows)

    def inventory(self) -> Inventory:
        """Every clip once; its part is its fold, its recording the Freesound id in its name.

        Raises:
            DataError: The CSV cannot be read or contradicts itself.
        """
        folds = sorted(set(self._index.folds))
        found = [_OFFICIAL_NAME.fullmatch(name) for name in self._index.names]
        return Inventory(
            self._table,
            [f"fold {fold}" for fold in folds],
            np.searchsorted(folds, self._index.folds),
            Strings([f"freesound:{match[1]}" if match else "" for match in found]),
        )

    @cached_property
    def _table(self) -> ClipTable:
        names = self._index.names
        paths = [f"audio/{name}" for name in names]
        return self.files(paths, names, Targets.one_each(self._index.targets))

    def _require_files(self) -> None:
        names = self._index.names
        folder = self.root / "audio"
        here = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        absent = [name for name in names if name not in here]
        if absent:
            raise DataError(
                f"{len(absent)} of the {len(names)} files that {self._csv} lists are not in "
                f"{folder}: {some(absent)}; {self._advice()}"
            )

    @property
    def _csv(self) -> Path:
        return self.root / "meta" / "esc50.csv"

    @cached_property
    def _index(self) -> _Index:
        rows = self._rows()
        names = [row["filename"] for row in rows]
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if doubled:
            raise DataError(
                f"{self._csv} lists {some(doubled)} more than once: remove the duplicate rows"
            )
        labels = self._categories(rows)
        folds = [self._number(row, "fold") for row in rows]
        targets = [self._number(row, "target") for row in rows]
        strange = sorted(set(folds) - set(FOLDS))
        if strange:
            line = next(
                row["line"] for row, fold in zip(rows, folds, strict=True) if fold in strange
            )
            raise DataError(f"{self._csv} line {line}: fold {strange[0]} is not one of 1 to 5")
        if self.esc10:
            kept = [row["esc10"].strip().lower() == "true" for row in rows]
            numbers = sorted({target for target, keep in zip(targets, kept, strict=True) if keep})
            if not numbers:
                raise DataError(
                    f"{self._csv} marks no clip as ESC-10: set data.init_args.esc10 to false"
                )
            order = {number: place for place, number in enumerate(numbers)}
            labels = [labels[number] for number in numbers]
            rows_kept = [row for row, keep in enumerate(kept) if keep]
            names = [names[row] for row in rows_kept]
            folds = [folds[row] for row in rows_kept]
            targets = [order[targets[row]] for row in rows_kept]
        return _Index(names, folds, targets, labels)

    def _rows(self) -> list[dict[str, str]]:
        """Rows of the CSV, each with its `line`."""
        if not self._csv.is_file():
            raise DataError(f"there is no {self._csv}: {self._advice()}")
        needed = ["filename", "fold", "target", "category", *(["esc10"] if self.esc10 else [])]
        try:
            with self._csv.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, restval="")
                missing = [name for name in needed if name not in (reader.fieldnames or [])]
                if missing:
                    raise DataError(
                        f"{self._csv} has no column {some(missing)}: its first line must name "
                        f"{', '.join(needed)}"
                    )
                rows = [{**row, "line": str(reader.line_num)} for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{self._csv} cannot be read as a table in UTF-8 ({error}): save it as CSV UTF-8"
            ) from None
        if not rows:
            raise DataError(f"{self._csv} lists no clips: 0 clips, 0 classes; {self._advice()}")
        return rows

    def _categories(self, rows: list[dict[str, str]]) -> list[str]:
        """Names of the classes; every row must agree with them."""
        official = read_labels("esc50")
        known = dict(enumerate(official))
        own = not {row["category"] for row in rows} <= set(official)
        if own:
            known = {}
            for row in rows:
                known.setdefault(self._number(row, "target"), row["category"])
            if sorted(known) != list(range(len(known))):
                raise DataError(
                    f"{self._csv} column target: {len(known)} classes must be numbered "
                    f"0 to {len(known) - 1}, but the numbers are {some(sorted(known))}"
                )
        numbers: dict[str, int] = {}
        for number, name in known.items():
            numbers.setdefault(name, number)
        for row in rows:
            number = self._number(row, "target")
            if known.get(number) != row["category"] or numbers[row["category"]] != number:
                raise DataError(
                    f"{self._csv} line {row['line']}: target {number} contradicts category "
                    f"{row['category']!r}: {'rows before say' if own else 'in ESC-50'} target "
                    f"{number} is {known.get(number, 'no class')!r}; correct the row"
                )
        return [known[number] for number in sorted(known)]

    def _number(self, row: dict[str, str], column: str) -> int:
        try:
            return int(row[column])
        except ValueError:
            raise DataError(
                f"{self._csv} line {row['line']}: column {column} is {row[column]!r}, "
                "which is not a whole number"
            ) from None

    def _advice(self) -> str:
        return self.advice.format(root=self.root)
