"""Means over an epoch that survive a restart inside the epoch.

The first process writes a checkpoint for all, so sums are added up over the processes when saved,
and restored in the first process alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from peas.training.distributed import gather, is_first

STATES = ("state_dict", "current_model_state")
"""Parts of a checkpoint that hold a module's state; the second one exists beside an average's."""


class EpochMeans:
    """Sums over an epoch, kept on their device until they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Starts a new epoch."""
        self._sums.clear()
        self._counts.clear()

    def add(self, key: str, values: Tensor) -> None:
        """Adds every element of `values`."""
        total, count = values.detach().double().sum(), torch.tensor(float(values.numel()))
        if key in self._sums:
            self._sums[key] = self._sums[key] + total
            self._counts[key] = self._counts[key] + count
        else:
            self._sums[key], self._counts[key] = total, count

    def log(self, task: LightningModule) -> None:
        """Logs every mean over all processes' elements; nothing for a key without any."""
        # As objects and not by `sync_dist`: a process that added nothing lacks the key, and the
        # others would wait for it for ever.
        for key, (total, count) in self.state_dict().items():
            if count:
                task.log(key, total / count, on_step=False, on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, list[float]]:
        """Sums and counts over all processes; every process must call it."""
        own = {key: [float(self._sums[key]), float(self._counts[key])] for key in self._sums}
        parts = gather(own)
        return {
            key: [sum(column) for column in zip(*(p[key] for p in parts if key in p), strict=True)]
            for key in sorted({key for part in parts for key in part})
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved sums, in the first process."""
        self.reset()
        if not is_first():
            return
        for key, (total, count) in state.items():
            self._sums[key] = torch.tensor(total, dtype=torch.float64)
            self._counts[key] = torch.tensor(count)


def _sums(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Key in a state dict, and current value, of each sum of a `MeanMetric` that is saved."""
    for name, part in task.named_modules():
        if isinstance(part, MeanMetric):
            # Empty for a meter that starts anew after a restart.
            for key in part.state_dict():
                yield f"{name}.{key}", getattr(part, key)


def save_sums(task: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the meters' sums over all processes into a checkpoint; every process must call it.

    Args:
        task: With its meters.
        checkpoint: Is changed.
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
    """Zero the meters' sums in a checkpoint, in every process but the first.

    Args:
        task: With its meters.
        checkpoint: Is changed.
    """
    for key, _ in _sums(task):
        for state in STATES:
            if key in checkpoint.get(state, {}):
                checkpoint[state][key] = torch.zeros_like(checkpoint[state][key])
