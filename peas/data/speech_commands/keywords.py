"""Keyword spotting in twelve classes, from the words and the noise of Speech Commands.

Ten keywords, `_unknown_` for every other word, and `_silence_`: seconds of background noise.
The order of the classes is SUPERB's (s3prl, downstream `speech_commands`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha1
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from peas.audio import decode as audio
from peas.data.cache import ResampledCache
from peas.data.class_balance import MixtureSampler
from peas.data.columns import Rows, Strings, Targets
from peas.data.sounds import Sounds, Source
from peas.training.randomness import stable_hash

if TYPE_CHECKING:
    from peas.data.module import Split

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*KEYWORDS, UNKNOWN, SILENCE)
"""The twelve classes, in the order of the targets."""

NOISE = "_background_noise_"
"""Folder of the long recordings that silence is cut from."""

SECOND_VERSION_WORDS = frozenset({"backward", "follow", "forward", "learn", "visual"})
"""Words of Speech Commands V2 that V1 does not have."""

_CROP_SECONDS = 1
# The official test archives hold one clip of silence and one of an unknown word for every ten of
# the keywords: 2,567 + 257 + 257 of V1, 4,074 + 408 + 408 of V2.
_KEYWORDS_FOR_ONE_OTHER = 10
_MOST_CLIPS_OF_A_SPEAKER = 2**27 - 1
_SPEAKER = re.compile(r"([0-9a-f]{8})_nohash_")


def split_of_speaker(name: str) -> Split:
    """Split of a clip by its speaker, as in the official lists.

    A hash of the name before `_nohash_` puts a tenth of the speakers into validation and a tenth
    into the test (P. Warden, 2018; SUPERB computes it too).

    Args:
        name: Name of the clip's file, with folders or without.
    """
    speaker = name.rpartition("/")[2].partition("_nohash_")[0]
    number = int(sha1(speaker.encode()).hexdigest(), 16) % (_MOST_CLIPS_OF_A_SPEAKER + 1)
    percent = number * (100.0 / _MOST_CLIPS_OF_A_SPEAKER)
    if percent < 10:
        return "validation"
    return "test" if percent < 20 else "train"


def speaker_of(name: str) -> str:
    """Speaker of a clip, eight hexadecimal digits; empty if the name has none."""
    match = _SPEAKER.search(name)
    return match[1] if match else ""


def keyword_targets(names: Iterable[str]) -> Targets:
    """Class of each clip `folder/file.wav`; other folders are unknown words."""
    numbers = {name: number for number, name in enumerate(CLASSES)}
    unknown = numbers[UNKNOWN]
    return Targets.one_each([numbers.get(name.partition("/")[0], unknown) for name in names])


def share_of_others(names: Sequence[str]) -> int:
    """Number of clips of silence, and of unknown words, in a test set with these names."""
    keywords = sum(name.partition("/")[0] in KEYWORDS for name in names)
    return ceil(keywords / _KEYWORDS_FOR_ONE_OTHER)


def like_test_archive(names: Sequence[str]) -> list[str]:
    """Clips of a test list in the proportions of a test archive, in the list's order.

    All keywords, and unknown words chosen by their names alone.
    """
    unknown = [name for name in names if name.partition("/")[0] not in KEYWORDS]
    chosen = sorted(unknown, key=lambda name: stable_hash("test", name))[: share_of_others(names)]
    excluded = set(unknown).difference(chosen)
    return [name for name in names if name not in excluded]


class NoiseCrops(Sounds):
    """Clips of one second, cut from long recordings of noise.

    In training the start is random in every epoch (SUPERB); in evaluation it depends on the clip's
    name only, so it is the same in every epoch, run and process.

    Args:
        rate: Sampling rate in Hz of the waveforms.
        channels: As for `ResampledCache`.
        files: Recordings of noise.
        ids: Name of each clip; clip n is cut from `files[n % len(files)]`.
    """

    def __init__(
        self, rate: int, channels: Literal["mean", "first"], files: Sequence[Path], ids: Strings
    ) -> None:
        # A random second hardly ever repeats: caching it would only fill the disk.
        super().__init__(ResampledCache(None, rate=rate, channels=channels))
        self.files = list(files)
        self.ids = ids
        self._infos: dict[Path, audio.AudioInfo] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def source(self, row: int, crop: float | None = None) -> Source:
        """The second of the recording at `crop` in [0, 1), or else at the hash of the clip's name.

        Raises:
            AudioError: The recording cannot be read.
        """
        path = self.files[row % len(self.files)]
        info = self._infos.get(path)
        if info is None:
            info = self._infos[path] = audio.probe(path)
        position = stable_hash("crop", self.ids[row]) / 2**63 if crop is None else crop
        spare = max(info.frames - _CROP_SECONDS * info.rate, 0)
        start = int(position * (spare + 1)) / info.rate
        # A recording may be shorter than a clip.
        return Source(path, str(path), start, start + _CROP_SECONDS if spare else None)


class HalfOfUnknown:
    """Every clip, with each other class repeated until it has half as many as `_unknown_`.

    AudioMAE's balancing of Speech Commands V1. The fractional part of a repetition is a random
    part of the class in every epoch; a class with more clips keeps them.

    Args:
        targets: Class of each clip.
    """

    def __init__(self, targets: Targets) -> None:
        counts = targets.counts(len(CLASSES))
        target = np.maximum(counts, counts[CLASSES.index(UNKNOWN)] // 2)
        present = np.flatnonzero(counts)
        sizes = counts[present]
        # Sorted by class, as `MixtureSampler` expects its sets.
        self._rows: Rows = np.argsort(targets.classes, kind="stable")
        self._repeated = MixtureSampler(sizes.tolist(), (target[present] / sizes).tolist())
        self.count = self._repeated.count
        self.repeats = self._repeated.repeats

    def sample(self, source: torch.Generator) -> Tensor:
        """Clips of one epoch in order, `[count]` int64."""
        return torch.from_numpy(self._rows)[self._repeated.sample(source)]
