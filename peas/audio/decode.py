"""Decode sound files and bytes to mono waveforms, with errors that name the file.

A clip is either complete or an error, never silently truncated: before decoding, the length in the
header is compared with the bytes that are there (`peas.audio.containers`).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import soundfile
import torch
from torch import Tensor

from peas.audio import containers, ffmpeg, mpeg
from peas.audio.resampling import RESAMPLER as RESAMPLER
from peas.audio.resampling import resample
from peas.errors import AudioError, PeasError

SOUND_ENDINGS = (
    *(".wav", ".wave", ".wavex", ".bwf", ".rf64", ".w64", ".flac"),
    *(".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga"),
    *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
    *(".sph", ".nist", ".voc", ".8svx", ".16sv", ".svx", ".iff"),
    *(".avr", ".sds"),
)
"""Extensions of the sound files that libsndfile decodes; case does not matter."""

MAX_SAMPLES = 2**29
"""Limit of samples, over all channels: 2 GiB, 46 minutes of stereo at 96 kHz. Headers may contain
any number, and the memory is allocated before the first sample is decoded."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Valid sampling rates in Hz. Others come from damaged headers."""

LOUDEST = 2.0**31
"""Largest sample, full scale being 1: 32-bit integers stored as floating point are accepted. The
energy of larger ones overflows, and a single such clip would dominate the mean."""

# Seconds by which a clip may end after its file: tables are rounded, and so are codec frames.
_END_SLACK = 0.05


def is_sound(path: str | Path) -> bool:
    """Whether a file is decoded without ffmpeg, by its extension."""
    return str(path).lower().endswith(SOUND_ENDINGS)


class AudioInfo(NamedTuple):
    """Metadata in a file's header.

    Attributes:
        rate: Samples per second and channel.
        channels: Number of channels.
        frames: Number of samples per channel.
        format: Container, as libsndfile names it ("WAV", "OGG", "FLAC"), or `peas.audio.ffmpeg`.
        subtype: Encoding ("PCM_16", "VORBIS"); empty if ffmpeg decodes.
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
    max_samples: int = MAX_SAMPLES,
) -> Tensor:
    """Decode one clip as a mono waveform.

    Any rate from 1 to 768 kHz, bit depth, number of channels and length from one sample on.

    Args:
        source: Path of a file, or the bytes of one.
        rate: Samples per second of the result (resampled with a Kaiser-windowed sinc).
        channels: "mean" averages the channels. "first" keeps channel 0, as the official SSAST
            loader does.
        name: Name of the clip in messages. Default: the path.
        start: Where the clip begins in the source, in seconds.
        stop: Where it ends, in seconds. Default: the source's end.
        max_samples: Limit of samples over all channels.

    Returns:
        `[S]` float32, full scale at -1 and 1.

    Raises:
        AudioError: The source is missing, no regular file, empty, cut short, of an unknown format,
            ends before `start` or `stop`, is longer than `max_samples`, or holds samples that are
            non-finite or beyond `LOUDEST`.
    """
    if channels not in ("mean", "first"):
        raise ValueError(f"channels must be 'mean' or 'first', not {channels!r}")
    label = _label(source, name)
    with _boundary(source, label), ExitStack() as stack:
        entire = stop is None and not start
        # A second more, so that rounding in another program cannot cost a sample.
        seconds = stop and stop + 1
        _, parts = _parts(source, label, entire, seconds, max_samples)
        sounds = [stack.enter_context(_decoder(part)) for part in parts]
        native = sounds[0].samplerate
        samples = _decode(sounds, label, start, stop, max_samples, rate)
    low, high = torch.aminmax(samples)
    # Comparisons with NaN are false.
    if not (low >= -LOUDEST and high <= LOUDEST):
        raise AudioError(f"{label}: {_bad_samples(samples)}")
    single = channels == "first" or samples.shape[1] == 1
    waveform = samples[:, 0] if single else samples.mean(dim=1)
    return resample(waveform.contiguous(), native, rate)


def probe(
    source: str | Path | bytes, *, name: str | None = None, max_samples: int = MAX_SAMPLES
) -> AudioInfo:
    """Read a clip's header; only what needs ffmpeg is decoded.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name of the clip in messages. Default: the path.
        max_samples: As for `load`, if ffmpeg decodes.

    Raises:
        AudioError: The source is missing, empty, cut short or of an unknown format.
    """
    label = _label(source, name)
    with _boundary(source, label), ExitStack() as stack:
        kind, parts = _parts(source, label, False, None, max_samples)
        sounds = [stack.enter_context(_decoder(part)) for part in parts]
        first, frames = sounds[0], sum(sound.frames for sound in sounds)
        info = AudioInfo(first.samplerate, first.channels, frames, first.format, first.subtype)
    return info if kind is None else info._replace(format=kind, subtype="")


def read_bytes(
    source: str | Path | bytes, *, name: str | None = None, most: int = 4 * MAX_SAMPLES
) -> bytes:
    """The bytes of a clip, from a regular file.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name of the clip in messages. Default: the path.
        most: Bytes above which a file is refused.

    Raises:
        AudioError: The source is missing, no regular file, empty, too large or not readable.
    """
    label = _label(source, name)
    with _boundary(source, label), _open(source, label) as stream:
        size = stream.seek(0, io.SEEK_END)
        if size > most:
            raise AudioError(
                f"{label}: {size} bytes are too many for one clip, which may have {most}; cut it up"
            )
        stream.seek(0)
        return stream.read()


def _label(source: str | Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return "<bytes>" if isinstance(source, bytes) else str(source)


@contextmanager
def _open(source: str | Path | bytes, label: str) -> Iterator[BinaryIO]:
    """Binary stream of a source that exists and is not empty."""
    if isinstance(source, bytes):
        stream: BinaryIO = io.BytesIO(source)
    else:
        try:
            # Reading a pipe or a device might block for ever.
            mode = os.stat(source).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise AudioError(
                    f"{label}: cannot be opened, it is a pipe, socket or device and no regular "
                    "file; write the sound to a file first"
                )
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
def _boundary(source: str | Path | bytes, label: str) -> Iterator[None]:
    """Turn whatever the decoder and its libraries raise into an error that names the clip."""
    try:
        yield
    except PeasError:
        raise
    except MemoryError as error:
        raise AudioError(
            f"{label}: needs more memory than there is; cut it up, or correct its header by "
            f"copying it: ffmpeg -i {_shown(source)} clip.wav"
        ) from error
    except OSError as error:
        raise AudioError(
            f"{label}: cannot be read ({error.strerror or error}); check its disk, and copy it "
            "again"
        ) from error
    except Exception as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        raise AudioError(
            f"{label}: cannot be decoded ({reason.strip()}); it is damaged or of an unknown "
            "format. Copy it again, or convert it: "
            f"ffmpeg -i {_shown(source)} clip.wav"
        ) from error


def _shown(source: str | Path | bytes) -> str:
    """The source in a shell command."""
    return "clip.m4a" if isinstance(source, bytes) else f'"{source}"'


def _parts(
    source: str | Path | bytes, label: str, entire: bool, seconds: float | None, most: int
) -> tuple[str | None, list[str | Path | bytes]]:
    """The container if ffmpeg has decoded it, and the streams for libsndfile, in order."""
    with _open(source, label) as stream:
        kind = ffmpeg.container(stream.read(12))
        stream.seek(0)
        if kind is None:
            # No MPEG stream has more bytes than its samples.
            parts = containers.split(stream, label, entire=entire, most_bytes=4 * most)
            return None, [source] if parts is None else [*parts]
    return kind, [ffmpeg.to_wav(source, kind, label, seconds, 4 * most)]


def _decoder(source: str | Path | bytes) -> soundfile.SoundFile:
    return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)


def _decode(
    sounds: list[soundfile.SoundFile],
    label: str,
    start: float,
    stop: float | None,
    most: int,
    rate: int,
) -> Tensor:
    """Samples from `start` to `stop` of concatenated sounds, `[S, channels]` float32."""
    native, channels = sounds[0].samplerate, sounds[0].channels
    _check_kind(sounds, label)
    lengths = [sound.frames for sound in sounds]
    total = sum(lengths)
    begin = round(start * native)
    end = total if stop is None else min(total, round(stop * native))
    if begin and begin >= total:
        raise AudioError(
            f"{label}: the clip begins at {begin / native:g} s, but the file has "
            f"{total / native:g} s; correct the start"
        )
    if stop is not None and stop * native - total > _END_SLACK * native:
        raise AudioError(
            f"{label}: the clip ends at {stop:g} s, but the file has {total / native:g} s; correct "
            "the end, or leave it out for the file's own"
        )
    count = max(0, end - begin)
    if max(count * channels, count * rate // native) > most:
        raise AudioError(
            f"{label}: its header promises {count} samples on {channels} channels at {native} Hz, "
            f"and a clip may have {most} in all; cut it up, raise max_samples (in a run "
            "data.init_args.max_samples), or copy the file again if it is not that long"
        )
    blocks: list[Tensor] = []
    before = 0
    for sound, length in zip(sounds, lengths, strict=True):
        low, high = max(begin - before, 0), min(end - before, length)
        before += length
        if low < high:
            blocks.append(_read(sound, label, low, high - low))
    if not sum(map(len, blocks)):
        raise AudioError(f"{label}: holds no samples; leave it out of the data set")
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _check_kind(sounds: list[soundfile.SoundFile], label: str) -> None:
    """Raise AudioError if the sounds differ in rate or channels, or have no known length."""
    first = sounds[0]
    if len({(sound.samplerate, sound.channels) for sound in sounds}) > 1:
        raise AudioError(
            f"{label}: joined from {len(sounds)} streams of several rates or numbers of channels; "
            "split it, or convert each part and join them as WAV"
        )
    if first.format in containers.UNCHECKED:
        raise AudioError(
            f"{label}: {first.format} hides truncation, and is not supported; "
            "convert it: sox IN clip.wav"
        )
    if not LOWEST_RATE <= first.samplerate <= HIGHEST_RATE:
        raise AudioError(
            f"{label}: its header states a rate of {first.samplerate} Hz, and {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz are read; correct it by ffmpeg's -ar before -i, or leave it out"
        )
    if any(sound.frames > 2**40 for sound in sounds):
        raise AudioError(
            f"{label}: its header states no length; write it to a file again: "
            'ffmpeg -i "in" clip.wav'
        )


def _read(sound: soundfile.SoundFile, label: str, start: int, count: int) -> Tensor:
    """Samples of one sound from `start` on, `[count, channels]` float32."""
    # Telephone codecs cannot seek.
    skipped = 0 if sound.seekable() else start
    if start and not skipped:
        sound.seek(start)
    samples = sound.read(skipped + count, dtype="float32", always_2d=True)[skipped:]
    slack = mpeg.SLACK if sound.subtype.startswith("MPEG") else 0
    if len(samples) < count - slack:
        raise containers.truncated(label, f"{len(samples)} of {count} samples could be decoded")
    return torch.from_numpy(samples)


def _bad_samples(samples: Tensor) -> str:
    """Description of samples that cannot be used."""
    bad = int((~torch.isfinite(samples)).sum())
    what = "are NaN or infinite"
    if not bad:
        bad = int((samples.abs() > LOUDEST).sum())
        what = f"exceed full scale (1) by more than {LOUDEST:.0f} times"
    return (
        f"{bad} of {samples.numel()} samples {what}; export the clip again from its source, or "
        "leave it out of the data set"
    )
