"""Numbers that tell what the mask position selector does."""

from __future__ import annotations

import torch
from torch import Tensor


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, equal values sharing their mean rank: `[B, K]` float64."""
    ordered = values.sort(1).values
    values = values.contiguous()
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two sets of scores, clip by clip.

    Args:
        a: `[B, K]`.
        b: `[B, K]`.

    Returns:
        `[B]` float32 in -1 .. 1; 0 where one of them is constant.
    """
    x, y = (ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(a), _ranks(b)))
    scale = (x.square().sum(1) * y.square().sum(1)).sqrt()
    return torch.where(scale > 0, (x * y).sum(1) / scale.clamp(min=1e-12), 0.0).float()


def touching(start: Tensor, width: Tensor, ok: Tensor) -> Tensor:
    """Whether each window holds a bin that is not ok (padding, silence, an empty mel bin).

    Args:
        start: `[B, n]` int64.
        width: `[B, n]` int64; a window of width 0 touches nothing.
        ok: `[B, L]` (or `[1, L]`) bool.

    Returns:
        `[B, n]` bool.
    """
    size = ok.shape[1]
    bad = torch.nn.functional.pad((~ok).long().cumsum(1), (1, 0)).expand(len(start), -1)
    first = start.clamp(0, size)
    last = (start + width).clamp(0, size)
    return bad.gather(1, last) > bad.gather(1, first)
