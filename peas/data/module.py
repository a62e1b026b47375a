"""Base of all data sets: DataLoaders, sampling, cache, mixup, and the set's `DatasetInfo`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from peas.audio.decode import MAX_SAMPLES
from peas.data.cache import ResampledCache, default_folder
from peas.data.class_balance import (
    EpochSampler,
    UniformSampler,
    WeightedSampler,
    clip_weights,
)
from peas.data.clips import ClipDataset, ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.distributed_samplers import EvaluationSampler, TrainSampler
from peas.data.fingerprint import Fingerprint
from peas.data.label_fraction import chosen_rows, count_line
from peas.data.loader import BadClips, ClipLoader, CollateClips, TrainLoader
from peas.data.sounds import SoundFiles
from peas.data.walk import is_utf8
from peas.errors import ConfigError
from peas.training.randomness import run_seed

RATE = 16_000
"""Sampling rate in Hz of both papers' models, and so of every waveform in a batch."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """Metadata that a task takes from its data set.

    Attributes:
        labels: Names of the classes, in the order of the targets.
        mean: Mean of the log-mel over the training clips.
        std: Standard deviation of the same.
        frames: Frames of the model's input.
        multi_label: True when a clip may have several classes.
        channels: How several channels of a clip became one; None = not the same for all clips.
    """

    labels: list[str]
    mean: float
    std: float
    frames: int
    multi_label: bool = False
    channels: Literal["mean", "first"] | None = "mean"


class Predicted(NamedTuple):
    """Clips that are predicted. N clips.

    Attributes:
        table: The clips.
        splits: `[N]` split of each; empty = unknown.
        left_out: Clips of the set that are not predicted, as they are not test clips.
    """

    table: ClipTable
    splits: list[str]
    left_out: int = 0


class ClipDataModule(LightningDataModule, ABC):
    """Base of all data sets, such as `peas.data.ESC50`, `AudioSet` and `AudioFolder`.

    A subclass says which clips belong to a split, and its labels. Nothing here is saved as a
    hyperparameter: the task saves `info` in its checkpoint.

    Args:
        root: Folder of the data set.
        batch_size: Training clips of a batch, for each process.
        eval_batch_size: The same in evaluation; null = twice `batch_size`, the official rule.
        num_workers: DataLoader workers.
        timeout: Seconds after which a missing batch ends the run.
        mixup: Probability that a training clip is mixed with another one.
        channels: Several channels become their `mean`, or the `first` alone, as in the official
            loader.
        cache_dir: Folder of resampled audio; null = `$PEAS_CACHE` or `~/.cache/peas/audio`, an
            empty string = resample every time.
        on_error: A clip that cannot be read stops the run (`raise`), or is reported, counted and
            left out (`skip`).
        max_samples: Most samples of a decoded clip, of all channels together; a damaged header may
            claim any number.
        sampling: `uniform` takes every training clip once an epoch; `balanced` samples clips so
            that rare classes come as often as common ones (`peas.data.class_balance.clip_weights`).
        epoch_clips: Training clips of a balanced epoch; null = as many as there are.
        replacement: Whether one clip may come several times in a balanced epoch, as in the
            official repositories.
        label_fraction: Share of the training clips that are used, above 0 and up to 1: a fixed part
            of every class, by the seed (`peas.data.label_fraction`). Validation and test keep all.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.

    Attributes:
        rate: Sampling rate in Hz of the waveforms in a batch.
        teacher_rate: Sampling rate in Hz at which clips are read a second time, for a teacher; a
            task sets it in its `setup`. None = there is no teacher.
        trained_on: Training clips of the checkpoint that predicts; None = unknown.

    Raises:
        ConfigError: An argument is out of its range.
    """

    rate: ClassVar[int] = RATE

    def __init__(
        self,
        root: str,
        *,
        batch_size: int,
        mean: float,
        std: float,
        frames: int,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        timeout: float = 600.0,
        mixup: float = 0.0,
        channels: Literal["mean", "first"] = "mean",
        cache_dir: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_samples: int = MAX_SAMPLES,
        sampling: Literal["uniform", "balanced"] = "uniform",
        epoch_clips: int | None = None,
        replacement: bool = True,
        label_fraction: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= mixup <= 1.0:
            raise ConfigError(f"data.init_args.mixup is {mixup}: give a probability from 0 to 1")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("frames", frames, 1),
            ("epoch_clips", epoch_clips, 1),
            ("max_samples", max_samples, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"data.init_args.{name} is {value}: give {least} or more")
        if not 0.0 < timeout < 1e6:
            raise ConfigError(
                f"data.init_args.timeout is {timeout}: give seconds, above 0 and below 1,000,000"
            )
        if not 0.0 < label_fraction <= 1.0:
            raise ConfigError(
                f"data.init_args.label_fraction is {label_fraction}: give a share above 0 and up "
                "to 1, such as 0.1"
            )
        if sampling not in ("uniform", "balanced"):
            raise ConfigError(f"data.init_args.sampling is {sampling!r}: give uniform or balanced")
        if epoch_clips is not None and sampling == "uniform":
            raise ConfigError(
                f"data.init_args.epoch_clips is {epoch_clips}, and data.init_args.sampling is "
                "uniform, which takes every clip: set it to balanced, or epoch_clips to null"
            )
        self.root = Path(root).expanduser()
        if not is_utf8(str(root)):
            raise ConfigError(
                f"data.init_args.root is {str(root)!a}: not UTF-8, which decoders and tables need; "
                "rename the folder"
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.mixup = mixup
        self.channels = channels
        self.cache_dir = cache_dir
        self.max_samples = max_samples
        self.mean = mean
        self.std = std
        self.frames = frames
        self.sampling = sampling
        self.epoch_clips = epoch_clips
        self.replacement = replacement
        self.label_fraction = label_fraction
        self.teacher_rate: int | None = None
        self.trained_on: Fingerprint | None = None
        self.bad_clips = BadClips(on_error)
        self._reported: set[str] = set()

    @abstractmethod
    def clips(self, split: Split) -> ClipTable:
        """Clips of a split.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes, or none."""
        return False

    @property
    def selects_on_test(self) -> bool:
        """Whether the arguments make the test clips validate too, on which no sweep may select."""
        return False

    @property
    def channel_mode(self) -> Literal["mean", "first"] | None:
        """How several channels of the original sound became one."""
        return self.channels

    @property
    def measures(self) -> bool:
        """Whether mean and std are measured on the training clips, and not an argument."""
        return False

    @property
    def names_test_clips(self) -> bool:
        """Whether the user's own table lists the test clips."""
        return False

    @property
    def info(self) -> DatasetInfo:
        """Metadata for the task; readable once the data are there."""
        return DatasetInfo(
            self.labels, self.mean, self.std, self.frames, self.multi_label, self.channel_mode
        )

    def inventory(self) -> Inventory:
        """Every clip of the set once, with what must not be shared across its parts.

        Raises:
            DataError: The tables of the data set cannot be read, or contradict themselves.
        """
        return Inventory.of_splits({split: self.clips(split) for split in SPLITS})

    @cached_property
    def decoder(self) -> ResampledCache:
        """Decoder of this data set's sound."""
        folder = default_folder() if self.cache_dir is None else self.cache_dir or None
        return ResampledCache(
            folder, rate=RATE, channels=self.channels, max_samples=self.max_samples
        )

    def files(
        self, paths: Iterable[str], ids: Iterable[str] | Strings, targets: Targets
    ) -> ClipTable:
        """Table of clips that are files of their own; paths start from `root`."""
        names = ids if isinstance(ids, Strings) else Strings(ids)
        return ClipTable(names, targets, SoundFiles(self.decoder, self.root, Strings(paths)))

    def epoch_sampler(self, table: ClipTable) -> EpochSampler:
        """Sampler of the training clips of an epoch."""
        if self.sampling == "uniform":
            return UniformSampler(len(table))
        weights = clip_weights(table.targets, len(self.labels))
        return WeightedSampler(
            weights, self.epoch_clips or len(table), replacement=self.replacement
        )

    def setup(self, stage: str) -> None:
        """Read the tables of clips, so that a fault in them is found before training."""
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
        }
        for split in splits.get(stage, ("test",)):
            self.clips(split)

    def teardown(self, stage: str) -> None:
        """Report the bad clips."""
        self.report_bad_clips()

    def report_bad_clips(self) -> None:
        """Log the number of bad clips, unless it was logged."""
        if self.bad_clips:
            self._report_once(f"bad clips: {self.bad_clips}")

    def _report_once(self, message: str) -> None:
        if message not in self._reported:
            rank_zero_info(message)
            self._reported.add(message)

    def train_dataloader(self) -> TrainLoader:
        """Loader of the training clips, in the order of the trainer's current epoch.

        Raises:
            DataError: The clips do not fill one global batch.
        """
        rank, world = self._rank()
        seed = run_seed()
        table = self.training_clips(seed)
        epochs = self.epoch_sampler(table)
        sampler = TrainSampler(epochs, self.batch_size, rank=rank, world=world, seed=seed)
        # Lightning starts the loader before it sets the sampler's epoch: a resumed run would use
        # the order of epoch 0.
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        if unused := epochs.count - sampler.total_size:
            self._report_once(
                f"an epoch leaves out {unused} of its {epochs.count} training clips, others each "
                f"time: they do not fill a global batch of {sampler.global_size}"
            )
        return TrainLoader(
            self._dataset(table, training=True, repeats=epochs.repeats, seed=seed),
            self.bad_clips,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=True,
            collate_fn=CollateClips(sampler.global_size),
            root=self.root,
            num_workers=self.num_workers,
            timeout=self.timeout,
            pin_memory=self._on_gpu(),
        )

    def training_clips(self, seed: int) -> ClipTable:
        """The training clips: all of the split, or a fixed part of every class.

        Args:
            seed: Seed of the run.
        """
        table = self.clips("train")
        if self.label_fraction == 1.0:
            return table
        rows = chosen_rows(table.targets, len(self.labels), self.label_fraction, seed)
        chosen = table.take(rows)
        counts = count_line(table.targets, chosen.targets, len(self.labels))
        self._report_once(f"label_fraction {self.label_fraction:g}: {counts}; seed {seed}")
        return chosen

    def val_dataloader(self) -> ClipLoader:
        """Loader of the validation clips, each once."""
        return self.loader(self.clips("validation"))

    def test_dataloader(self) -> ClipLoader:
        """Loader of the test clips, each once."""
        return self.loader(self.clips("test"))

    def predict_dataloader(self) -> ClipLoader:
        """Loader of the clips that are predicted, each once, without their classes."""
        table = self.prediction_clips().table
        return self.loader(replace(table, targets=Targets.none(len(table))))

    def prediction_clips(self) -> Predicted:
        """Clips that are predicted: those of the test.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        table = self.clips("test")
        return Predicted(table, ["test"] * len(table))

    def take_labels(self, labels: list[str]) -> bool:
        """Take the class order of a checkpoint, where the set has no order of its own.

        Args:
            labels: The checkpoint's classes in order.

        Returns:
            Whether the classes now have that order.
        """
        return list(self.labels) == labels

    def loader(self, table: ClipTable) -> ClipLoader:
        """Evaluation loader of any clips of this set, each once, split among the ranks.

        Args:
            table: The clips, with classes of this set.
        """
        rank, world = self._rank()
        dataset = self._dataset(table)
        return ClipLoader(
            dataset,
            self.bad_clips,
            sampler=EvaluationSampler(len(dataset), rank=rank, world=world),
            batch_size=self.eval_batch_size,
            collate_fn=CollateClips(),
            root=self.root,
            num_workers=self.num_workers,
            timeout=self.timeout,
            pin_memory=self._on_gpu(),
        )

    def _dataset(
        self, table: ClipTable, *, training: bool = False, repeats: bool = False, seed: int = 0
    ) -> ClipDataset:
        if self.teacher_rate is not None and self.mixup > 0:
            raise ConfigError(
                f"data.init_args.mixup is {self.mixup}, and there is a teacher: its "
                "targets would not fit the mixed clips; set mixup to 0"
            )
        return ClipDataset(
            table,
            rate=RATE,
            classes=len(self.labels),
            multi_label=self.multi_label,
            training=training,
            mixup=self.mixup,
            repeats=repeats,
            seed=seed,
            frames=self.frames,
            teacher_rate=self.teacher_rate,
        )

    def _rank(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def refuse_selection_on_test(data: ClipDataModule, *, allowed: bool = False) -> None:
    """Refuse a sweep that would select on the test clips.

    Args:
        data: The data set of a run of the sweep.
        allowed: Whether the user allows it.

    Raises:
        ConfigError: The clips that validate are those that are tested, and it is not allowed.
    """
    if data.selects_on_test and not allowed:
        raise ConfigError(
            f"a sweep selects on validation clips, and those of {type(data).__name__} are its test "
            "clips (data.init_args.split is official): the best metric would be selected on the "
            "test. Set data.init_args.split to 3/1/1, or allow it with "
            "--allow_test_selection=true (`peas sweep --allow_test_selection`)"
        )
