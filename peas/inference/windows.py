"""Sound of any length as windows of the model's input."""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from peas.audio.frontend import FrontEnd
from peas.errors import ConfigError
from peas.models.encoder import Encoder


class Layout(NamedTuple):
    """How an encoder's input lies in a clip.

    Attributes:
        frames: Frames T of a window.
        columns: Patches along time T' of a window.
        patch: Frames of a patch.
        stride: Frames from one column of patches to the next.
        hop: Columns from one window to the next.
    """

    frames: int
    columns: int
    patch: int
    stride: int
    hop: int

    def kept(self, frames: int) -> int:
        """Columns whose centre lies in a clip of so many frames; at least one."""
        last = (frames - 1 - (self.patch - 1) / 2) / self.stride
        return max(1, math.floor(last) + 1)

    def windows(self, frames: int) -> int:
        """Windows that hold these columns; one for a clip that fits into the input."""
        if frames <= self.frames:
            return 1
        return 1 + max(0, math.ceil((self.kept(frames) - self.columns) / self.hop))


class Windows(NamedTuple):
    """Windows of a batch of clips. W windows of B clips.

    Attributes:
        log_mel: `[W, T, F]`; what lies past a clip's end is padded as in training.
        clip: `[W]` index of the window's clip.
        start: `[W]` column of the clip with which the window begins.
        kept: `[W]` columns of the window that hold sound.
    """

    log_mel: Tensor
    clip: Tensor
    start: Tensor
    kept: Tensor


def layout(encoder: Encoder, overlap: float = 0.0) -> Layout:
    """Layout of windows that share a part of their columns.

    Args:
        encoder: Built.
        overlap: Share of a window that the next one repeats, in [0, 1).

    Raises:
        ConfigError: The share is out of range.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap is {overlap}: give a share of a window, from 0 to below 1")
    columns = encoder.grid[1]
    hop = max(1, round(columns * (1 - overlap)))
    return Layout(encoder.frames, columns, encoder.patch[1], encoder.stride[1], hop)


def frame_samples(front_end: FrontEnd) -> tuple[int, int]:
    """Samples from one frame to the next, and of one frame."""
    front_end = copy.deepcopy(front_end)
    one, two = (front_end.build(frames=count).samples() for count in (1, 2))
    return two - one, one


def cut(front_end: FrontEnd, waveforms: Sequence[Tensor], layout: Layout) -> Windows:
    """Log-mel windows of clips.

    The front end gets each clip from beginning to end, and windows are cut from its log-mel, so
    that the first one is what training and `peas test` make of the clip.

    Args:
        front_end: With the model's statistics; its own `frames` are not used.
        waveforms: `[S]` each, at the front end's rate, on its device.
        layout: Of the windows.
    """
    device = waveforms[0].device
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    step = layout.hop * layout.stride
    shift, length = frame_samples(front_end)
    longest = max(1, 1 + (int(lengths.max()) - length) // shift)
    total = layout.frames + (layout.windows(longest) - 1) * step
    batch = pad_sequence(list(waveforms), batch_first=True)
    sound = copy.deepcopy(front_end).build(frames=total)(batch, lengths.to(device))
    frames = [int(count) for count in sound.frames.tolist()]
    counts = [layout.windows(count) for count in frames]
    clip = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    start = torch.cat([torch.arange(count) for count in counts]) * layout.hop
    kept = torch.tensor([layout.kept(count) for count in frames])[clip] - start
    unfolded = sound.log_mel.unfold(1, layout.frames, step).transpose(2, 3)
    log_mel = unfolded[clip.to(device), (start // layout.hop).to(device)]
    return Windows(log_mel.contiguous(), clip, start, kept.clamp(max=layout.columns))


def _mean(values: Tensor, clip: Tensor, weight: Tensor, count: int) -> Tensor:
    """Weighted means over each clip's windows: `[W, X]` to `[B, X]` float64."""
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, clip, weight.double())
    summed = torch.zeros(count, values.shape[1], dtype=torch.float64)
    summed.index_add_(0, clip, values.double() * weight.double()[:, None])
    return summed / total[:, None]


def pool_windows(sums: Tensor, windows: Windows, count: int, pool: str) -> Tensor:
    """Embeddings `[L, B, D]` from the sums `[L, W, D]` of windows."""
    rows = []
    for summed in sums:
        columns = windows.kept.double()
        means = _mean(summed / columns[:, None], windows.clip, columns, count)
        if pool == "mean+std":
            mean, square = means.chunk(2, dim=1)
            means = torch.cat((mean, (square - mean.square()).clamp(min=0).sqrt()), dim=1)
        rows.append(means.float())
    return torch.stack(rows)


def join_bands(grid: Tensor, bands: str) -> Tensor:
    """`[W, T', F', D]` to `[W, T', D']`."""
    return grid.mean(dim=2) if bands == "mean" else grid.flatten(2)


def join_windows(grids: Tensor, windows: Windows, count: int) -> list[Tensor]:
    """Frames `[L, T', D']` of each clip, from those of its windows `[L, W, T', D']`."""
    clips = []
    for number in range(count):
        mine = (windows.clip == number).nonzero()[:, 0].tolist()
        end = max(int(windows.start[w] + windows.kept[w]) for w in mine)
        summed = grids.new_zeros(len(grids), end, grids.shape[3])
        times = grids.new_zeros(end)
        for w in mine:
            start, kept = int(windows.start[w]), int(windows.kept[w])
            summed[:, start : start + kept] += grids[:, w, :kept]
            times[start : start + kept] += 1
        clips.append(summed / times[:, None])
    return clips
