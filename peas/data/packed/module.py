"""Any set that was packed, as a data module."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable, Inventory
from peas.data.folds import folds_of, require_fold_scheme
from peas.data.module import RATE, ClipDataModule, DatasetInfo, Split
from peas.data.packed.folder import PackedFolder
from peas.data.statistics import Moments
from peas.errors import ConfigError, DataError
from peas.utils.text import some

_FOLD = "fold "


class PackedSet(ClipDataModule):
    """A folder that `peas data pack` wrote, of any set.

    Which clips train, validate and test: the parts that the arguments `train`, `validation` and
    `test` name; else with `fold` the parts called so; else the part of the split's name. Where
    there is none, the part `evaluation` validates and tests, and last the part `test` validates.

    Clips come in the order of the set that was packed, so an epoch has the same order as there.

    Args:
        root: Folder of the packed set.
        fold: Fold that is tested, in a set whose parts are folds; null = the parts are splits.
        split: With `fold`: `official` trains on the other folds and validates and tests on this
            one; `3/1/1` validates on the next fold (after the last comes the first), so that the
            choice of an epoch does not see the test clips, and trains on the others.
        train: Parts that train; null = as above.
        validation: Parts that validate; null = as above.
        test: Parts that are tested; null = as above.
        labels: Names of the classes in another order, or with others among them, as a fine-tuned
            model may have them; null = as packed.
        multi_label: Whether a clip may have several classes, or none; null = as packed.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel; null = that of the module that was packed, or where it had none
            the training clips' own, as for `std`.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each; null = those of the module that was packed.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range, or of no use beside the others.
        DataError: The folder holds no packed set, or a damaged one.
    """

    def __init__(
        self,
        root: str,
        *,
        fold: str | int | None = None,
        split: Literal["official", "3/1/1"] = "official",
        train: list[str] | None = None,
        validation: list[str] | None = None,
        test: list[str] | None = None,
        labels: list[str] | None = None,
        multi_label: bool | None = None,
        batch_size: int = 16,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        **common: Any,
    ) -> None:
        if (mean is None) != (std is None):
            raise ConfigError(
                "one of data.init_args.mean and data.init_args.std is null: give both, or neither "
                "to have those that were packed"
            )
        require_fold_scheme(split)
        named = {"train": train, "validation": validation, "test": test}
        for key, parts in named.items():
            if fold is not None and parts is not None:
                raise ConfigError(
                    f"data.init_args.fold and data.init_args.{key} both say which parts are for "
                    f"{key}: set one of them to null"
                )
        super().__init__(
            root,
            batch_size=batch_size,
            # NaN until known, so that nothing is computed with it unnoticed.
            mean=math.nan if mean is None else mean,
            std=math.nan if std is None else std,
            frames=1 if frames is None else frames,
            **common,
        )
        self._folder = PackedFolder(self.root, self.decoder)
        packed = self._folder.manifest
        if frames is None:
            self.frames = packed.settings.frames
        if mean is None and packed.mean is not None and packed.std is not None:
            self.mean, self.std = packed.mean, packed.std
        self.fold = None if fold is None else str(fold)
        self.split = split
        self.named = named
        self._labels = labels
        self._multi_label = multi_label
        self._tables: dict[Split, ClipTable] = {}

    @cached_property
    def decoder(self) -> ResampledCache:
        """Decoder of this data set's sound; there are no files whose sound could be kept."""
        return ResampledCache(None, rate=RATE, channels=self.channels, max_samples=self.max_samples)

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self._folder.manifest.settings.labels if self._labels is None else self._labels)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes, or none."""
        packed = self._folder.manifest.settings.multi_label
        return packed if self._multi_label is None else self._multi_label

    @property
    def measures(self) -> bool:
        """Whether mean and deviation follow from the training parts."""
        return math.isnan(self.mean)

    @property
    def info(self) -> DatasetInfo:
        """Metadata for the task."""
        mean, std = self._moments
        return DatasetInfo(self.labels, mean, std, self.frames, self.multi_label, self.channel_mode)

    @property
    def channel_mode(self) -> Literal["mean", "first"] | None:
        """As packed; where the bytes were kept, as they are read."""
        packed = self._folder.manifest.settings.channels
        return "first" if packed == "first" else "mean" if packed == "mean" else self.channels

    @property
    def selects_on_test(self) -> bool:
        """Whether the tested fold validates too."""
        return self.fold is not None and self.split == "official"

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split, in the order of the set that was packed.

        Raises:
            ConfigError: The arguments do not fit the parts.
            DataError: The folder is damaged.
        """
        if split not in self._tables:
            table = self._relabelled(self._folder.table(self.parts_of(split)))
            several = 0 if self.multi_label else int((table.targets.sizes > 1).sum())
            if several:
                raise ConfigError(
                    f"data.init_args.multi_label is false, and {several} clips of {self.root} have "
                    "several classes: set it to true or null"
                )
            self._tables[split] = table
        return self._tables[split]

    def inventory(self) -> Inventory:
        """Every clip once, by the parts that were packed; its bytes are checked when it is read.

        Raises:
            DataError: The folder is damaged.
        """
        inventory = self._folder.inventory()
        return Inventory(
            **{**vars(inventory), "table": self._relabelled(inventory.table)},
        )

    def parts_of(self, split: Split) -> list[str]:
        """Names of the parts that serve as a split.

        Raises:
            ConfigError: The arguments do not fit the parts.
        """
        named = self.named[split]
        if named is not None:
            return named
        parts = self._folder.parts
        folds = [part.removeprefix(_FOLD) for part in parts if part.startswith(_FOLD)]
        if self.fold is None:
            if folds == [part.removeprefix(_FOLD) for part in parts]:
                raise ConfigError(
                    f"data.init_args.fold is null, and the parts of {self.root} are folds "
                    f"({some(folds, 12)}): name the one that is tested"
                )
            return self._folder.parts_of(split)
        if self.fold not in folds:
            has = f"the folds {some(folds, 12)}" if folds else f"the parts {some(parts, 12)}"
            raise ConfigError(f"data.init_args.fold is {self.fold}, but {self.root} has {has}")
        names = folds_of(split, folds, self.fold, self.split)
        if not names:
            raise ConfigError(
                f"{self.root} has only the folds {some(folds)}: none is left for {split} with "
                f"data.init_args.split {self.split}"
            )
        return [f"{_FOLD}{fold}" for fold in names]

    def _relabelled(self, table: ClipTable) -> ClipTable:
        """The table with the classes numbered as `labels` says."""
        packed = self._folder.manifest.settings.labels
        if self._labels is None or self._labels == packed:
            return table
        missing = [name for name in packed if name not in self._labels]
        if missing:
            raise ConfigError(
                f"data.init_args.labels lacks {len(missing)} classes of {self.root}: "
                f"{some(missing)}; name all of them, or set it to null"
            )
        numbers = [self._labels.index(name) for name in packed]
        return ClipTable(table.ids, table.targets.renumbered(numbers), table.sounds)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the log-mel."""
        if not math.isnan(self.mean):
            return self.mean, self.std
        training = self.parts_of("train")
        moments = Moments()
        for part in self._folder.manifest.parts:
            if part.name in training:
                moments += Moments(*part.cells)
        if not moments.std > 0:
            raise DataError(
                f"{self.root}: the log-mel of the training clips has no spread to normalise by: "
                "they are silent or shorter than 25 ms; give data.init_args.mean and std"
            )
        return moments.mean, moments.std
