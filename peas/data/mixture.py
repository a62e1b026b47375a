"""Several data sets trained on as one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.class_balance import EpochSampler, MixtureSampler
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, joined
from peas.data.module import ClipDataModule, DatasetInfo, Split
from peas.errors import ConfigError, DataError
from peas.utils.text import some


class Mixture(ClipDataModule):
    """Several data sets as one, each with a weight; SSAST pretrains on two of them.

        data:
          class_path: peas.data.Mixture
          init_args:
            batch_size: 24
            weights: [1, 0.5]
            sets:
              - class_path: peas.data.AudioSet
                init_args: {root: data/audioset}
              - class_path: peas.data.LibriSpeech
                init_args: {root: data/librispeech}

    Which clips an epoch has, and in which order, follows from the seed and the epoch alone, on any
    number of processes. A clip's id has the name of its set before it, `audioset/abc`; a second
    set of the same kind is `audioset-2`.

    The labels are those of all sets, by name, in the order of their first appearance. Targets are
    `[B, C]` when a set is multi-label or has no classes: a clip without a class is all zeros then.

    Validation and test are those of the first set that has any, so that metrics compare with those
    of that set alone. A set keeps what decides its clips and how they are read (`root`, `channels`,
    `cache_dir`, …). What decides batches and epochs is the mixture's alone: sizes, `num_workers`,
    `mixup`, `on_error` and `sampling` of a set are not used.

    Args:
        sets: The data sets.
        weights: How often a clip of each set comes in an epoch: 1 = once, 2 = twice, 0.25 =
            another random quarter of the set in every epoch. null = 1 for all.
        batch_size: Training clips of a batch, for each process.
        mean: Mean of the log-mel; null = the first set's, as for `std`.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each; null = the first set's.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: There are no sets, or the weights do not fit them.
    """

    def __init__(
        self,
        sets: list[ClipDataModule],
        *,
        weights: list[float] | None = None,
        batch_size: int = 24,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        **common: Any,
    ) -> None:
        if not sets:
            raise ConfigError("data.init_args.sets is empty: give at least one data set")
        if (mean is None) != (std is None):
            raise ConfigError(
                "one of data.init_args.mean and data.init_args.std is null: give both, or neither "
                "to have the first set's"
            )
        first = sets[0]
        super().__init__(
            # Each set has a root of its own.
            ".",
            batch_size=batch_size,
            mean=first.mean if mean is None else mean,
            std=first.std if std is None else std,
            frames=first.frames if frames is None else frames,
            **common,
        )
        if weights is not None and self.sampling == "balanced":
            raise ConfigError(
                "data.init_args.weights say how often clips come, and so does "
                "data.init_args.sampling: set weights to null, or sampling to uniform"
            )
        if self.label_fraction != 1.0 or any(member.label_fraction != 1.0 for member in sets):
            raise ConfigError(
                "data.init_args.label_fraction takes a share of one set's training clips, and a "
                "mixture has `weights` for each set's share of an epoch: leave it at 1 here and "
                "in the sets"
            )
        if weights is not None and len(weights) != len(sets):
            raise ConfigError(
                f"data.init_args.weights has {len(weights)} entries for {len(sets)} sets: "
                "give one each"
            )
        self.sets = list(sets)
        given = {"mean": mean, "std": std, "frames": frames}
        self._given = {key: value for key, value in given.items() if value is not None}
        self.weights = [1.0] * len(sets) if weights is None else list(weights)
        self._tables: dict[Split, ClipTable] = {}

    @cached_property
    def names(self) -> list[str]:
        """Name of each set."""
        paths = [type(member).__module__.split(".") for member in self.sets]
        # A set with a folder of rooms has its class in the room `module`.
        kinds = [path[-2] if path[-1] == "module" else path[-1] for path in paths]
        turns = [kinds[: number + 1].count(kind) for number, kind in enumerate(kinds)]
        return [
            kind if turn == 1 else f"{kind}-{turn}" for kind, turn in zip(kinds, turns, strict=True)
        ]

    @property
    def labels(self) -> list[str]:
        """Names of the classes of all sets, in the order of the targets."""
        return list(self._numbers)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes, or none."""
        return any(member.multi_label or not member.labels for member in self.sets)

    @property
    def selects_on_test(self) -> bool:
        """Whether one of the sets does: which of them validates depends on their files."""
        return any(member.selects_on_test for member in self.sets)

    @property
    def measures(self) -> bool:
        """Whether the first set does, and there is no argument."""
        return "mean" not in self._given and self.sets[0].measures

    @property
    def info(self) -> DatasetInfo:
        """Metadata for the task; a set that measures its statistics does so here."""
        settings: dict[str, Any] = dict(self._given)
        if len(settings) < 3:
            first = self.sets[0].info
            settings = {"mean": first.mean, "std": first.std, "frames": first.frames} | settings
        return DatasetInfo(
            labels=self.labels, multi_label=self.multi_label, channels=self.channel_mode, **settings
        )

    @property
    def channel_mode(self) -> Literal["mean", "first"] | None:
        """That of the sets, where it is one for all."""
        modes = {member.channel_mode for member in self.sets}
        return modes.pop() if len(modes) == 1 else None

    def prepare_data(self) -> None:
        """Let the first set measure its statistics on one process, so that others find them."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            _ = self.info

    def epoch_sampler(self, table: ClipTable) -> EpochSampler:
        """Sampler of the training clips of an epoch."""
        if self.sampling == "balanced":
            return super().epoch_sampler(table)
        return MixtureSampler([len(member.clips("train")) for member in self.sets], self.weights)

    def setup(self, stage: str) -> None:
        """Read the tables of clips, so that a fault in them is found before training.

        Raises:
            DataError: A set is missing or damaged, or no set has clips for the verb.
        """
        super().setup(stage)
        if stage == "fit":
            self.epoch_sampler(self.clips("train"))
            return
        split: Split = "validation" if stage == "validate" else "test"
        if not len(self.clips(split)):
            raise DataError(f"none of the sets {', '.join(self.names)} has clips for {split}")

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split: of all sets in training, else of the first set that has any.

        Raises:
            DataError: A set is missing, incomplete or contradicts itself.
        """
        if split not in self._tables:
            parts = []
            for number, member in enumerate(self.sets):
                table = member.clips(split)
                parts.append(self._renamed(number, table))
                if split != "train" and len(table):
                    break
            self._tables[split] = ClipTable.concatenate(parts)
        return self._tables[split]

    def inventory(self) -> Inventory:
        """Every clip of every set; a recording that two sets hold is noted.

        Raises:
            DataError: The tables of a set cannot be read, or contradict themselves.
        """
        inventories = [member.inventory() for member in self.sets]
        parts = list(dict.fromkeys(part for member in inventories for part in member.parts))
        numbers = [np.array([parts.index(part) for part in member.parts]) for member in inventories]
        named = list(zip(self.names, inventories, strict=True))
        notes = [f"{name}: {note}" for name, member in named for note in member.notes]
        return Inventory(
            ClipTable.concatenate(
                [self._renamed(number, member.table) for number, member in enumerate(inventories)]
            ),
            parts,
            np.concatenate(
                [number[member.part] for number, member in zip(numbers, inventories, strict=True)]
            ),
            _concatenated((member.recordings, len(member.table)) for member in inventories),
            _concatenated((member.speakers, len(member.table)) for member in inventories),
            [f"{name}/{clip}" for name, member in named for clip in member.absent],
            notes + _shared({name: member.recordings for name, member in named}),
        )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Number of each label."""
        labels = dict.fromkeys(label for member in self.sets for label in member.labels)
        return {label: number for number, label in enumerate(labels)}

    def _renamed(self, number: int, table: ClipTable) -> ClipTable:
        """A set's clips with the mixture's names and class numbers."""
        return ClipTable(
            Strings(joined(f"{self.names[number]}/", table.ids.array.cast(pa.large_string()))),
            table.targets.renumbered([self._numbers[label] for label in self.sets[number].labels]),
            table.sounds,
        )


def _concatenated(columns: Iterable[tuple[Strings | None, int]]) -> Strings:
    """Columns one after the other; an unsettings one is empty for each of its clips."""
    return Strings.concatenate(
        [Strings(pa.repeat("", clips)) if column is None else column for column, clips in columns]
    )


def _shared(recordings: dict[str, Strings | None]) -> list[str]:
    """A sentence for each two sets that hold some recordings in common."""
    columns = {
        name: pc.unique(column.array.cast(pa.large_string()))
        for name, column in recordings.items()
        if column is not None
    }
    notes = []
    for (first, left), (second, right) in combinations(columns.items(), 2):
        both = left.filter(pc.and_(pc.is_in(left, right), pc.not_equal(left, "")))
        if len(both):
            notes.append(
                f"{len(both)} recordings are in both {first} and {second}: {some(both.to_pylist())}"
            )
    return notes
