"""Small sets to pack, and the same short call for every test."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import soundfile

from peas.data.clips import Inventory
from peas.data.columns import Strings, Targets
from peas.data.module import ClipDataModule
from peas.data.packed.encoding import Coding
from peas.data.packed.writer import pack

LABELS = ["a", "b", "c"]


class Bag(ClipDataModule):
    """Clips `000.wav`, `001.wav`, … of any parts and classes.

    Args:
        root: Folder with the clips.
        parts: Name of each clip's part.
        classes: Classes of each clip.
        measured: The mean is not known, as in a set that measures its own.
    """

    def __init__(self, root, parts, classes=None, *, multi_label=False, labels=LABELS, **common):
        mean = common.pop("mean", -6.0)
        super().__init__(root, mean=mean, std=mean + 11, frames=64, **{"batch_size": 4, **common})
        self.parts = parts
        self.classes = classes or [[number % 3] for number in range(len(parts))]
        self._labels = labels
        self._multi_label = multi_label

    labels = property(lambda self: list(self._labels))
    multi_label = property(lambda self: self._multi_label)

    def _table(self):
        names = [f"{number:03}.wav" for number in range(len(self.parts))]
        return self.files(names, names, Targets.several(self.classes))

    def clips(self, split):
        return self._table().take([row for row, part in enumerate(self.parts) if part == split])

    def inventory(self):
        names = list(dict.fromkeys(self.parts))
        return Inventory(
            self._table(),
            names,
            np.array([names.index(part) for part in self.parts]),
            Strings([f"freesound:{number // 2}" for number in range(len(self.parts))]),
            notes=["A bag."],
        )


def bag(root: Path, parts, *arguments, rate=16_000, channels=1, seconds=0.2, **settings) -> Bag:
    """A bag whose clips are made unless they are there: noise of 16 bits and unequal length."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(len(parts)):
        file = root / f"{number:03}.wav"
        samples = rng.integers(-9000, 9000, (int(rate * seconds) + 37 * number, channels), np.int16)
        if not file.exists():
            soundfile.write(file, samples, rate, subtype="PCM_16")
    return Bag(root, parts, *arguments, **{"num_workers": 0, "cache_dir": "", **settings})


def packed(module, out: Path, *, name="bag", **settings):
    """Pack in this process, with shards of about three clips."""
    coding = Coding(
        settings.pop("rate", 16_000),
        settings.pop("audio", "flac"),
        settings.pop("channels", "mean"),
    )
    call = {"shard_bytes": 16_000, "workers": 0, **settings}
    return pack(module, name, out, coding, **call)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a packed folder but the lock, which names its last holder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def copy_of(folder: Path, to: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(folder, to)
    return to


def said(folder: Path) -> dict:
    """The manifest as it stands in its file."""
    return json.loads((folder / "manifest.json").read_text())


def unknown() -> float:
    """Mean of a set that does not know it."""
    return math.nan
