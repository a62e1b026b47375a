"""What is found in one clip by decoding it, and the columns that hold it for all clips."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peas.audio import decode as audio
from peas.data.clips import FRAME_SECONDS, ClipTable
from peas.data.module import RATE
from peas.data.sounds import Source
from peas.errors import AudioError

HASH_BYTES = 16

CLIPPED_SHARE = 0.001
CLIPPED_RUN = 3
"""A clip is clipped when this share of its samples lies in runs of so many at full scale. Single
samples there do not count: a tone that was brought to full scale touches it at every peak."""

# Largest sample of codings that do not reach 32767 / 32768.
_FULL_SCALE = {
    "PCM_U8": 127 / 128,
    "PCM_S8": 127 / 128,
    "ULAW": 32_124 / 32_768,
    "ALAW": 32_256 / 32_768,
}
_STEP = 1 / 32_768
# Messages kept for each chunk of clips: a report quotes a few, and millions may fail alike.
_QUOTED = 3


class Odd(IntFlag):
    """What may be odd about one clip. The first four leave nothing to train on."""

    MISSING = 1
    UNDECODABLE = 2
    TRUNCATED = 4
    NAN = 8
    SHORT = 16
    SILENT = 32
    CLIPPED = 64
    RATE = 128
    CHANNELS = 256


UNREADABLE = Odd.MISSING | Odd.UNDECODABLE | Odd.TRUNCATED | Odd.NAN


class ClipCheck(NamedTuple):
    """What one clip's check found.

    Attributes:
        odd: What is odd.
        seconds: Length; 0 where the clip cannot be read, as are the next three.
        rate: Samples per second in the file.
        channels: Channels in the file.
        digest: Hash of the samples; zeros as well where the clip is silent.
        message: Why it cannot be read.
    """

    odd: Odd
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    digest: bytes = bytes(HASH_BYTES)
    message: str = ""


@dataclass
class Checks:
    """Checks of consecutive clips, by column. N clips.

    Attributes:
        odd: `[N]` values of `Odd`.
        seconds: `[N]` lengths.
        rate: `[N]` samples per second in the files; 0 = not readable.
        channels: `[N]` channels in the files; 0 = not readable.
        digest: `[N, 16]` hash of the samples; zeros = nothing to compare.
        messages: Why the first few unreadable clips are, by row.
    """

    odd: NDArray[np.uint16]
    seconds: NDArray[np.float32]
    rate: NDArray[np.int32]
    channels: NDArray[np.uint16]
    digest: NDArray[np.uint8]
    messages: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, clips: int) -> Checks:
        """Columns to be filled."""
        return cls(
            np.zeros(clips, np.uint16),
            np.zeros(clips, np.float32),
            np.zeros(clips, np.int32),
            np.zeros(clips, np.uint16),
            np.zeros((clips, HASH_BYTES), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.odd)

    def put(self, first: int, part: Checks) -> None:
        """Fill in the checks of the clips from row `first` on."""
        rows = slice(first, first + len(part))
        self.odd[rows] = part.odd
        self.seconds[rows] = part.seconds
        self.rate[rows] = part.rate
        self.channels[rows] = part.channels
        self.digest[rows] = part.digest
        self.messages.update({first + row: text for row, text in part.messages.items()})

    def rows(self, odd: Odd) -> NDArray[np.int64]:
        """Rows of the clips that are odd in one of some ways."""
        return np.flatnonzero(self.odd & odd)


def check_clips(table: ClipTable, rows: range) -> Checks:
    """Decode some clips of a table and look at each.

    Args:
        table: The clips.
        rows: Consecutive rows of it.
    """
    found = Checks.empty(len(rows))
    decoder = table.sounds.decoder
    quoted = 0
    for place, row in enumerate(rows):
        try:
            source = table.sounds.source(row)
        except AudioError as error:
            clip = ClipCheck(Odd.UNDECODABLE, message=str(error))
        else:
            clip = check_clip(source, decoder.channels, decoder.max_samples)
        found.odd[place] = clip.odd
        found.seconds[place] = clip.seconds
        found.rate[place] = clip.rate
        found.channels[place] = clip.channels
        found.digest[place] = np.frombuffer(clip.digest, np.uint8)
        if clip.message and quoted < _QUOTED:
            found.messages[place] = clip.message
            quoted += 1
    return found


def check_clip(
    source: Source,
    channels: Literal["mean", "first"] = "mean",
    max_samples: int = audio.MAX_SAMPLES,
) -> ClipCheck:
    """Decode one clip at its own rate and look at it.

    Args:
        source: Where its sound lies.
        channels: What becomes of several channels, as in training.
        max_samples: Samples that a clip may have, as in training.
    """
    data, name = source.data, source.name
    if isinstance(data, Path) and not data.exists():
        return ClipCheck(Odd.MISSING, message=f"{name}: there is no such file")
    try:
        info = audio.probe(data, name=name, max_samples=max_samples)
        waveform = audio.load(
            data,
            # Resampling costs more than decoding, and finds nothing.
            info.rate,
            channels,
            name=name,
            start=source.start,
            stop=source.stop,
            max_samples=max_samples,
        )
    except (AudioError, OSError, MemoryError) as error:
        return _unreadable(name, error)
    odd = Odd(0)
    if info.rate != RATE:
        odd |= Odd.RATE
    if info.channels > 1:
        odd |= Odd.CHANNELS
    if len(waveform) < FRAME_SECONDS * info.rate:
        odd |= Odd.SHORT
    samples = waveform.numpy()
    silent = is_silent(samples)
    if silent:
        odd |= Odd.SILENT
    if is_clipped(samples, _FULL_SCALE.get(info.subtype, 1 - _STEP)):
        odd |= Odd.CLIPPED
    # Silence is the same everywhere, and no leak.
    digest = bytes(HASH_BYTES) if silent else sound_hash(samples)
    return ClipCheck(odd, len(samples) / info.rate, info.rate, info.channels, digest)


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Whether nothing moves by more than one step of 16 bits to either side.

    Args:
        samples: `[S]`, full scale at -1 and 1. A constant offset is silence too.
    """
    return bool(np.ptp(samples) <= 2 * _STEP)


def is_clipped(samples: NDArray[np.float32], full_scale: float = 1 - _STEP) -> bool:
    """Whether `CLIPPED_SHARE` of the samples lies in runs of `CLIPPED_RUN` at full scale.

    Args:
        samples: `[S]`, full scale at -1 and 1.
        full_scale: Largest value that the coding holds; lossy codings go beyond it.
    """
    full = np.abs(samples) >= full_scale
    if full.mean() < CLIPPED_SHARE:
        return False
    edges = np.diff(full.view(np.int8), prepend=0, append=0)
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return bool(runs[runs >= CLIPPED_RUN].sum() >= CLIPPED_SHARE * len(samples))


def sound_hash(samples: NDArray[np.float32]) -> bytes:
    """Hash of a waveform, 16 bytes.

    Samples are rounded to 16 bits first, so that a copy in FLAC, in 24 bits or in floating point
    counts as the same sound. A copy at another rate or from a lossy coder does not.
    """
    rounded = np.rint(samples * 32_768).clip(-32_768, 32_767).astype("<i2")
    return hashlib.blake2b(rounded.tobytes(), digest_size=HASH_BYTES).digest()


def _unreadable(name: str, error: Exception) -> ClipCheck:
    said = str(error).removeprefix(f"{name}: ")
    if isinstance(error, MemoryError):
        said = "its header promises more samples than memory holds; copy or download it again"
    elif isinstance(error, OSError):
        said = f"cannot be read ({error.strerror or error}); check its disk, and copy it again"
    odd = Odd.UNDECODABLE
    if said.startswith("cut short"):
        odd = Odd.TRUNCATED
    elif " samples are NaN" in said or " samples exceed" in said:
        odd = Odd.NAN
    return ClipCheck(odd, message=f"{name}: {said}")
