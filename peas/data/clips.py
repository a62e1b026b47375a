"""A table of clips, and the data set that turns its rows into waveforms, mixed or not."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from peas.augment.waveform import mix
from peas.data.batch import Broken, Item
from peas.data.cache import ResampledCache
from peas.data.samplers import ClipKey
from peas.errors import AudioError
from peas.randomness import stable_hash

# Shorter clips do not fill one frame of the front end.
FRAME_SECONDS = 0.025


@dataclass(frozen=True)
class ClipTable:
    """Clips by column.

    Attributes:
        paths: Sound files.
        ids: Name of each clip, the same on every machine.
        targets: Class of each clip.
    """

    paths: list[Path]
    ids: list[str]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.paths)


class ClipDataset(Dataset[Item | Broken]):
    """Reads the clips of a table.

    A plain index gives the clip as it is, with its class. A `ClipKey` gives the clip of one epoch:
    with probability `mixup` it is mixed with a partner drawn from the whole table, weighted by
    Beta(10, 10) (the official SSAST loader's behaviour). These draws depend on the seed, the epoch
    and the clip's name alone, so neither workers nor processes change them.

    Args:
        table: The clips.
        cache: Reader of sound files.
        classes: Number of classes.
        training: Plain indices are training clips as well, of epoch 0 in the table's order.
        mixup: Probability that a training clip is mixed; above 0 every training target is soft.
        seed: Seed of the run.
    """

    def __init__(
        self,
        table: ClipTable,
        cache: ResampledCache,
        *,
        classes: int,
        training: bool = False,
        mixup: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.table = table
        self.cache = cache
        self.classes = classes
        self.training = training
        self.mixup = mixup
        self.seed = seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | ClipKey) -> Item | Broken:
        """Read one clip; a clip that cannot be read is reported in its place."""
        if self.training and not isinstance(key, ClipKey):
            # Lightning's `overfit_batches` puts a plain sequential sampler in place of ours.
            key = ClipKey(epoch=0, position=key, clip=key)
        index = key.clip if isinstance(key, ClipKey) else key
        # Errors travel as values: the loader would wrap an exception in a worker's traceback.
        try:
            waveform = self.cache.load(self.table.paths[index])
        except AudioError as error:
            return Broken(self.table.ids[index], str(error))
        item = Item(
            waveform,
            self.table.targets[index],
            self.table.ids[index],
            silent=not waveform.any(),
            short=waveform.shape[0] < FRAME_SECONDS * self.cache.rate,
        )
        if not isinstance(key, ClipKey):
            return item
        item = item._replace(position=key.position)
        return self._mixed(item, key.epoch) if self.mixup > 0 else item

    def _mixed(self, item: Item, epoch: int) -> Item | Broken:
        draws = np.random.default_rng(stable_hash(self.seed, "mixup", epoch, item.id))
        weight, partner = 1.0, -1
        if draws.random() < self.mixup:
            partner = int(draws.integers(len(self)))
            weight = float(draws.beta(10.0, 10.0))
        target = torch.zeros(self.classes)
        target[item.target] = weight
        if partner < 0:
            return item._replace(target=target)
        try:
            other: Tensor = self.cache.load(self.table.paths[partner])
        except AudioError as error:
            return Broken(self.table.ids[partner], str(error))
        # Added, so that two clips of one class make a whole.
        target[self.table.targets[partner]] += 1.0 - weight
        waveform = mix(item.waveform, other, weight)
        return item._replace(waveform=waveform, target=target, mixed=True)
