"""Progress of a run: a live bar on a terminal, and one line an epoch everywhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from peas.callbacks.siblings import siblings
from peas.tasks.base import BaseTask

FIGURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("lr",), "lr {:.3g}"),
    (("train/loss",), "loss {:.4f}"),
    (("train/accuracy",), "train acc {:.1%}"),
    (("val/accuracy",), "val acc {:.2%}"),
    (("val/mAP",), "val mAP {:.4f}"),
    (("val/clips",), "on {:,.0f} clips"),
    (("val/loss",), "val loss {:.4f}"),
    (("val/valid_mse", "val/baseline_mse"), "mse {:.4f} (baseline {:.4f})"),
    (("val/feature_mse", "val/baseline_feature_mse"), "features {:.3g} (baseline {:.3g})"),
    (("val/classification", "val/baseline_classification"), "classes {:.4f} (baseline {:.4f})"),
    (("val/nce_accuracy",), "nce acc {:.1%}"),
    (("knn/accuracy",), "knn {:.2%}"),
    (("mask/fraction",), "masked {:.1%}"),
    (("mask/adaptive_share",), "adaptive {:.0%}"),
)
"""What the line tells when all of its figures are there: of fine-tuning, of pretraining, of masks.

The trivial predictor, which is one and the same for all clips, stands beside each objective.
"""

LIMITS: tuple[tuple[str, float, str], ...] = (
    ("peas/windows_on_empty_bins", 0.2, "{:.0%} of frequency windows touch empty bins"),
)
"""What the line tells only when it is above a limit."""


class DrawsInSteps(Callback):
    """Base of callbacks that draw pictures inside training steps.

    Attributes:
        seconds: What that has taken so far. It is no training, and clips/s leave it out.
    """

    seconds: float = 0.0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Counts the time of its block."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - since


class DrawingTime:
    """Seconds that a run's callbacks have drawn since the last look."""

    def __init__(self) -> None:
        self._before = 0.0

    def take(self, trainer: Trainer) -> float:
        """Those seconds; the next call begins anew."""
        total = sum(callback.seconds for callback in siblings(trainer, DrawsInSteps))
        taken, self._before = total - self._before, total
        return taken


class Rate:
    """Clips per second over the last seconds of training."""

    def __init__(self, keep: float = 0.9) -> None:
        self.keep = keep
        self.reset()

    def reset(self) -> None:
        """Forgets the past, so that a pause does not count."""
        self.value = 0.0
        self._since = time.perf_counter()

    def add(self, clips: int, drawing: float = 0.0) -> None:
        """Counts a finished batch.

        Args:
            clips: Of the batch.
            drawing: Seconds of it that were no training.
        """
        now = time.perf_counter()
        rate = clips / max(now - self._since - drawing, 1e-9)
        self.value = rate if self.value == 0.0 else self.keep * self.value + (1 - self.keep) * rate
        self._since = now


class Progress(RichProgressBar):
    """Lightning's rich bar (time spent and left) with clips per second beside the metrics."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self._rate = Rate()
        self._drawing = DrawingTime()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._rate.reset()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the clips of all processes."""
        self._rate.add(len(batch["id"]) * trainer.world_size, self._drawing.take(trainer))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics marked for the bar, and clips/s."""
        shown: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        shown.pop("v_num", None)
        shown["clips/s"] = f"{self._rate.value:.0f}"
        return shown


class EpochLine(Callback):
    """Prints a line at each epoch's end, so that a log file tells the run's story.

    A figure that was not measured in the epoch is left out: evaluations may be rarer.
    """

    def __init__(self) -> None:
        self._told = False
        self._known: dict[str, Tensor] = {}
        self._clips = 0
        self._training = 0.0
        self._since = 0.0
        self._drawing = DrawingTime()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and notes the figures of earlier epochs."""
        self._clips, self._training = 0, 0.0
        self._known = dict(trainer.callback_metrics)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Starts the clock of the batch; only time spent on batches counts."""
        if batch_idx == 0 or self._since == 0.0:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch."""
        now = time.perf_counter()
        self._clips += len(batch["id"]) * trainer.world_size
        self._training += now - self._since - self._drawing.take(trainer)
        self._since = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves validation out of the training rate; says when it measured nothing."""
        self._since = time.perf_counter()
        if self._told or trainer.sanity_checking or not isinstance(pl_module, BaseTask):
            return
        name, _ = pl_module.monitor(pl_module.hparams["multi_label"])
        value = trainer.callback_metrics.get(name)
        if value is not None and not value.isfinite():
            self._told = True
            rank_zero_warn(
                f"{name}, by which best.ckpt is chosen, is {float(value)} in epoch "
                f"{trainer.current_epoch + 1}: such an epoch is never the best. Of scores that is "
                "so when no validation clip has a class, or the model's outputs are no numbers"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints epoch, losses, metrics and rate."""
        metrics = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        # Lightning keeps the figures of earlier epochs, as the very tensors that they were.
        new = {key for key, value in metrics.items() if value is not self._known.get(key)}
        for keys, form in FIGURES:
            if new.issuperset(keys):
                parts.append(form.format(*(float(metrics[key]) for key in keys)))
        for key, limit, form in LIMITS:
            if key in new and float(metrics[key]) > limit:
                parts.append(form.format(float(metrics[key])))
        if self._training > 0:
            parts.append(f"{self._clips / self._training:.1f} clips/s")
        rank_zero_info("  ".join(parts))
