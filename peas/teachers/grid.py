"""Resamples a teacher's feature map to one target a patch, by position in time and frequency.

A teacher's bins and the student's patches are two grids over the same sound. CLAP's 2 x 32 bins
on AudioMAE's 8 x 64 patches show why indices are not enough: its 32 columns span 10.01 s,
the 64 patches 10.24 s, so a plain x2 is wrong by up to 0.77 bin (0.24 s), and the border of its
two rows (2293 Hz) lies inside the patches' fifth row. So both grids are in seconds and Hz.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from peas.audio.filter_bank import LOW_FREQUENCY
from peas.errors import ConfigError

TargetGrid = Literal["physical", "physical_linear", "nearest", "bilinear"]

# The student's front end: 25 ms frames every 10 ms at 16 kHz.
_RATE = 16_000
_SHIFT = 0.010
_WINDOW = 0.025


@dataclass(frozen=True)
class Extent:
    """Position in time and frequency of the bins of a teacher's map `[D, F', T']`.

    Attributes:
        first_centre: Centre of column 0, in seconds from the clip's start.
        step: Seconds from one column's centre to the next.
        freq_edges: The F' + 1 borders of the rows in Hz, rising: row 0 holds the lowest sounds.

    Raises:
        ConfigError: If a number is not finite, the step is not positive, or the borders are fewer
            than two, below 0 or do not rise.
    """

    first_centre: float
    step: float
    freq_edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges = tuple(float(edge) for edge in self.freq_edges)
        object.__setattr__(self, "freq_edges", edges)
        if not all(math.isfinite(x) for x in (self.first_centre, self.step, *edges)):
            raise ConfigError(f"extent {self}: every number must be finite; correct it")
        if self.step <= 0:
            raise ConfigError(
                f"extent: step is {self.step} s, but columns follow each other in time; "
                "give the seconds from one column's centre to the next"
            )
        rising = all(low < high for low, high in pairwise(edges))
        if len(edges) < 2 or edges[0] < 0 or not rising:
            raise ConfigError(
                f"extent: freq_edges {list(edges)} must be at least two frequencies in Hz that "
                "rise from 0 or more: the borders of the rows, the lowest row first"
            )

    @property
    def rows(self) -> int:
        """Number of rows F' of the map."""
        return len(self.freq_edges) - 1


def target_matrix(
    extent: Extent,
    columns: int,
    *,
    time_patches: int,
    freq_patches: int,
    patch_frames: int = 16,
    patch_mels: int = 16,
    mels: int = 128,
    method: TargetGrid = "physical",
) -> Tensor:
    """Weights that give each patch of the student its target from the bins of a map.

    The patches are those of `kaldi_fbank` at 16 kHz that do not overlap: patch t is centred at
    `(t * patch_frames + (patch_frames - 1) / 2) * 10 + 12.5` ms, and a patch of mel bins reaches
    half a filter's step beyond the centres of its first and last filter. Methods:

    - `physical` (default): along time linear between the two nearest columns' centres, and the
      first or last column beyond them; along frequency the row that the patch's centre on the mel
      scale lies in, so that a target is never a blend of rows octaves apart.
    - `physical_linear`: the same in time; along frequency linear between the rows' centres on the
      mel scale.
    - `nearest`, `bilinear`: a plain resize of the map (no corner alignment), the common shortcut,
      misplaced where the two grids differ. Columns centred after the end of the patches' last
      frame are cut off first: a map of 10 s is not squeezed into a clip of 4 s.

    A map is used as `matrix @ map.flatten(1).T` with `[D, F' * T']`, rows of the map first.

    Args:
        extent: Position of the map's bins.
        columns: Number of columns T' of the map.
        time_patches: Number of patches along time.
        freq_patches: Number of patches along frequency, the lowest first.
        patch_frames: Frames of a patch.
        patch_mels: Mel bins of a patch.
        mels: Number of filters of the front end's bank (20 Hz to 8 kHz).
        method: One of the four above.

    Returns:
        `[N, F' * T']` float32, N = time_patches * freq_patches in time-major order
        (index = t * freq_patches + f). No weight is negative and each row sums to 1.

    Raises:
        ConfigError: If a count is not positive, the patches reach beyond the mel bins, or there is
            no such method.
    """
    counts = {
        "columns": columns,
        "time_patches": time_patches,
        "freq_patches": freq_patches,
        "patch_frames": patch_frames,
        "patch_mels": patch_mels,
    }
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"target grid: {name} is {count}, but must be at least 1; correct it")
    if freq_patches * patch_mels > mels:
        raise ConfigError(
            f"target grid: {freq_patches} patches of {patch_mels} mel bins reach beyond the "
            f"{mels} mel bins; choose fewer or smaller patches"
        )
    if method not in get_args(TargetGrid):
        raise ConfigError(
            f"target_grid: there is no {method!r}; choose one of {', '.join(get_args(TargetGrid))}"
        )
    if method in ("nearest", "bilinear"):
        end = _SHIFT * (time_patches * patch_frames - 1) + _WINDOW
        inside = math.ceil((end - extent.first_centre) / extent.step)
        time = _resized(min(max(inside, 1), columns), time_patches, method)
        time = functional.pad(time, (0, columns - time.shape[1]))
        freq = _resized(extent.rows, freq_patches, method)
    else:
        time = _linear(patch_times(time_patches, patch_frames), extent, columns)
        edges = patch_edges(freq_patches, patch_mels, mels)
        freq = _rows(edges, extent, blend=method == "physical_linear")
    # Time-major patches against frequency-major bins.
    weights = torch.einsum("tc,fr->tfrc", time, freq)
    return weights.reshape(time_patches * freq_patches, extent.rows * columns).float()


def patch_times(patches: int, patch_frames: int = 16) -> Tensor:
    """Centres `[N_t]` of patches along time in seconds, float64."""
    middle = torch.arange(patches, dtype=torch.float64) * patch_frames + (patch_frames - 1) / 2
    return middle * _SHIFT + _WINDOW / 2


def patch_edges(patches: int, patch_mels: int = 16, mels: int = 128) -> Tensor:
    """Borders `[N_f + 1]` of patches along frequency in Hz, float64.

    A filter's own band is taken to reach half way to its neighbours' centres on the mel scale:
    27, 290, 649, 1137, 1803, 2709, 3944, 5626 and 7916 Hz for AudioMAE's 8 patches.
    """
    low, high = _mel(torch.tensor([LOW_FREQUENCY, _RATE / 2], dtype=torch.float64)).tolist()
    step = (high - low) / (mels + 1)
    first = torch.arange(patches + 1, dtype=torch.float64) * patch_mels
    return _hertz(low + step * (first + 0.5))


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def _hertz(mel: Tensor) -> Tensor:
    return 700.0 * torch.expm1(mel / 1127.0)


def _linear(seconds: Tensor, extent: Extent, columns: int) -> Tensor:
    """Hat functions of the columns at given times, clamped to the first and last: `[N_t, T']`."""
    column = ((seconds - extent.first_centre) / extent.step).clamp(0, columns - 1)
    distance = column[:, None] - torch.arange(columns, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


def _rows(edges: Tensor, extent: Extent, *, blend: bool) -> Tensor:
    """Weights of the map's rows for patches with given borders: `[N_f, F']`."""
    mel, borders = _mel(edges), _mel(torch.tensor(extent.freq_edges, dtype=torch.float64))
    centres = (mel[:-1] + mel[1:]) / 2
    if not blend:
        row = torch.bucketize(centres, borders[1:-1], right=True)
        return functional.one_hot(row, extent.rows).double()
    middles = (borders[:-1] + borders[1:]) / 2
    if extent.rows == 1:
        return torch.ones(len(centres), 1, dtype=torch.float64)
    left = torch.bucketize(centres, middles[1:-1])
    share = ((centres - middles[left]) / (middles[left + 1] - middles[left])).clamp(0, 1)
    weights = torch.zeros(len(centres), extent.rows, dtype=torch.float64)
    weights.scatter_(1, left[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, left[:, None] + 1, share[:, None])


def _resized(bins: int, patches: int, method: str) -> Tensor:
    """Weights of a plain resize of one axis: `[patches, bins]`."""
    eye = torch.eye(bins, dtype=torch.float64)[None]
    mode = "linear" if method == "bilinear" else "nearest"
    return functional.interpolate(eye, size=patches, mode=mode)[0].T
