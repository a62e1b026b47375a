"""Google Speech Commands: one-second clips of 35 words, or of ten keywords and two more classes."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peas.data.class_balance import EpochSampler
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.labels import read_labels
from peas.data.module import RATE, SPLITS, ClipDataModule, Split
from peas.data.sounds import SoundFiles
from peas.data.speech_commands.keywords import (
    CLASSES,
    NOISE,
    SILENCE,
    HalfOfUnknown,
    NoiseCrops,
    keyword_targets,
    like_test_archive,
    share_of_others,
    speaker_of,
)
from peas.data.speech_commands.word_folders import LISTS, WordFolders, archive_clips
from peas.data.walk import FOREIGN
from peas.errors import ConfigError, DataError

log = logging.getLogger(__name__)

STATISTICS = {
    "v2-35": (-6.845978, 5.5654526),
    "v2-12": (-6.845978, 5.5654526),
    "v1-12": (-6.702, 5.448),
}
"""Mean and std of each task: SSAST's for V2, the AudioMAE paper's table for V1."""


class SpeechCommands(ClipDataModule):
    """Speech Commands (P. Warden, 2018) in the official layout, as one of three tasks.

    `v2-35` (KS2, SPC-2): the 35 words of version 2. `ROOT` holds a folder a word,
    `validation_list.txt` and `testing_list.txt`; all clips that the lists do not name are for
    training, and `_background_noise_` is not used. The classes have the order of the official
    SSAST checkpoints. 84,843, 9,981 and 11,005 clips.

    `v1-12` (KS1, SPC-1) and `v2-12`: ten keywords, `_unknown_` for the other words, `_silence_`.
    The protocol and the order of the classes are SUPERB's, which SSAST follows too:
    yes, no, up, down, left, right, on, off, stop, go, `_unknown_`, `_silence_`. V1 has 51,094
    training, 6,804 validation and 3,081 test clips.

    - Training: `silence` clips of silence, each a second cut from a recording in
      `_background_noise_` at another random place whenever it comes up; every class is drawn
      equally often, with replacement.
    - Validation: one second of each recording, at a place that follows from its name: the same in
      every epoch and run. (SUPERB draws the places and the clips anew in each evaluation.)
    - Test: the separate archive `speech_commands_test_set_v0.01` (V2: `v0.02`), all clips of it.
      Without the archive the keywords of the test list, a tenth as many of its unknown words and
      as many seconds of noise, with a warning: the archive's proportions, but not its clips.
    - Where there are no lists, the hash of the speaker that made them splits the clips.

    A root with some of the words works, with all labels. A clip's id is `folder/file.wav`.
    Length and mixup are the official SSAST recipe's.

    Args:
        root: Folder of the data set.
        task: `v2-35`, `v2-12` or `v1-12`; the version is the one of the data in `root`.
        test_root: Folder of the unpacked test archive, for the twelve classes; null = the folder
            of its name in `root` or beside it.
        silence: Training clips of silence, for the twelve classes; null = one for each recording.
        sampling: As for `ClipDataModule`, or `repeated`: each class but `_unknown_` is repeated
            until it has half as many clips as that one (AudioMAE's rule for V1). null = `uniform`
            for the 35 words, `balanced` for the twelve classes.
        batch_size: Training clips of a batch, for each process.
        mixup: Probability that a training clip is mixed with another one.
        mean: Mean of the log-mel; null = the task's published one.
        std: Standard deviation of the log-mel; null likewise.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range, or belongs to another task.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["v2-35", "v2-12", "v1-12"] = "v2-35",
        test_root: str | None = None,
        silence: int | None = None,
        sampling: Literal["uniform", "balanced", "repeated"] | None = None,
        batch_size: int = 16,
        mixup: float = 0.6,
        mean: float | None = None,
        std: float | None = None,
        frames: int = 128,
        **common: Any,
    ) -> None:
        if task not in STATISTICS:
            raise ConfigError(f"data.init_args.task is {task!r}: give {', '.join(STATISTICS)}")
        twelve = task != "v2-35"
        drawn = sampling or ("balanced" if twelve else "uniform")
        if drawn == "repeated" and common.get("epoch_clips") is not None:
            raise ConfigError(
                f"data.init_args.epoch_clips is {common['epoch_clips']}, and "
                "data.init_args.sampling is repeated, which takes every clip: set epoch_clips to "
                "null"
            )
        only_twelve = {
            "test_root": test_root,
            "silence": silence,
            "sampling": "repeated" if drawn == "repeated" else None,
        }
        for key, value in only_twelve.items():
            if not twelve and value is not None:
                raise ConfigError(
                    f"data.init_args.{key} is {value}, and data.init_args.task is v2-35, which "
                    "has no silence and no unknown words: leave it out, or set task to v2-12 or "
                    "v1-12"
                )
        if silence is not None and silence < 1:
            raise ConfigError(f"data.init_args.silence is {silence}: give 1 or more")
        super().__init__(
            root,
            batch_size=batch_size,
            mixup=mixup,
            mean=STATISTICS[task][0] if mean is None else mean,
            std=STATISTICS[task][1] if std is None else std,
            frames=frames,
            sampling="uniform" if drawn == "repeated" else drawn,
            **common,
        )
        self.task = task
        self.twelve = twelve
        self.test_root = None if test_root is None else Path(test_root).expanduser()
        self.silence = silence
        self.repeated = drawn == "repeated"
        self._told_passed = False
        self._folders = WordFolders(self.root, task[1], twelve=twelve)

    @property
    def labels(self) -> list[str]:
        """The 35 words or the twelve classes, in the order of the targets."""
        return list(CLASSES) if self.twelve else read_labels("speech_commands_v2")

    def epoch_sampler(self, table: ClipTable) -> EpochSampler:
        """Law by which epochs of the training clips are drawn."""
        return HalfOfUnknown(table.targets) if self.repeated else super().epoch_sampler(table)

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split: words by name, then silence.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        self._folders.require_files()
        self._tell_passed_over()
        names = self._folders.names(split)
        if not names:
            source = LISTS.get(split, "the folders of the words")
            raise DataError(
                f"{self.root}: {source} leaves no clip for {split}; {self._folders.advice}"
            )
        return self._table(split, names)

    def _tell_passed_over(self) -> None:
        passed = self._folders.passed
        if passed and not self._told_passed:
            level = logging.WARNING if FOREIGN in passed.counts else logging.INFO
            log.log(level, "%s: %s", self.root, passed)
            self._told_passed = True

    def inventory(self) -> Inventory:
        """Every clip once with its speaker; what training silence is cut from, whole.

        Raises:
            DataError: There is no such data set, or it contradicts itself.
        """
        tables = [self._table(split, self._folders.names(split), whole=True) for split in SPLITS]
        table = ClipTable.concatenate(tables)
        part = np.repeat(np.arange(len(SPLITS)), [len(one) for one in tables])
        hashes = map(speaker_of, table.ids)
        speakers = Strings([f"speech_commands:{one}" if one else "" for one in hashes])
        absent: list[str] = []
        notes = [str(self._folders.passed)] if self._folders.passed else []
        if self.twelve:
            noise = len(self._folders.noise)
            if noise:
                notes.append(
                    f"silence is cut from the same {noise} recordings of {NOISE} in training and "
                    "in validation, as SUPERB has it"
                )
            else:
                absent.append(f"{NOISE}/*.wav")
            if self._archive is None:
                notes.append(
                    "there is no test archive: the test clips are some of the test list's, and "
                    "their silence is cut from the same recordings too"
                )
        return Inventory(table, list(SPLITS), part, None, speakers, absent, notes)

    def _table(self, split: Split, names: list[str], *, whole: bool = False) -> ClipTable:
        """Clips of a split.

        Args:
            split: The split.
            names: Its clips of words.
            whole: Show the recordings of noise instead of what training cuts from them, and let
                it pass that there are none.
        """
        if not self.twelve:
            return self._words(names)
        if split == "test":
            if self._archive is not None:
                clips = archive_clips(self._archive)
                sounds = SoundFiles(self.decoder, self._archive, Strings(clips))
                return ClipTable(Strings(clips), keyword_targets(clips), sounds)
            names = like_test_archive(names)
        words = self._words(names)
        if whole and not self._folders.noise:
            return words
        return ClipTable.concatenate([words, self._silence(split, names, whole=whole)])

    def _words(self, names: list[str]) -> ClipTable:
        if self.twelve:
            return self.files(names, names, keyword_targets(names))
        numbers = {word: number for number, word in enumerate(self.labels)}
        targets = [numbers[name.partition("/")[0]] for name in names]
        return self.files(names, names, Targets.one_each(targets))

    def _silence(self, split: Split, names: list[str], *, whole: bool) -> ClipTable:
        """Clips of silence that go with a split's clips of words."""
        noise, label = self._folders.noise, CLASSES.index(SILENCE)
        if not noise:
            raise DataError(
                f"there are no recordings of noise in {self.root / NOISE}, which the class "
                f"{SILENCE} is cut from; {self._folders.advice}"
            )
        paths = [f"{NOISE}/{path.name}" for path in noise]
        if split == "train" and whole:
            return self.files(paths, paths, Targets.one_each([label] * len(paths)))
        count = len(noise)
        if split == "train":
            count = self.silence or count
        elif split == "test":
            count = share_of_others(names)
        ids = Strings([f"{paths[clip % len(paths)]}#{split}{clip}" for clip in range(count)])
        crops = NoiseCrops(RATE, self.channels, noise, ids)
        return ClipTable(ids, Targets.one_each([label] * count), crops)

    @cached_property
    def _archive(self) -> Path | None:
        """Folder of the test archive; a warning when there is none."""
        found = self._folders.archive(self.test_root)
        if found is None:
            log.warning(
                "there is no %s in %s or beside it: the test clips come from %s, and silence from "
                "noise that training hears too. Results are not the published protocol's; fetch "
                "%s.tar.gz (download.tensorflow.org/data) and unpack it into a folder "
                "(data.init_args.test_root)",
                self._folders.archive_name,
                self.root,
                LISTS["test"],
                self._folders.archive_name,
            )
        return found
