"""Non-finite losses and gradients, detected before they reach the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Skipped(Exception):
    """An optimizer step that is skipped."""


def finite_gradients(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients and their norm are finite.

    Under DDP the gradients are those of all processes, so all get the same answer.

    Args:
        parameters: Those that are trained.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def counted(value: Tensor, clips: float) -> tuple[Tensor, Tensor]:
    """A batch's value and its weight in a mean: 0 where it is non-finite.

    Args:
        value: Scalar.
        clips: Weight of a finite value.
    """
    finite = value.isfinite()
    return torch.where(finite, value, torch.zeros_like(value)), finite * clips


class RunningStatistics:
    """Running statistics of every BatchNorm, as they were after the last good step.

    The forward pass of a non-finite batch has changed them already.

    Args:
        module: Contains the norms.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [
            buffer
            for part in module.modules()
            if getattr(part, "track_running_stats", False)
            for buffer in part.buffers()
        ]
        self.keep()

    def keep(self) -> None:
        """Keep a copy of the current ones."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Restore the copy."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
