"""Patch masking of pretraining: the base, AudioMAE's two kinds, and SSAST's clusters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from peas.errors import ConfigError
from peas.masking.sampling import SIDES, PatchSampler, SamplerName, random_patches, time_freq_mask
from peas.models.patches import Pair
from peas.parts import Part

OWN = "drawn"
"""Stream of random numbers of a masking that has one: where each objective has a pass of its own,
the objective's `stream` takes its place."""


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
        self.ratio = _share("ratio", ratio)

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
    """Whole columns and whole bands of patches (AudioMAE's structured masking).

    Args:
        time_ratio: Share of the columns that is masked.
        freq_ratio: Share of the bands that is masked.

    Raises:
        ConfigError: One is no share.
    """

    def __init__(self, time_ratio: float = 0.7, freq_ratio: float = 0.3) -> None:
        self.time_ratio = _share("time_ratio", time_ratio)
        self.freq_ratio = _share("freq_ratio", freq_ratio)

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


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ConfigError(
            f"`model.init_args.masking.init_args.{name}` is {value}: give a share between 0 and "
            "1, both excluded; with nothing masked or nothing visible there is nothing to learn"
        )
    return value


def _possible(visible: int, count: int, names: str) -> int:
    if not 0 < visible < count:
        raise ConfigError(
            f"`model.init_args.masking.init_args.{names}` leave {visible} of {count} patches "
            "visible: some must be visible and some masked"
        )
    return visible


class ClusteredPatches(PatchMasking):
    """SSAST's masking: square clusters of patches, equally many patches in every clip.

    Frame models, whose grid has one row of frequency, mask patches at random: clusters harmed
    them, says the official code.

    Args:
        num_masked: Patches that are masked: 400 of 512; the paper also has 250 and 100.
        sampler: `batched`, the official distribution for a whole batch; `official`, the official
            loop, a clip at a time; `unbiased`, clusters that favour no place. See `PatchSampler`.
        sides: Sides of the clusters, one of which each clip draws.

    Raises:
        ConfigError: The grid cannot have so many masked.
    """

    def __init__(
        self,
        num_masked: int = 400,
        sampler: SamplerName = "batched",
        sides: tuple[int, ...] = SIDES,
    ) -> None:
        self.num_masked, self.sampler, self.sides = num_masked, sampler, tuple(sides)

    def _sampler(self, grid: Pair) -> PatchSampler:
        try:
            return PatchSampler(grid, self.num_masked, self.sampler, self.sides)
        except ConfigError as error:
            settings = (
                f"num_masked {self.num_masked}, sampler {self.sampler}, sides {[*self.sides]}"
            )
            raise ConfigError(f"ClusteredPatches.init_args ({settings}): {error}") from error

    def visible(self, grid: Pair) -> int:
        """All but `num_masked`."""
        return math.prod(grid) - self._sampler(grid).count

    def random_numbers(self, grid: Pair) -> dict[str, int]:
        """As many as the sampler takes."""
        return {OWN: self._sampler(grid).draws}

    def mask(self, rand: Mapping[str, Tensor], grid: Pair, log_mel: Tensor) -> Tensor:
        """Clusters by the sampler."""
        masked = self._sampler(grid)(rand[OWN])
        return masked.view(len(masked), *grid).transpose(1, 2).flatten(1)
