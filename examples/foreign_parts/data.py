"""A data set: which clips there are, and their classes."""

from typing import Any

import numpy as np
import soundfile

from peas.data import SPLITS, ClipDataModule, ClipTable, Split, Targets

NOTES = {"low": 220.0, "middle": 660.0, "high": 1980.0}


class Notes(ClipDataModule):
    """Tones of three pitches in noise, written under the root when they are not there.

    Args:
        root: Folder of the clips.
        clips: Clips of each pitch and split.
        seconds: Length of a clip.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`, such as `num_workers`.
    """

    def __init__(
        self,
        root: str,
        clips: int = 4,
        seconds: float = 0.64,
        batch_size: int = 4,
        frames: int = 64,
        **common: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, mean=-5.0, std=4.0, frames=frames, **common)
        self.count, self.seconds = clips, seconds

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return list(NOTES)

    def names(self, split: Split) -> list[tuple[str, int]]:
        """File name and class of each clip of a split."""
        pairs = [(number, note) for number in range(self.count) for note in range(len(NOTES))]
        return [(f"{split}-{number}-{note}.wav", note) for number, note in pairs]

    def prepare_data(self) -> None:
        """Writes what is missing."""
        self.root.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(self.seconds * self.rate)) / self.rate
        for name, note in (clip for split in SPLITS for clip in self.names(split)):
            random = np.random.default_rng([*name.encode()])
            pitch = list(NOTES.values())[note] * random.uniform(0.8, 1.25)
            sound = 0.3 * np.sin(2 * np.pi * pitch * time) + random.normal(0, 0.05, len(time))
            if not (self.root / name).exists():
                soundfile.write(self.root / name, sound, self.rate)

    def clips(self, split: Split) -> ClipTable:
        """The table of a split."""
        names, targets = zip(*self.names(split), strict=True)
        return self.files(names, names, Targets.one_each(targets))
