"""LibriSpeech: 960 hours of read English without classes, for pretraining."""

import logging
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.fetch.sources import LIBRISPEECH_960, LIBRISPEECH_CLIPS
from peas.data.module import SPLITS, ClipDataModule, Split
from peas.data.walk import walk
from peas.errors import DataError
from peas.utils.text import some

log = logging.getLogger(__name__)


class LibriSpeech(ClipDataModule):
    """LibriSpeech (V. Panayotov and others, 2015) in the official layout.

    `ROOT/LibriSpeech/` or `ROOT/` itself holds a folder for each subset, and clips are
    `<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac` (or `.wav`). A clip's id is its
    file's name without the ending. There are no classes: `labels` is empty and targets are
    `[B, 0]`. Statistics and length are those of SSAST's pretraining on AudioSet and LibriSpeech;
    the three default subsets have 960 hours, 281,241 clips.

    All subsets of `validation` or of `test` may be missing: training then has no validation, and
    only `validate` and `test` fail.

    Args:
        root: Folder of the data set.
        subsets: Training subsets.
        validation: Validation subsets; an empty list = none.
        test: Test subsets; an empty list = none.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        *,
        subsets: tuple[str, ...] = LIBRISPEECH_960,
        validation: tuple[str, ...] = ("dev-clean",),
        test: tuple[str, ...] = ("test-clean",),
        batch_size: int = 24,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        frames: int = 1024,
        **common: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, mean=mean, std=std, frames=frames, **common)
        self.subsets: dict[Split, tuple[str, ...]] = {
            "train": tuple(subsets),
            "validation": tuple(validation),
            "test": tuple(test),
        }
        self._tables: dict[str, ClipTable] = {}

    @property
    def labels(self) -> list[str]:
        """Empty: there are no classes."""
        return []

    @property
    def multi_label(self) -> bool:
        """True: no clip has a class."""
        return True

    def setup(self, stage: str) -> None:
        """Read the tables of clips, so that errors in them are found before training.

        Raises:
            DataError: Clips that the command needs are missing.
        """
        super().setup(stage)
        if stage == "fit":
            if not len(self.clips("validation")):
                log.info("%s: no validation, as none of its subsets is there", self.root)
            return
        split: Split = "validation" if stage == "validate" else "test"
        if not len(self.clips(split)):
            subsets = ", ".join(self.subsets[split]) or "no subset"
            raise DataError(
                f"{self._base} has no clips for {split} (data.init_args.{split}: {subsets}); "
                f"{self._advice}"
            )

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split by subset and name; none if validation or test is missing.

        Raises:
            DataError: A subset is missing or empty, or a clip is there twice.
        """
        subsets = self.subsets[split]
        if split == "train" and not subsets:
            raise DataError(
                f"data.init_args.subsets is empty: give some of {', '.join(LIBRISPEECH_CLIPS)}"
            )
        missing = self._missing(subsets)
        # Training works without a validation set.
        if missing and (split == "train" or len(missing) < len(subsets)):
            raise self._missing_error(missing)
        tables = [self._table(name) for name in subsets if name not in missing]
        empty = [name for name in subsets if name not in missing and not len(self._table(name))]
        if empty:
            raise DataError(f"{self._base / empty[0]} holds no clips; {self._advice}")
        if not tables:
            return self.files([], [], Targets.none(0))
        table = ClipTable.concatenate(tables)
        self._require_once(table)
        return table

    def inventory(self) -> Inventory:
        """Every clip once; its recording is the chapter, with the speaker.

        Raises:
            DataError: No subset is there, or a clip is there twice.
        """
        subsets = [(split, name) for split in SPLITS for name in self.subsets[split]]
        missing = self._missing([name for _, name in subsets])
        if len(missing) == len(subsets):
            raise self._missing_error(missing)
        present = [(split, name) for split, name in subsets if name not in missing]
        parts = list(dict.fromkeys(split for split, _ in present))
        tables = [self._table(name) for _, name in present]
        table = ClipTable.concatenate(tables)
        self._require_once(table)
        absent = [name for split, name in subsets if split == "train" and name in missing]
        absent += [name for (_, name), clips in zip(present, tables, strict=True) if not len(clips)]
        return Inventory(
            table,
            list(parts),
            np.repeat([parts.index(split) for split, _ in present], list(map(len, tables))),
            _named(pc.replace_substring_regex(table.ids.array, r"-[^-]*$", "")),
            _named(pc.replace_substring_regex(table.ids.array, r"-.*$", "")),
            [f"{name}/" for name in absent],
            [note for _, name in present if (note := self._count_note(name))],
        )

    @cached_property
    def _base(self) -> Path:
        """Folder of the subsets."""
        inner = self.root / "LibriSpeech"
        return inner if inner.is_dir() else self.root

    def _missing(self, subsets: Iterable[str]) -> list[str]:
        return [name for name in subsets if not (self._base / name).is_dir()]

    def _missing_error(self, subsets: list[str]) -> DataError:
        present = [name for name in LIBRISPEECH_CLIPS if (self._base / name).is_dir()]
        return DataError(
            f"{self._base} has no folder {some(subsets)} of LibriSpeech (it has "
            f"{', '.join(present) or 'none of the subsets'}; there are "
            f"{', '.join(LIBRISPEECH_CLIPS)}): correct data.init_args.subsets, or {self._advice}"
        )

    @property
    def _advice(self) -> str:
        return (
            "fetch the subsets from https://www.openslr.org/12 and unpack them into "
            f"{self.root} (data.init_args.root)"
        )

    def _table(self, subset: str) -> ClipTable:
        """Clips of a subset, by name."""
        if subset not in self._tables:
            paths = pa.array(self._walk(subset), pa.large_string())
            ids = pc.replace_substring_regex(paths, r"^.*/|\.[^.]*$", "")
            self._tables[subset] = self.files(paths, Strings(ids), Targets.none(len(paths)))
            if note := self._count_note(subset):
                log.warning("%s", note)
        return self._tables[subset]

    def _require_once(self, table: ClipTable) -> None:
        counts = pc.value_counts(table.ids.array)
        duplicates = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(duplicates):
            raise DataError(
                f"{self._base} has {some(duplicates.to_pylist())} more than once: remove the copies"
            )

    def _walk(self, subset: str) -> list[str]:
        """Paths of a subset's clips from `root`, in order."""
        result = walk(self._base / subset)
        clips = result.sorted_paths()
        for name in clips:
            folders, _, file = name.rpartition("/")
            start = f"{folders.replace('/', '-')}-"
            if folders.count("/") != 1 or not file.startswith(start):
                raise DataError(
                    f"{self._base / subset / name} does not begin with {start}, or is not in a "
                    "folder SPEAKER/CHAPTER, as clips of LibriSpeech are: remove other files"
                )
        if result.passed:
            log.info("%s: %s", self._base / subset, result.passed)
        folder = os.path.relpath(self._base / subset, self.root)
        paths = [os.path.normpath(f"{folder}/{name}") for name in clips]
        return paths

    def _count_note(self, subset: str) -> str:
        """Note that a subset is not as published; empty if it is."""
        count, published = len(self._table(subset)), LIBRISPEECH_CLIPS.get(subset)
        if published in (None, count):
            return ""
        return f"{self._base / subset} has {count} of the {published} clips of LibriSpeech"


def _named(column: pa.Array) -> Strings:
    """Names of chapters or speakers that are unique among data sets."""
    prefix, colon = (pa.scalar(text, pa.large_string()) for text in ("librispeech", ":"))
    return Strings(pc.binary_join_element_wise(prefix, column, colon))
