"""PEAS's schedule: the growing share of adaptive blocks (equation 3) and the final phase.

Epochs count from 0 and H(0) = 1, so that the final phase is exactly the last 20 %. All in exact
arithmetic, since 0.1 * 30 or 0.8 * 25 in floats may fall on the wrong side.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from peas.errors import ConfigError

Rounding = Literal["floor", "round", "ceil", "stochastic"]
Ramp = Literal["absolute", "relative", "off"]


def final_phase(epoch: int, epochs: int, share: float = 0.2) -> bool:
    """Whether a 0-based epoch is in the last `share` of training, in exact arithmetic.

    In this phase PEAS's masks have the fixed width `max_width // 2`. A share of 0 turns it off.
    """
    return epoch >= (1 - Fraction(str(share))) * epochs


def adaptive_level(
    n_total: int,
    epoch: int,
    epochs: int,
    *,
    ramp: Ramp = "absolute",
    progressive_single: bool = False,
) -> Fraction:
    """Equation 3 before rounding: n_a = min(n_t, 0.1 e + 0.9 n_t H(e - 0.8 e_t)), H(0) = 1.

    Args:
        n_total: Blocks of the axis, n_t.
        epoch: Epoch e, from 0.
        epochs: Epochs of the run, e_t.
        ramp: `absolute` 0.1 e as printed; `relative` 2.5 e / e_t, the same at 25 epochs; `off`
            always n_t.
        progressive_single: Apply the equation to a single block too. The paper introduces it for
            more than one, so by default a single block is always adaptive.
    """
    if ramp == "off" or (n_total <= 1 and not progressive_single):
        return Fraction(n_total)
    rising = Fraction(epoch, 10) if ramp == "absolute" else Fraction(5 * epoch, 2 * epochs)
    step = Fraction(9 * n_total, 10) if final_phase(epoch, epochs) else Fraction(0)
    return min(Fraction(n_total), rising + step)


def adaptive_count(
    n_total: int,
    epoch: int,
    epochs: int,
    *,
    rounding: Rounding = "floor",
    ramp: Ramp = "absolute",
    progressive_single: bool = False,
    u: Tensor | None = None,
) -> Tensor:
    """Number of adaptive blocks of each clip, equation 3 rounded.

    Args:
        n_total: Blocks of the axis, n_t.
        epoch: Epoch, from 0.
        epochs: Epochs of the run.
        rounding: `floor`, `round` (halves to even), `ceil`, or `stochastic`: the floor, and one
            more with the probability of the fraction, for each clip by itself.
        ramp: See `adaptive_level`.
        progressive_single: See `adaptive_level`.
        u: `[B]` random numbers for `stochastic`; otherwise only their number and device matter.

    Returns:
        `[B]` int64, or `[1]` for the batch without `u`.

    Raises:
        ConfigError: `stochastic` without `u`.
    """
    level = adaptive_level(n_total, epoch, epochs, ramp=ramp, progressive_single=progressive_single)
    if rounding == "stochastic":
        if u is None:
            raise ConfigError("rounding: stochastic needs one random number a clip")
        return math.floor(level) + (u < float(level % 1)).long()
    if rounding == "round":
        count = round(level)
    else:
        count = math.ceil(level) if rounding == "ceil" else math.floor(level)
    return torch.full((1 if u is None else len(u),), count, device=None if u is None else u.device)
