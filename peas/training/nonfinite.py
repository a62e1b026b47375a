"""Losses and gradients that are no numbers: noticed before they reach the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Skipped(Exception):
    """An optimiser step that is left out."""


def finite_gradients(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether every gradient is a number and their norm does not overflow.

    Under DDP the gradients are those of all processes, so all come to the same answer.

    Args:
        parameters: Those that are trained.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def counted(value: Tensor, clips: float) -> tuple[Tensor, Tensor]:
    """A batch's value and its weight in a mean: 0 where it is no number.

    Args:
        value: Scalar.
        clips: Weight of a value that is one.
    """
    finite = value.isfinite()
    return torch.where(finite, value, torch.zeros_like(value)), finite * clips


class RunningStatistics:
    """Means and variances of every BatchNorm, as they were after the last good step.

    A batch that gives no number has spoiled them in its forward pass already.

    Args:
        module: What holds the norms.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [
            buffer
            for part in module.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm)
            for buffer in part.buffers()
        ]
        self.keep()

    def keep(self) -> None:
        """Note the present ones."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put the noted ones back."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
