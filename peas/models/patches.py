"""Arithmetic of patches: spectrogram to patches and back, tables of positions, masked patches.

A patch, a stride and a grid are pairs `(frequency, time)`. Tokens are in frequency-major order,
`token = f_index * t_grid + t_index`, and a patch is flattened in (frequency, time) row-major
order, as in the official SSAST and AudioMAE checkpoints.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from peas.errors import ConfigError

Pair = tuple[int, int]


def grid_shape(frames: int, mels: int, patch: Pair, stride: Pair) -> Pair:
    """Number of patches along frequency and along time.

    Args:
        frames: Number of frames T.
        mels: Number of mel bins F.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between two patches, (mel bins, frames).

    Raises:
        ConfigError: If the spectrogram is smaller than one patch, or a number is not positive.
    """
    if min(*patch, *stride) < 1:
        raise ConfigError(f"patch {patch} and stride {stride} must be positive; correct them")
    if mels < patch[0] or frames < patch[1]:
        raise ConfigError(
            f"a spectrogram of {frames} frames and {mels} mel bins is smaller than one patch of "
            f"{patch[0]} mel bins and {patch[1]} frames; choose a smaller patch or longer input"
        )
    return (mels - patch[0]) // stride[0] + 1, (frames - patch[1]) // stride[1] + 1


def patchify(log_mel: Tensor, patch: Pair) -> Tensor:
    """Cut a spectrogram into patches that do not overlap.

    Args:
        log_mel: `[B, T, F]`, whose T and F are multiples of the patch.
        patch: Height and width of a patch, (mel bins, frames).

    Returns:
        `[B, N, P]` with P = the bins of a patch.

    Raises:
        ConfigError: If a side is not a multiple of the patch.
    """
    batch, frames, mels = log_mel.shape
    if mels % patch[0] or frames % patch[1]:
        raise ConfigError(
            f"{frames} frames and {mels} mel bins are no multiple of the patch {patch}; "
            "pad the spectrogram first (pad_to_patch)"
        )
    rows, columns = mels // patch[0], frames // patch[1]
    bins = log_mel.transpose(1, 2).reshape(batch, rows, patch[0], columns, patch[1])
    return bins.transpose(2, 3).reshape(batch, rows * columns, patch[0] * patch[1])


def unpatchify(patches: Tensor, patch: Pair, grid: Pair) -> Tensor:
    """Put patches that do not overlap back into a spectrogram: the inverse of `patchify`.

    Args:
        patches: `[B, N, P]`.
        patch: Height and width of a patch, (mel bins, frames).
        grid: Patches along (frequency, time), whose product is N.

    Returns:
        `[B, T, F]`.
    """
    bins = patches.reshape(-1, grid[0], grid[1], patch[0], patch[1]).transpose(2, 3)
    return bins.reshape(-1, grid[0] * patch[0], grid[1] * patch[1]).transpose(1, 2)


def pad_to_patch(log_mel: Tensor, patch: Pair) -> Tensor:
    """Lengthen `[B, T, F]` with zeros at its ends to multiples of the patch."""
    _, frames, mels = log_mel.shape
    return functional.pad(log_mel, (0, -mels % patch[0], 0, -frames % patch[1]))


def fold_average(patches: Tensor, patch: Pair, stride: Pair, frames: int, mels: int) -> Tensor:
    """Put patches that may overlap into a spectrogram; overlapped bins hold their mean.

    Args:
        patches: `[B, N, P]` for the grid `grid_shape(frames, mels, patch, stride)`.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between two patches, (mel bins, frames).
        frames: Number of frames T of the result.
        mels: Number of mel bins F of the result.

    Returns:
        `[B, T, F]`; bins under no patch hold 0, see `covered`.
    """
    size = (mels, frames)
    # Summing thousands of overlapping bins belongs in float32, and half `fold` is not everywhere.
    columns = patches.float().transpose(1, 2)
    total = functional.fold(columns, size, patch, stride=stride)
    count = functional.fold(torch.ones_like(columns[:1]), size, patch, stride=stride)
    return (total / count.clamp_min(1)).squeeze(1).transpose(1, 2)


def covered(frames: int, mels: int, patch: Pair, stride: Pair) -> tuple[Tensor, Tensor]:
    """Frames and mel bins that some patch covers.

    A bin is covered exactly if its frame and its mel bin both are.

    Returns:
        `[T]` and `[F]` boolean, on the CPU.
    """
    grid = grid_shape(frames, mels, patch, stride)

    def axis(length: int, kernel: int, step: int, count: int) -> Tensor:
        # Up to the last patch's end, and only where a stride longer than the patch leaves no gap.
        index = torch.arange(length)
        return (index < (count - 1) * step + kernel) & (index % step < kernel)

    return axis(frames, patch[1], stride[1], grid[1]), axis(mels, patch[0], stride[0], grid[0])


def resize_positions(table: Tensor, special: int, source: Pair, target: Pair) -> Tensor:
    """Fit a table of positions to another grid, as the official SSAST does for fine-tuning.

    A shorter axis is cut from the centre, a longer one interpolated linearly (no corner
    alignment, no antialiasing); time comes first, then frequency. The official code cuts the
    frequency axis to the length of the *time* axis and so fails on fewer mel bins than it was
    pretrained on; here it is cut to its own length.

    Args:
        table: `[1, K + N, D]`, K special tokens first.
        special: Number of special tokens K; their positions are kept.
        source: Grid of the table, (frequency, time).
        target: Grid that is wanted.

    Returns:
        `[1, K + N', D]`.

    Raises:
        ConfigError: If the table does not have the source grid's number of positions.
    """
    if table.shape[1] != special + source[0] * source[1]:
        raise ConfigError(
            f"a table of {table.shape[1]} positions does not fit {special} special tokens and a "
            f"grid of {source[0]} x {source[1]} patches; check frames, mels, patch and stride"
        )
    width = table.shape[2]
    grid = table[:, special:].transpose(1, 2).reshape(1, width, *source)
    for axis in (3, 2):
        old, new = grid.shape[axis], target[axis - 2]
        if new < old:
            grid = grid.narrow(axis, old // 2 - new // 2, new)
        elif new > old:
            size = (new, grid.shape[3]) if axis == 2 else (grid.shape[2], new)
            grid = functional.interpolate(grid, size=size, mode="bilinear")
    return torch.cat((table[:, :special], grid.flatten(2).transpose(1, 2)), dim=1)


def sample_positions(
    table: Tensor, source: Pair, target: Pair, *, special: int, step: tuple[float, float]
) -> Tensor:
    """Interpolate a table of positions at patches of another stride.

    Patch i of an axis is at `i * step` of the table's, and its position is interpolated linearly
    between its two neighbours. Beyond the last one the last is repeated.

    Args:
        table: `[1, K + N, D]`, K special tokens first, which are kept.
        source: Grid of the table, (frequency, time).
        target: Grid that is wanted.
        special: Number of special tokens K.
        step: The wanted grid's stride over the table's, (frequency, time).

    Returns:
        `[1, K + N', D]`.
    """
    width = table.shape[2]
    grid = table[:, special:].transpose(1, 2).reshape(1, width, *source)
    rows, columns = (
        2 * torch.arange(count, device=table.device, dtype=table.dtype) * one / max(size - 1, 1) - 1
        for count, one, size in zip(target, step, source, strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    where = torch.stack((x, y), dim=-1).unsqueeze(0)
    read = functional.grid_sample(grid, where, padding_mode="border", align_corners=True)
    return torch.cat((table[:, :special], read.flatten(2).transpose(1, 2)), dim=1)


Grid = Literal["nonoverlap", "finetune"]
"""Patches of `reconstruct`: those of pretraining, or the model's own in fine-tuning."""


def check_grid(grid: str) -> None:
    """Refuse an unknown grid.

    Raises:
        ConfigError: It is neither `nonoverlap` nor `finetune`.
    """
    if grid not in ("nonoverlap", "finetune"):
        raise ConfigError(f"unknown grid {grid!r}; choose 'nonoverlap' or 'finetune'")


def visible_indices(masked: Tensor) -> Tensor:
    """Indices of the patches that stay, in their order.

    Args:
        masked: `[B, N]` bool, equally many True in each row.

    Returns:
        `[B, V]` int64.

    Raises:
        ConfigError: The rows mask different numbers of patches, or a row masks all of them.
    """
    if masked.device.type == "cpu":
        # Asking would make a GPU wait; there a ragged mask fails below on its shape.
        counts = masked.sum(dim=1)
        if len(counts) and (counts.min() != counts.max() or int(counts[0]) == masked.shape[1]):
            raise ConfigError(
                f"`dropped_patches` has {int(counts.min())} to {int(counts.max())} of "
                f"{masked.shape[1]} patches: every clip must drop equally many, and keep one"
            )
    visible = (~masked).nonzero()[:, 1]
    return visible.view(len(masked), -1)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens by index: `[B, N, D]` and `[B, V]` to `[B, V, D]`."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def other_geometry(own: Tensor, theirs: Tensor) -> str:
    """Why weights do not fit a model's input, or nothing when they do.

    Args:
        own: The model's `geometry`, whose first entries are frames, mels and stride.
        theirs: That of the weights.
    """
    ours, other = own[:4].tolist(), theirs[:4].tolist()
    if ours == other:
        return ""
    return (
        f"the weights belong to (frames, mels, stride) {other}, the model to {ours}; "
        "build the model with the weights' frames, mels and stride"
    )
