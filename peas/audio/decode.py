"""Sound files and bytes to mono waveforms, with errors that name the file.

A clip is either whole or an error, never silently shorter: what a file states about its length is
compared with what is there before it is decoded (`peas.audio.containers`).
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
"""Names of sound files that libsndfile decodes end in one of these, in either case."""

MAX_SAMPLES = 2**29
"""Samples of all channels that a clip may have: 2 GiB, 46 minutes of stereo at 96 kHz. Headers may
promise any number, and the memory is asked for before the first one is decoded."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Sampling rates in Hz that sound may have. Others come from damaged headers."""

LOUDEST = 2.0**31
"""Largest sample, full scale being 1: whole numbers of 32 bits that were stored as floating point
are let pass. The energy of larger ones overflows, and a single such clip would be the mean."""

# Seconds by which a clip's end may lie beyond its file: tables round, and so do coders' frames.
_END_SLACK = 0.05


def is_sound(path: str | Path) -> bool:
    """Whether a file's name is that of sound that is decoded without ffmpeg."""
    return str(path).lower().endswith(SOUND_ENDINGS)


class AudioInfo(NamedTuple):
    """What a file's header says.

    Attributes:
        rate: Samples per second and channel.
        channels: Number of channels.
        frames: Number of samples per channel.
        format: Container, as libsndfile names it ("WAV", "OGG", "FLAC"), or `peas.audio.ffmpeg`.
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
    max_samples: int = MAX_SAMPLES,
) -> Tensor:
    """Decode one clip as a mono waveform.

    Any rate from 1 to 768 kHz, bit depth, channel count and length of at least one sample is
    accepted; silence too.

    Args:
        source: Path of a file, or the bytes of one.
        rate: Wanted samples per second. Other rates are resampled (windowed sinc, Kaiser window).
        channels: "mean" averages the channels. "first" keeps channel 0, which is what the official
            SSAST loader does without saying so.
        name: Name of the clip in messages. Default: the path.
        start: Where the clip begins in the source, in seconds.
        stop: Where it ends, in seconds. Default: the source's end.
        max_samples: Samples that the clip may have, of all channels together.

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
        whole = stop is None and not start
        # A second more than is wanted, so that rounding in another program cannot cost a sample.
        seconds = stop and stop + 1
        _, parts = _parts(source, label, whole, seconds, max_samples)
        sounds = [stack.enter_context(_decoder(part)) for part in parts]
        native = sounds[0].samplerate
        samples = _decode(sounds, label, start, stop, max_samples, rate)
    low, high = torch.aminmax(samples)
    # Comparisons with NaN are false.
    if not (low >= -LOUDEST and high <= LOUDEST):
        raise AudioError(f"{label}: {_bad_samples(samples)}")
    alone = channels == "first" or samples.shape[1] == 1
    waveform = samples[:, 0] if alone else samples.mean(dim=1)
    return resample(waveform.contiguous(), native, rate)


def probe(
    source: str | Path | bytes, *, name: str | None = None, max_samples: int = MAX_SAMPLES
) -> AudioInfo:
    """Read a clip's header without decoding it, where libsndfile knows its format.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name of the clip in messages. Default: the path.
        max_samples: As for `load`, where ffmpeg decodes.

    Raises:
        AudioError: The source is missing, empty, cut short or of an unknown format.
    """
    label = _label(source, name)
    with _boundary(source, label), ExitStack() as stack:
        kind, parts = _parts(source, label, False, None, max_samples)
        sounds = [stack.enter_context(_decoder(part)) for part in parts]
        one, frames = sounds[0], sum(sound.frames for sound in sounds)
        info = AudioInfo(one.samplerate, one.channels, frames, one.format, one.subtype)
    return info if kind is None else info._replace(format=kind, subtype="")


def read_bytes(
    source: str | Path | bytes, *, name: str | None = None, most: int = 4 * MAX_SAMPLES
) -> bytes:
    """The bytes of a clip, from a regular file.

    Args:
        source: Path of a file, or the bytes of one.
        name: Name of the clip in messages. Default: the path.
        most: Bytes above which a file is refused unread.

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
            # A pipe or a device might never answer.
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
    """Make whatever the decoder and its libraries raise an error that names the clip."""
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
        said = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        raise AudioError(
            f"{label}: cannot be decoded ({said.strip()}); it is damaged or in a format that is "
            "not known here. Copy it again, or convert it: "
            f"ffmpeg -i {_shown(source)} clip.wav"
        ) from error


def _shown(source: str | Path | bytes) -> str:
    """What stands for the source in a command."""
    return "clip.m4a" if isinstance(source, bytes) else f'"{source}"'


def _parts(
    source: str | Path | bytes, label: str, whole: bool, seconds: float | None, most: int
) -> tuple[str | None, list[str | Path | bytes]]:
    """What libsndfile is to decode one after the other, and the container if ffmpeg has read it."""
    with _open(source, label) as stream:
        kind = ffmpeg.container(stream.read(12))
        stream.seek(0)
        if kind is None:
            # No coding of MPEG has more bytes than its samples.
            found = containers.split(stream, label, whole=whole, most_bytes=4 * most)
            return None, [source] if found is None else [*found]
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
    """Samples from `start` up to `stop` of sounds one after the other, `[S, channels]` float32."""
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
    """Raise AudioError where the sounds do not fit together, or their lengths are not known."""
    one = sounds[0]
    if len({(sound.samplerate, sound.channels) for sound in sounds}) > 1:
        raise AudioError(
            f"{label}: joined from {len(sounds)} streams of several rates or numbers of channels; "
            "split it, or convert each part and join them as WAV"
        )
    if one.format in containers.UNCHECKED:
        raise AudioError(
            f"{label}: {one.format} does not tell whether a file is whole, and is not read; "
            "convert it: sox IN clip.wav"
        )
    if not LOWEST_RATE <= one.samplerate <= HIGHEST_RATE:
        raise AudioError(
            f"{label}: its header states a rate of {one.samplerate} Hz, and {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz are read; correct it by ffmpeg's -ar before -i, or leave it out"
        )
    if any(sound.frames > 2**40 for sound in sounds):
        raise AudioError(
            f"{label}: its header states no length; write it to a file again: "
            'ffmpeg -i "in" clip.wav'
        )


def _read(sound: soundfile.SoundFile, label: str, start: int, count: int) -> Tensor:
    """Samples of one sound from `start` on, `[count, channels]` float32."""
    # Codings of telephones cannot be entered in the middle.
    skipped = 0 if sound.seekable() else start
    if start and not skipped:
        sound.seek(start)
    samples = sound.read(skipped + count, dtype="float32", always_2d=True)[skipped:]
    slack = mpeg.SLACK if sound.subtype.startswith("MPEG") else 0
    if len(samples) < count - slack:
        raise containers.truncated(label, f"{len(samples)} of {count} samples could be decoded")
    return torch.from_numpy(samples)


def _bad_samples(samples: Tensor) -> str:
    """What is wrong with samples that cannot be used."""
    bad = int((~torch.isfinite(samples)).sum())
    what = "are NaN or infinite"
    if not bad:
        bad = int((samples.abs() > LOUDEST).sum())
        what = f"exceed full scale (1) by more than {LOUDEST:.0f} times"
    return (
        f"{bad} of {samples.numel()} samples {what}; export the clip again from its source, or "
        "leave it out of the data set"
    )
