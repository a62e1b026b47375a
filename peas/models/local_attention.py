"""Attention inside windows of the patch grid: the blocks of AudioMAE's local decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.models.patches import Pair

MASKED = -100.0
"""Added to the logits of two tokens that a window must keep apart, as Swin has it."""
LEAST = 1e-6
"""Least product of two norms, as in the official code: a token may be zero."""


class WindowMap:
    """How a grid of tokens is cut into windows, with or without a shift.

    A side that is no multiple of the window is padded with tokens that no token attends to.

    Args:
        grid: Patches along (time, frequency).
        window: Side of a square window, in patches; smaller grids get smaller windows.
        shift: Patches by which the grid is rolled against the windows, along (time, frequency).

    Attributes:
        sides: Height and width of a window.
        index: `[windows, L]` index of the token in each bin of a window; N for a filler.
        back: `[N]` index of each token in the flattened windows.
        mask: `[windows, L, L]` float32, 0 or `MASKED`; None when nothing is kept apart.
    """

    def __init__(self, grid: Pair, window: int, shift: Pair = (0, 0)) -> None:
        sides = (min(window, grid[0]), min(window, grid[1]))
        # A window as long as the grid has nothing to be shifted against.
        shift = (
            0 if sides[0] >= grid[0] else shift[0],
            0 if sides[1] >= grid[1] else shift[1],
        )
        padded = [-(-length // side) * side for length, side in zip(grid, sides, strict=True)]
        count = grid[0] * grid[1]
        index = torch.full(padded, count)
        index[: grid[0], : grid[1]] = torch.arange(count).view(grid)
        region = torch.zeros(padded, dtype=torch.int64)
        for axis, (length, side, step) in enumerate(zip(padded, sides, shift, strict=True)):
            if step:
                # After the roll the last window holds the grid's end and its beginning.
                line = torch.zeros(length, dtype=torch.int64)
                line[length - side : length - step], line[length - step :] = 1, 2
                region = region * 3 + (line[:, None] if axis == 0 else line)
        rolled = index.roll((-shift[0], -shift[1]), (0, 1))
        self.sides: Pair = sides
        self.index = _cut(rolled, sides)
        self.back = self.index.flatten().argsort()[:count]
        parts = _cut(region, sides)
        apart = (parts[:, :, None] != parts[:, None]) | (self.index == count)[:, None]
        # Told from the sizes: asking the tensor would break a compiled graph.
        needed = any(shift) or self.index.numel() > count
        self.mask = torch.where(apart, MASKED, 0.0) if needed else None


def _cut(field: Tensor, sides: Pair) -> Tensor:
    rows, columns = field.shape[0] // sides[0], field.shape[1] // sides[1]
    bins = field.view(rows, sides[0], columns, sides[1]).transpose(1, 2)
    return bins.reshape(rows * columns, sides[0] * sides[1])


class MetaMlp(nn.Module):
    """Two linear layers from a relative position to one bias a head, with dropout after each."""

    def __init__(self, heads: int, hidden: int = 384, drop: float = 0.1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden)
        self.fc2 = nn.Linear(hidden, heads)
        self.drop = nn.Dropout(drop)

    def forward(self, positions: Tensor) -> Tensor:
        """`[..., 2]` to `[..., heads]`."""
        bias: Tensor = self.drop(self.fc2(self.drop(functional.relu(self.fc1(positions)))))
        return bias


class WindowAttention(nn.Module):
    """Swin V2's attention: cosine similarity, learnt temperature, log-spaced relative positions.

    All windows of all clips are one batched attention.

    Attributes:
        qkv: D to 3 D.
        proj: D to D.
        tau: `[heads]`, temperature, at least 0.01.
        meta_mlp: Bias of a relative position.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.tau = nn.Parameter(torch.ones(heads))
        self.meta_mlp = MetaMlp(heads)

    def bias(self, relative: Tensor) -> Tensor:
        """Bias `[heads, L, L]` of relative positions `[L, L, 2]`."""
        bias: Tensor = self.meta_mlp(relative).permute(2, 0, 1)
        return bias

    def forward(self, windows: Tensor, relative: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        Written out, since the fused kernel of a CPU knows no bias that has a gradient. The norms
        divide the scores, of which there are half as many as queries and keys.

        Args:
            windows: `[B, windows, L, D]`.
            relative: `[L, L, 2]`.
            mask: `[windows, L, L]` or None.

        Returns:
            `[B, windows, L, D]`.
        """
        batch, count, bins, width = windows.shape
        shape = (batch * count, bins, 3, self.heads, width // self.heads)
        # Copied once, so that products and norms keep the copies for the backward pass, and not
        # the rows of all three as well.
        parts = self.qkv(windows).view(shape).permute(2, 0, 3, 1, 4)
        q, k, v = (part.contiguous() for part in parts)
        tau = self.tau.clamp(min=0.01)[:, None, None]
        rows, columns = _norms(q) * tau, _norms(k).transpose(2, 3)
        scores = (q @ k.transpose(2, 3)) / (rows * columns).clamp(min=LEAST)
        bias = self.bias(relative.to(tau.dtype))
        if mask is not None:
            bias = bias + mask[:, None]
        weights = (scores.view(batch, count, *scores.shape[1:]) + bias).softmax(dim=-1)
        mixed = (weights.flatten(0, 1).to(v.dtype) @ v).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(windows.shape))
        return out


def _norms(rows: Tensor) -> Tensor:
    """Lengths of `[..., D]`, `[..., 1]`, in float32 or better."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide)
    return lengths


class LocalBlock(nn.Module):
    """A Swin V2 block: each branch is normalised before it is added.

    Attributes:
        attn: `WindowAttention`.
        norm1: After the attention.
        mlp: D to 4 D to D, GELU.
        norm2: After the MLP.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, 4 * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(4 * width, width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, windows: Tensor, relative: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, windows, L, D]` to the same shape; see `WindowAttention.forward`."""
        windows = windows + self.norm1(self.attn(windows, relative, mask))
        out: Tensor = windows + self.norm2(self.mlp(windows))
        return out


class LocalBlocks(nn.ModuleList):
    """Local blocks over a grid; every second one sees it shifted by two patches in time.

    The official code shifts by (2, 0), its paper says 50 % in both directions.

    Args:
        width: Width D.
        depth: Number of blocks.
        heads: Attention heads.
        window: Side of a window.
        first_shift: 0 = the first block is not shifted, as official; 1 = it is.
    """

    def __init__(
        self, width: int, depth: int, heads: int, window: int = 4, first_shift: int = 0
    ) -> None:
        super().__init__(LocalBlock(width, heads) for _ in range(depth))
        self.window, self.first_shift = window, first_shift
        self._maps: dict[tuple[Pair, bool, torch.device], _Placed] = {}

    def forward(self, tokens: Tensor, grid: Pair) -> Tensor:
        """Run the blocks.

        Args:
            tokens: `[B, N, D]`, time-major.
            grid: Patches along (time, frequency).

        Returns:
            `[B, N, D]`.
        """
        if not len(self):
            return tokens
        cut: _Placed | None = None
        for index, block in enumerate(self):
            placed = self.placed(grid, bool((index + self.first_shift) % 2), tokens.device)
            if placed is not cut:
                tokens = placed.cut(tokens) if cut is None else placed.recut(tokens, cut)
                cut = placed
            tokens = block(tokens, placed.relative, placed.mask)
        assert cut is not None
        return cut.join(tokens)

    def placed(self, grid: Pair, shifted: bool, device: torch.device) -> "_Placed":
        """The windows of a grid, on a device."""
        key = (grid, shifted, device)
        if key not in self._maps:
            # Official: two patches, whatever the window.
            shift = (min(2, self.window // 2), 0) if shifted else (0, 0)
            # What an evaluation makes must serve training too.
            with torch.inference_mode(False):
                self._maps[key] = _Placed(WindowMap(grid, self.window, shift), device)
        return self._maps[key]


class _Placed:
    """A `WindowMap` on a device."""

    def __init__(self, windows: WindowMap, device: torch.device) -> None:
        self.index = windows.index.to(device)
        self.back = windows.back.to(device)
        self.mask = None if windows.mask is None else windows.mask.to(device)
        self.count = windows.back.numel()
        high, wide = windows.sides
        position = torch.stack(
            torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij"), dim=-1
        ).view(-1, 2)
        distance = (position[:, None] - position[None]).float()
        self.relative = (distance.sign() * distance.abs().log1p()).to(device)

    def cut(self, tokens: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, windows, L, D]`."""
        if self.index.numel() > self.count:
            tokens = functional.pad(tokens, (0, 0, 0, 1))
        return self._windows(tokens, self.index.flatten())

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of `cut`."""
        return windows.flatten(1, 2).index_select(1, self.back)

    def recut(self, windows: Tensor, other: "_Placed") -> Tensor:
        """`cut` of what lies in other windows; in one pass where no window has fillers."""
        if other.index.numel() > self.count or self.index.numel() > self.count:
            return self.cut(other.join(windows))
        order = other.back[self.index.flatten()]
        return self._windows(windows.flatten(1, 2), order)

    def _windows(self, tokens: Tensor, order: Tensor) -> Tensor:
        return tokens.index_select(1, order).view(len(tokens), *self.index.shape, -1)
