"""What `test_ddp.py` puts into a run: a log of every loss, and a teacher that counts."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from peas.teachers.base import Teacher
from peas.teachers.grid import Extent


class Losses(Callback):
    """Writes the loss of every step, as a mean over the clips of all processes.

    It also takes dropout away (the local decoder's positions have some): processes draw their own.

    Args:
        path: File of a JSON list, written by the first process.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for part in pl_module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach().double().clone()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(loss)
        self.losses.append(float(loss) / trainer.world_size)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = getattr(pl_module, "parts", {}).values()
        calls = next((part.teacher for part in parts if hasattr(part, "teacher")), None)
        told = {"losses": self.losses, "heard": getattr(calls, "heard", None)}
        path = self.path.with_suffix(f".{trainer.global_rank}.json")
        path.write_text(json.dumps(told))


class Ear(Teacher):
    """A teacher that counts the clips that it hears."""

    def __init__(self) -> None:
        edges = (0.0, 1000.0, 8000.0)
        super().__init__(
            rate=16_000, width=6, extent=Extent(0.08, 0.16, edges), name="a fixed projection"
        )
        self.heard = 0

    def build(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(2560, 12)

    def settings(self) -> dict[str, object]:
        return {}

    def features(self, waveform: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        self.heard += len(waveform)
        columns = waveform[:, : waveform.shape[1] // 2560 * 2560].unflatten(1, (-1, 2560))
        cells: torch.Tensor = self.network(columns)
        return cells.unflatten(2, (6, 2)).permute(0, 2, 3, 1)
