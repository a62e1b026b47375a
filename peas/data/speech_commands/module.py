"""Google Speech Commands: one-second clips of 35 words, or of ten keywords and two more classes."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peas.data.class_balance import EpochSampler
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.fetch.sources import SPEECH_COMMANDS_CLIPS
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

    `v2-35` (KS2, SPC-2): the 35 words of version 2. `ROOT` holds a folder for each word,
    `validation_list.txt` and `testing_list.txt`; all other clips are for training, and
    `_background_noise_` is not used. The classes have the order of the official SSAST checkpoints.
    84,843, 9,981 and 11,005 clips.

    `v1-12` (KS1, SPC-1) and `v2-12`: ten keywords, `_unknown_` for the other words, `_silence_`.
    The protocol and the order of the classes are SUPERB's, which SSAST follows too:
    yes, no, up, down, left, right, on, off, stop, go, `_unknown_`, `_silence_`. V1 has 51,094
    training, 6,804 validation and 3,081 test clips.

    - Training: `silence` clips of silence, each a random second of a recording in
      `_background_noise_`, another one in every epoch; all classes are sampled equally often, with
      replacement.
    - Validation: one second of each recording, whose start depends on its name only. (SUPERB
      samples starts and clips anew in each evaluation.)
    - Test: all clips of the separate archive `speech_commands_test_set_v0.01` (V2: `v0.02`).
      Without the archive, with a warning: the keywords of the test list, a tenth as many of its
      unknown words and as many seconds of noise, the archive's proportions but not its clips.
    - Without the lists, the clips are split by the hash of the speaker, which made the lists.

    A root with some of the words works, with all labels. A clip's id is `folder/file.wav`.
    Length and mixup are those of the official SSAST recipe.

    Args:
        root: Folder of the data set.
        task: `v2-35`, `v2-12` or `v1-12`; the version must be that of `root`.
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
        sampler = sampling or ("balanced" if twelve else "uniform")
        if sampler == "repeated" and common.get("epoch_clips") is not None:
            raise ConfigError(
                f"data.init_args.epoch_clips is {common['epoch_clips']}, and "
                "data.init_args.sampling is repeated, which takes every clip: set epoch_clips to "
                "null"
            )
        only_twelve = {
            "test_root": test_root,
            "silence": silence,
            "sampling": "repeated" if sampler == "repeated" else None,
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
            sampling="uniform" if sampler == "repeated" else sampler,
            **common,
        )
        self.task = task
        self.twelve = twelve
        self.test_root = None if test_root is None else Path(test_root).expanduser()
        self.silence = silence
        self.repeated = sampler == "repeated"
        self._skipped_logged = False
        self._folders = WordFolders(self.root, task[1], twelve=twelve)

    @property
    def labels(self) -> list[str]:
        """The 35 words or the twelve classes, in the order of the targets."""
        return list(CLASSES) if self.twelve else read_labels("speech_commands_v2")

    def epoch_sampler(self, table: ClipTable) -> EpochSampler:
        """How the clips of a training epoch are sampled."""
        return HalfOfUnknown(table.targets) if self.repeated else super().epoch_sampler(table)

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split: words by name, then silence.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        self._folders.require_files()
        self._log_skipped()
        names = self._folders.names(split)
        if not names:
            source = LISTS.get(split, "the folders of the words")
            raise DataError(
                f"{self.root}: {source} leaves no clip for {split}; {self._folders.advice}"
            )
        return self._table(split, names)

    def _log_skipped(self) -> None:
        skipped = self._folders.skipped
        if skipped and not self._skipped_logged:
            level = logging.WARNING if FOREIGN in skipped.counts else logging.INFO
            log.log(level, "%s: %s", self.root, skipped)
            self._skipped_logged = True

    def inventory(self) -> Inventory:
        """Every clip once with its speaker; for training silence, the entire recordings.

        Raises:
            DataError: There is no such data set, or it contradicts itself.
        """
        tables = [self._table(split, self._folders.names(split), uncut=True) for split in SPLITS]
        table = ClipTable.concatenate(tables)
        part = np.repeat(np.arange(len(SPLITS)), [len(each) for each in tables])
        speakers = Strings(
            [f"speech_commands:{s}" if s else "" for s in map(speaker_of, table.ids)]
        )
        absent: list[str] = []
        notes = [str(self._folders.skipped)] if self._folders.skipped else []
        sizes = dict(zip(SPLITS, map(len, tables), strict=True))
        published = SPEECH_COMMANDS_CLIPS[self.task]
        if sizes != published:
            notes.append(f"the splits have {sizes} clips; as published they have {published}")
        if self.twelve:
            noise = len(self._folders.noise)
            if noise:
                notes.append(
                    f"silence is cut from the same {noise} recordings of {NOISE} in training and "
                    "in validation, as in SUPERB"
                )
            else:
                absent.append(f"{NOISE}/*.wav")
            if self._archive is None:
                notes.append(
                    "there is no test archive: the test clips are some of the test list's, and "
                    "their silence is cut from the same recordings too"
                )
        return Inventory(table, list(SPLITS), part, None, speakers, absent, notes)

    def _table(self, split: Split, names: list[str], *, uncut: bool = False) -> ClipTable:
        """Clips of a split.

        Args:
            split: The split.
            names: Its clips of words.
            uncut: Give the entire recordings of noise for training; they may be missing.
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
        if uncut and not self._folders.noise:
            return words
        return ClipTable.concatenate([words, self._silence(split, names, uncut=uncut)])

    def _words(self, names: list[str]) -> ClipTable:
        if self.twelve:
            return self.files(names, names, keyword_targets(names))
        numbers = {word: number for number, word in enumerate(self.labels)}
        targets = [numbers[name.partition("/")[0]] for name in names]
        return self.files(names, names, Targets.one_each(targets))

    def _silence(self, split: Split, names: list[str], *, uncut: bool) -> ClipTable:
        """Clips of silence of a split, whose clips of words are `names`."""
        noise, label = self._folders.noise, CLASSES.index(SILENCE)
        if not noise:
            raise DataError(
                f"there are no recordings of noise in {self.root / NOISE}, which the class "
                f"{SILENCE} is cut from; {self._folders.advice}"
            )
        paths = [f"{NOISE}/{path.name}" for path in noise]
        if split == "train" and uncut:
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
        archive = self._folders.archive(self.test_root)
        if archive is None:
            log.warning(
                "there is no %s in %s or beside it: the test clips come from %s, and silence from "
                "the recordings of training. The result is not the published protocol's; fetch "
                "%s.tar.gz (download.tensorflow.org/data) and unpack it into a folder "
                "(data.init_args.test_root)",
                self._folders.archive_name,
                self.root,
                LISTS["test"],
                self._folders.archive_name,
            )
        return archive
