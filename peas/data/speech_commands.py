"""Google Speech Commands V2: one-second clips of 35 words."""

import logging
from functools import cached_property
from typing import Any

from peas.data.clips import ClipTable
from peas.data.columns import Targets
from peas.data.labels import read_labels
from peas.data.module import ClipDataModule, Split
from peas.errors import DataError

log = logging.getLogger(__name__)

LISTS: dict[Split, str] = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(ClipDataModule):
    """Speech Commands V2 (P. Warden, 2018), the 35-word task, in the official layout.

    `ROOT` holds a folder a word, `validation_list.txt` and `testing_list.txt`; all clips that the
    lists do not name are for training, and `_background_noise_` is not used. The classes have the
    order of the official SSAST checkpoints. A root with some of the words works, with all 35
    labels. A clip's id is `word/file.wav`.

    Statistics, length and mixup are the official SSAST recipe's.

    Args:
        root: Folder of the data set.
        batch_size: Training clips of a batch, for each process.
        mixup: Probability that a training clip is mixed with another one.
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
        batch_size: int = 16,
        mixup: float = 0.6,
        mean: float = -6.845978,
        std: float = 5.5654526,
        frames: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            mixup=mixup,
            mean=mean,
            std=std,
            frames=frames,
            **common,
        )

    @property
    def labels(self) -> list[str]:
        """The 35 words, in the order of the targets."""
        return read_labels("speech_commands_v2")

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split, by name.

        Raises:
            DataError: The data set is missing, incomplete or contradicts itself.
        """
        ids = self._splits[split]
        if not ids:
            source = LISTS.get(split, "the folders of the words")
            raise DataError(f"{self.root}: {source} leaves no clip for {split}; {self._advice()}")
        numbers = {word: number for number, word in enumerate(self.labels)}
        targets = [numbers[name.split("/")[0]] for name in ids]
        return self.files(ids, ids, Targets.one_each(targets))

    @cached_property
    def _splits(self) -> dict[Split, list[str]]:
        words = self._words()
        here = {
            f"{word}/{path.name}"
            for word in words
            for path in self.root.joinpath(word).glob("*.wav")
        }
        listed = {split: self._listed(split, words, here) for split in LISTS}
        both = listed["validation"] & listed["test"]
        if both:
            raise DataError(
                f"{self.root}: {len(both)} clips are in both {' and '.join(LISTS.values())}, such "
                f"as {min(both)}; use the official lists"
            )
        left = here - listed["validation"] - listed["test"]
        return {"train": sorted(left), **{split: sorted(names) for split, names in listed.items()}}

    def _words(self) -> list[str]:
        """The words that have a folder."""
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}: {self._advice()}")
        folders = {
            path.name
            for path in self.root.iterdir()
            if path.is_dir() and not path.name.startswith(("_", "."))
        }
        strange = folders - set(self.labels)
        if strange:
            raise DataError(
                f"{self.root / min(strange)} is not one of the 35 words of Speech Commands V2: "
                "move every other folder away"
            )
        if not folders:
            raise DataError(f"{self.root} has no folder of a word, 0 classes; {self._advice()}")
        if len(folders) < len(self.labels):
            log.warning(
                "%s has %d of the 35 words of Speech Commands V2; results are not those of the "
                "whole set",
                self.root,
                len(folders),
            )
        return sorted(folders)

    def _listed(self, split: Split, words: list[str], here: set[str]) -> set[str]:
        """Clips of one of the two lists, without the words that have no folder."""
        file = self.root / LISTS[split]
        if not file.is_file():
            raise DataError(f"there is no {file}: {self._advice()}")
        lines = file.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        strange = [name for name in names if name.split("/")[0] not in self.labels]
        if strange:
            raise DataError(
                f"{file} names {strange[0]}, which is none of the 35 words of Speech Commands V2; "
                "use the official list"
            )
        if len(set(names)) < len(names):
            doubled = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{file} lists {doubled} more than once; use the official list")
        wanted = {name for name in names if name.split("/")[0] in words}
        absent = sorted(wanted - here)
        if absent:
            raise DataError(
                f"{len(absent)} of the files that {file} lists are not there, such as "
                f"{', '.join(absent[:3])}; {self._advice()}"
            )
        return wanted

    def _advice(self) -> str:
        return (
            "fetch speech_commands_v0.02.tar.gz (download.tensorflow.org/data) and unpack it into "
            f"{self.root} (data.init_args.root)"
        )
