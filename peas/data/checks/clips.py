"""Check clips one by one by decoding them; the results of all clips as columns."""

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
"""A clip is clipped if this share of its samples is in runs of this length at full scale. Single
samples do not count: a tone normalised to full scale reaches it at every peak."""

# Largest sample of codings that do not reach 32767 / 32768.
_FULL_SCALE = {
    "PCM_U8": 127 / 128,
    "PCM_S8": 127 / 128,
    "ULAW": 32_124 / 32_768,
    "ALAW": 32_256 / 32_768,
}
_STEP = 1 / 32_768
# Messages kept of each chunk of clips: a report quotes a few, and millions may fail alike.
_QUOTED = 3


class Issue(IntFlag):
    """What may be wrong with a clip. The first four leave nothing to train on."""

    MISSING = 1
    UNDECODABLE = 2
    TRUNCATED = 4
    NAN = 8
    SHORT = 16
    SILENT = 32
    CLIPPED = 64
    RATE = 128
    CHANNELS = 256


UNREADABLE = Issue.MISSING | Issue.UNDECODABLE | Issue.TRUNCATED | Issue.NAN


class ClipCheck(NamedTuple):
    """Result for one clip.

    Attributes:
        issues: What is wrong with it.
        seconds: Length; 0 if the clip cannot be read, as are the next three.
        rate: Samples per second in the file.
        channels: Channels in the file.
        digest: Hash of the samples; zeros also if the clip is silent.
        message: Why it cannot be read.
    """

    issues: Issue
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    digest: bytes = bytes(HASH_BYTES)
    message: str = ""


_COLUMNS = np.dtype(
    [
        ("issues", np.uint16),
        ("seconds", np.float32),
        ("rate", np.int32),
        ("channels", np.uint16),
        ("digest", np.uint8, HASH_BYTES),
    ]
)


@dataclass
class Checks:
    """Checks of consecutive clips. N clips.

    Attributes:
        columns: `[N]` the fields `issues`, `seconds`, `rate`, `channels` and `digest`, as in
            `ClipCheck`.
        messages: Why the first few unreadable clips are, by row.
    """

    columns: NDArray[np.void]
    messages: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, clips: int) -> Checks:
        """Columns to be filled."""
        return cls(np.zeros(clips, _COLUMNS))

    def __len__(self) -> int:
        return len(self.columns)

    def put(self, first: int, part: Checks) -> None:
        """Fill in the checks of the clips from row `first` on."""
        self.columns[first : first + len(part)] = part.columns
        self.messages.update({first + row: text for row, text in part.messages.items()})

    def rows(self, issues: Issue) -> NDArray[np.int64]:
        """Rows of the clips that have one of some issues."""
        return np.flatnonzero(self.columns["issues"] & issues)


def check_clips(table: ClipTable, rows: range) -> Checks:
    """Decode and check some clips of a table.

    Args:
        table: The clips.
        rows: Consecutive rows of it.
    """
    checks = Checks.empty(len(rows))
    decoder = table.sounds.decoder
    for index, row in enumerate(rows):
        try:
            source = table.sounds.source(row)
        except AudioError as error:
            clip = ClipCheck(Issue.UNDECODABLE, message=str(error))
        else:
            clip = check_clip(source, decoder.channels, decoder.max_samples)
        digest = np.frombuffer(clip.digest, np.uint8)
        checks.columns[index] = (clip.issues, clip.seconds, clip.rate, clip.channels, digest)
        if clip.message and len(checks.messages) < _QUOTED:
            checks.messages[index] = clip.message
    return checks


def check_clip(
    source: Source,
    channels: Literal["mean", "first"] = "mean",
    max_samples: int = audio.MAX_SAMPLES,
) -> ClipCheck:
    """Decode and check one clip at its own rate.

    Args:
        source: Its sound.
        channels: How several channels are mixed, as in training.
        max_samples: Limit of samples, as in training.
    """
    data, name = source.data, source.name
    if isinstance(data, Path) and not data.exists():
        return ClipCheck(Issue.MISSING, message=f"{name}: no such file")
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
    samples = waveform.numpy()
    silent = is_silent(samples)
    full_scale = _FULL_SCALE.get(info.subtype, 1 - _STEP)
    issues = Issue(0)
    for issue, present in (
        (Issue.RATE, info.rate != RATE),
        (Issue.CHANNELS, info.channels > 1),
        (Issue.SHORT, len(waveform) < FRAME_SECONDS * info.rate),
        (Issue.SILENT, silent),
        (Issue.CLIPPED, is_clipped(samples, full_scale)),
    ):
        issues |= issue if present else Issue(0)
    # Silence is the same everywhere, and no leak.
    digest = bytes(HASH_BYTES) if silent else sound_hash(samples)
    return ClipCheck(issues, len(samples) / info.rate, info.rate, info.channels, digest)


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Whether no sample is more than one 16-bit step off a constant.

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

    Samples are rounded to 16 bits first, so that a copy in FLAC, 24 bits or floating point has the
    same hash. A copy at another rate or from a lossy codec does not.
    """
    rounded = np.rint(samples * 32_768).clip(-32_768, 32_767).astype("<i2")
    return hashlib.blake2b(rounded.tobytes(), digest_size=HASH_BYTES).digest()


def _unreadable(name: str, error: Exception) -> ClipCheck:
    reason = str(error).removeprefix(f"{name}: ")
    if isinstance(error, MemoryError):
        reason = "its header promises more samples than memory holds; copy or download it again"
    elif isinstance(error, OSError):
        reason = f"cannot be read ({error.strerror or error}); check its disk, and copy it again"
    issues = Issue.UNDECODABLE
    if reason.startswith("cut short"):
        issues = Issue.TRUNCATED
    elif " samples are NaN" in reason or " samples exceed" in reason:
        issues = Issue.NAN
    return ClipCheck(issues, message=f"{name}: {reason}")
