"""A patch masking of pretraining that looks at the log-mel."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from peas.masking import PatchMasking


class LoudPatches(PatchMasking):
    """Masks the patches of the largest mean level, disturbed by random numbers.

    Args:
        ratio: Share of the patches that is masked.
        noise: How much the random numbers count, in units of the normalised log-mel.
    """

    def __init__(self, ratio: float = 0.5, noise: float = 1.0) -> None:
        self.ratio, self.noise = ratio, noise

    def visible(self, grid: tuple[int, int]) -> int:
        """Equally many in every clip."""
        return int(math.prod(grid) * (1 - self.ratio))

    def random_numbers(self, grid: tuple[int, int]) -> dict[str, int]:
        """One number a patch."""
        return {"loud": math.prod(grid)}

    def mask(self, rand: Mapping[str, Tensor], grid: tuple[int, int], log_mel: Tensor) -> Tensor:
        """The loudest ones, in time-major order."""
        level = functional.adaptive_avg_pool2d(log_mel, (grid[1], grid[0])).flatten(1)
        order = (level.cpu() + self.noise * rand["loud"]).argsort(dim=1)
        masked = torch.zeros(order.shape, dtype=torch.bool)
        return masked.scatter(1, order[:, self.visible(grid) :], True)
