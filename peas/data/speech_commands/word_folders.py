"""A folder of Speech Commands: words, the official lists, noise, the test archive."""

from __future__ import annotations

import logging
from collections import Counter
from functools import cached_property
from pathlib import Path

from peas.data.labels import read_labels
from peas.data.module import Split
from peas.data.speech_commands.keywords import (
    CLASSES,
    NOISE,
    SECOND_VERSION_WORDS,
    split_of_speaker,
)
from peas.data.walk import PassedOver, walk
from peas.errors import DataError
from peas.utils.text import some

log = logging.getLogger(__name__)

UNUSED = "recordings that this task does not use"
LISTS: dict[Split, str] = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class WordFolders:
    """A folder of Speech Commands in the official layout, read once and checked.

    Args:
        root: The folder.
        version: `1` or `2`, whose words these must be.
        twelve: For the twelve classes: without the two lists the clips are split by the hash of
            the speaker.
    """

    def __init__(self, root: Path, version: str, *, twelve: bool) -> None:
        self.root = root
        self.version = version
        self.twelve = twelve
        self.advice = (
            f"fetch speech_commands_v0.0{version}.tar.gz (download.tensorflow.org/data) and "
            f"unpack it into {root} (data.init_args.root)"
        )
        self.archive_name = f"speech_commands_test_set_v0.0{version}"
        self._all_words = set(read_labels("speech_commands_v2"))
        if version == "1":
            self._all_words -= SECOND_VERSION_WORDS
        self._word_set = f"the {len(self._all_words)} words of Speech Commands V{version}"

    def names(self, split: Split) -> list[str]:
        """Clips `word/file.wav` of a split in order, with or without a file.

        Raises:
            DataError: There are no words, or the lists are missing or contradict themselves.
        """
        if split in self._listed:
            return sorted(self._listed[split])
        return sorted(self._existing.difference(*self._listed.values()))

    def require_files(self) -> None:
        """Check that the clips of the lists are there.

        Raises:
            DataError: Some are not.
        """
        for split, names in self._listed.items():
            missing = sorted(names - self._existing)
            if missing:
                raise DataError(
                    f"{len(missing)} of the files that {self.root / LISTS[split]} lists are not "
                    f"there, such as {some(missing)}; {self.advice}"
                )

    @cached_property
    def noise(self) -> list[Path]:
        """The long recordings of noise, by name."""
        return [self.root / NOISE / name for name in wav_names(self.root / NOISE)]

    @cached_property
    def skipped(self) -> PassedOver:
        """Files in the folders of the words that are no clips, and unused recordings."""
        skipped = PassedOver()
        for word in self._words:
            skipped.join(walk(self.root / word).passed)
        if not self.twelve and self.noise:
            skipped.add(UNUSED, NOISE, len(self.noise))
        return skipped

    def archive(self, folder: Path | None) -> Path | None:
        """Folder of the test archive; None if it is not given and not in the usual places.

        Args:
            folder: The folder that the user gives.

        Raises:
            DataError: It is not there.
        """
        if folder is None:
            parents = (self.root, self.root.absolute().parent)
            usual = (parent / self.archive_name for parent in parents)
            return next((path for path in usual if path.is_dir()), None)
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder} (data.init_args.test_root): fetch "
                f"{self.archive_name}.tar.gz (download.tensorflow.org/data) and unpack it there"
            )
        return folder

    @cached_property
    def _words(self) -> list[str]:
        """The words that have a folder."""
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}: {self.advice}")
        folders = {
            path.name
            for path in self.root.iterdir()
            if path.is_dir() and not path.name.startswith(("_", "."))
        }
        folders.discard(self.archive_name)
        unknown = folders - self._all_words
        if unknown:
            raise DataError(
                f"{self.root / min(unknown)} is not one of {self._word_set}: "
                "remove every other folder"
            )
        if not folders:
            raise DataError(f"{self.root} has no folder of a word, 0 classes; {self.advice}")
        if len(folders) < len(self._all_words):
            log.warning(
                "%s has %d of %s; results are not comparable with the full set",
                self.root,
                len(folders),
                self._word_set,
            )
        return sorted(folders)

    @cached_property
    def _existing(self) -> set[str]:
        """Clips that have a file."""
        return {f"{word}/{name}" for word in self._words for name in wav_names(self.root / word)}

    @cached_property
    def _listed(self) -> dict[Split, set[str]]:
        """Clips of validation and of the test, of the words that have a folder."""
        existing = self._existing
        if self.twelve and not any((self.root / file).exists() for file in LISTS.values()):
            splits = {name: split_of_speaker(name) for name in existing}
            return {split: {name for name in existing if splits[name] == split} for split in LISTS}
        listed = {split: self._read(self.root / file) for split, file in LISTS.items()}
        both = listed["validation"] & listed["test"]
        if both:
            raise DataError(
                f"{self.root}: {len(both)} clips are in both {' and '.join(LISTS.values())}, such "
                f"as {min(both)}; use the official lists"
            )
        return listed

    def _read(self, file: Path) -> set[str]:
        """Clips of one of the two lists."""
        if not file.is_file():
            raise DataError(f"there is no {file}: {self.advice}")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{file}: not UTF-8 text; use the official list") from None
        names = [line.strip() for line in lines if line.strip()]
        words = {name: name.partition("/")[0] for name in names}
        unknown = [name for name, word in words.items() if word not in self._all_words]
        if unknown:
            raise DataError(
                f"{file} names {unknown[0]}, which is none of {self._word_set}; "
                "use the official list"
            )
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        if duplicates:
            raise DataError(
                f"{file} lists {some(duplicates)} more than once; use the official list"
            )
        present = set(self._words)
        return {name for name, word in words.items() if word in present}


def archive_clips(folder: Path) -> list[str]:
    """Clips `class/file.wav` of an unpacked test archive, by name.

    Raises:
        DataError: A class has no folder or no clip there.
    """
    names = []
    for label in CLASSES:
        files = wav_names(folder / label)
        if not files:
            raise DataError(
                f"{folder} has no clips of {label}: a test archive has a folder for each of the "
                "twelve classes; unpack it again, or correct data.init_args.test_root"
            )
        names += [f"{label}/{file}" for file in files]
    return sorted(names)


def wav_names(folder: Path) -> list[str]:
    """Names of the sound files below a folder, in order; none if there is no folder.

    Raises:
        DataError: A link leads in a circle, or a name is not UTF-8.
    """
    return walk(folder).sorted_paths() if folder.is_dir() else []
