"""A user's own recordings: a folder for each class, or a CSV."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Rows, Strings
from peas.data.fingerprint import Fingerprint
from peas.data.folder.csv_file import class_numbers, read_class_order
from peas.data.folder.listing import Listing, list_csv
from peas.data.folder.spelling import on_disk, one_spelling
from peas.data.folder.splits import TEST, TRAIN, VALIDATION, Division
from peas.data.folder.tree import list_tree
from peas.data.module import SPLITS, ClipDataModule, Predicted, Split
from peas.data.sounds import SoundFiles
from peas.data.statistics import cached_statistics
from peas.data.walk import FOREIGN
from peas.errors import ConfigError, DataError
from peas.utils.text import some

log = logging.getLogger(__name__)


class AudioFolder(ClipDataModule):
    """Any recordings: `ROOT/<class>/**`, `ROOT/{train,validation,test}/<class>/**`, or a CSV.

    A CSV has a column `path` (absolute, or from `ROOT`), and further columns as there is something
    to say:

    - `label`, one class; or `labels`, any number of them. Neither: clips without a class.
    - `split`: `train`, `validation` or `test` (or `training`, `valid`, `val`, `dev`,
      `development`, `testing`, `eval`, `evaluation`).
    - `fold`: names of folds, of which the argument `fold` is tested.
    - `start`, `end`: seconds, of a clip that is a segment of its file; an empty field is the
      file's own start or end.
    - `freesound_id`, `youtube_id` (or `video_id`), `recording`, `speaker`: what clips of
      different splits must not share. Freesound's and YouTube's are compared with other data sets.

    Which clips train, validate and test: with the argument `fold` the column `fold` says it; else
    the column or the folders of splits; else `holdout`. Where splits have no validation, `holdout`
    takes a random part of the training clips; without `holdout` the test clips validate as well.

    Classes are in the order of their names, or of their values when all are integers. A
    clip's id is its path, with `#start-end` in sets with segments.

    Args:
        root: Folder of the recordings.
        csv: CSV of the clips, a path from `root` or an absolute one; null = a folder a class.
        fold: Fold that is tested; null = the set's splits.
        split: With `fold`: `official` trains on the other folds and validates and tests on this
            one; `3/1/1` validates on the next fold (after the last comes the first), so that the
            choice of an epoch does not see the test clips, and trains on the others.
        holdout: Share of the clips that validates, and as many again that test, in a set without
            splits: 0.2 trains on 60 %. It is split within each class by the name of the recording
            (of the clip, where that is not known), the same everywhere, and no recording or
            speaker is in two splits. null = none.
        multi_label: Whether a clip may have several classes, or none; null = whether one has
            several.
        labels_file: The classes in order, a path from `root` or an absolute one: a line each, or
            a CSV with a column `name`, `label` or `display_name`, and `index` if it is not in
            order (a run's `labels.csv`, say); null = the classes that the clips have.
        separator: Separates the classes in a field of the column `labels`.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel; null = measured over the training clips and remembered in the
            cache folder, as is `std`.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each: longer clips are cut, shorter ones padded.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range, or of no use beside the others.
    """

    def __init__(
        self,
        root: str,
        *,
        csv: str | None = None,
        fold: str | int | None = None,
        split: Literal["official", "3/1/1"] = "official",
        holdout: float | None = None,
        multi_label: bool | None = None,
        labels_file: str | None = None,
        separator: str = ";",
        batch_size: int = 16,
        mean: float | None = None,
        std: float | None = None,
        frames: int = 1024,
        **common: Any,
    ) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            mean=math.nan if mean is None else mean,
            std=math.nan if std is None else std,
            frames=frames,
            **common,
        )
        if (mean is None) != (std is None):
            raise ConfigError(
                "one of data.init_args.mean and data.init_args.std is null: give both, or neither "
                "to have them measured"
            )
        if fold is not None and csv is None:
            raise ConfigError(
                "data.init_args.fold needs data.init_args.csv, a CSV with a column fold. Without "
                "a CSV give `--data.init_args.fold null`, and in `peas kfold` leave out `--folds`"
            )
        if not separator:
            raise ConfigError('data.init_args.separator is empty: give a character, such as ";"')
        self.csv = None if csv is None else self.root / Path(csv).expanduser()
        self.division = Division(None if fold is None else str(fold), split, holdout)
        self.labels_file = (
            None if labels_file is None else self.root / Path(labels_file).expanduser()
        )
        self.separator = separator
        self._multi_label = multi_label
        self._tables: dict[Split, ClipTable] = {}
        # Prediction needs the sound alone.
        self._predicts = False

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self._listing.labels)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes, or none."""
        if self._multi_label is not None:
            return self._multi_label
        return bool((self._listing.targets.sizes > 1).any())

    @property
    def measures(self) -> bool:
        """Whether mean and std are measured on the training clips, and not an argument."""
        return math.isnan(self._mean)

    # The base class sets both; without an argument they are measured on first use.
    @property
    def mean(self) -> float:
        """Mean of the log-mel."""
        return self._moments[0]

    @mean.setter
    def mean(self, value: float) -> None:
        self._mean = value

    @property
    def std(self) -> float:
        """Standard deviation of the log-mel."""
        return self._moments[1]

    @std.setter
    def std(self, value: float) -> None:
        self._std = value

    def prepare_data(self) -> None:
        """Measure the statistics on one process, so that the others find them."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            _ = self._moments

    @property
    def selects_on_test(self) -> bool:
        """Whether the tested fold validates too."""
        return self.division.fold is not None and self.division.split == "official"

    @property
    def names_test_clips(self) -> bool:
        """Whether a column or folders of splits list the test clips."""
        return self.division.fold is None and self._listing.split is not None

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split, in the order of the CSV or by name.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        if split not in self._tables:
            rows = self._rows(split)
            if not len(rows):
                raise DataError(self.division.why_empty(self._listing, split))
            self._require_files()
            table = self._table.take(rows)
            if split == "train":
                self._report_unused_classes(table)
            if split == "validation" and (self._parts[rows] == TEST).all():
                log.log(
                    # Expected with folds, a surprise otherwise.
                    logging.INFO if self.division.fold is not None else logging.WARNING,
                    "%s: the test clips validate as well, so the best epoch is chosen on them",
                    self._listing.source,
                )
            self._tables[split] = table
        return self._tables[split]

    def inventory(self) -> Inventory:
        """Every clip once; its part is its fold or split.

        Raises:
            DataError: The CSV cannot be read or contradicts itself.
        """
        listing = self._listing
        if listing.fold is not None and (self.division.fold is not None or listing.split is None):
            parts, part = [f"fold {fold}" for fold in listing.folds], listing.fold
        else:
            used, part = np.unique(self._parts, return_inverse=True)
            parts = [SPLITS[number] for number in used]
        notes = [*listing.notes, *listing.lookalikes]
        if listing.passed:
            notes.append(_passed_over(listing))
        return Inventory(
            self._table, parts, part, listing.recordings, listing.speakers, notes=notes
        )

    def setup(self, stage: str) -> None:
        """Read the tables of clips, so that a fault in them is found before the work."""
        if self._predicts != (stage == "predict"):
            self._predicts = stage == "predict"
            self._forget("_listing", "_table", "_files", "_parts")
        if self._predicts:
            self.prediction_clips()
        else:
            super().setup(stage)

    def prediction_clips(self) -> Predicted:
        """The test clips where folders, a column or `fold` define them; else all clips.

        `holdout` splits the clips of one's own training and means nothing for others: all are
        predicted, and have a split where it is that of the checkpoint's run.
        """
        listing = self._listing
        if self.division.fold is not None or listing.split is not None:
            rows = self._rows("test")
            if not len(rows):
                raise DataError(self.division.why_empty(listing, "test"))
            splits = ["test"] * len(rows)
        else:
            rows = np.arange(len(listing))
            splits = self._splits_of_run()
        self._require_files()
        return Predicted(self._table.take(rows), splits, len(listing) - len(rows))

    def _splits_of_run(self) -> list[str]:
        """Split that each clip had in the run that predicts; empty = none, or unknown."""
        unknown = [""] * len(self._listing)
        if self.division.holdout is None or self.trained_on is None or not self._listing.labels:
            return unknown
        parts = self._parts
        now = Fingerprint.of(self._table.take(np.flatnonzero(parts == TRAIN)))
        if not self.trained_on.is_part_of(now):
            return unknown
        # Sound beside the class folders is predicted, but is in no split.
        return [
            SPLITS[part] if size else ""
            for part, size in zip(parts.tolist(), self._listing.targets.sizes, strict=True)
        ]

    def take_labels(self, labels: list[str]) -> bool:
        """Number the classes as a checkpoint does, where the clips have no others."""
        ours = self._listing
        order = [one_spelling(label) for label in labels]
        if list(ours.labels) == list(labels):
            return True
        free = self.labels_file is None and bool(ours.labels)
        if not free or not set(ours.labels) <= set(order):
            return False
        numbers = [order.index(label) for label in ours.labels]
        self._forget("_table")
        self.__dict__["_listing"] = replace(
            ours, labels=list(labels), targets=ours.targets.renumbered(numbers)
        )
        return True

    def _forget(self, *made: str) -> None:
        for name in made:
            self.__dict__.pop(name, None)
        self._tables.clear()

    @cached_property
    def _listing(self) -> Listing:
        if self.csv is None:
            listing = list_tree(self.root, unlabelled=self._predicts)
        elif self.csv.is_file():
            listing = list_csv(self.csv, self.root, self.separator)
        else:
            raise DataError(
                f"there is no file {self.csv}: data.init_args.csv is a path from "
                "data.init_args.root, or an absolute one"
            )
        if not self._predicts:
            self._report_notes(listing)
        if self.labels_file is not None and not self._predicts:
            order = read_class_order(self.labels_file)
            listing = replace(
                listing,
                labels=order,
                targets=listing.targets.renumbered(
                    class_numbers(listing.labels, order, listing.source, self.labels_file)
                ),
            )
        if not self._predicts:
            self._check_sizes(listing)
        return listing

    def _report_notes(self, listing: Listing) -> None:
        for note in [*listing.notes, *listing.lookalikes]:
            log.warning("%s: %s", listing.source, note)
        if listing.passed:
            level = logging.WARNING if listing.passed.sound else logging.INFO
            log.log(level, "%s: %s", listing.source, _passed_over(listing))

    def _check_sizes(self, listing: Listing) -> None:
        """Whether the clips have as many classes as they may."""
        sizes = listing.targets.sizes
        if not listing.labels or self._multi_label:
            return
        several, none = np.flatnonzero(sizes > 1), np.flatnonzero(sizes == 0)
        if self._multi_label is False and len(several):
            raise DataError(
                f"{listing.source}: {listing.ids[int(several[0])]} has several classes, as "
                f"{len(several)} of {len(sizes)} clips have, and data.init_args.multi_label is "
                "false: set it to true or null"
            )
        if len(none):
            raise DataError(
                f"{listing.source}: {listing.ids[int(none[0])]} has no class, as {len(none)} of "
                f"{len(sizes)} clips have: name it, or set data.init_args.multi_label to true if "
                "clips without any class are meant"
            )

    @cached_property
    def _table(self) -> ClipTable:
        listing = self._listing
        sounds = SoundFiles(self.decoder, self.root, self._files[0], listing.start, listing.end)
        return ClipTable(listing.ids, listing.targets, sounds)

    @cached_property
    def _parts(self) -> NDArray[np.int8]:
        """Number in `SPLITS` of each clip's split."""
        return self.division.parts(self._listing)

    def _rows(self, split: Split) -> Rows:
        number = SPLITS.index(split)
        if split == "validation" and not (self._parts == VALIDATION).any():
            # As ESC-50's published numbers do.
            number = TEST
        return np.flatnonzero(self._parts == number)

    @cached_property
    def _files(self) -> tuple[Strings, Rows]:
        """Path of each clip's file, as the file system spells it; rows without a file."""
        if self.csv is None:
            return self._listing.paths, np.empty(0, dtype=np.int64)
        paths = self._listing.paths.array
        folders = pc.unique(pc.replace_substring_regex(paths, r"[^/]*$", "")).to_pylist()
        here = []
        for folder in folders:
            # One listing a folder: a stat for each file takes minutes on a network drive.
            try:
                names = os.listdir(os.fsencode(self.root / folder))
            except OSError:
                continue
            here += [folder.encode() + name for name in names]
        present = pc.is_in(paths.cast(pa.large_binary()), pa.array(here, pa.large_binary()))
        absent = np.flatnonzero(~np.asarray(present))
        spelled = on_disk(self.root, paths, absent)
        if spelled:
            rows = np.fromiter(spelled, dtype=np.int64)
            mask = np.zeros(len(paths), dtype=bool)
            mask[rows] = True
            files = pa.array([spelled[row] for row in sorted(spelled)], pa.large_string())
            paths = pc.replace_with_mask(paths, pa.array(mask), files)
            absent = np.setdiff1d(absent, rows)
        return Strings(paths), absent

    def _require_files(self) -> None:
        absent = self._files[1]
        if not len(absent):
            return
        paths = self._listing.paths
        raise DataError(
            f"{len(absent)} of the {len(paths)} files that {self.csv} lists are not there: "
            f"{some(paths.take(absent))}; paths start from {self.root}"
        )

    def _report_unused_classes(self, table: ClipTable) -> None:
        counts = table.targets.counts(len(self.labels))
        if np.count_nonzero(counts) == 1 and not self.multi_label:
            log.warning(
                "all %d training clips are of one class, %s: a classifier learns nothing from "
                "them. See whether data.init_args.root (%s) is one level too high",
                len(table),
                self.labels[int(counts.argmax())],
                self.root,
            )
        unused = [name for name, count in zip(self.labels, counts, strict=True) if not count]
        if unused:
            log.warning(
                "%d of %d classes have no training clip: %s",
                len(unused),
                len(self.labels),
                some(unused),
            )

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the log-mel."""
        if not math.isnan(self._mean):
            return self._mean, self._std
        paths = self._files[0].take(self._rows("train"))
        policy = self.bad_clips.on_error
        return cached_statistics(
            self.clips("train"), self.root, paths, self.frames, on_error=policy
        )


def _passed_over(listing: Listing) -> str:
    """What was skipped, and how it becomes a clip."""
    if FOREIGN not in listing.passed.counts:
        return str(listing.passed)
    return (
        f"{listing.passed}: to use what ffmpeg decodes, list it in a CSV (data.init_args.csv), or "
        "convert it (ffmpeg -i IN OUT.wav)"
    )
