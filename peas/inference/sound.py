"""Whatever a user calls audio, as mono waveforms at the model's rate."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas.audio import decode
from peas.audio.frontend import FrontEnd
from peas.audio.resampling import resample
from peas.errors import AudioError, ConfigError

Clip: TypeAlias = str | os.PathLike[str] | bytes | NDArray[Any] | Tensor
Audio: TypeAlias = Clip | Sequence[Clip]
"""A file, the bytes of one, a waveform `[S]`, a batch `[B, S]`, or a list of clips."""

FEWEST_SAMPLES_A_CHANNEL = 16
"""An array `[S, 2]` is more likely channels beside each other than clips of two samples."""


def waveforms(audio: Audio, rate: int | None, front_end: FrontEnd) -> Iterator[Tensor]:
    """Decodes, mixes and resamples, clip by clip: `[S]` float32 at the front end's rate.

    Args:
        audio: One clip or several.
        rate: Samples per second of arrays; None = the front end's. Files have their own.
        front_end: What they are made for.

    Raises:
        AudioError: A clip is empty, non-finite, no waveform, or cannot be decoded.
    """
    clips: Sequence[Clip]
    if isinstance(audio, np.ndarray | Tensor):
        clips = list(audio) if audio.ndim == 2 else [audio]
        _require_clips(audio)
    elif isinstance(audio, str | bytes | os.PathLike):
        clips = [audio]
    else:
        clips = list(audio)
    if not len(clips):
        raise AudioError("audio: no clips were given")
    if rate is not None and (rate < 1 or rate != int(rate)):
        raise ConfigError(f"rate is {rate}: give the samples per second of the arrays, a number")
    for number, clip in enumerate(clips):
        if isinstance(clip, np.ndarray | Tensor):
            yield _array(clip, rate, front_end, f"clip {number}")
        elif isinstance(clip, str | bytes | os.PathLike):
            yield _file(clip, front_end, f"clip {number}")
        else:
            raise AudioError(
                f"clip {number} is a {type(clip).__name__}: give a path, bytes, a NumPy array or a "
                "tensor [S]"
            )


def _require_clips(audio: NDArray[Any] | Tensor) -> None:
    if audio.ndim == 2 and audio.shape[1] < FEWEST_SAMPLES_A_CHANNEL < audio.shape[0]:
        raise AudioError(
            f"audio has shape {list(audio.shape)}, which would be {audio.shape[0]} clips of "
            f"{audio.shape[1]} samples: give mono clips [S] or [B, S]; channels are averaged by "
            "`audio.mean(axis=1)`"
        )


def _file(clip: str | bytes | os.PathLike[str], front_end: FrontEnd, name: str) -> Tensor:
    channels = front_end.channels or "mean"
    if isinstance(clip, bytes):
        return decode.load(clip, front_end.rate, channels, name=name)
    path = Path(clip)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise AudioError(f"{path}: is {kind}, not a sound file; give the path of a file")
    source: Path | bytes = path
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # The decoder takes only names in UTF-8.
        source = path.read_bytes() if path.exists() else path
    return decode.load(source, front_end.rate, channels, name=str(path))


def _array(clip: NDArray[Any] | Tensor, rate: int | None, front_end: FrontEnd, name: str) -> Tensor:
    if isinstance(clip, np.ndarray):
        # Torch takes neither other byte orders nor negative strides.
        clip = np.ascontiguousarray(clip, dtype=clip.dtype.newbyteorder("="))
    waveform = torch.as_tensor(clip)
    if waveform.ndim != 1:
        raise AudioError(
            f"{name} has shape {list(waveform.shape)}: a clip is mono, [S]; average the channels"
        )
    if not len(waveform):
        raise AudioError(f"{name} has no samples: leave it out")
    if not waveform.is_floating_point():
        if waveform.dtype not in (torch.int16, torch.int32):
            raise AudioError(
                f"{name} has samples of type {waveform.dtype}: give floats with full scale at -1 "
                "and 1, or int16 or int32"
            )
        waveform = waveform.double() / -torch.iinfo(waveform.dtype).min
    waveform = waveform.detach().float()
    if not bool(waveform.isfinite().all()):
        raise AudioError(f"{name} has samples that are NaN or infinite: mend it or leave it out")
    native = int(rate or front_end.rate)
    if native == front_end.rate:
        return waveform
    return resample(waveform.cpu(), native, front_end.rate)
