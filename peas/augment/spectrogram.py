"""Noise and roll of the fine-tuning recipes, on normalised log-mels. Letters: B T F."""

from typing import NamedTuple

import torch
from torch import Tensor

NOISE_SCALE = 0.1
ROLL_FRAMES = 10


class Augmented(NamedTuple):
    """A noised and rolled batch."""

    log_mel: Tensor
    """`[B, T, F]`."""
    roll: Tensor
    """`[B]` i64 frames that each clip was shifted by, towards later times."""


def roll_time(x: Tensor, shift: Tensor) -> Tensor:
    """Shifts each clip circularly along time.

    Args:
        x: `[B, T, ...]`.
        shift: `[B]` i64 frames towards later times; may be negative.
    """
    frames = x.shape[1]
    source = (torch.arange(frames, device=x.device) - shift.unsqueeze(1)) % frames
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), source]


def noise_and_roll(log_mel: Tensor, u_noise: Tensor, u_clip: Tensor) -> Augmented:
    """The official loader's last step: positive noise, then a roll along time.

    Each bin gets U(0, 1) times one U(0, 0.1) of its clip; each clip is rolled by an integer in
    [-10, 9] (SSAST's `dataloader.py`).

    Args:
        log_mel: `[B, T, F]` normalised.
        u_noise: `[B, T, F]` uniform draws.
        u_clip: `[B, 2]` uniform draws: noise scale and shift.
    """
    noise = u_noise * (u_clip[:, 0] * NOISE_SCALE).view(-1, 1, 1)
    roll = (u_clip[:, 1] * 2 * ROLL_FRAMES).floor().long() - ROLL_FRAMES
    return Augmented(roll_time(log_mel + noise, roll), roll)
