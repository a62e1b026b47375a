"""SSAST's patch masking: square clusters, as pure functions of uniform random numbers.

The samplers take numbers in [0, 1) for a batch and return `[B, N]` bool, True = masked, equally
many in each row, in SSAST's frequency-major order. Grids are pairs `(frequency, time)`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.masking.patches import OWN, PatchMasking, random_patches
from peas.models.patches import Pair

SIDES = (3, 4, 5)
"""Sides of SSAST's square clusters; each clip draws one of them."""


# --- SSAST's clusters, one clip at a time -----------------------------------------------------


def official_clusters(
    rng: random.Random, grid: Pair, count: int, sides: Sequence[int] = SIDES
) -> list[int]:
    """Hidden patches of one clip, as the official SSAST draws them from Python's `random`.

    A side C is drawn, then starts among all patches; each adds the indices
    `start + i * T_grid + j` with i, j < C that lie between 0 and N, both excluded, until there are
    more than `count`; the highest are dropped. So patch 0 and the last are never masked, a block
    at the end of a row goes on in the next one, and the lowest mel bands are masked least. The
    same seed gives the same indices as the official code in its settings (100 to 400 of 512;
    below 77 that code's choice of what to drop hangs on the memory layout of Python's sets).

    Args:
        rng: Source of the draws; the official code uses the module `random` itself.
        grid: Patches along (frequency, time).
        count: Number of patches to hide.
        sides: Sides to draw from.

    Returns:
        `count` ascending indices.

    Raises:
        ConfigError: If these clusters cannot hide so many.
    """
    patches = _require_clusters(grid, count, sides, spare=2)
    side = sides[rng.randrange(len(sides))]
    chosen: set[int] = set()
    while len(chosen) <= count:
        start = rng.randrange(patches)
        for i in range(side):
            for j in range(side):
                index = start + i * grid[1] + j
                if 0 < index < patches:
                    chosen.add(index)
    return sorted(chosen)[:count]


def official_frames(rng: random.Random, patches: int, count: int) -> list[int]:
    """Hidden patches of one clip of a frame model, as the official SSAST draws them.

    Args:
        rng: Source of the draws.
        patches: Number of patches N.
        count: Number of patches to hide.

    Returns:
        `count` indices in the order of their draws.

    Raises:
        ConfigError: If `count` is not in 1 … N - 1.
    """
    _require_count(patches, count, spare=1)
    return rng.sample(range(patches), count)


# --- the same for a batch ---------------------------------------------------------------------


def clusters_numbers(grid: Pair) -> int:
    """Number K of draws that `clusters` takes for each clip."""
    return 1 + grid[0] * grid[1]


def clusters(u: Tensor, grid: Pair, count: int, sides: Sequence[int] = SIDES) -> Tensor:
    """Hide clusters of patches by the law of `official_clusters`, for a whole batch.

    A start that comes a second time changes nothing, and new starts come in an order that is a
    uniform permutation. So one draw a start stands for the loop, without a bound on its length,
    and the law is the same.

    Args:
        u: `[B, K]` uniform draws, K = `clusters_draws(grid)`.
        grid: Patches along (frequency, time).
        count: Number of patches to hide.
        sides: Sides to draw from.

    Returns:
        `[B, N]` bool in frequency-major order.

    Raises:
        ConfigError: If these clusters cannot hide so many.
    """
    patches = _require_clusters(grid, count, sides, spare=2)
    side, order = _drawn_side(u[:, :1], sides), _ranks(u[:, 1:])
    # Indices below 0 are starts that do not exist: they never come.
    reach = (max(sides) - 1) * (grid[1] + 1)
    order = torch.nn.functional.pad(order, (reach, 0), value=patches)
    first = order[:, reach:]
    for i in range(max(sides)):
        for j in range(max(sides)):
            shifted = order[:, reach - i * grid[1] - j :][:, :patches]
            inside = side > max(i, j)
            first = torch.where(inside, torch.minimum(first, shifted), first)
    first = first.index_fill(1, torch.tensor(0, device=u.device), patches)
    last_start = first.kthvalue(count + 1, dim=1, keepdim=True).values
    chosen = first <= last_start
    return chosen & (chosen.cumsum(dim=1) <= count)


def unbiased_numbers(grid: Pair, sides: Sequence[int] = SIDES) -> int:
    """Number K of draws that `unbiased_clusters` takes for each clip."""
    margin = max(sides) - 1
    return 1 + (grid[0] + margin) * (grid[1] + margin) + grid[0] * grid[1]


def unbiased_clusters(u: Tensor, grid: Pair, count: int, sides: Sequence[int] = SIDES) -> Tensor:
    """Hide clusters of patches that favour no place of the grid.

    Blocks end at the borders of the grid instead of going on in the next row, and may begin
    outside of it, so that every patch, the first and the last too, lies under equally many
    blocks; what is too much is shown again at random places.

    Args:
        u: `[B, K]` uniform draws, K = `unbiased_draws(grid, sides)`.
        grid: Patches along (frequency, time).
        count: Number of patches to hide.
        sides: Sides to draw from.

    Returns:
        `[B, N]` bool in frequency-major order.

    Raises:
        ConfigError: If `count` is not in 1 … N - 1, or a side is not positive.
    """
    patches = _require_clusters(grid, count, sides, spare=1)
    margin = max(sides) - 1
    side = _drawn_side(u[:, :1], sides)[:, :, None]
    u_start, u_drop = u[:, 1:-patches], u[:, -patches:]
    order = _ranks(u_start).view(-1, grid[0] + margin, grid[1] + margin)
    # A start (f, t) lies at (f + margin, t + margin); of smaller sides the outermost reach nothing.
    first = order[:, margin:, margin:]
    for i in range(max(sides)):
        for j in range(max(sides)):
            shifted = order[:, margin - i :, margin - j :][:, : grid[0], : grid[1]]
            inside = side > max(i, j)
            first = torch.where(inside, torch.minimum(first, shifted), first)
    first = first.flatten(1)
    chosen = first <= first.kthvalue(count, dim=1, keepdim=True).values
    # Chosen patches come before the others, in the order of their own draws.
    places = (u_drop + (~chosen).to(u_drop)).argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(len(u), patches, dtype=torch.bool, device=u.device).scatter(1, places, True)


def _drawn_side(u: Tensor, sides: Sequence[int]) -> Tensor:
    """`[B, 1]` draws to the sides of the clips."""
    return torch.tensor(sides, device=u.device)[(u * len(sides)).long()]


def _ranks(u: Tensor) -> Tensor:
    """Place of each draw in the ascending order of its row, from 0."""
    return u.argsort(dim=1, stable=True).argsort(dim=1)


def _require_clusters(grid: Pair, count: int, sides: Sequence[int], spare: int) -> int:
    """Number of patches, if `sides` are sides and `count` patches can be masked."""
    if not sides or min(sides) < 1:
        raise ConfigError(
            f"sides of clusters are {tuple(sides)}: give one or more positive numbers"
        )
    return _require_count(grid[0] * grid[1], count, spare)


def _require_count(patches: int, count: int, spare: int) -> int:
    if not 1 <= count <= patches - spare:
        raise ConfigError(
            f"{count} of {patches} patches cannot be masked by this sampler; choose 1 to "
            f"{patches - spare}"
        )
    return patches


SamplerName = Literal["official", "batched", "unbiased"]


@dataclass(frozen=True)
class PatchSampler:
    """Hides equally many patches in every clip of a batch.

    Clusters where the grid has several rows of frequency. Frame models have one, and hide patches
    at random without replacement: clusters harmed them, says the official code.

    Attributes:
        grid: Patches along (frequency, time).
        count: Number of patches to hide in a clip.
        name: `batched`, SSAST's law for a whole batch; `official`, the loop of the official code
            over Python's `random`, a clip at a time; or `unbiased`, clusters that favour no place.
        sides: Sides of the clusters, one of which each clip draws.

    Raises:
        ConfigError: The sampler is unknown, or the grid cannot hide so many patches.
    """

    grid: Pair
    count: int
    name: SamplerName = "batched"
    sides: Sequence[int] = SIDES

    def __post_init__(self) -> None:
        if self.name not in get_args(SamplerName):
            raise ConfigError(
                f"unknown sampler {self.name!r}; choose one of {', '.join(get_args(SamplerName))}"
            )
        if self.clustered and (not self.sides or min(self.sides) < 1):
            raise ConfigError(
                f"sides of clusters are {tuple(self.sides)}: give one or more positive numbers"
            )
        if not 1 <= self.count <= self.most:
            raise ConfigError(
                f"{self.count} patches cannot be masked in a grid of {self.grid[0]} x "
                f"{self.grid[1]} patches (frequency x time) by the {self.name} sampler: choose 1 "
                f"to {self.most}"
            )

    @property
    def clustered(self) -> bool:
        """Whether patches are masked in clusters."""
        return self.grid[0] > 1

    @property
    def most(self) -> int:
        """The largest count: something must stay visible, for SSAST's law its first and last."""
        patches = self.grid[0] * self.grid[1]
        return patches - (2 if self.clustered and self.name != "unbiased" else 1)

    @property
    def draws(self) -> int:
        """Number K of uniform draws that each clip needs."""
        if self.name == "official":
            return 2
        if not self.clustered:
            return self.grid[0] * self.grid[1]
        if self.name == "batched":
            return clusters_numbers(self.grid)
        return unbiased_numbers(self.grid, self.sides)

    def __call__(self, u: Tensor) -> Tensor:
        """Hidden patches of a batch.

        Args:
            u: `[B, K]` uniform draws on the CPU; those of `official` seed Python's generator.

        Returns:
            `[B, N]` bool in frequency-major order, `count` true in each row.
        """
        if self.name == "official":
            return self._looped(u)
        if not self.clustered:
            return random_patches(u, u.shape[1] - self.count)
        law = clusters if self.name == "batched" else unbiased_clusters
        return law(u, self.grid, self.count, self.sides)

    def _looped(self, u: Tensor) -> Tensor:
        patches = self.grid[0] * self.grid[1]
        masked = torch.zeros(len(u), patches, dtype=torch.bool)
        for row, (high, low) in zip(masked, (u.double() * 2**24).long().tolist(), strict=True):
            rng = random.Random((high << 24) | low)
            row[
                official_clusters(rng, self.grid, self.count, self.sides)
                if self.clustered
                else official_frames(rng, patches, self.count)
            ] = True
        return masked


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
