"""A windowed sinc (Kaiser window) between any two sampling rates.

Rates in a ratio of small numbers are resampled by torchaudio, which keeps one filter for each
output phase. For others that table would take gigabytes: they use a ratio of small numbers that is
exact to a millionth, less than clocks differ. If there is none (15,999 Hz to 16 kHz), the filter is
interpolated between finely spaced phases: ten times slower, and exact to float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

LOWPASS_FILTER_WIDTH = 64
ROLLOFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
RESAMPLER = f"torchaudio-kaiser-{LOWPASS_FILTER_WIDTH}-{ROLLOFF:.6f}-{KAISER_BETA:.6f}"
"""Name of the resampler and its settings. Part of a cache's key: it changes the samples."""

# Most filter taps in torchaudio's table; 16 MB.
_MAX_TABLE = 4_000_000
_TOLERANCE = Fraction(1, 1_000_000)
# Phases for each zero crossing of the filter. A straight line between them is off by less than
# 2e-8: pi² / 3 / 8 / 4096².
_PHASES = 4_096
# Output samples that are computed together, times taps.
_BLOCK = 2_000_000


def resample(waveform: Tensor, native: int, rate: int) -> Tensor:
    """Resample a waveform.

    Args:
        waveform: `[S]` float32.
        native: Its samples per second.
        rate: Samples per second of the result.

    Returns:
        `[ceil(S * rate / native)]` float32.
    """
    if native == rate:
        return waveform
    with torch.no_grad():
        return _resampler(native, rate)(waveform)


@functools.lru_cache(maxsize=16)
def _resampler(native: int, rate: int) -> Callable[[Tensor], Tensor]:
    """Resampler with its filters, cached: they cost three times as much as using them on a clip."""
    ratio = _small_ratio(Fraction(native, rate))
    if ratio is None:
        return _Interpolated(native, rate)
    # Imported here because torchaudio takes seconds to import and most data is at the rate already.
    from torchaudio.transforms import Resample

    resampler: Callable[[Tensor], Tensor] = Resample(
        ratio.numerator,
        ratio.denominator,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=LOWPASS_FILTER_WIDTH,
        rolloff=ROLLOFF,
        beta=KAISER_BETA,
    )
    return resampler


def _small_ratio(exact: Fraction) -> Fraction | None:
    """The ratio itself, or one near it, whose table is small enough; None if there is none."""
    limit = exact.denominator
    while limit:
        ratio = exact.limit_denominator(limit)
        if abs(ratio / exact - 1) > _TOLERANCE:
            return None
        down, up = ratio.numerator, ratio.denominator
        if up * (2 * LOWPASS_FILTER_WIDTH * max(1, -(-down // up)) + down) <= _MAX_TABLE:
            return ratio
        limit = up // 2
    return None


class _Interpolated:
    """torchaudio's filter at any phase.

    Args:
        native: Samples per second of the input.
        rate: Samples per second of the output.
    """

    def __init__(self, native: int, rate: int) -> None:
        self.native = native
        self.rate = rate
        # Zero crossings of the filter for each input sample.
        crossings = min(1.0, rate / native) * ROLLOFF
        self.reach = math.ceil(LOWPASS_FILTER_WIDTH / crossings)
        self.phases = math.ceil(_PHASES * crossings)
        phase = torch.arange(self.phases + 1, dtype=torch.float64)[:, None] / self.phases
        taps = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        at = ((taps - phase) * crossings).clamp(-LOWPASS_FILTER_WIDTH, LOWPASS_FILTER_WIDTH)
        beta = torch.tensor(KAISER_BETA, dtype=torch.float64)
        inside = (1 - (at / LOWPASS_FILTER_WIDTH).square()).sqrt()
        window = torch.i0(beta * inside) / torch.i0(beta)
        # [phases + 1, taps]
        self.filters = (torch.sinc(at) * window * crossings).float()

    def __call__(self, waveform: Tensor) -> Tensor:
        """Resampled waveform, `[S]` to `[S * rate / native]`."""
        count = -(-len(waveform) * self.rate // self.native)
        padded = torch.nn.functional.pad(waveform, (self.reach, self.reach + 1))
        # [S + 1, taps], a view
        windows = padded.unfold(0, 2 * self.reach + 1, 1)
        result = torch.empty(count)
        size = max(1, _BLOCK // (2 * self.reach + 1))
        for first in range(0, count, size):
            # Integers up to the division: positions in an hour of sound stay exact.
            ticks = torch.arange(first, min(first + size, count)) * self.native
            phase = (ticks % self.rate).double() * (self.phases / self.rate)
            below = phase.long().clamp(max=self.phases - 1)
            share = (phase - below).float()[:, None]
            filters = torch.lerp(self.filters[below], self.filters[below + 1], share)
            part = windows[ticks // self.rate]
            result[first : first + len(ticks)] = (part * filters).sum(dim=1)
        return result
