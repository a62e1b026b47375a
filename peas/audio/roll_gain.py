"""AudioMAE's augmentation of waveforms: cyclic roll and gain. Letters: B S."""

import torch
from torch import Tensor

ROLL_GAIN_NUMBERS = 20
"""Uniform random numbers of one clip that `roll_and_gain` takes."""


def roll_and_gain(waveform: Tensor, length: Tensor, u: Tensor, *, roll: bool) -> Tensor:
    """AudioMAE's augmentation of waveforms: another loudness, and another beginning.

    The loudness is multiplied by Beta(10, 10) + 0.5, so by 0.5 to 1.5. The roll is cyclic within
    the clip's own samples and uniform over them. The official code means to roll and never does:
    it samples the shift from the number of channels, which is 1.

    Args:
        waveform: `[B, S]`.
        length: `[B]` int64 samples of each clip; samples beyond them are unchanged.
        u: `[B, 20]` uniform random numbers.
        roll: Whether to roll (the paper) or to change the loudness alone (the official code).

    Returns:
        `[B, S]`.
    """
    # The middle one of 19 uniform random numbers is distributed as Beta(10, 10).
    gain = u[:, 1:].median(dim=1).values + 0.5
    if roll:
        # In double precision: a half-precision or float32 product could reach the clip's end.
        shift = (u[:, 0].double() * length).long()
        waveform = _rolled(waveform, length, shift)
    return waveform * gain.unsqueeze(1).to(waveform.dtype)


def _rolled(waveform: Tensor, length: Tensor, shift: Tensor) -> Tensor:
    """Shift each clip cyclically within its own samples, towards later times."""
    index = torch.arange(waveform.shape[1], device=waveform.device).expand_as(waveform)
    inside = index < length.unsqueeze(1)
    source = (index - shift.unsqueeze(1)) % length.clamp(min=1).unsqueeze(1)
    return waveform.gather(1, torch.where(inside, source, index))
