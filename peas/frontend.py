"""Waveforms to normalised log-mel spectrograms, with the statistics of the normalisation."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from peas.filter_bank import SILENCE, FilterBank, filter_bank, log_mel_energies

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


class LogMel(nn.Module):
    """Front end of every model: mean removal, filter bank, padding or cut, normalisation.

    The order is that of the official SSAST loader: padding is 0.0 on the raw log-mel scale and so
    lies well above the mean afterwards (0.467 with AudioSet's statistics).

    The statistics are buffers of the state dict, so that a checkpoint carries them.

    Args:
        rate: Samples per second of the waveforms.
        n_mels: Number of mel filters F.
        frames: Number of frames T of every output. Longer clips keep their first T frames.
        mean: Mean of the data set's raw log-mel cells. Default: AudioSet's.
        std: Their standard deviation. The official normalisation divides by twice this value.

    Raises:
        ValueError: `frames` or `std` is not positive.
    """

    mean: Tensor
    std: Tensor
    window: Tensor
    mel: Tensor

    def __init__(
        self,
        *,
        rate: int = 16_000,
        n_mels: int = 128,
        frames: int = 512,
        mean: float = -4.2677393,
        std: float = 4.5689974,
    ) -> None:
        super().__init__()
        if frames < 1 or std <= 0:
            raise ValueError(f"frames and std must be positive, not {frames} and {std}")
        bank = filter_bank(rate, n_mels, torch.device("cpu"))
        self.rate = rate
        self.frames = frames
        self.n_mels = n_mels
        self._groups = bank.groups
        self._shift = bank.shift
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
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

    def fill_value(self, kind: Literal["raw_zero", "zero"]) -> Tensor:
        """Value that a hidden cell takes on the normalised scale.

        Args:
            kind: "raw_zero" is 0.0 before normalisation, the official loader's masks and padding.
                "zero" is 0.0 after it, the mean of the data set.

        Returns:
            Scalar float32 on the module's device.
        """
        if kind == "raw_zero":
            return -self.mean / (2 * self.std)
        if kind == "zero":
            return torch.zeros_like(self.mean)
        raise ValueError(f"kind must be 'raw_zero' or 'zero', not {kind!r}")


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
