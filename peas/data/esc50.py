"""ESC-50 and ESC-10: 5-second environmental sounds in five folds."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.fetch.sources import ESC50_CLIPS
from peas.data.folds import folds_of, require_fold_scheme
from peas.data.labels import read_labels
from peas.data.module import ClipDataModule, Split
from peas.errors import DataError
from peas.utils.text import some

FOLDS = range(1, 6)
# Fold, Freesound id, take, target: `1-100032-A-0.wav`.
_OFFICIAL_NAME = re.compile(r"\d+-(\d+)-[A-Z]+-\d+\.\w+")


class _Row(NamedTuple):
    """A row of `meta/esc50.csv`."""

    name: str
    fold: int
    target: int
    category: str
    esc10: bool
    line: int


class ESC50(ClipDataModule):
    """ESC-50 (K. J. Piczak, 2015): 2,000 clips, 50 classes, five folds, in the official layout.

    `ROOT/meta/esc50.csv` lists the clips of `ROOT/audio/`; any format that can be read is fine.
    Labels are the official 50 if the CSV has no other category, else the CSV's own. A clip's id is
    its file name.

    Statistics and length are those of the official SSAST recipe.

    Args:
        root: Folder of the data set.
        fold: Test fold, 1 to 5.
        split: `official` trains on the other four folds, and validates and tests on this one, as
            published results do; `3/1/1` validates on the next fold (after 5 comes 1), so that
            an epoch is not selected on the test clips, and trains on the other three.
        esc10: Only the clips marked as ESC-10, with their labels renumbered in order.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range.
    """

    advice = (
        "fetch ESC-50 from https://github.com/karolpiczak/ESC-50 into "
        "{root}/meta/esc50.csv and {root}/audio/ (data.init_args.root)"
    )

    archive: ClassVar[str] = "freesound"
    """Where the ids in the clips' names are from."""

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
        require_fold_scheme(split)
        self.fold = fold
        self.split = split
        self.esc10 = esc10

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self._index[1])

    @property
    def selects_on_test(self) -> bool:
        """Whether the test fold is also for validation, as in published results."""
        return self.split == "official"

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        all_folds = [row.fold for row in self._index[0]]
        present = sorted(set(all_folds))
        if self.fold not in present:
            raise DataError(
                f"data.init_args.fold is {self.fold}, but {self._csv} has the folds {present}"
            )
        folds = folds_of(split, present, self.fold, self.split)
        rows = [row for row, fold in enumerate(all_folds) if fold in folds]
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
        clips, folds = self._index[0], [row.fold for row in self._index[0]]
        present = sorted(set(folds))
        matches = [_OFFICIAL_NAME.fullmatch(row.name) for row in clips]
        published = 400 if self.esc10 else ESC50_CLIPS
        notes = [f"{self._csv} lists {len(clips)} clips, and {published} were published"]
        return Inventory(
            self._table,
            [f"fold {fold}" for fold in present],
            np.searchsorted(present, folds),
            Strings([f"{self.archive}:{match[1]}" if match else "" for match in matches]),
            notes=notes if len(clips) != published else [],
        )

    @cached_property
    def _table(self) -> ClipTable:
        rows = self._index[0]
        names = [row.name for row in rows]
        paths = [f"audio/{name}" for name in names]
        return self.files(paths, names, Targets.one_each([row.target for row in rows]))

    def _require_files(self) -> None:
        names = [row.name for row in self._index[0]]
        folder = self.root / "audio"
        files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(names)} files that {self._csv} lists are not in "
                f"{folder}: {some(missing)}; {self._advice()}"
            )

    @property
    def _csv(self) -> Path:
        return self.root / "meta" / "esc50.csv"

    @cached_property
    def _index(self) -> tuple[list[_Row], list[str]]:
        """Rows with the targets of the labels, and the labels."""
        rows = list(self._read())
        labels = self._categories(rows)
        duplicates = [
            name for name, count in Counter(row.name for row in rows).items() if count > 1
        ]
        if duplicates:
            raise DataError(f"{self._csv} lists {some(duplicates)} more than once: keep one row")
        if not self.esc10:
            return rows, labels
        rows = [row for row in rows if row.esc10]
        if not rows:
            raise DataError(f"{self._csv} has no clip of ESC-10: set data.init_args.esc10 to false")
        numbers = sorted({row.target for row in rows})
        rows = [row._replace(target=numbers.index(row.target)) for row in rows]
        return rows, [labels[number] for number in numbers]

    def _read(self) -> Iterator[_Row]:
        if not self._csv.is_file():
            raise DataError(f"there is no {self._csv}: {self._advice()}")
        required = ["filename", "fold", "target", "category", *(["esc10"] if self.esc10 else [])]
        line = 1
        try:
            with self._csv.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, restval="")
                missing = set(required) - set(reader.fieldnames or [])
                if missing:
                    raise DataError(
                        f"{self._csv} has no column {some(sorted(missing))}: its first line must "
                        f"name {', '.join(required)}"
                    )
                for row in reader:
                    line = reader.line_num
                    for column in ("fold", "target"):
                        if not row[column].strip().isdigit():
                            raise ValueError(f"{column} is {row[column]!r}, not a whole number")
                    fold, target = int(row["fold"]), int(row["target"])
                    if fold not in FOLDS:
                        raise ValueError(f"fold {fold} is not one of 1 to 5")
                    esc10 = row.get("esc10", "").strip().lower() == "true"
                    yield _Row(row["filename"], fold, target, row["category"], esc10, line)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{self._csv} cannot be read as a table in UTF-8 ({error}): save it as CSV UTF-8"
            ) from None
        except ValueError as error:
            raise DataError(f"{self._csv} line {line}: {error}; correct the row") from None
        if line == 1:
            raise DataError(f"{self._csv} lists no clips: 0 clips, 0 classes; {self._advice()}")

    def _categories(self, rows: list[_Row]) -> list[str]:
        """Names of the classes; every row must agree with them."""
        names = dict(enumerate(read_labels("esc50")))
        if not {row.category for row in rows} <= set(names.values()):
            names = {row.target: row.category for row in reversed(rows)}
            if sorted(names) != list(range(len(names))):
                raise DataError(
                    f"{self._csv} column target: {len(names)} classes must be numbered "
                    f"0 to {len(names) - 1}, but the numbers are {some(sorted(names))}"
                )
        numbers: dict[str, int] = {}
        for number, name in sorted(names.items()):
            numbers.setdefault(name, number)
        for row in rows:
            if names.get(row.target) != row.category or numbers[row.category] != row.target:
                raise DataError(
                    f"{self._csv} line {row.line}: target {row.target} contradicts category "
                    f"{row.category!r}: target {row.target} is "
                    f"{names.get(row.target, 'no class')!r}; correct the row"
                )
        return [names[number] for number in sorted(names)]

    def _advice(self) -> str:
        return self.advice.format(root=self.root)
