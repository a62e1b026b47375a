"""Logits per clip, scores per class and predictions in the run folder.

Runs can be compared later without a model.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from peas.data.module import ClipDataModule
from peas.evaluation.metrics import class_scores
from peas.tasks.base import BaseTask
from peas.training.distributed import gather
from peas.utils.files import atomic_write, write_text
from peas.utils.text import some

_LISTED = 3
"""Classes in the lists of the best and the worst."""
ORIGIN = ("file", "set", "split", "true_label")
"""Columns of `predictions.csv` with the origin of a clip."""


class ClipOutputs(Callback):
    """Writes `logits/val_last.npz`, `logits/val_best.npz`, `logits/test.npz`, `predictions.csv`.

    Each `.npz` holds `ids [N]`, `logits [N, C]`, `targets [N, C]`, `labels [C]` and `epoch`. The
    scores of each class are beside it (`logits/test_classes.csv`), and evaluation prints the best
    and the worst of them. `predictions.csv` has a row per clip: `id`, the columns of `ORIGIN`, the
    checkpoint, the best class and its probability, and the probability of every class. Other
    predictions are never overwritten: the new file is `predictions.1.csv`, and so on.

    The clips of all processes are gathered; each appears once.

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
        """Drops a best score whose file is not in this folder."""
        if not (self.run_dir / "logits" / "val_best.npz").exists():
            self._best = None

    def _keep(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keeps a batch. Pretraining has no outputs."""
        if outputs is None:
            return
        self._rows.append(
            {
                key: value.detach().float().cpu() if isinstance(value, Tensor) else value
                for key, value in outputs.items()
            }
        )

    on_validation_batch_end = _keep  # type: ignore[assignment]
    on_test_batch_end = _keep  # type: ignore[assignment]
    on_predict_batch_end = _keep  # type: ignore[assignment]

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
        """Writes `predictions.csv`, or the next free name if that holds other predictions."""
        rows = self._gather()
        if not trainer.is_global_zero or not rows:
            return
        labels = pl_module.hparams["labels"]
        logits = torch.cat([row["logits"] for row in rows])
        multi_label = pl_module.hparams["loss"] == "bce"
        scores = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
        ids = [clip for row in rows for clip in row["id"]]
        origins = ClipOrigins(getattr(trainer, "datamodule", None), labels)
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(["id", *ORIGIN, "checkpoint", "label", "score", *labels])
        for clip, clip_scores in zip(ids, scores, strict=True):
            best = int(clip_scores.argmax())
            values = [f"{value:.6f}" for value in clip_scores.tolist()]
            origin = [*origins.of(clip), trainer.ckpt_path or ""]
            writer.writerow([clip, *origin, labels[best], values[best], *values])
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = write_new(self.run_dir / "predictions.csv", table.getvalue())
        rest = f"; {origins.left_out} other clips of the set are not in its test split"
        rank_zero_info(f"{len(ids)} predictions in {path}{rest if origins.left_out else ''}")

    def _gather(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return [row for part in gather(rows) for row in part]

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, rows: list[dict[str, Any]], name: str
    ) -> None:
        folder = self.run_dir / "logits"
        folder.mkdir(parents=True, exist_ok=True)
        ids = np.array([clip for row in rows for clip in row["id"]])
        logits = torch.cat([row["logits"] for row in rows])
        targets = torch.cat([row["target"] for row in rows])
        labels = pl_module.hparams["labels"]
        with atomic_write(folder / f"{name}.npz") as stream:
            np.savez_compressed(
                stream,
                ids=ids,
                logits=logits.numpy(),
                targets=targets.numpy(),
                labels=np.array(labels),
                epoch=trainer.current_epoch,
            )
        classes = class_rows(logits, targets, labels)
        write_class_table(folder / f"{name}_classes.csv", classes)
        if name in ("val", "test"):
            rank_zero_info(f"{summary(classes, len(ids))}\n{folder / name}_classes.csv")


def write_new(path: Path, text: str) -> Path:
    """Write a text file, under a numbered name where the plain one has another text.

    Args:
        path: The file.
        text: Its content.

    Returns:
        The file that holds the text.
    """
    count, numbered = 0, path
    while numbered.exists():
        if numbered.read_bytes() == text.encode():
            return numbered
        count += 1
        numbered = path.with_name(f"{path.stem}.{count}{path.suffix}")
    write_text(numbered, text)
    return numbered


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class. NaN where no clip (or, for the AUC, every clip) is of the class.

    Attributes:
        index: Number of the class.
        label: Its name.
        clips: Clips of the class.
        average_precision: Average precision.
        auc: Area under the ROC curve.
        recall: Share of its clips for which it has the highest score of all classes.
    """

    index: int
    label: str
    clips: int
    average_precision: float
    auc: float
    recall: float


def class_rows(logits: Tensor, targets: Tensor, labels: list[str]) -> list[ClassRow]:
    """Scores of each class.

    Args:
        logits: `[N, C]` float32.
        targets: `[N, C]`, non-zero where the clip is of the class.
        labels: Names of the classes.
    """
    scores = class_scores(logits, targets)
    positives = targets > 0
    top = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    clips = positives.sum(dim=0)
    columns = (
        clips.tolist(),
        scores.average_precision.tolist(),
        scores.auc.tolist(),
        ((positives & top).sum(dim=0) / clips).tolist(),
    )
    return [
        ClassRow(index, label, *values)
        for index, (label, *values) in enumerate(zip(labels, *columns, strict=True))
    ]


def write_class_table(path: Path, rows: list[ClassRow]) -> None:
    """Write the table as CSV; a NaN is left empty."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([field.name for field in fields(ClassRow)])
    for row in rows:
        index, label, clips, *scores = astuple(row)
        texts = ("" if math.isnan(value) else f"{value:.6f}" for value in scores)
        writer.writerow([index, label, clips, *texts])
    write_text(path, table.getvalue())


def summary(rows: list[ClassRow], clips: int) -> str:
    """Numbers of clips and classes, the best and the worst classes.

    Args:
        rows: The table.
        clips: Number of clips scored.
    """
    scored = sorted(
        (row for row in rows if row.clips), key=lambda row: row.average_precision, reverse=True
    )
    empty = [row.label for row in rows if not row.clips]
    lines = [f"{clips:,} clips; {len(scored)} of {len(rows)} classes have clips"]
    if empty:
        lines.append(f"not in the means, for want of clips: {some(empty, 5)}")
    for name, best in (("best", scored[:_LISTED]), ("worst", scored[: -_LISTED - 1 : -1])):
        classes = ", ".join(f"{row.label} {row.average_precision:.3f}" for row in best)
        lines.append(f"{f'{name} by average precision:':28}{classes}")
    return "\n".join(lines)


class ClipOrigins:
    """File, data set, split and true class of the clips that a data module predicts.

    Args:
        data: The data module; nothing is known of a class from elsewhere.
        labels: Classes of the model: others are no true class of it.

    Attributes:
        left_out: Clips of the set that were not predicted.
    """

    def __init__(self, data: Any, labels: Sequence[str]) -> None:
        self._rows: dict[str, int] = {}
        self.left_out = 0
        if not isinstance(data, ClipDataModule):
            return
        self._clips = data.prediction_clips()
        self.left_out = self._clips.left_out
        self._rows = {clip: row for row, clip in enumerate(self._clips.table.ids)}
        self._set = str(data.root)
        self._names = [name if name in set(labels) else "" for name in data.labels]

    def of(self, clip: str) -> tuple[str, str, str, str]:
        """The columns of `ORIGIN` of a clip, empty where they are not known.

        Several true classes are joined by semicolons.

        Args:
            clip: Its id.
        """
        row = self._rows.get(clip)
        if row is None:
            return "", "", "", ""
        table, splits, _ = self._clips
        true = ";".join(filter(None, (self._names[number] for number in table.targets[row])))
        return table.sounds.file(row), self._set, splits[row], true
