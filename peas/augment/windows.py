"""PEAS's mask position selector, first half: scores of windows along one axis, and their ranking.

Section III-B of the paper: the mean error of every window of the unit width at a stride of 1,
ranked. A map enters only through its two marginal means, since the mean over a window of full
height is the mean of the marginal.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from peas.augment.masks import (
    check_width,
    fitting_starts,
    keep_best,
    pick_uniform,
    window_sums,
)

Select = Literal["nms", "topk"]


class Marginals(NamedTuple):
    """Mean of a map over the other axis.

    Attributes:
        time: `[B, T]` float32.
        freq: `[B, F]` float32.
    """

    time: Tensor
    freq: Tensor


def marginals(
    score: Tensor, time_ok: Tensor | None = None, freq_ok: Tensor | None = None
) -> Marginals:
    """Mean score of each frame and of each mel bin, over the cells that count.

    Args:
        score: `[B, T, F]`.
        time_ok: `[B, T]` bool, False on frames to leave out (padding, digital silence, frames
            that the grid does not cover); None = all count.
        freq_ok: `[B, F]` (or `[1, F]`) bool, likewise for mel bins.

    Returns:
        The means; 0 on a line without a cell that counts.
    """
    score = score.float()
    frames, mels = score.shape[1:]
    if time_ok is None:
        time_ok = torch.ones(1, frames, dtype=torch.bool, device=score.device)
    if freq_ok is None:
        freq_ok = torch.ones(1, mels, dtype=torch.bool, device=score.device)
    score = torch.where(time_ok[:, :, None] & freq_ok[:, None, :], score, 0.0)
    return Marginals(
        score.sum(2) / freq_ok.sum(1, keepdim=True).clamp(min=1),
        score.sum(1) / time_ok.sum(1, keepdim=True).clamp(min=1),
    )


def window_means(marginal: Tensor, width: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean over the window at every start, and how many cells that count it holds.

    Args:
        marginal: `[B, L]`.
        width: `[B]` int64, 1 or more.
        ok: `[B, L]` bool, cells that count; None = all.

    Returns:
        Means `[B, L]` float32 over the cells that count, and their number `[B, L]` int64, -1
        where the window does not fit.
    """
    # Cumulative sums lose digits; MPS has no float64.
    values = marginal.float() if marginal.device.type == "mps" else marginal.double()
    if ok is None:
        held = width[:, None].expand(marginal.shape)
    else:
        values = torch.where(ok, values, 0.0)
        held = window_sums(ok.long(), width)
    means = (window_sums(values, width) / held.clamp(min=1)).float()
    return means, torch.where(fitting_starts(width, marginal.shape[1]), held, -1)


def window_scores(marginal: Tensor, width: int, ok: Tensor | None = None) -> Tensor:
    """Score of every window at a stride of 1: the mean of the marginal over it.

    Args:
        marginal: `[B, L]`.
        width: Window width.
        ok: `[B, L]` (or `[1, L]`) bool, cells that count. Only the windows that hold most of them
            compete, the others have -inf; in a clip without any all windows are equal.

    Returns:
        `[B, L - width + 1]` float32.

    Raises:
        ConfigError: The width is not in 1 .. L.
    """
    batch, size = marginal.shape
    check_width("window width", width - 1, size - 1)
    widths = torch.full((batch,), width, device=marginal.device)
    means, held = window_means(marginal, widths, None if ok is None else ok.expand(batch, size))
    means, held = means[:, : size - width + 1], held[:, : size - width + 1]
    return means.masked_fill(held < held.amax(1, keepdim=True), -torch.inf)


def pick_window(means: Tensor, held: Tensor, penalty: Tensor, u: Tensor) -> Tensor:
    """Start `[B]` of the best window: least penalty, most cells that count, highest mean, draw."""
    allowed = keep_best(held >= 0, -penalty)
    return pick_uniform(keep_best(keep_best(allowed, held), means), u)


def start_penalty(select: Select, used: Tensor, taken: Tensor, width: Tensor) -> Tensor:
    """`[B, L]` what speaks against a start: it is `used`, or cells shared with `taken`."""
    return used.long() if select == "topk" else window_sums(taken.long(), width)
