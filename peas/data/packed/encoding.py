"""One clip of any set as the bytes that are packed."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from dataclasses import dataclass
from typing import Literal, NamedTuple

import soundfile
import torch
from torch import Tensor

from peas.audio import decode as audio
from peas.audio.decode import MAX_SAMPLES
from peas.audio.frontend import LogMel
from peas.data.cache import file_state
from peas.data.sounds import Source
from peas.data.statistics import Moments
from peas.errors import AudioError

# Arrow counts the bytes of a column of one record batch in 31 bits.
_MOST_BYTES = 2**31 - 2**25


@dataclass(frozen=True)
class Coding:
    """How sound is stored.

    Attributes:
        rate: Samples per second; None = each clip its own.
        audio: `flac` or `wav`, mono with 16 bits, or `keep` for the bytes of the source.
        channels: What becomes of several channels: their `mean`, or the `first` alone.
        front_end: Measures the log-mel; None = nothing is measured.
        max_samples: Samples that a clip may have, of all channels together.
    """

    rate: int | None
    audio: Literal["flac", "wav", "keep"]
    channels: Literal["mean", "first"]
    front_end: LogMel | None = None
    max_samples: int = MAX_SAMPLES


class Encoded(NamedTuple):
    """A clip as it is stored.

    Attributes:
        data: A complete sound file.
        suffix: Suffix of the name of such a file.
        seconds: Length.
        rate: Samples per second.
        saturated: Whether samples exceeded full scale and were clipped.
        moments: Moments of its log-mel, if they were measured.
    """

    data: bytes
    suffix: str
    seconds: float
    rate: int
    saturated: bool
    moments: Moments = Moments()


# Hours of sound that are cut into clips, or a few bytes and a hole.
_MOST_SUMMED, _SUMMED_END = 1 << 32, 1 << 26


def bytes_sum(data: bytes) -> str:
    """Checksum of a clip's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def source_state(source: Source) -> str:
    """State of a source that is a file, `absent`, or nothing for bytes."""
    if isinstance(source.data, bytes):
        return ""
    try:
        return " ".join(map(str, file_state(source.data)))
    except OSError:
        return "absent"


def source_content(source: Source) -> str:
    """Size, time of modification and checksum of a source that is a file; as `source_state`."""
    state = source_state(source)
    # A pipe might never end.
    if isinstance(source.data, bytes) or not source.data.is_file():
        return state
    _, size, modified, _ = state.split()
    return f"{size} {modified} {_file_sum(str(source.data), state)}"


# Clips that are stretches of one file mostly come one after the other.
@functools.lru_cache(maxsize=4)
def _file_sum(path: str, state: str) -> str:
    """Checksum of a file in a state: of one that would take minutes, its beginning and its end."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _MOST_SUMMED:
                return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
            digest = hashlib.blake2b()
            for start in (0, size - _SUMMED_END):
                file.seek(start)
                digest.update(file.read(_SUMMED_END))
            return digest.hexdigest()[:32]
    except OSError:
        return "unreadable"


def encode(source: Source, coding: Coding) -> Encoded:
    """Decode a clip, which also checks that it is complete, and encode it as it is stored.

    Sound of 16 bits that needs neither resampling nor mixing is stored without loss.

    Raises:
        AudioError: The clip cannot be used.
    """
    data, name, start, stop = source
    suffix = "" if isinstance(data, bytes) else data.suffix
    if coding.audio == "keep":
        if start or stop is not None:
            raise AudioError(
                f"{name}: the clip is a stretch of its file, which cannot be cut out of bytes that "
                "are kept: use --format flac"
            )
        # What is decoded below is then what is stored, even if the file changes meanwhile.
        data = audio.read_bytes(data, name=name, most=_MOST_BYTES)

    def decoded(rate: int) -> Tensor:
        return audio.load(
            data,
            rate,
            coding.channels,
            name=name,
            start=start,
            stop=stop,
            max_samples=coding.max_samples,
        )

    rate = coding.rate or audio.probe(data, name=name, max_samples=coding.max_samples).rate
    waveform = decoded(rate)
    moments = Moments()
    if coding.front_end is not None:
        same = rate == coding.front_end.rate
        moments = _moments(waveform if same else decoded(coding.front_end.rate), coding.front_end)
    saturated = False
    if not (coding.audio == "keep" and isinstance(data, bytes)):
        suffix = f".{coding.audio}"
        data, saturated = _written(waveform, rate, coding.audio, name)
    if len(data) > _MOST_BYTES:
        raise AudioError(f"{name}: {len(data)} bytes are too many for one clip: cut it up")
    return Encoded(data, suffix, len(waveform) / rate, rate, saturated, moments)


def _written(waveform: Tensor, rate: int, kind: str, name: str) -> tuple[bytes, bool]:
    """A sound file of 16 bits, and whether samples beyond full scale had to be cut."""
    scaled = torch.round(waveform * 32768.0)
    saturated = bool((scaled > 32767).any() or (scaled < -32768).any())
    samples = scaled.clamp(-32768, 32767).to(torch.int16).numpy()
    stream = io.BytesIO()
    try:
        soundfile.write(stream, samples, rate, format=kind.upper(), subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{name}: cannot be written as {kind} at {rate} Hz ({error.error_string.strip()}): "
            "give another --rate, or --format wav"
        ) from error
    return stream.getvalue(), saturated


def _moments(waveform: Tensor, front_end: LogMel) -> Moments:
    log_mel, frames, _ = front_end(waveform[None], torch.tensor([len(waveform)]))
    return Moments.of(log_mel[0, : int(frames)])
