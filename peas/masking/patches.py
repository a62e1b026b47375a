"""Patch masking of pretraining: the base, and AudioMAE's two kinds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.models.patches import Pair
from peas.parts import Part

OWN = "drawn"
"""Stream of random numbers of a masking that has one: where each objective has a pass of its own,
the objective's `stream` replaces it."""


class PatchMasking(Part, ABC):
    """Which patches of a clip are masked: a function of uniform random numbers and the log-mel."""

    @abstractmethod
    def visible(self, grid: Pair) -> int:
        """Number of patches V that stay visible in each clip.

        Args:
            grid: Patches along (frequency, time).

        Raises:
            ConfigError: None would be masked, or none visible.
        """

    @abstractmethod
    def random_numbers(self, grid: Pair) -> dict[str, int]:
        """How many random numbers a clip needs, by a name for each stream of them."""

    @abstractmethod
    def mask(self, rand: Mapping[str, Tensor], grid: Pair, log_mel: Tensor) -> Tensor:
        """Masked patches, `[B, N]` bool in time-major order, equally many in each row.

        Args:
            rand: `[B, K]` each, uniform in [0, 1), on the CPU, as `random_numbers` asks for.
            grid: Patches along (frequency, time).
            log_mel: `[B, T, F]`, on the device.
        """


class RandomPatches(PatchMasking):
    """Patches at random, without replacement (AudioMAE's unstructured masking).

    Args:
        ratio: Share of the patches that is masked.

    Raises:
        ConfigError: It is no share.
    """

    def __init__(self, ratio: float = 0.8) -> None:
        self.ratio = _fraction("RandomPatches", "ratio", ratio)

    def visible(self, grid: Pair) -> int:
        """As the official code rounds it."""
        count = math.prod(grid)
        return _possible(int(count * (1 - self.ratio)), count, "ratio")

    def random_numbers(self, grid: Pair) -> dict[str, int]:
        """One number a patch."""
        return {"patches": math.prod(grid)}

    def mask(self, rand: Mapping[str, Tensor], grid: Pair, log_mel: Tensor) -> Tensor:
        """Those of the largest numbers."""
        return random_patches(rand["patches"], self.visible(grid))


class StructuredPatches(PatchMasking):
    """Entire columns and bands of patches (AudioMAE's structured masking).

    Args:
        time_ratio: Share of the columns that is masked.
        freq_ratio: Share of the bands that is masked.

    Raises:
        ConfigError: One is no share.
    """

    def __init__(self, time_ratio: float = 0.7, freq_ratio: float = 0.3) -> None:
        self.time_ratio = _fraction("StructuredPatches", "time_ratio", time_ratio)
        self.freq_ratio = _fraction("StructuredPatches", "freq_ratio", freq_ratio)

    def kept(self, grid: Pair) -> Pair:
        """Bands and columns that stay, as the official code rounds them."""
        return int(grid[0] * (1 - self.freq_ratio)), int(grid[1] * (1 - self.time_ratio))

    def visible(self, grid: Pair) -> int:
        """Patches in a band and a column that both stay."""
        return _possible(math.prod(self.kept(grid)), math.prod(grid), "time_ratio and freq_ratio")

    def random_numbers(self, grid: Pair) -> dict[str, int]:
        """One number a column, and one a band."""
        return {"times": grid[1], "bands": grid[0]}

    def mask(self, rand: Mapping[str, Tensor], grid: Pair, log_mel: Tensor) -> Tensor:
        """Columns and bands of the largest numbers."""
        bands, times = self.kept(grid)
        return time_freq_mask(rand["times"], rand["bands"], times, bands).flatten(1)


def _fraction(cls: str, name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ConfigError(
            f"`{cls}.init_args.{name}` is {value}: give a fraction between 0 and 1, both excluded; "
            "with nothing masked or nothing visible there is nothing to learn"
        )
    return value


def _possible(visible: int, count: int, names: str) -> int:
    if not 0 < visible < count:
        raise ConfigError(
            f"`init_args.{names}`: {visible} of {count} patches visible; some must be visible and "
            "some masked"
        )
    return visible


def random_patches(u: Tensor, visible: int) -> Tensor:
    """Mask patches at random, without replacement: those of the largest numbers.

    AudioMAE's rule (the first `visible` indices of the argsort stay), and the plain sampling
    of SSAST's frame models.

    Args:
        u: `[B, N]` uniform random numbers.
        visible: Number of patches that stay in each row.

    Returns:
        `[B, N]` bool, N - `visible` of them true in each row.

    Raises:
        ConfigError: If `visible` is not in 1 … N.
    """
    patches = u.shape[1]
    if not 1 <= visible <= patches:
        raise ConfigError(
            f"{visible} of {patches} patches cannot stay visible; choose 1 to {patches}"
        )
    kept = u.argsort(dim=1, stable=True)[:, :visible]
    return torch.ones_like(u, dtype=torch.bool).scatter(1, kept, False)


def time_freq_mask(u_time: Tensor, u_freq: Tensor, kept_times: int, kept_bands: int) -> Tensor:
    """Mask entire columns and bands of the grid, AudioMAE's structured masking.

    A patch stays visible when its column and its band both do.

    Args:
        u_time: `[B, T']` uniform random numbers, one a column of patches.
        u_freq: `[B, F']` uniform random numbers, one a band of patches.
        kept_times: Number of columns that stay.
        kept_bands: Number of bands that stay.

    Returns:
        `[B, T', F']` bool; flattened, in time-major order.

    Raises:
        ConfigError: If more columns or bands shall stay than there are, or none.
    """
    columns, bands = random_patches(u_time, kept_times), random_patches(u_freq, kept_bands)
    return columns[:, :, None] | bands[:, None, :]


def masked_ids(masked: Tensor) -> Tensor:
    """Ascending indices of the masked patches: `[B, N]` bool to `[B, M]` int64.

    Every row must mask equally many.
    """
    return masked.nonzero()[:, 1].view(len(masked), -1)
