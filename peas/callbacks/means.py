"""Epoch means that survive a restart inside the epoch."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from peas.training.distributed import gather, is_first


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
        """Logs every mean over all processes' elements; nothing for a key without any."""
        # As objects and not by `sync_dist`: a process that added nothing lacks the key, and the
        # others would wait for it for ever.
        for key, (total, count) in self.state_dict().items():
            if count:
                task.log(key, total / count, on_step=False, on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, list[float]]:
        """Sums and counts of all processes as plain numbers; every process must ask."""
        own = {key: [float(self._sums[key]), float(self._counts[key])] for key in self._sums}
        parts = gather(own)
        return {
            key: [sum(column) for column in zip(*(p[key] for p in parts if key in p), strict=True)]
            for key in sorted({key for part in parts for key in part})
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with saved sums, in the first process."""
        self.reset()
        if not is_first():
            return
        for key, (total, count) in state.items():
            self._sums[key] = torch.tensor(total, dtype=torch.float64)
            self._counts[key] = torch.tensor(count)
