"""Tables of clips, a set's inventory, and the torch `Dataset` that reads waveforms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from peas.data.batch import Item, Unreadable
from peas.data.columns import Rows, Strings, Targets
from peas.data.distributed_samplers import ClipKey
from peas.data.mixup import choose_partner, mix
from peas.data.sounds import JoinedSounds, Sounds
from peas.errors import AudioError
from peas.training.randomness import stable_hash

# Shorter clips do not fill one frame of the front end.
FRAME_SECONDS = 0.025
_SHIFT_SECONDS = 0.01


def input_samples(frames: int, rate: int) -> int:
    """Samples of the longest clip that fits into a model's input of so many frames."""
    # One more would fill another frame.
    return round(FRAME_SECONDS * rate) + frames * round(_SHIFT_SECONDS * rate) - 1


@dataclass(frozen=True)
class ClipTable:
    """Clips by column. N clips.

    Attributes:
        ids: Name of each clip, the same on every machine.
        targets: Classes of each clip.
        sounds: Sound of each clip.
    """

    ids: Strings
    targets: Targets
    sounds: Sounds

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: ArrayLike) -> ClipTable:
        """The table of some rows, in their order."""
        return ClipTable(self.ids.take(rows), self.targets.take(rows), self.sounds.take(rows))

    @classmethod
    def concatenate(cls, tables: Sequence[ClipTable]) -> ClipTable:
        """The clips of several tables, one after the other."""
        return cls(
            Strings.concatenate([table.ids for table in tables]),
            Targets.concatenate([table.targets for table in tables]),
            JoinedSounds([table.sounds for table in tables]),
        )


@dataclass(frozen=True)
class Inventory:
    """Every clip of a data set once, and what clips of different parts must not share. N clips.

    A part is a split or a fold.

    Attributes:
        table: The clips, whether or not their sound is there.
        parts: Names of the parts.
        part: `[N]` number of each clip's part.
        recordings: Name of the recording that each clip was cut from, such as `freesound:1234`
            or `youtube:abc`, the same in every data set that holds it; None = unknown. An
            empty name = unknown for that clip.
        speakers: Name of each clip's speaker, such as `librispeech:84`, likewise.
        absent: Names of clips that the set lists and of which no sound was found; they are not
            in the table.
        notes: Further notes for the user, one sentence each.
    """

    table: ClipTable
    parts: list[str]
    part: Rows
    recordings: Strings | None = None
    speakers: Strings | None = None
    absent: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_splits(cls, splits: Mapping[str, ClipTable]) -> Inventory:
        """Inventory of splits that share no clip by construction."""
        sizes = [len(table) for table in splits.values()]
        return cls(
            ClipTable.concatenate(list(splits.values())),
            list(splits),
            np.repeat(np.arange(len(sizes)), sizes),
        )


class ClipDataset(Dataset[Item | Unreadable]):
    """Reads the clips of a table.

    A plain index gives the clip as it is, with its class. A `ClipKey` gives the clip of one epoch:
    with probability `mixup` it is mixed with a random partner of the table, weighted by
    Beta(10, 10) (the official SSAST loader's behaviour). The random numbers depend on the seed, the
    epoch and the clip's name alone, and on its position where an epoch may repeat it, so neither
    workers nor processes change them.

    Args:
        table: The clips.
        rate: Sampling rate in Hz of the waveforms.
        classes: Number of classes.
        multi_label: Targets are `[C]` float32, for clips with any number of classes.
        training: Plain indices are training clips as well, of epoch 0 in the table's order.
        mixup: Probability that a training clip is mixed; above 0 every training target is soft.
        repeats: Whether an epoch may have one clip several times.
        seed: Seed of the run.
        frames: Frames of the model's input, by which clips count as cut; None = no clip does.
        teacher_rate: Sampling rate in Hz at which every clip is read a second time, the very same
            stretch of it; None = there is no teacher.
    """

    def __init__(
        self,
        table: ClipTable,
        *,
        rate: int,
        classes: int,
        multi_label: bool = False,
        training: bool = False,
        mixup: float = 0.0,
        repeats: bool = False,
        seed: int = 0,
        frames: int | None = None,
        teacher_rate: int | None = None,
    ) -> None:
        self.table = table
        self.rate = rate
        self.classes = classes
        self.multi_label = multi_label
        self.training = training
        self.mixup = mixup
        self.repeats = repeats
        self.seed = seed
        self.longest = math.inf if frames is None else input_samples(frames, rate)
        self.teacher_rate = teacher_rate

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | ClipKey) -> Item | Unreadable:
        """Read one clip, or report that it cannot be read."""
        if self.training and not isinstance(key, ClipKey):
            # Lightning's `overfit_batches` puts a plain sequential sampler in place of ours.
            key = ClipKey(epoch=0, position=key, clip=key)
        index = key.clip if isinstance(key, ClipKey) else key
        name = self.table.ids[index]
        rng = self._rng("crop", key, name)
        crop = None if rng is None else rng.random()
        teacher = None
        # Errors travel as values: the loader would wrap an exception in a worker's traceback.
        try:
            waveform = self.table.sounds.load(index, crop)
            if self.teacher_rate is not None:
                teacher = self.table.sounds.load(index, crop, self.teacher_rate)
        except AudioError as error:
            return Unreadable(name, str(error))
        classes = self.table.targets[index]
        item = Item(
            waveform,
            self._soft(index, 1.0) if self.multi_label or len(classes) != 1 else int(classes[0]),
            name,
            # NumPy stops at the first sample that is not zero; PyTorch converts all of them.
            silent=not waveform.numpy().any(),
            short=waveform.shape[0] < FRAME_SECONDS * self.rate,
            cut=waveform.shape[0] > self.longest,
            labelled=len(classes) > 0,
            teacher=teacher,
        )
        if not isinstance(key, ClipKey):
            return item
        item = item._replace(position=key.position)
        return self._mixed(item, key) if self.mixup > 0 else item

    def _rng(self, stream: str, key: int | ClipKey, name: str) -> np.random.Generator | None:
        """Random numbers of a training clip in its epoch; None in evaluation."""
        if not isinstance(key, ClipKey):
            return None
        position = (key.position,) if self.repeats else ()
        return np.random.default_rng(stable_hash(self.seed, stream, key.epoch, name, *position))

    def _soft(self, index: int, weight: float) -> Tensor:
        target = torch.zeros(self.classes)
        target[self.table.targets[index].astype(np.int64)] = weight
        return target

    def _mixed(self, item: Item, key: ClipKey) -> Item | Unreadable:
        rng = self._rng("mixup", key, item.id)
        assert rng is not None
        partner, weight = choose_partner(rng, self.mixup, len(self))
        target = self._soft(key.clip, weight)
        if partner is None:
            return item._replace(target=target)
        try:
            other = self.table.sounds.load(partner, rng.random())
        except AudioError as error:
            return Unreadable(self.table.ids[partner], str(error))
        # Added, so that two clips of one class sum to one.
        target += self._soft(partner, 1.0 - weight)
        waveform = mix(item.waveform, other, weight)
        # A target of one labelled clip alone would sum to less than one.
        labelled = item.labelled and len(self.table.targets[partner]) > 0
        return item._replace(waveform=waveform, target=target, mixed=True, labelled=labelled)
