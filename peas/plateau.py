"""Learning rate that falls when the pretext task stops getting better, as SSAST's does.

The state is a value that a checkpoint can hold, so a resumed run follows the unbroken one.
"""

import math
from typing import NamedTuple


class Plateau(NamedTuple):
    """Where a plateau schedule stands.

    Attributes:
        best: Best value so far.
        bad: Evaluations since then that were no better.
        factor: Factor of the learning rate.
        step: Optimiser step of the latest evaluation that counted.
    """

    best: float = -math.inf
    bad: int = 0
    factor: float = 1.0
    step: int = 0


def next_plateau(
    state: Plateau, value: float, step: int, *, factor: float, patience: int, every: int
) -> Plateau:
    """State after one evaluation; the rules are those of PyTorch's `ReduceLROnPlateau`.

    The first evaluation at or after each multiple of `every` steps counts. Better is what exceeds
    the best by one part in ten thousand of it: so of negative values, such as an error's negative,
    one that is worse by less than that counts as better too, as in the official run.

    Args:
        state: State before it.
        value: What was evaluated; more is better.
        step: Optimiser steps so far.
        factor: What the rate is multiplied by after more than `patience` evaluations in a row
            that were no better.
        patience: Number of such evaluations that are borne.
        every: Steps from one evaluation that counts to the next.
    """
    if step // every <= state.step // every:
        return state
    if value > state.best * (1 + 1e-4):
        return Plateau(value, 0, state.factor, step)
    if state.bad + 1 > patience:
        return Plateau(state.best, 0, state.factor * factor, step)
    return Plateau(state.best, state.bad + 1, state.factor, step)
