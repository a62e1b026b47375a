"""Waveforms to normalised log-mel spectrograms, with the statistics of the normalisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from peas.audio.filter_bank import SILENCE, FilterBank, filter_bank, log_mel_energies
from peas.audio.normalisation import Normalisation
from peas.errors import ConfigError
from peas.parts import Part

SOUND_MARGIN = 3.0
"""Nepers of energy above the floor from which a bin holds sound.

Rounding to 16 bits reaches 2.1 at 16 kHz, and 3 with dither in 99 of 100 frames."""

SOUND_SHARE = 0.01
"""Share of a clip's frames with sound above which a mel bin holds sound: codecs put clicks above
the highest frequency of the source."""


class Spectrogram(NamedTuple):
    """Output of the front end.

    Attributes:
        log_mel: `[B, T, F]` float32, normalised.
        frames: `[B]` int64, number of frames inside the clip. The rest is padding.
        valid: `[B, T]` bool, True on real sound: inside the clip and not digital silence.
    """

    log_mel: Tensor
    frames: Tensor
    valid: Tensor


class FrontEnd(Part, Normalisation, ABC):
    """Waveforms to normalised log-mels, chosen in a config by its class path.

    A subclass takes its settings in `__init__`, sets `n_mels`, and implements `forward`. It
    normalises by `normalise`, or overrides `fill_value` too. Frames are 25 ms long with a shift of
    10 ms, or `samples` is overridden too.

    The statistics are buffers of the state dict, so that a checkpoint carries them.

    Args:
        frames: Number of frames T of every output, longer clips are cut; null takes the data's.
        mean: Mean of the data set's bins before normalisation; null takes the data's, which only
            `KaldiLogMel` may (`data_statistics`).
        std: Their standard deviation; null as for `mean`.
        channels: How several channels of a clip are mixed; null takes the data's. `peas tag`
            uses it.

    Attributes:
        rate: Samples per second of the waveforms; data sets give 16,000.
        n_mels: Number of mel bins F.
    """

    data_statistics: ClassVar[bool] = False
    """Whether the statistics of data sets, measured with `KaldiLogMel`, apply to it."""
    fixed: ClassVar[tuple[str, ...]] = ("frames", "mean", "std", "channels")
    """Settings that weights depend on."""
    rate: int = 16_000
    n_mels: int
    frames: int

    def __init__(
        self,
        frames: int | None = None,
        mean: float | None = None,
        std: float | None = None,
        channels: Literal["mean", "first"] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self._set(frames=frames, mean=mean, std=std)

    def build(self, **info: Any) -> Self:
        """Takes the settings that were left to the data, and returns itself.

        Args:
            info: Of `frames`, `mean`, `std` and `channels`.
        """
        self._given.update(info)
        self._set(**info)
        return self

    def _set(self, mean: float | None = None, std: float | None = None, **settings: Any) -> None:
        self.set_statistics(mean, std)
        for name, value in settings.items():
            if value is not None:
                setattr(self, name, value)
        if getattr(self, "frames", 1) < 1:
            raise ValueError(f"frames must be positive, not {self.frames}")

    @abstractmethod
    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Spectrogram:
        """Turns waveforms into normalised log-mels.

        Args:
            waveform: `[B, S]` at `rate`, full scale at -1 and 1. Samples past a clip's length are
                ignored.
            length: `[B]` number of samples of each clip. Default: S for all.

        Returns:
            Spectrogram with T = `frames`.
        """

    def samples(self) -> int:
        """Samples S that `frames` frames need."""
        return (self.frames - 1) * self.rate // 100 + self.rate * 25 // 1000

    def sounding_bins(self, log_mel: Tensor, valid: Tensor) -> Tensor:
        """Mel bins that hold sound, clip by clip, `[B, F]` bool; all, unless overridden.

        Args:
            log_mel: `[B, T, F]` as `forward` returns it, without noise over it.
            valid: `[B, T]` bool.
        """
        shape = (len(log_mel), log_mel.shape[2])
        return torch.ones(shape, dtype=torch.bool, device=log_mel.device)


class KaldiLogMel(FrontEnd):
    """Front end of SSAST and AudioMAE: mean removal, filter bank, padding or cut, normalisation.

    The order is that of the official SSAST loader: padding is 0.0 on the raw log-mel scale, well
    above the mean after normalisation (0.467 with AudioSet's statistics).

    Args:
        frames: Number of frames T of every output, longer clips are cut; null takes the data's.
        mean: Mean of the data set's bins before normalisation; null takes the data's.
        std: Their standard deviation; null takes the data's.
        channels: How several channels of a clip are mixed; null takes the data's.
        rate: Samples per second of the waveforms.
        n_mels: Number of mel filters F.

    Raises:
        ValueError: `frames` or `std` is not positive.
    """

    data_statistics = True
    scale: ClassVar[float] = 1.0
    """Factor of the samples, whose full scale is 1."""
    window: Tensor
    mel: Tensor

    def __init__(
        self,
        frames: int | None = None,
        mean: float | None = None,
        std: float | None = None,
        channels: Literal["mean", "first"] | None = None,
        rate: int = 16_000,
        n_mels: int = 128,
    ) -> None:
        super().__init__(frames, mean, std, channels)
        bank = filter_bank(rate, n_mels, torch.device("cpu"))
        self.rate = rate
        self.n_mels = n_mels
        self._groups = bank.groups
        self._shift = bank.shift
        self.register_buffer("window", bank.window.clone(), persistent=False)
        self.register_buffer("mel", bank.mel.clone(), persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Spectrogram:
        """Turn waveforms into normalised log-mel spectrograms.

        Args:
            waveform: `[B, S]`, full scale at -1 and 1. Samples past a clip's length are ignored.
            length: `[B]` number of samples of each clip. Default: S for all.

        Returns:
            Spectrogram with T = `frames`. A clip shorter than one frame (25 ms) is padded with
            zeros to one.
        """
        # A test on a GPU would synchronise it.
        if self.mean.device.type == "cpu" and (self.mean + self.std).isnan():
            raise ConfigError(
                "the front end has no statistics yet: give `mean` and `std`, or `build` it with "
                "the data's"
            )
        batch, samples = waveform.shape
        device = waveform.device
        if length is None:
            length = torch.full((batch,), samples, device=device)
        length = length.to(device).clamp(max=samples)
        window = self.window.numel()
        with torch.autocast(device.type, enabled=False):
            centred = self._prepare(waveform.float(), length)
            centred = centred[:, : window + (self.frames - 1) * self._shift]
            if centred.shape[1] < window:
                centred = nn.functional.pad(centred, (0, window - centred.shape[1]))
            bank = FilterBank(self.window.float(), self.mel.float(), self._groups, self._shift)
            count = min(1 + (centred.shape[1] - window) // self._shift, self.frames)
            log_mel = centred.new_empty(batch, self.frames, self.n_mels)
            loud = torch.zeros(batch, self.frames, dtype=torch.bool, device=device)

            def normalise(energies: Tensor, clips: slice, times: slice) -> None:
                # A margin far below a real difference and far above an error of the logarithm.
                loud[clips, times] = energies.amax(dim=2) > SILENCE + 1e-4
                self.normalise_(energies)

            log_mel_energies(centred, bank, log_mel[:, :count], normalise)

            # A clip shorter than one frame is padded with zeros to one.
            steps = (length - window).clamp(min=0) // self._shift
            frames = (1 + steps).clamp(max=self.frames)
            inside = torch.arange(self.frames, device=device) < frames[:, None]
            padding = self.padding()
            log_mel[:, count:] = padding
            if device.type != "cpu" or not inside[:, :count].all():
                log_mel = torch.where(inside[:, :, None], log_mel, padding)
            valid = inside & loud
        return Spectrogram(log_mel, frames, valid)

    def _prepare(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Samples as the filter bank gets them; those past a clip's length become 0."""
        return _remove_mean(waveform, length)

    def padding(self) -> Tensor:
        """Normalised value of frames past a clip's end."""
        return self.fill_value("raw_zero")

    def sounding_bins(self, log_mel: Tensor, valid: Tensor) -> Tensor:
        """Mel bins that hold sound, clip by clip.

        The others stay at the floor: those above the Nyquist frequency that a recording had before
        it was resampled, and filters without an FFT bin, which are constant in every clip.

        Args:
            log_mel: `[B, T, F]` as `forward` returns it, without noise over it.
            valid: `[B, T]` bool.

        Returns:
            `[B, F]` bool.
        """
        floor = SILENCE + 2 * math.log(self.scale)
        limit = (floor + SOUND_MARGIN - self.mean) / (2 * self.std)
        above = (log_mel > limit) & valid[:, :, None]
        sounding = above.any(2).sum(1, keepdim=True)
        return (above.sum(1) > SOUND_SHARE * sounding) & self.mel.any(dim=0)


class BEATsLogMel(KaldiLogMel):
    """Front end of BEATs: Kaldi's filter bank with its own defaults.

    Four things differ from `KaldiLogMel`. Samples are multiplied by 2^15, so a log-mel is higher by
    20.794 and its floor stays at -15.942: quiet bins that are at the floor there are not here. The
    window is Povey's (Hann's to the power of 0.85). The clip's mean is not removed; each frame's is
    by both. Padding is silence, log-mels at the floor, where `KaldiLogMel` has 0.

    So statistics are not those that `KaldiLogMel` measures, and those of a data set are not taken.
    The defaults are BEATs's, of AudioSet.

    Args:
        frames: Number of frames T of every output, longer clips are cut; null takes the data's.
        mean: Mean of the bins before normalisation.
        std: Their standard deviation.
        channels: How several channels of a clip are mixed; null takes the data's.
        rate: Samples per second of the waveforms.
        n_mels: Number of mel filters F.

    Raises:
        ValueError: `frames` or `std` is not positive.
    """

    data_statistics = False
    scale = 2.0**15

    def __init__(
        self,
        frames: int | None = None,
        mean: float = 15.41663,
        std: float = 6.55582,
        channels: Literal["mean", "first"] | None = None,
        rate: int = 16_000,
        n_mels: int = 128,
    ) -> None:
        super().__init__(frames, mean, std, channels, rate, n_mels)
        self.window.pow_(0.85)

    def _prepare(self, waveform: Tensor, length: Tensor) -> Tensor:
        outside = torch.arange(waveform.shape[1], device=waveform.device) >= length[:, None]
        return (waveform * self.scale).masked_fill_(outside, 0.0)

    def padding(self) -> Tensor:
        """What follows the end of a clip, normalised."""
        return self.normalise(torch.full_like(self.mean, SILENCE))


LogMel = KaldiLogMel
"""Name in release 0.1."""


def _remove_mean(waveform: Tensor, length: Tensor) -> Tensor:
    """Subtract each clip's mean over its own samples; samples past its length become 0."""
    samples = waveform.shape[1]
    # Up to the end of the shortest clip there is no padding. A test on a GPU would synchronise it.
    first = int(length.min()) if waveform.device.type == "cpu" and len(length) else 0
    outside = torch.arange(first, samples, device=waveform.device) >= length[:, None]
    if first < samples:
        waveform = waveform.clone()
        waveform[:, first:].masked_fill_(outside, 0.0)
    centred = waveform - (_sum(waveform) / length.clamp(min=1)).to(waveform.dtype)[:, None]
    centred[:, first:].masked_fill_(outside, 0.0)
    return centred


def _sum(waveform: Tensor) -> Tensor:
    """Sum of each row of `[B, S]`, in double precision.

    The length of the padding then cannot change the last bit of the mean, and with it bins near the
    floor. MPS has no doubles. NumPy converts in a small buffer: several times as fast on a CPU.
    """
    kind = waveform.device.type
    if kind == "cpu":
        return torch.from_numpy(np.add.reduce(waveform.numpy(), axis=1, dtype=np.float64))
    return waveform.sum(dim=1, dtype=torch.float32 if kind == "mps" else torch.float64)
