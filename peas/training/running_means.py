"""Means of an epoch that is not over, in a checkpoint that the first process writes for all."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from peas.training.distributed import gather

STATES = ("state_dict", "current_model_state")
"""Parts of a checkpoint that hold a module's state; the second is there beside an average's."""


def _sums(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Key in a state, and value here, of each sum that is saved."""
    for name, part in task.named_modules():
        if isinstance(part, MeanMetric):
            # Empty for a meter that begins anew after a restart.
            for key in part.state_dict():
                yield f"{name}.{key}", getattr(part, key)


def save_sums(task: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the sums over all processes into a checkpoint; every process must ask.

    Args:
        task: With its meters.
        checkpoint: To be changed.
    """
    parts = gather({key: value.cpu() for key, value in _sums(task)})
    if len(parts) == 1:
        return
    for key in parts[0]:
        total = torch.stack([part[key] for part in parts]).sum(0)
        for state in STATES:
            if key in checkpoint.get(state, {}):
                checkpoint[state][key] = total


def forget_sums(task: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Leave the saved sums to the first process.

    Args:
        task: With its meters.
        checkpoint: To be changed.
    """
    for key, _ in _sums(task):
        for state in STATES:
            if key in checkpoint.get(state, {}):
                checkpoint[state][key] = torch.zeros_like(checkpoint[state][key])
