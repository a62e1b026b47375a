"""Kaldi's log-mel filter bank for batches.

It equals `torchaudio.compliance.kaldi.fbank` with the arguments of the official SSAST loader. Each
step on samples rounds as torchaudio's does: bins near the floor are mostly rounding errors, so a
shorter formula of the same value differs there by 0.04 on a pure tone (and by 0.003 on recordings),
while this one stays within 1e-5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0
ENERGY_FLOOR = torch.finfo(torch.float32).eps
SILENCE = math.log(ENERGY_FLOOR)
"""Log-mel value of digital silence, -15.9424."""

# Frames in a block on a CPU. Their samples, spectra and energies (about 3 MB) then stay in a core's
# cache from one step to the next; entire batches ran at half the speed.
_CPU_FRAMES = 512
# Filters multiplied at once. Each overlaps few FFT bins, so a group needs only its own bins: about
# a third of the time of the dense product. Smaller groups lose it again in calls.
_GROUP = 32
# Near-silent frames have powers below float32's normal range, on which a CPU is many times slower.
# A power of two on the window lifts them out of it and changes no rounding; the energies are
# brought back before the logarithm.
_LIFT = 2.0**24


class _Group(NamedTuple):
    """Adjacent filters (columns of `mel`) and the rows of `mel` where they are not 0."""

    filters: slice
    bins: slice


class FilterBank(NamedTuple):
    """Constants of a filter bank: `window` [W] and `mel` [FFT size, F]."""

    window: Tensor
    mel: Tensor
    groups: tuple[_Group, ...]
    shift: int


def kaldi_fbank(waveform: Tensor, rate: int = 16_000, n_mels: int = 128) -> Tensor:
    """Log-mel energies of a batch, as Kaldi computes them.

    Equal to `torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False,
    window_type="hanning", dither=0.0, frame_shift=10)` on each clip: frames of 25 ms every 10 ms
    that lie entirely inside the clip, frame mean removed, pre-emphasis 0.97, power spectrum,
    triangles on Kaldi's mel scale from 20 Hz to half the rate, natural logarithm, floor at float32
    epsilon. At 128 filters and 16 kHz filter 3 covers no FFT bin and is always at the floor.

    No gradient flows to the waveform. Autocast and reduced matrix precision are off inside.

    Args:
        waveform: `[B, S]`, full scale at -1 and 1.
        rate: Samples per second.
        n_mels: Number of filters F.

    Returns:
        `[B, T, F]` float32 with T = 1 + (S - W) // H for frames of W and steps of H samples
        (400 and 160 at 16 kHz), or T = 0 when S < W.
    """
    bank = filter_bank(rate, n_mels, waveform.device)
    batch, samples = waveform.shape
    frames = max(0, 1 + (samples - bank.window.numel()) // bank.shift) if batch else 0
    out = waveform.new_empty(batch, frames, n_mels, dtype=torch.float32)
    log_mel_energies(waveform, bank, out)
    return out


@torch.no_grad()
def log_mel_energies(
    waveform: Tensor,
    bank: FilterBank,
    out: Tensor,
    then: Callable[[Tensor, slice, slice], None] | None = None,
) -> None:
    """Raw log-mel energies of `[B, S]`, a block of frames at a time on a CPU.

    Args:
        waveform: `[B, S]`.
        bank: Window and filters.
        out: `[B, T, F]`, written: all frames of the waveforms.
        then: Modifies a block of `out` `[b, t, F]`, given its clips and frames, while it is in the
            core's cache.
    """
    # Contiguous, because a frame's mean is summed in another order over strided samples.
    waveform = waveform.float().contiguous()
    window, fft, n_mels = bank.window.numel(), *bank.mel.shape
    (batch, count, _), device = out.shape, waveform.device
    if batch == 0 or count == 0:
        return
    frames = waveform.unfold(1, window, bank.shift)
    block = _CPU_FRAMES if device.type == "cpu" else batch * count
    block_clips, block_frames = max(1, block // count), min(block, count)

    rows = min(batch, block_clips) * block_frames
    energies = waveform.new_empty(rows, n_mels)
    padded = waveform.new_zeros(rows, fft)
    centred, scaled = waveform.new_empty(2, rows, window)
    window_lifted = bank.window * _LIFT
    weights = [(group, bank.mel[group.bins, group.filters].contiguous()) for group in bank.groups]
    with torch.autocast(device.type, enabled=False), _full_precision(device):
        for clip in range(0, batch, block_clips):
            for start in range(0, count, block_frames):
                clips = slice(clip, min(clip + block_clips, batch))
                times = slice(start, min(start + block_frames, count))
                part, target = frames[clips, times], out[clips, times]
                used = part.shape[0] * part.shape[1]
                _prepare(part, window_lifted, centred[:used], scaled[:used], padded[:used])
                direct = target.is_contiguous()
                flat = target.view(used, n_mels) if direct else energies[:used]
                _energies(padded[:used], weights, flat)
                shaped = flat.view(target.shape)
                if then is not None:
                    then(shaped, clips, times)
                if not direct:
                    target.copy_(shaped)


def _prepare(
    frames: Tensor, window: Tensor, centred: Tensor, scaled: Tensor, padded: Tensor
) -> None:
    """Remove the mean, pre-emphasise and window frames into the start of the rows of `padded`."""
    torch.sub(frames, frames.mean(dim=2, keepdim=True), out=centred.view(frames.shape))
    # Not `sub(alpha=0.97)`: its fused rounding differs from torchaudio's.
    torch.mul(centred, PREEMPHASIS, out=scaled)
    # Column 0 stays 0: the Hann window is 0 there, whatever sample precedes the frame.
    target = padded[:, 1 : window.numel()]
    torch.sub(centred[:, 1:], scaled[:, :-1], out=target)
    target.mul_(window[1:])


def _energies(padded: Tensor, weights: list[tuple[_Group, Tensor]], out: Tensor) -> None:
    """Log-mel energies of windowed, zero-padded frames, written to `out` [rows, F]."""
    # Real and imaginary squares are left side by side and summed by the product, whose weights
    # are repeated: this saves a strided pass and torchaudio's square root.
    spectrum = torch.view_as_real(torch.fft.rfft(padded)).flatten(1).square_()
    for group, mel in weights:
        torch.mm(spectrum[:, group.bins], mel, out=out[:, group.filters])
    out.mul_(_LIFT**-2).clamp_(min=ENERGY_FLOOR).log_()


@functools.lru_cache(maxsize=8)
def filter_bank(rate: int, n_mels: int, device: torch.device) -> FilterBank:
    """Window and mel triangles (torchaudio's).

    Args:
        rate: Samples per second.
        n_mels: Number of filters F.
        device: Device of the constants.

    Raises:
        ValueError: The rate is too low, or there are less than 4 filters.
    """
    # Here, as torchaudio is slow to import.
    from torchaudio.compliance.kaldi import get_mel_banks

    # The same products as torchaudio's, so that odd rates round to the same lengths.
    window_size = int(rate * 25.0 * 0.001)
    shift = int(rate * 10.0 * 0.001)
    if shift < 1 or n_mels < 4:
        raise ValueError(f"no filter bank at {rate} Hz with {n_mels} filters (at least 4)")
    fft = 1 << (window_size - 1).bit_length()

    with torch.device("cpu"):
        # High frequency 0 is half the rate; the rest is for a warping that is off.
        triangles, _ = get_mel_banks(n_mels, fft, rate, LOW_FREQUENCY, 0.0, 100.0, -500.0, 1.0)
    mel = triangles.T.repeat_interleave(2, dim=0).contiguous()
    groups = []
    for first in range(0, n_mels, _GROUP):
        last = min(first + _GROUP, n_mels)
        touched = mel[:, first:last].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append(_Group(slice(first, last), slice(touched[0], touched[-1] + 1)))
    window = torch.hann_window(window_size, periodic=False, dtype=torch.float32, device="cpu")
    return FilterBank(window.to(device), mel.to(device), tuple(groups), shift)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep matrix products in float32 if a run allows TF32 or bfloat16."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.matmul.fp32_precision = before
