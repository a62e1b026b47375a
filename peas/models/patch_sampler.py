"""One sampler of hidden patches for a pretraining run: its law, its grid and its count."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.models.grid import Pair
from peas.models.patch_masking import (
    SIDES,
    clusters,
    clusters_draws,
    official_clusters,
    official_frames,
    random_patches,
    unbiased_clusters,
    unbiased_draws,
)

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
                f"{self.count} patches cannot be hidden in a grid of {self.grid[0]} x "
                f"{self.grid[1]} patches (frequency x time) by the {self.name} sampler: choose 1 "
                f"to {self.most}"
            )

    @property
    def clustered(self) -> bool:
        """Whether patches are hidden in clusters."""
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
            return clusters_draws(self.grid)
        return unbiased_draws(self.grid, self.sides)

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
        hidden = torch.zeros(len(u), patches, dtype=torch.bool)
        for row, (high, low) in zip(hidden, (u.double() * 2**24).long().tolist(), strict=True):
            rng = random.Random((high << 24) | low)
            row[
                official_clusters(rng, self.grid, self.count, self.sides)
                if self.clustered
                else official_frames(rng, patches, self.count)
            ] = True
        return hidden
