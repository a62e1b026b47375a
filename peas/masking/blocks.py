"""Block masks along time and frequency: torchaudio's distribution, random blocks, blocks to bins.

An axis of `L` bins (frames or mel bins) is masked by `n` blocks a clip. Random numbers,
uniform in [0, 1), are arguments, so they give the same mask on any device and after a restart.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from peas.errors import ConfigError

Overlap = Literal["allow", "forbid"]


class Blocks(NamedTuple):
    """Intervals masked on one axis.

    Attributes:
        start: `[B, n]` int64, first masked bin.
        width: `[B, n]` int64, number of masked bins; 0 masks nothing.
    """

    start: Tensor
    width: Tensor


def check_width(key: str, width: int, size: int) -> None:
    """Refuse a mask width that the axis cannot hold.

    Args:
        key: Name of the setting, for the message.
        width: Widest mask in bins.
        size: Bins of the axis.

    Raises:
        ConfigError: The width is negative or larger than the axis.
    """
    if width < 0:
        raise ConfigError(f"{key}: a mask cannot be {width} bins wide; use 0 or more")
    if width > size:
        raise ConfigError(
            f"{key}: a mask of {width} bins does not fit an axis of {size}; use at most {size}"
        )


def random_widths(u: Tensor, max_width: int, fixed_width: int | None = None) -> Tensor:
    """Unfloored widths of torchaudio's distribution, `U * max_width`, or the fixed width.

    Floored they are uniform on 0 .. max_width - 1. The unfloored number also enters the law of
    the start, so it is kept.

    Args:
        u: `[B, n]` random numbers.
        max_width: The mask parameter (never reached itself).
        fixed_width: Width of every block instead of a random one (the last epochs of PEAS).

    Returns:
        `[B, n]` in the dtype of `u`.
    """
    if fixed_width is not None:
        return torch.full_like(u, float(fixed_width))
    return u * max_width


def window_sums(values: Tensor, width: Tensor) -> Tensor:
    """Sums over the window that starts at each bin; windows past the end are cut there.

    Args:
        values: `[B, L]`; summed in the dtype given (float64 or int64 are exact enough).
        width: `[B]` int64 window width of each clip.

    Returns:
        `[B, L]`.
    """
    size = values.shape[1]
    total = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    end = torch.arange(size, device=values.device) + width[:, None]
    return total.gather(1, end.clamp(max=size)) - total[:, :-1]


def fitting_starts(width: Tensor, size: int) -> Tensor:
    """`[B, L]` bool: a block of `width` `[B]` that starts here ends inside the axis."""
    return torch.arange(size, device=width.device) + width[:, None] <= size


def keep_best(allowed: Tensor, value: Tensor) -> Tensor:
    """Those of the allowed bins whose value is the highest of their row.

    Args:
        allowed: `[B, L]` bool.
        value: `[B, L]` number to maximise.

    Returns:
        `[B, L]` bool, `allowed` itself where the values have no order (NaN).
    """
    rated = value.to(torch.promote_types(value.dtype, torch.float32))
    rated = rated.masked_fill(~allowed, -torch.inf)
    best = allowed & (rated >= rated.amax(1, keepdim=True))
    return torch.where(best.any(1, keepdim=True), best, allowed)


def pick_uniform(allowed: Tensor, u: Tensor) -> Tensor:
    """Choose one allowed bin of each row; the number indexes them in order.

    Args:
        allowed: `[B, L]` bool.
        u: `[B]` random numbers.

    Returns:
        `[B]` int64; 0 in a row without an allowed bin.
    """
    rank = allowed.cumsum(1)
    count = rank[:, -1]
    chosen = torch.minimum((u * count).long(), count - 1) + 1
    return (allowed & (rank == chosen[:, None])).to(torch.uint8).argmax(1)


def random_start(u: Tensor, widths: Tensor, taken: Tensor, overlap: Overlap) -> Tensor:
    """Start of one random block.

    With nothing taken in the clip, or overlap allowed: torchaudio's distribution,
    `floor(U * (size - unfloored width))`. Otherwise uniform among the starts at which the block
    shares no bin with those taken; where there is none, the start of least overlap, the lowest.

    Args:
        u: `[B]` random numbers of the position.
        widths: `[B]` unfloored width.
        taken: `[B, L]` bool, bins of earlier blocks.
        overlap: The rule.

    Returns:
        `[B]` int64.
    """
    size = taken.shape[1]
    default = (u * (size - widths)).long()
    if overlap == "allow":
        return default
    width = widths.long()
    shared = window_sums(taken.long(), width)
    fits = fitting_starts(width, size)
    free = fits & (shared == 0)
    crowded = keep_best(fits, -shared).to(torch.uint8).argmax(1)
    avoiding = torch.where(free.any(1), pick_uniform(free, u), crowded)
    return torch.where(taken.any(1), avoiding, default)


def random_blocks(
    u: Tensor,
    max_width: int,
    size: int,
    *,
    fixed_width: int | None = None,
    overlap: Overlap = "forbid",
    key: str = "max_width",
) -> Blocks:
    """Blocks at random positions: first torchaudio's distribution, then the overlap rule.

    With the two numbers that `torchaudio.transforms.TimeMasking` or `FrequencyMasking` samples,
    in its order and dtype, the first block is exactly torchaudio's interval.

    Args:
        u: `[B, n, 2 or more]` random numbers: width, position (any further ones are ignored).
        max_width: Mask parameter; widths are uniform on 0 .. max_width - 1.
        size: Bins of the axis.
        fixed_width: Width of every block instead of a random one.
        overlap: `forbid` keeps a block off the earlier ones while there is room; `allow`
            samples each block by itself.
        key: Name of the setting, for messages.

    Raises:
        ConfigError: A width does not fit the axis.
    """
    check_width(key, max_width if fixed_width is None else fixed_width, size)
    widths = random_widths(u[..., 0], max_width, fixed_width)
    width = widths.long()
    taken = torch.zeros(u.shape[0], size, dtype=torch.bool, device=u.device)
    starts = []
    for i in range(u.shape[1]):
        start = random_start(u[:, i, 1], widths[:, i], taken, overlap)
        taken = taken | interval(start, width[:, i], size)
        starts.append(start)
    return Blocks(torch.stack(starts, 1) if starts else torch.zeros_like(width), width)


def interval(start: Tensor, width: Tensor, size: int) -> Tensor:
    """`[..., size]` bool: bins of the interval of each `start` and `width` `[...]`."""
    bin = torch.arange(size, device=start.device)
    first = start[..., None]
    return (bin >= first) & (bin < first + width[..., None])


def blocks_to_mask(blocks: Blocks, size: int) -> Tensor:
    """Bins that any block masks, `[B, size]` bool."""
    return interval(blocks.start, blocks.width, size).any(1)


def cross(time: Tensor, freq: Tensor) -> Tensor:
    """Bins masked by a time mask `[B, T]` or a frequency mask `[B, F]`: `[B, T, F]` bool."""
    return time[:, :, None] | freq[:, None, :]


def fill_masked(log_mel: Tensor, mask: Tensor, value: float | Tensor) -> Tensor:
    """Put the fill value into the masked bins; the one filling rule of every strategy.

    Args:
        log_mel: `[B, T, F]`.
        mask: `[B, T, F]` bool, True = masked.
        value: Fill value, a number or a scalar tensor on the device.
    """
    return torch.where(mask, value, log_mel)


def masked_fraction(mask: Tensor) -> Tensor:
    """Hidden share of each clip's bins, `[B]` float32, of a mask `[B, ...]`."""
    return mask.flatten(1).float().mean(1)
