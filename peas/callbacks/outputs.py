"""Logits per clip in the run folder, so that runs can be compared later without a model."""

import csv
import filecmp
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from peas.callbacks.class_table import class_rows, summary, write_class_table
from peas.callbacks.clip_origins import ORIGIN, ClipOrigins
from peas.tasks.base import BaseTask
from peas.training.distributed import gather


class ClipOutputs(Callback):
    """Writes `logits/val_last.npz`, `logits/val_best.npz`, `logits/test.npz`, `predictions.csv`.

    `predictions.csv` has a row a clip: `id`, the columns of `ORIGIN`, the checkpoint, the best
    class and its probability, and that of every class. Other predictions are never overwritten:
    they are kept beside it as `predictions.1.csv`, and so on.

    Each `.npz` holds `ids [N]`, `logits [N, C]`, `targets [N, C]`, `labels [C]` and `epoch`. The
    scores of each class lie beside it (`logits/test_classes.csv`), and evaluation ends with the
    best and the worst of them.
    All processes' clips are gathered; each clip appears once.

    Args:
        run_dir: Folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._rows: list[dict[str, Any]] = []
        self._best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, so that a resumed run keeps its best file."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score."""
        self._best = state_dict["best"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets a best score whose file lies elsewhere."""
        if not (self.run_dir / "logits" / "val_best.npz").exists():
            self._best = None

    def _keep(self, outputs: Any) -> None:
        # Pretraining scores no clips.
        if outputs is None:
            return
        self._rows.append(
            {
                key: value.detach().float().cpu() if isinstance(value, torch.Tensor) else value
                for key, value in outputs.items()
            }
        )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keeps a validation batch."""
        self._keep(outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keeps a test batch."""
        self._keep(outputs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keeps a batch of predictions."""
        self._keep(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last epoch's logits, and the best epoch's when it is this one."""
        rows = self._gather()
        if trainer.sanity_checking or not rows:
            return
        assert isinstance(pl_module, BaseTask)
        fitting = trainer.state.fn == TrainerFn.FITTING
        name, mode = pl_module.monitor(pl_module.hparams["multi_label"])
        score = float(trainer.callback_metrics[name])
        better = math.isfinite(score) and (
            self._best is None or (score > self._best if mode == "max" else score < self._best)
        )
        if not trainer.is_global_zero:
            return
        self._write(trainer, pl_module, rows, "val_last" if fitting else "val")
        if fitting and better:
            self._best = score
            self._write(trainer, pl_module, rows, "val_best")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test split's logits."""
        rows = self._gather()
        if trainer.is_global_zero and rows:
            self._write(trainer, pl_module, rows, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes `predictions.csv`, or the next free name where that holds other predictions."""
        rows = self._gather()
        if not trainer.is_global_zero or not rows:
            return
        labels = pl_module.hparams["labels"]
        logits = np.concatenate([row["logits"] for row in rows])
        several = pl_module.hparams["loss"] == "bce"
        scores = torch.from_numpy(logits)
        scores = scores.sigmoid() if several else scores.softmax(dim=-1)
        ids = [clip for row in rows for clip in row["id"]]
        origins = ClipOrigins(getattr(trainer, "datamodule", None), labels)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        partial = self.run_dir / ".predictions.csv"
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *ORIGIN, "checkpoint", "label", "score", *labels])
            for clip, score in zip(ids, scores, strict=True):
                best = int(score.argmax())
                values = [f"{value:.6f}" for value in score.tolist()]
                said = [*origins.of(clip), trainer.ckpt_path or ""]
                writer.writerow([clip, *said, labels[best], values[best], *values])
        path = _keep_all(partial, self.run_dir / "predictions.csv")
        rank_zero_info(f"{len(ids)} predictions in {path}{_left_out(origins.left_out)}")

    def _gather(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return [row for part in gather(rows) for row in part]

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, rows: list[dict[str, Any]], name: str
    ) -> None:
        if not rows:
            return
        folder = self.run_dir / "logits"
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{name}.npz"
        ids = np.array([clip for row in rows for clip in row["id"]])
        logits = np.concatenate([row["logits"] for row in rows])
        targets = np.concatenate([row["target"] for row in rows])
        labels = pl_module.hparams["labels"]
        np.savez_compressed(
            partial,
            ids=ids,
            logits=logits,
            targets=targets,
            labels=np.array(labels),
            epoch=trainer.current_epoch,
        )
        os.replace(partial, folder / f"{name}.npz")
        table = class_rows(torch.from_numpy(logits), torch.from_numpy(targets), labels)
        write_class_table(folder / f"{name}_classes.csv", table)
        if name in ("val", "test"):
            rank_zero_info(f"{summary(table, len(ids))}\n{folder / name}_classes.csv")


def _left_out(clips: int) -> str:
    if not clips:
        return ""
    return f"; {clips} other clips of the set are not of its test and were not scored"


def _keep_all(partial: Path, path: Path) -> Path:
    """Names a finished file, without touching others; where it is there already, that stays.

    Args:
        partial: The finished file.
        path: Its name; a counted one where another file has it.
    """
    count, name = 0, path
    while name.exists():
        if filecmp.cmp(partial, name, shallow=False):
            partial.unlink()
            return name
        count += 1
        name = path.with_name(f"{path.stem}.{count}{path.suffix}")
    partial.rename(name)
    return name
