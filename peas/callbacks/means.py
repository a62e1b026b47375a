"""Epoch means that survive a restart inside the epoch."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


class EpochMeans:
    """Sums of numbers over an epoch, kept on their device until somebody asks."""

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
        """Logs every mean, averaged over the processes."""
        for key, total in self._sums.items():
            mean = (total / self._counts[key].to(total.device)).float()
            task.log(key, mean, on_step=False, on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts as plain numbers."""
        return {key: [float(self._sums[key]), float(self._counts[key])] for key in self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with saved sums."""
        self.reset()
        for key, (total, count) in state.items():
            self._sums[key] = torch.tensor(total, dtype=torch.float64)
            self._counts[key] = torch.tensor(count)
