"""HTSAT, CLAP's audio tower (arXiv:2202.00874): its sizes, its log-mel, and its 10 s windows.

Constants of the official front end (LAION-AI/CLAP, model configs HTSAT-tiny and HTSAT-base, which
are the same): 48 kHz, 10 s at a time, 1001 frames of 1024 samples every 480, 64 Slaney mels from
50 to 14000 Hz, decibels with a floor at -100 dB.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from peas.teachers.grid import Extent

Arch = Literal["HTSAT-tiny", "HTSAT-base"]
Space = Literal["map", "joint"]
Fill = Literal["silence", "repeat"]

HEADS = (4, 8, 16, 32)
JOINT = 512
"""Width of the joint embedding space of sounds and texts."""


@dataclass(frozen=True)
class Shape:
    """Size of a tower: width of the first stage, which doubles at each, and blocks a stage."""

    first: int
    depths: tuple[int, int, int, int]

    @property
    def width(self) -> int:
        """Features D of a bin of the last map."""
        return self.first * 8


SHAPES: dict[Arch, Shape] = {
    "HTSAT-tiny": Shape(96, (2, 2, 6, 2)),
    "HTSAT-base": Shape(128, (2, 2, 12, 2)),
}

RATE = 48_000
SAMPLES = 480_000
"""Samples that the tower takes at once: 10 s."""
MELS = 64
COLUMNS = 32
"""Columns of the map of one window."""

_FFT = 1024
_HOP = 480
_LOW, _HIGH = 50.0, 14_000.0
_FLOOR = 1e-10
_FRAMES = 1 + SAMPLES // _HOP
# HTSAT stretches the 1001 frames to 1024 image columns with the first and last fixed.
_IMAGE = 1024
_COLUMN_SECONDS = (_FRAMES - 1) * _HOP / RATE / (_IMAGE - 1)
# Windows start one image apart, so that the columns of neighbouring windows are evenly
# spaced. This is 469 samples more than a window; frames of 1024 samples on its ends still meet.
_WINDOW_STEP = round(_IMAGE * _COLUMN_SECONDS * RATE)
_BIN = math.ceil(_WINDOW_STEP / COLUMNS)

SETTINGS: dict[str, str | int | float] = {
    "rate": RATE,
    "samples": SAMPLES,
    "fft": _FFT,
    "hop": _HOP,
    "mels": MELS,
    "low": _LOW,
    "high": _HIGH,
    "scale": "slaney",
    "floor": _FLOOR,
    "window_step": _WINDOW_STEP,
}
"""All that decides the log-mel, for fingerprints and to compare with a model folder's own."""


def clap_log_mel(waveform: Tensor) -> Tensor:
    """Log-mel of the official audio tower, in decibels.

    Short-time spectrum with a periodic Hann window, centred frames and reflected ends; power;
    `10 * log10(max(x, 1e-10))`.

    Args:
        waveform: `[B, S]` float32 at 48 kHz, S above 512.

    Returns:
        `[B, T, 64]` with T = 1 + S // 480: 1001 frames for 10 s.
    """
    window, mel = _constants(waveform.device)
    spectrum = torch.stft(waveform, _FFT, _HOP, window=window, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
    decibels: Tensor = 10.0 * (power @ mel).clamp(min=_FLOOR).log10()
    return decibels


def window_count(samples: int) -> int:
    """Number of 10 s windows W of a batch of S samples.

    Another window is opened only for sound that fills one of its bins (0.313 s) or more: clips of
    10.24 s take one window, whose last column then stands for the rest.
    """
    return 1 + max(0, (samples - _BIN) // _WINDOW_STEP)


def windows(waveform: Tensor, length: Tensor, fill: Fill) -> Tensor:
    """Cut clips into windows of 10 s.

    Args:
        waveform: `[B, S]` at 48 kHz.
        length: `[B]` samples of sound of each clip; the rest is ignored.
        fill: What follows a clip that ends inside a window: `silence`, or `repeat`, its sound in
            the window as often as all of it fits, then silence (LAION's "repeatpad"). Columns
            inside the clip keep their position in both.

    Returns:
        `[B, W, 480000]`.
    """
    batch, samples = waveform.shape
    count = window_count(samples)
    total = (count - 1) * _WINDOW_STEP + SAMPLES
    inside = torch.arange(samples, device=waveform.device) < length[:, None]
    sound = functional.pad(torch.where(inside, waveform, 0.0), (0, total - samples))
    cut = sound.unfold(1, SAMPLES, _WINDOW_STEP)
    if fill == "silence":
        return cut
    start = torch.arange(count, device=waveform.device) * _WINDOW_STEP
    filled = (length[:, None] - start).clamp(0, SAMPLES)[..., None]
    sample = torch.arange(SAMPLES, device=waveform.device).expand(batch, count, SAMPLES)
    period = filled.clamp(min=1)
    fits = sample < SAMPLES // period * filled
    return torch.where(fits, cut.gather(2, sample % period), 0.0)


def extent() -> Extent:
    """Position of the 2 x 32 bins of a window.

    A bin is 32 image columns wide (0.313 s) and 32 mel bins high; borders of rows lie half way
    between filters on the mel scale: 77, 2293 and 13616 Hz.
    """
    columns = _IMAGE // COLUMNS
    low, high = _mel(_LOW), _mel(_HIGH)
    step = (high - low) / (MELS + 1)
    edges = tuple(_hertz(low + step * (first + 0.5)) for first in (0, MELS // 2, MELS))
    return Extent((columns - 1) / 2 * _COLUMN_SECONDS, columns * _COLUMN_SECONDS, edges)


def mel_bank() -> Tensor:
    """Slaney's triangles, each of unit area: `[513, 64]` float32."""
    low, high = _mel(_LOW), _mel(_HIGH)
    step = (high - low) / (MELS + 1)
    points = torch.tensor([_hertz(low + step * i) for i in range(MELS + 2)], dtype=torch.float64)
    bins = torch.linspace(0, RATE / 2, _FFT // 2 + 1, dtype=torch.float64)[:, None]
    left, centre, right = points[:-2], points[1:-1], points[2:]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (right - left)).float()


@functools.lru_cache(maxsize=4)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Window `[1024]` and filters `[513, 64]`."""
    return torch.hann_window(_FFT, device=device), mel_bank().to(device)


def _mel(hertz: float) -> float:
    """Slaney's scale: linear up to 1 kHz, then 27 mels for each factor of 6.4."""
    if hertz < 1000.0:
        return hertz * 3 / 200
    return 15.0 + math.log(hertz / 1000.0) * 27 / math.log(6.4)


def _hertz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15.0 else 1000.0 * math.exp((mel - 15.0) * math.log(6.4) / 27)
