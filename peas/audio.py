"""Sound files and bytes to mono waveforms, with errors that name the file.

libsndfile decodes a file that was cut short without a word when its format is Ogg or WAV, so the
container is checked first. A clip is then either whole or an error, never silently shorter.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import soundfile
import torch
from torch import Tensor

from peas import ffmpeg
from peas.errors import AudioError

LOWPASS_FILTER_WIDTH = 64
ROLLOFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
RESAMPLER = f"torchaudio-kaiser-{LOWPASS_FILTER_WIDTH}-{ROLLOFF:.6f}-{KAISER_BETA:.6f}"
"""Name of the resampler and its settings. Part of a cache's key: it changes the samples."""

# The resampler holds one filter for each output phase; two rates without a large common divisor
# would ask for gigabytes of them.
_MAX_KERNEL_CELLS = 50_000_000
# Programs that write into a pipe cannot know the length, and state one near 2 or 4 GiB.
_UNKNOWN_LENGTH = 0x7FFFF000
# Decoders differ by up to two MPEG frames in what they take for padding at an end.
_MP3_SLACK = 2 * 1152


class AudioInfo(NamedTuple):
    """What a file's header says.

    Attributes:
        rate: Samples per second and channel.
        channels: Number of channels.
        frames: Number of samples per channel.
        format: Container, as libsndfile names it ("WAV", "OGG", "FLAC"), or `peas.ffmpeg`.
        subtype: Coding of the samples ("PCM_16", "VORBIS"); empty where ffmpeg decodes.
    """

    rate: int
    channels: int
    frames: int
    format: str
    subtype: str


def load(
    source: str | Path | bytes,
    rate: int = 16_000,
    channels: Literal["mean", "first"] = "mean",
    *,
    name: str | None = None,
    start: float = 0.0,
    stop: float | None = None,
) -> Tensor:
    """Decode one clip as a mono waveform.

    Any rate, bit depth, channel count and length of at least one sample is accepted; silence too.

    Args:
        source: Path of a file, or the bytes of one.
        rate: Wanted samples per second. Other rates are resampled (windowed sinc, Kaiser window).
        channels: "mean" averages the channels. "first" keeps channel 0, which is what the official
            SSAST loader does without saying so.
        name: Name of the clip in messages. Default: the path.
        start: Where the clip begins in the source, in seconds.
        stop: Where it ends, in seconds. Default, and beyond the end: the source's end.

    Returns:
        `[S]` float32, full scale at -1 and 1.

    Raises:
        AudioError: The source is missing, empty, cut short, of an unknown format, ends before
            `start`, holds NaN or infinite samples, or has a rate that cannot be brought to `rate`.
    """
    if channels not in ("mean", "first"):
        raise ValueError(f"channels must be 'mean' or 'first', not {channels!r}")
    label = _label(source, name)
    with _open(source, label) as stream:
        kind = _foreign(stream)
        _check_container(stream, label)
    # A second more than is wanted, so that rounding in another program cannot cost a sample.
    data = source if kind is None else ffmpeg.to_wav(source, kind, label, stop and stop + 1)
    with _decoder(data, label) as sound:
        native = sound.samplerate
        end = None if stop is None else round(stop * native)
        samples = _decode(sound, label, round(start * native), end)
    alone = channels == "first" or samples.shape[1] == 1
    waveform = samples[:, 0] if alone else samples.mean(dim=1)
    # The sum is finite when every sample is, unless huge ones overflow: it costs no [S] flags.
    if not torch.isfinite(samples.sum()) and not torch.isfinite(samples).all():
        bad = int((~torch.isfinite(samples)).sum())
        raise AudioError(
            f"{label}: {bad} of {samples.numel()} samples are NaN or infinite; export the clip "
            "again from its source, or leave it out of the data set"
        )
    return _resample(waveform.contiguous(), native, rate, label)


def probe(source: str | Path | bytes, *, name: str | None = None) -> AudioInfo:
    """Read a clip's header without decoding it, where libsndfile knows its format.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name of the clip in messages. Default: the path.

    Raises:
        AudioError: The source is missing, empty or of an unknown format.
    """
    label = _label(source, name)
    with _open(source, label) as stream:
        kind = _foreign(stream)
    data = source if kind is None else ffmpeg.to_wav(source, kind, label)
    with _decoder(data, label) as sound:
        info = AudioInfo(
            sound.samplerate, sound.channels, sound.frames, sound.format, sound.subtype
        )
    return info if kind is None else info._replace(format=kind, subtype="")


def _label(source: str | Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return "<bytes>" if isinstance(source, bytes) else str(source)


def _truncated(label: str, what: str) -> AudioError:
    return AudioError(f"{label}: cut short, {what}; copy or download it again")


@contextmanager
def _open(source: str | Path | bytes, label: str) -> Iterator[BinaryIO]:
    """Binary stream of a source that exists and is not empty."""
    if isinstance(source, bytes):
        stream: BinaryIO = io.BytesIO(source)
    else:
        try:
            stream = open(source, "rb")  # noqa: SIM115, closed below
        except OSError as error:
            raise AudioError(
                f"{label}: cannot be opened ({error.strerror}); check the path and its permissions"
            ) from error
    with stream:
        if not stream.read(1):
            raise AudioError(f"{label}: the file is empty (0 bytes); copy or download it again")
        stream.seek(0)
        yield stream


@contextmanager
def _decoder(source: str | Path | bytes, label: str) -> Iterator[soundfile.SoundFile]:
    """Open decoder, with libsndfile's terse errors made into advice."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with soundfile.SoundFile(file) as sound:
            yield sound
    except soundfile.LibsndfileError as error:
        shown = "clip.m4a" if isinstance(source, bytes) else f'"{source}"'
        raise AudioError(
            f"{label}: cannot be decoded ({error.error_string.strip()}); it is damaged or in a "
            "format other than WAV, FLAC, Ogg, Opus, MP3 and AIFF. Copy it again, or convert it: "
            f"ffmpeg -i {shown} clip.wav"
        ) from error


def _decode(sound: soundfile.SoundFile, label: str, start: int, stop: int | None) -> Tensor:
    """Samples from `start` up to `stop`, `[S, channels]` float32."""
    expected = sound.frames
    if expected > 2**40:
        raise AudioError(
            f"{label}: its header states no length; write it to a file again: "
            'ffmpeg -i "in" clip.wav'
        )
    if start or stop is not None:
        if start >= expected:
            raise AudioError(
                f"{label}: the clip begins at {start / sound.samplerate:g} s, but the file has "
                f"{expected / sound.samplerate:g} s; correct the start"
            )
        expected = max(0, min(expected, expected if stop is None else stop) - start)
        sound.seek(start)
        samples = sound.read(expected, dtype="float32", always_2d=True)
    else:
        samples = sound.read(dtype="float32", always_2d=True)
    slack = _MP3_SLACK if sound.format in ("MP3", "MPEG") else 0
    if len(samples) < expected - slack:
        raise _truncated(label, f"{len(samples)} of {expected} samples could be decoded")
    if len(samples) == 0:
        raise AudioError(f"{label}: holds no samples; leave it out of the data set")
    return torch.from_numpy(samples)


def _foreign(stream: BinaryIO) -> str | None:
    """Name of a container that only ffmpeg decodes; None for others."""
    kind = ffmpeg.container(stream.read(12))
    stream.seek(0)
    return kind


def _check_container(stream: BinaryIO, label: str) -> None:
    """Raise AudioError when a container promises more than the stream holds."""
    head = stream.read(12)
    stream.seek(0)
    if head[:4] == b"OggS":
        _check_ogg(stream, label)
    elif head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        _check_chunks(stream, label, "<I", b"data")
    elif head[:4] == b"FORM":
        _check_chunks(stream, label, ">I", b"SSND")


def _check_ogg(stream: BinaryIO, label: str) -> None:
    """Walk an Ogg file's pages: each logical stream must reach a page with its end flag (RFC 3533).

    Bytes that are no page are let pass after the last stream has ended: some programs append tags.
    """
    unfinished: set[bytes] = set()
    while len(header := stream.read(27)) == 27 and header[:4] == b"OggS":
        flags, serial, segments = header[5], header[14:18], header[26]
        sizes = stream.read(segments)
        body = sum(sizes)
        if len(sizes) < segments or len(stream.read(body)) < body:
            raise _truncated(label, "its last Ogg page is not whole")
        if flags & 4:
            unfinished.discard(serial)
        else:
            unfinished.add(serial)
    if unfinished:
        raise _truncated(label, "its last Ogg page lacks the end-of-stream flag")


def _check_chunks(stream: BinaryIO, label: str, size_format: str, wanted: bytes) -> None:
    """Walk the chunks of a WAV or AIFF file up to its samples, which must all be there."""
    end = stream.seek(0, io.SEEK_END)
    position = stream.seek(12)
    while len(header := stream.read(8)) == 8:
        (size,) = struct.unpack(size_format, header[4:])
        position += 8
        if header[:4] == wanted:
            if position + size > end and size < _UNKNOWN_LENGTH:
                raise _truncated(
                    label, f"its header promises {size} bytes of sound and {end - position} follow"
                )
            return
        # Chunks are padded to an even length.
        position = stream.seek(position + size + size % 2)
    raise _truncated(label, "it ends before its samples begin")


def _resample(waveform: Tensor, native: int, rate: int, label: str) -> Tensor:
    if native == rate:
        return waveform
    common = gcd(native, rate)
    up, down = rate // common, native // common
    taps = 2 * LOWPASS_FILTER_WIDTH * max(1, -(-down // up)) + down
    if up * taps > _MAX_KERNEL_CELLS:
        raise AudioError(
            f"{label}: its rate of {native} Hz has no usable common divisor with {rate} Hz; "
            f"convert it: ffmpeg -i {label} -ar {rate} clip.wav"
        )
    with torch.no_grad():
        return _resampler(native, rate)(waveform)


@functools.lru_cache(maxsize=16)
def _resampler(native: int, rate: int) -> Callable[[Tensor], Tensor]:
    """Resampler with its filters, kept: they cost three times as much as using them on a clip."""
    # Imported here because torchaudio takes seconds to import and most data is at the rate already.
    from torchaudio.transforms import Resample

    resampler: Callable[[Tensor], Tensor] = Resample(
        native,
        rate,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=LOWPASS_FILTER_WIDTH,
        rolloff=ROLLOFF,
        beta=KAISER_BETA,
    )
    return resampler
