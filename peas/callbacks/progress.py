"""What a run prints: model summary, progress bar, a line per epoch, and its bad clips."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from peas.data.module import ClipDataModule
from peas.tasks.base import BaseTask
from peas.training.distributed import gather
from peas.training.trainer import callbacks_of

log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

METRICS: tuple[tuple[tuple[str, ...], str], ...] = (
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
    (("linear/accuracy",), "linear {:.2%}"),
    (("rank/rankme",), "rankme {:.1f}"),
    (("rank/lidar",), "lidar {:.2f}"),
    (("mask/fraction",), "masked {:.1%}"),
    (("mask/adaptive_share",), "adaptive {:.0%}"),
)
"""Parts of the epoch line, each printed when all of its metrics were logged in the epoch.

The constant baseline, which is the same for all clips, is beside each objective.
"""
LIMITS: tuple[tuple[str, float, str], ...] = (
    ("peas/windows_on_empty_bins", 0.2, "{:.0%} of frequency windows touch empty bins"),
)
"""Parts that are printed only above a limit."""


class PlotsInSteps(Callback):
    """Base of callbacks that plot inside training steps.

    Attributes:
        seconds: Time spent so far, which clips/s must not count.
    """

    seconds: float = 0.0

    @contextmanager
    def plotting(self) -> Iterator[None]:
        """Adds the time of its block."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - since


class _PlotTime:
    """Seconds that a run's callbacks have plotted since the last call."""

    def __init__(self) -> None:
        self._before = 0.0

    def take(self, trainer: Trainer) -> float:
        total = sum(callback.seconds for callback in callbacks_of(trainer, PlotsInSteps))
        taken, self._before = total - self._before, total
        return taken


class Rate:
    """Clips per second over the last seconds of training."""

    def __init__(self, keep: float = 0.9) -> None:
        self.keep = keep
        self.reset()

    def reset(self) -> None:
        """Starts anew, so that a pause does not count."""
        self.value = 0.0
        self._since = time.perf_counter()

    def add(self, clips: int, plotting: float = 0.0) -> None:
        """Counts a finished batch.

        Args:
            clips: Of the batch.
            plotting: Seconds that were not training.
        """
        now = time.perf_counter()
        rate = clips / max(now - self._since - plotting, 1e-9)
        self.value = rate if self.value == 0.0 else self.keep * self.value + (1 - self.keep) * rate
        self._since = now


class Progress(RichProgressBar):
    """Lightning's rich bar (time spent and left) with clips per second beside the metrics."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self._rate = Rate()
        self._plotting = _PlotTime()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._rate.reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the clips of all processes."""
        self._rate.add(len(batch["id"]) * trainer.world_size, self._plotting.take(trainer))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics marked for the bar, and clips/s."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        metrics["clips/s"] = f"{self._rate.value:.0f}"
        return metrics


class EpochLine(Callback):
    """Prints a line at the end of each epoch: number, losses, metrics and rate.

    Metrics that were not logged in the epoch are left out: evaluations may be rarer.
    """

    def __init__(self) -> None:
        self._warned = False
        self._earlier: dict[str, Tensor] = {}
        self._clips = 0
        self._training = 0.0
        self._since = 0.0
        self._plotting = _PlotTime()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and notes the metrics of earlier epochs."""
        self._clips, self._training = 0, 0.0
        self._earlier = dict(trainer.callback_metrics)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the batch's clock; only time spent on batches counts."""
        if batch_idx == 0 or self._since == 0.0:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        now = time.perf_counter()
        self._clips += len(batch["id"]) * trainer.world_size
        self._training += now - self._since - self._plotting.take(trainer)
        self._since = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves validation out of the rate; warns once of a non-finite metric."""
        self._since = time.perf_counter()
        if self._warned or trainer.sanity_checking or not isinstance(pl_module, BaseTask):
            return
        name, _ = pl_module.monitor(pl_module.hparams["multi_label"])
        value = trainer.callback_metrics.get(name)
        if value is not None and not value.isfinite():
            self._warned = True
            rank_zero_warn(
                f"{name}, which selects best.ckpt, is {float(value)} in epoch "
                f"{trainer.current_epoch + 1}: such an epoch is never the best. Scores are "
                "non-finite when no validation clip has a class, or when outputs are non-finite"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line."""
        metrics = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        # Lightning keeps the metrics of earlier epochs, as the very same tensors.
        new = {key for key, value in metrics.items() if value is not self._earlier.get(key)}
        for keys, form in METRICS:
            if new.issuperset(keys):
                parts.append(form.format(*(float(metrics[key]) for key in keys)))
        for key, limit, form in LIMITS:
            if key in new and float(metrics[key]) > limit:
                parts.append(form.format(float(metrics[key])))
        if self._training > 0:
            parts.append(f"{self._clips / self._training:.1f} clips/s")
        rank_zero_info("  ".join(parts))


class SizeSummary(ModelSummary):
    """Lightning's summary without FLOPs: it needs an example input, and prints 0 without one."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **kwargs: Any,
    ) -> None:
        """Logs the parts of the model and how many parameters are trained."""
        columns = [[name, *values] for name, values in summary_data if name != "FLOPs"]
        widths = [max(len(str(value)) for value in column) for column in columns]
        lines = [
            "  ".join(str(value).ljust(width) for value, width in zip(row, widths, strict=True))
            for row in zip(*columns, strict=True)
        ]
        frozen = total_parameters - trainable_parameters
        lines.append(f"{trainable_parameters:,} parameters are trained, {frozen:,} are frozen")
        log.info("\n".join(line.rstrip() for line in lines))


class BadClipCount(Callback):
    """Reports bad clips after an epoch; logs `data/unreadable` where they are skipped.

    The processes exchange their names, so that a clip counts once.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchanges, reports and logs."""
        data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            return
        bad = data.bad_clips
        for other in gather(bad):
            bad.join(other)
        data.report_bad_clips()
        if bad.on_error == "skip":
            pl_module.log("data/unreadable", float(len(bad.unreadable)), rank_zero_only=True)
