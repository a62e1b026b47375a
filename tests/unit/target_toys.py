"""Small caches, sets and teachers for the tests of targets."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from peas.data.columns import Strings
from peas.errors import CheckpointError
from peas.teachers.base import Teacher
from peas.teachers.cache import TargetSettings
from peas.teachers.grid import Extent
from peas.teachers.target_writer import Block, ids_sum, write_targets

SHAPE = (2, 5, 3)
EXTENT = {"first_centre": 0.1, "step": 0.2, "freq_edges": [0.0, 1000.0, 8000.0]}
IDS = [f"clip{number:03}" for number in range(23)]


def maps_of(count, shape=SHAPE, seed=0):
    """Maps in float16, another one for each clip."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float16)


class Maps:
    """A source that gives the rows of an array, and can stop before one of them.

    Args:
        maps: Map of each clip, in the order of the ids.
        stop: Row before which it stops with an error.
    """

    def __init__(self, maps, stop=None):
        self.maps = maps
        self.stop = stop
        self.given = []

    def blocks(self, shards):
        for shard in shards:
            for first in range(shard.start, shard.stop, 3):
                places = range(first, min(first + 3, shard.stop))
                if self.stop in places:
                    raise KeyboardInterrupt
                self.given += places
                yield Block(self.maps[places], [])


def recipe(ids=IDS, **settings):
    """What the toy caches are made of."""
    return TargetSettings(
        **{
            "teacher": "Toy",
            "fingerprint": "toy:1",
            **EXTENT,
            "shape": list(SHAPE),
            "sound": "",
            "set": "bag",
            "clips": len(ids),
            "ids": ids_sum(ids),
            "shard_clips": 5,
            **settings,
        }
    )


def write(out, source, ids=IDS, **settings):
    """Write a toy cache: five shards."""
    call = {key: settings.pop(key) for key in ("allow_missing", "left_out") if key in settings}
    return write_targets(out, recipe(ids, **settings), Strings(ids), source, **call)


def content(folder):
    """All files of a cache but the lock, which names its last holder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def sound_folder(root: Path, clips=6, rate=16_000):
    """A folder of a class with recordings of unequal length."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        path = root / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 3000 + 500 * number), rate)
    return root


def ready_files(folder: Path, ids, maps, **said):
    """An npz of ready maps and its extent."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "maps.npz", ids=np.array(ids), features=maps)
    told = {"teacher": "Ready", **EXTENT, **said}
    (folder / "extent.json").write_text(json.dumps(told))
    return folder / "maps.npz", folder / "extent.json"


class Windows(nn.Module):
    """One weight."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))


class ToyTeacher(Teacher):
    """A teacher at 8 kHz whose map holds mean, spread and length of each window, in two rows.

    Args:
        gain: What it multiplies by.
        width: D that it states.
        bad: Length in samples of a clip whose map is too large for float16.
    """

    def __init__(self, gain: float = 1.0, width: int = 3, bad: float | None = None) -> None:
        if gain == 0:
            raise CheckpointError("gain.pt: gives no gain")
        super().__init__(
            rate=8_000,
            width=width,
            extent=Extent(0.05, 0.1, (0.0, 1000.0, 4000.0)),
            name=f"Toy {gain:g}",
        )
        self.gain = gain
        self.bad = bad

    def build(self):
        """The gain, as a network."""
        return Windows(self.gain)

    def settings(self):
        """What decides a map beside the gain."""
        return {"toy": 1}

    def features(self, waveform, length):
        """`[B, 3, 2, S // 800]`."""
        windows = waveform[:, : waveform.shape[1] // 800 * 800].unflatten(1, (-1, 800))
        told = length[:, None].expand(windows.shape[:2]) / 8000
        row = torch.stack([windows.mean(2), windows.std(2), told], 1) * self.network.gain
        if self.bad is not None:
            row = torch.where((length == self.bad)[:, None, None], 1e6, row)
        return torch.stack([row, 2 * row], 2)
