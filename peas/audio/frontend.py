"""Waveforms to normalised log-mel spectrograms, with the statistics of the normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from peas.audio.filter_bank import SILENCE, FilterBank, filter_bank, log_mel_energies
from peas.errors import ConfigError
from peas.parts import Part

SOUND_MARGIN = 3.0
"""Nepers of energy above the floor from which a cell holds sound.

Rounding to 16 bits reaches 2.1 at 16 kHz, and with dither 3 in 99 of 100 frames, so what lies lower
cannot be told from it."""

SOUND_SHARE = 0.01
"""Share of a clip's sounding frames above which a mel bin holds sound: codecs put clicks above a
source's highest frequency."""


class Spectrogram(NamedTuple):
    """Output of the front end.

    Attributes:
        log_mel: `[B, T, F]` float32, normalised.
        frames: `[B]` int64, frames that lie inside the clip. The rest is padding.
        valid: `[B, T]` bool, True on real sound: inside the clip and not digital silence.
    """

    log_mel: Tensor
    frames: Tensor
    valid: Tensor


class FrontEnd(Part, nn.Module, ABC):
    """Waveforms to normalised log-mels, chosen in a config by its class path.

    A subclass takes its settings in `__init__`, sets `n_mels`, and gives `forward`. It normalises
    by `normalise`, or overrides `fill_value` too. Frames follow each other every 10 ms and are
    25 ms long, or `samples` is overridden too.

    The statistics are buffers of the state dict, so that a checkpoint carries them.

    Args:
        frames: Number of frames T of every output, longer clips are cut; null takes the data's.
        mean: Mean of the data set's bins before normalisation; null takes the data's, which only
            `KaldiLogMel` may (`data_statistics`).
        std: Their standard deviation; null as for `mean`.
        channels: What becomes of several channels of a clip; null takes the data's. `peas tag`
            reads sound so.

    Attributes:
        rate: Samples per second of the waveforms; data sets give 16,000.
        n_mels: Number of mel bins F.
    """

    data_statistics: ClassVar[bool] = False
    """Whether mean and deviation that data sets know, those of `KaldiLogMel`, are its own."""
    fixed: ClassVar[tuple[str, ...]] = ("frames", "mean", "std", "channels")
    """Settings that weights depend on."""
    rate: int = 16_000
    n_mels: int
    frames: int
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        frames: int | None = None,
        mean: float | None = None,
        std: float | None = None,
        channels: Literal["mean", "first"] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        if frames is not None:
            self.frames = frames
        for name, value in (("mean", mean), ("std", std)):
            # Without the data's they are no numbers yet.
            given = float("nan") if value is None else value
            self.register_buffer(name, torch.tensor(given, dtype=torch.float32))
        self._check(frames, std)

    def build(self, **facts: Any) -> Self:
        """Takes what the settings left to the data, and gives itself back.

        Args:
            facts: Of `frames`, `mean`, `std` and `channels`.
        """
        self._given.update(facts)
        for name, value in facts.items():
            if name in ("mean", "std"):
                getattr(self, name).fill_(value)
            else:
                setattr(self, name, value)
        self._check(facts.get("frames"), facts.get("std"))
        return self

    @staticmethod
    def _check(frames: int | None, std: float | None) -> None:
        if (frames is not None and frames < 1) or (std is not None and std <= 0):
            raise ValueError(f"frames and std must be positive, not {frames} and {std}")

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

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Subtracts the mean and divides by twice the deviation, as SSAST does."""
        return (log_mel - self.mean) / (2 * self.std)

    def sounding_bins(self, log_mel: Tensor, valid: Tensor) -> Tensor:
        """Mel bins that hold sound, clip by clip, `[B, F]` bool; all, unless a front end knows.

        Args:
            log_mel: `[B, T, F]` as `forward` returns it, without noise over it.
            valid: `[B, T]` bool.
        """
        shape = (len(log_mel), log_mel.shape[2])
        return torch.ones(shape, dtype=torch.bool, device=log_mel.device)

    def fill_value(self, kind: Literal["raw_zero", "zero"]) -> Tensor:
        """Value that a masked cell takes on the normalised scale.

        Args:
            kind: "raw_zero" is 0.0 before normalisation, the official loader's masks and padding.
                "zero" is 0.0 after it, the mean of the data set.

        Returns:
            Scalar float32 on the module's device.
        """
        if kind == "raw_zero":
            return self.normalise(torch.zeros_like(self.mean))
        if kind == "zero":
            return torch.zeros_like(self.mean)
        raise ValueError(f"kind must be 'raw_zero' or 'zero', not {kind!r}")


class KaldiLogMel(FrontEnd):
    """Front end of SSAST and AudioMAE: mean removal, filter bank, padding or cut, normalisation.

    The order is that of the official SSAST loader: padding is 0.0 on the raw log-mel scale and so
    lies well above the mean afterwards (0.467 with AudioSet's statistics).

    Args:
        frames: Number of frames T of every output, longer clips are cut; null takes the data's.
        mean: Mean of the data set's bins before normalisation; null takes the data's.
        std: Their standard deviation; null takes the data's.
        channels: What becomes of several channels of a clip; null takes the data's.
        rate: Samples per second of the waveforms.
        n_mels: Number of mel filters F.

    Raises:
        ValueError: `frames` or `std` is not positive.
    """

    data_statistics = True
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
        # Asking would make a GPU wait.
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
            centred = _remove_mean(waveform.float(), length)
            centred = centred[:, : window + (self.frames - 1) * self._shift]
            if centred.shape[1] < window:
                centred = nn.functional.pad(centred, (0, window - centred.shape[1]))
            bank = FilterBank(self.window.float(), self.mel.float(), self._groups, self._shift)
            count = min(1 + (centred.shape[1] - window) // self._shift, self.frames)
            log_mel = centred.new_empty(batch, self.frames, self.n_mels)
            loud = torch.zeros(batch, self.frames, dtype=torch.bool, device=device)

            def normalise(energies: Tensor, clips: slice, times: slice) -> None:
                # The margin is far below a real difference and far above one of the logarithm's.
                loud[clips, times] = energies.amax(dim=2) > SILENCE + 1e-4
                energies.sub_(self.mean).div_(2 * self.std)

            log_mel_energies(centred, bank, log_mel[:, :count], normalise)

            # A clip below one frame still has one: its zero-padded samples.
            steps = (length - window).clamp(min=0) // self._shift
            frames = (1 + steps).clamp(max=self.frames)
            inside = torch.arange(self.frames, device=device) < frames[:, None]
            padding = self.fill_value("raw_zero")
            log_mel[:, count:] = padding
            if device.type != "cpu" or not inside[:, :count].all():
                log_mel = torch.where(inside[:, :, None], log_mel, padding)
            valid = inside & loud
        return Spectrogram(log_mel, frames, valid)

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
        limit = (SILENCE + SOUND_MARGIN - self.mean) / (2 * self.std)
        above = (log_mel > limit) & valid[:, :, None]
        sounding = above.any(2).sum(1, keepdim=True)
        return (above.sum(1) > SOUND_SHARE * sounding) & self.mel.any(dim=0)


LogMel = KaldiLogMel
"""Its name until 0.1."""


def _remove_mean(waveform: Tensor, length: Tensor) -> Tensor:
    """Subtract each clip's mean over its own samples; samples past its length become 0."""
    samples = waveform.shape[1]
    # Before the shortest clip's end there is nothing to hide. Asking would make a GPU wait.
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

    The padding's length then cannot change the mean's last bit, and with it cells near the floor.
    MPS has no doubles. NumPy converts through a small buffer: several times as fast on a CPU.
    """
    kind = waveform.device.type
    if kind == "cpu":
        return torch.from_numpy(np.add.reduce(waveform.numpy(), axis=1, dtype=np.float64))
    return waveform.sum(dim=1, dtype=torch.float32 if kind == "mps" else torch.float64)
