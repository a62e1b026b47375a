"""Mask position selector of PEAS: windows ranked by their mean error, and the blocks in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.masking.blocks import (
    Blocks,
    Overlap,
    check_width,
    fitting_starts,
    interval,
    keep_best,
    pick_uniform,
    random_blocks,
    random_start,
    random_widths,
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
    """Mean score of each frame and of each mel bin, over the bins that count.

    Args:
        score: `[B, T, F]`.
        time_ok: `[B, T]` bool, False on frames to leave out (padding, digital silence, frames
            that the grid does not cover); None = all count.
        freq_ok: `[B, F]` (or `[1, F]`) bool, likewise for mel bins.

    Returns:
        The means; 0 on a line without a bin that counts.
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
    """Mean over the window at every start, and how many bins that count it holds.

    Args:
        marginal: `[B, L]`.
        width: `[B]` int64, 1 or more.
        ok: `[B, L]` bool, bins that count; None = all.

    Returns:
        Means `[B, L]` float32 over the bins that count, and their number `[B, L]` int64, -1
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
        ok: `[B, L]` (or `[1, L]`) bool, bins that count. Only the windows that hold most of them
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
    """Start `[B]` of the best window: least penalty, most valid bins, highest mean, at random."""
    allowed = keep_best(held >= 0, -penalty)
    return pick_uniform(keep_best(keep_best(allowed, held), means), u)


def start_penalty(select: Select, used: Tensor, taken: Tensor, width: Tensor) -> Tensor:
    """`[B, L]` penalty of each start: whether it is `used`, or its bins shared with `taken`."""
    return used.long() if select == "topk" else window_sums(taken.long(), width)


BlockWidth = Literal["max", "expected", "sampled"]
Placement = Literal["uniform", "start", "centre", "best"]

NUMBERS = 3
"""Random numbers of one block: width, position, choice among equal windows."""


@dataclass(frozen=True)
class Selection:
    """How the blocks of one axis are chosen.

    Attributes:
        max_width: Mask parameter M; widths are uniform on 0 .. M - 1.
        block_width: Unit of the window: `max` M, `expected` M // 2, `sampled` the mask's own.
        placement: Position of a narrower mask in its window; `best` is the hardest part of it.
        select: `nms` windows that share no bin while there is room; `topk` the plain ranking,
            whose windows are mostly neighbours.
        overlap: One rule for adaptive and random masks.
        fixed_width: Width of every mask instead of a random one (last epochs), usually M // 2.
    """

    max_width: int
    block_width: BlockWidth = "max"
    placement: Placement = "uniform"
    select: Select = "nms"
    overlap: Overlap = "forbid"
    fixed_width: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown words, which would otherwise act as another one."""
        for key, kind in (
            ("block_width", BlockWidth),
            ("placement", Placement),
            ("select", Select),
            ("overlap", Overlap),
        ):
            if getattr(self, key) not in get_args(kind):
                words = ", ".join(get_args(kind))
                raise ConfigError(f"{key}: unknown value {getattr(self, key)!r}; use {words}")


class AxisPlan(NamedTuple):
    """Masks of one axis and where they come from.

    Attributes:
        blocks: The masks, `[B, n]` each; the adaptive ones come first.
        window_start: `[B, n]` int64, start of an adaptive block's window; -1 for a random block.
        window_width: `[B, n]` int64, its width; 0 for a random block.
        adaptive: `[B, n]` bool.
    """

    blocks: Blocks
    window_start: Tensor
    window_width: Tensor
    adaptive: Tensor


def _best_in_window(
    marginal: Tensor, ok: Tensor | None, first: Tensor, slack: Tensor, width: Tensor, u: Tensor
) -> Tensor:
    """Start `[B, n]` of the hardest part of each window; all arguments but `marginal` `[B, n]`."""
    n = first.shape[1]
    means, held = window_means(
        marginal.repeat_interleave(n, 0),
        width.flatten().clamp(min=1),
        None if ok is None else ok.repeat_interleave(n, 0),
    )
    inside = interval(first.flatten(), slack.flatten() + 1, marginal.shape[1])
    chosen = keep_best(keep_best(inside & (held >= 0), held), means)
    return pick_uniform(chosen, u.flatten()).view_as(first)


def place_blocks(
    starts: Tensor,
    unit_width: int | Tensor,
    u: Tensor,
    max_width: int,
    size: int,
    *,
    fixed_width: int | None = None,
    placement: Placement = "uniform",
    marginal: Tensor | None = None,
    ok: Tensor | None = None,
) -> Blocks:
    """Put a mask into each window.

    A mask at most as wide as its window stays inside it. A wider one (windows of the expected
    width) is centred on its window and moved into the axis.

    Args:
        starts: `[B, n]` window starts.
        unit_width: Window width, one for all or `[B, n]`.
        u: `[B, n, 2 or more]` random numbers: width, position.
        max_width: Mask parameter; widths are uniform on 0 .. max_width - 1.
        size: Bins of the axis.
        fixed_width: Width of every mask instead of a random one.
        placement: `uniform`, `start`, `centre`, or `best`: the part of highest mean marginal.
        marginal: `[B, size]`, for `best`.
        ok: `[B, size]` bool, bins that count, for `best`.

    Raises:
        ConfigError: `best` without a marginal.
    """
    width = random_widths(u[..., 0], max_width, fixed_width).long()
    slack = unit_width - width
    centred = starts + slack.div(2, rounding_mode="floor")
    if placement == "uniform":
        start = starts + torch.minimum((u[..., 1] * (slack + 1)).long(), slack)
    elif placement == "start":
        start = starts
    elif placement == "best":
        if marginal is None:
            raise ConfigError("placement: best needs the marginal scores")
        start = _best_in_window(marginal, ok, starts, slack, width, u[..., 1])
    else:
        start = centred
    start = torch.where(slack >= 0, start, centred)
    return Blocks(torch.minimum(start.clamp(min=0), size - width), width)


def _settle(
    start: Tensor, width: Tensor, window: Tensor, window_width: Tensor, taken: Tensor
) -> Tensor:
    """Move a mask off the taken bins: within its window if possible, else to the nearest start.

    Windows are disjoint under `nms` while there is room, and then nothing moves.
    """
    size = taken.shape[1]
    allowed = keep_best(fitting_starts(width, size), -window_sums(taken.long(), width))
    allowed = keep_best(allowed, interval(window, (window_width - width).clamp(min=-1) + 1, size))
    distance = (torch.arange(size, device=start.device) - start[:, None]).abs()
    return keep_best(allowed, -distance).to(torch.uint8).argmax(1)


def random_plan(u: Tensor, settings: Selection, size: int, *, key: str = "max_width") -> AxisPlan:
    """A plan of random blocks only; `adaptive_blocks` with no adaptive block gives the same.

    Args:
        u: `[B, n, NUMBERS]` random numbers.
        settings: Of which `max_width`, `fixed_width` and `overlap` matter here.
        size: Bins of the axis.
        key: Name of the mask parameter, for messages.
    """
    blocks = random_blocks(
        u,
        settings.max_width,
        size,
        fixed_width=settings.fixed_width,
        overlap=settings.overlap,
        key=key,
    )
    none = torch.zeros_like(blocks.width)
    return AxisPlan(blocks, none - 1, none, none.bool())


def adaptive_blocks(
    marginal: Tensor,
    n_adaptive: Tensor,
    u: Tensor,
    settings: Selection,
    *,
    ok: Tensor | None = None,
    key: str = "max_width",
) -> AxisPlan:
    """Masks of one axis: the first `n_adaptive` of each clip on its hardest windows, then random.

    Args:
        marginal: `[B, L]` mean score of each bin of the axis.
        n_adaptive: `[B]` (or `[1]`) int64, adaptive blocks of each clip, 0 .. n.
        u: `[B, n, NUMBERS]` random numbers of n blocks: width, position, choice of equal windows.
        settings: How blocks are chosen.
        ok: `[B, L]` (or `[1, L]`) bool, bins that count; None = all.
        key: Name of the mask parameter, for messages.

    Raises:
        ConfigError: A mask does not fit the axis.
    """
    batch, size = marginal.shape
    n = u.shape[1]
    check_width(key, settings.max_width, size)
    check_width("fixed_width", settings.fixed_width or 0, size)
    if ok is not None:
        ok = ok.expand(batch, size)
    unfloored = random_widths(u[..., 0], settings.max_width, settings.fixed_width)
    width = unfloored.long()
    unit = {
        "max": torch.full_like(width, settings.max_width),
        "expected": torch.full_like(width, settings.max_width // 2),
        "sampled": width,
    }[settings.block_width].clamp(min=1)
    adaptive = torch.arange(n, device=u.device) < n_adaptive.to(u.device)[:, None]
    adaptive = adaptive.expand(batch, n)

    used = torch.zeros(batch, size, dtype=torch.bool, device=marginal.device)
    windowed, window = used, torch.zeros_like(width)
    for i in range(n):
        means, held = window_means(marginal, unit[:, i], ok)
        penalty = start_penalty(settings.select, used, windowed, unit[:, i])
        window[:, i] = pick_window(means, held, penalty, u[:, i, 2])
        used = used | interval(window[:, i], torch.ones_like(unit[:, i]), size)
        windowed = windowed | interval(window[:, i], unit[:, i], size)
    placed = place_blocks(
        window,
        unit,
        u,
        settings.max_width,
        size,
        fixed_width=settings.fixed_width,
        placement=settings.placement,
        marginal=marginal,
        ok=ok,
    ).start

    taken = torch.zeros_like(used)
    start = torch.zeros_like(width)
    for i in range(n):
        chosen = placed[:, i]
        if settings.overlap == "forbid":
            chosen = _settle(chosen, width[:, i], window[:, i], unit[:, i], taken)
        free = random_start(u[:, i, 1], unfloored[:, i], taken, settings.overlap)
        start[:, i] = torch.where(adaptive[:, i], chosen, free)
        taken = taken | interval(start[:, i], width[:, i], size)
    return AxisPlan(
        Blocks(start, width),
        torch.where(adaptive, window, -1),
        torch.where(adaptive, unit, 0),
        adaptive,
    )


# --- diagnostics ---


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
