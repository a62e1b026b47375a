"""Mixup: which training clips are mixed with which partner, and how. Letters: S."""

import numpy as np
from torch import Tensor
from torch.nn.functional import pad


def choose_partner(
    rng: np.random.Generator, probability: float, clips: int
) -> tuple[int | None, float]:
    """Row of the partner of a clip, and the share of the clip in the mixture.

    Args:
        rng: The clip's own random numbers.
        probability: That the clip is mixed.
        clips: Number of clips to choose from.

    Returns:
        None and 1.0 for a clip that is not mixed; else the share is Beta(10, 10), as in the
        official SSAST loader.
    """
    if rng.random() >= probability:
        return None, 1.0
    return int(rng.integers(clips)), float(rng.beta(10.0, 10.0))


def mix(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Mix a partner into a clip (mixup, as the official SSAST loader does it).

    Each clip loses its own mean first, over all of its samples; the partner is then padded with
    zeros or cut at the end to the clip's length; the mixture loses its mean again.

    Args:
        a: `[S]` clip.
        b: `[S']` partner, of any length.
        weight: Share of `a` in the mixture, in [0, 1]; `b` has the rest.

    Returns:
        `[S]` mixture.
    """
    a = a - a.mean()
    b = b - b.mean()
    # A negative pad cuts.
    b = pad(b, (0, a.shape[-1] - b.shape[-1]))
    mixture = weight * a + (1.0 - weight) * b
    return mixture - mixture.mean()
