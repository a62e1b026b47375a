"""SSAST's patch masking: square clusters of patches, equally many masked in every clip.

Random numbers are uniform in [0, 1), masks `[B, N]` bool in SSAST's frequency-major order, grids
pairs `(frequency, time)`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.masking.patches import OWN, PatchMasking, random_patches
from peas.models.patches import Pair

SIDES = (3, 4, 5)
"""Sides of SSAST's square clusters; one is sampled for each clip."""
SamplerName = Literal["official", "batched", "unbiased"]


class ClusteredPatches(PatchMasking):
    """SSAST's masking: square clusters of patches, equally many patches in every clip.

    Frame models, whose grid has one row of frequency, mask patches at random without replacement:
    the official code notes that clusters harmed them.

    Args:
        num_masked: Patches that are masked: 400 of 512; the paper also has 250 and 100.
        sampler: `batched`, the official distribution for a whole batch; `official`, the loop of
            the official code over Python's `random`, clip by clip; `unbiased`, clusters that mask
            every patch equally often.
        sides: Sides of the clusters; one is sampled for each clip.

    Raises:
        ConfigError: A value is impossible.
    """

    def __init__(
        self,
        num_masked: int = 400,
        sampler: SamplerName = "batched",
        sides: tuple[int, ...] = SIDES,
    ) -> None:
        if sampler not in get_args(SamplerName):
            raise ConfigError(
                f"`ClusteredPatches.init_args.sampler` is {sampler!r}: choose one of "
                f"{', '.join(get_args(SamplerName))}"
            )
        if not sides or min(sides) < 1:
            raise ConfigError(
                f"`ClusteredPatches.init_args.sides` is {[*sides]}: give one or more positive "
                "numbers"
            )
        self.num_masked, self.sampler, self.sides = num_masked, sampler, tuple(sides)

    def max_masked(self, grid: Pair) -> int:
        """Most patches that can be masked; the official clusters never mask the first and last."""
        official_clusters = grid[0] > 1 and self.sampler != "unbiased"
        return math.prod(grid) - (2 if official_clusters else 1)

    def visible(self, grid: Pair) -> int:
        """All but `num_masked`."""
        most = self.max_masked(grid)
        if not 1 <= self.num_masked <= most:
            raise ConfigError(
                f"`ClusteredPatches.init_args.num_masked` is {self.num_masked}, and the sampler "
                f"{self.sampler} masks 1 to {most} patches of a grid of {grid[0]} x {grid[1]} "
                "(frequency x time)"
            )
        return math.prod(grid) - self.num_masked

    def random_numbers(self, grid: Pair) -> dict[str, int]:
        """As many as the sampler needs."""
        if self.sampler == "official":
            count = 2
        elif grid[0] == 1:
            count = math.prod(grid)
        elif self.sampler == "batched":
            count = clusters_numbers(grid)
        else:
            count = unbiased_numbers(grid, self.sides)
        return {OWN: count}

    def mask(self, rand: Mapping[str, Tensor], grid: Pair, log_mel: Tensor) -> Tensor:
        """Clusters of the sampler."""
        masked = self.sample(rand[OWN], grid)
        return masked.view(len(masked), *grid).transpose(1, 2).flatten(1)

    def sample(self, u: Tensor, grid: Pair) -> Tensor:
        """Masked patches `[B, N]`, frequency-major.

        Args:
            u: `[B, K]` random numbers on the CPU; those of `official` seed Python's generator.
            grid: Patches along (frequency, time).
        """
        visible = self.visible(grid)
        if self.sampler == "official":
            return self._official(u, grid)
        if grid[0] == 1:
            return random_patches(u, visible)
        sample = clusters if self.sampler == "batched" else unbiased_clusters
        return sample(u, grid, self.num_masked, self.sides)

    def _official(self, u: Tensor, grid: Pair) -> Tensor:
        masked = torch.zeros(len(u), math.prod(grid), dtype=torch.bool)
        for row, (high, low) in zip(masked, (u.double() * 2**24).long().tolist(), strict=True):
            rng = random.Random((high << 24) | low)
            row[
                official_clusters(rng, grid, self.num_masked, self.sides)
                if grid[0] > 1
                else official_frames(rng, math.prod(grid), self.num_masked)
            ] = True
        return masked


# --- one clip at a time -----------------------------------------------------------------------


def official_clusters(
    rng: random.Random, grid: Pair, count: int, sides: Sequence[int] = SIDES
) -> list[int]:
    """Masked patches of one clip, as the official SSAST samples them from Python's `random`.

    A side C is sampled, then starts among all patches; each adds the indices
    `start + i * T_grid + j` with i, j < C that lie between 0 and N, both excluded, until there are
    more than `count`; the highest are dropped. So the first patch and the last are never masked,
    a block at the end of a row continues in the next one, and the lowest mel bands are masked
    least. The same seed gives the same indices as the official code in its settings (100 to 400 of
    512; below 77 that code drops patches by the memory layout of Python's sets).

    Args:
        rng: Random source; the official code uses the module `random` itself.
        grid: Patches along (frequency, time).
        count: Number of patches to mask, at most N - 2.
        sides: Sides to choose from.

    Returns:
        `count` ascending indices.
    """
    patches = math.prod(grid)
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
    """Masked patches of one clip of a frame model, in the order of the official SSAST's sampling.

    Args:
        rng: Random source.
        patches: Number of patches N.
        count: Number of patches to mask.
    """
    return rng.sample(range(patches), count)


# --- a batch ----------------------------------------------------------------------------------


def clusters_numbers(grid: Pair) -> int:
    """Number K of random numbers that `clusters` needs for each clip."""
    return 1 + math.prod(grid)


def clusters(u: Tensor, grid: Pair, count: int, sides: Sequence[int] = SIDES) -> Tensor:
    """Mask clusters of patches with the distribution of `official_clusters`, for a whole batch.

    A start that is sampled again changes nothing, and the order of new starts is a uniform
    permutation. So one random number a start replaces the loop of unbounded length.

    Args:
        u: `[B, K]` random numbers, K = `clusters_numbers(grid)`.
        grid: Patches along (frequency, time).
        count: Number of patches to mask, at most N - 2.
        sides: Sides to choose from.
    """
    patches = math.prod(grid)
    side, order = _sampled_side(u[:, :1], sides), _ranks(u[:, 1:])
    # Indices below 0 are starts that do not exist: they come last.
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
    """Number K of random numbers that `unbiased_clusters` needs for each clip."""
    margin = max(sides) - 1
    return 1 + (grid[0] + margin) * (grid[1] + margin) + math.prod(grid)


def unbiased_clusters(u: Tensor, grid: Pair, count: int, sides: Sequence[int] = SIDES) -> Tensor:
    """Mask clusters of patches so that every patch is masked equally often.

    Blocks end at the borders of the grid instead of continuing in the next row, and may start
    outside of it, so that every patch lies under equally many blocks; surplus patches are unmasked
    at random.

    Args:
        u: `[B, K]` random numbers, K = `unbiased_numbers(grid, sides)`.
        grid: Patches along (frequency, time).
        count: Number of patches to mask, at most N - 1.
        sides: Sides to choose from.
    """
    patches = math.prod(grid)
    margin = max(sides) - 1
    side = _sampled_side(u[:, :1], sides)[:, :, None]
    u_start, u_drop = u[:, 1:-patches], u[:, -patches:]
    order = _ranks(u_start).view(-1, grid[0] + margin, grid[1] + margin)
    # Start (f, t) has the index (f + margin, t + margin); small blocks of the outermost reach
    # nothing.
    first = order[:, margin:, margin:]
    for i in range(max(sides)):
        for j in range(max(sides)):
            shifted = order[:, margin - i :, margin - j :][:, : grid[0], : grid[1]]
            inside = side > max(i, j)
            first = torch.where(inside, torch.minimum(first, shifted), first)
    first = first.flatten(1)
    chosen = first <= first.kthvalue(count, dim=1, keepdim=True).values
    # Chosen patches come before the others, in the order of their own random numbers.
    masked = (u_drop + (~chosen).to(u_drop)).argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(len(u), patches, dtype=torch.bool, device=u.device).scatter(1, masked, True)


def _sampled_side(u: Tensor, sides: Sequence[int]) -> Tensor:
    """`[B, 1]` random numbers to the sides of the clips."""
    return torch.tensor(sides, device=u.device)[(u * len(sides)).long()]


def _ranks(u: Tensor) -> Tensor:
    """Rank of each number in its row, from 0."""
    return u.argsort(dim=1, stable=True).argsort(dim=1)
