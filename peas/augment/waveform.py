"""Augmentation of waveforms."""

from torch import Tensor
from torch.nn.functional import pad


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
