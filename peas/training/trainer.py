"""Lightning's Trainer and CSV logger as `peas` needs them, and questions about a running trainer.

The few private names of Lightning that `peas` overrides are here and in `BestCheckpoint`; the
reasons are in docs/architecture.md.
"""

import csv
import io
import signal
from pathlib import Path
from typing import Any, TypeVar

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_only

from peas.models.weights.checking import check_moments, malformed
from peas.training.run_folder import writing
from peas.utils.files import write_text

C = TypeVar("C", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[C]) -> list[C]:
    """The callbacks of a class, in their order.

    Args:
        trainer: Of the run.
        kind: The class.
    """
    # Lightning sets the attribute where a type checker does not see it.
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def epoch_has_more_batches(trainer: Trainer) -> bool:
    """Whether the current epoch has batches left after the current one."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    ready = progress.current.ready
    return not (progress.is_last_batch or ready == trainer.num_training_batches)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients of an unfinished accumulation window are held at this moment."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready % trainer.accumulate_grad_batches != 0 and epoch_has_more_batches(trainer)


def stops_here(trainer: Trainer) -> bool:
    """Whether `trainer.should_stop` is set, and `min_epochs` and `min_steps` are reached."""
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    enough_epochs = epochs >= (loop.min_epochs or 0)
    enough_steps = trainer.global_step >= (loop.min_steps or 0)
    return bool(trainer.should_stop and enough_epochs and enough_steps)


def validation_is_due(trainer: Trainer, *, at_stop: bool = True) -> bool:
    """Whether a validation follows this training batch.

    Args:
        trainer: At the end of a training batch.
        at_stop: Whether one counts that follows only because the run stops here.
    """
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every and (trainer.current_epoch + 1) % every):
        return False
    if at_stop and stops_here(trainer):
        return True
    loop, interval = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if interval is None or interval == float("inf"):
        return loop.batch_progress.is_last_batch
    batches = loop.total_batch_idx if every is None else loop.batch_idx
    return (batches + 1) % interval == 0


class _CheckpointLoading(_CheckpointConnector):
    """Loads the checkpoint that was asked for, and reports malformed ones in one message.

    In a SLURM job Lightning would silently load any file that a requeueing left in the folder, for
    a new run and for `test` too. `--ckpt_path last` takes it where it has the most steps.
    """

    @property
    def _hpc_resume_path(self) -> str | None:
        return None

    def resume_start(
        self, checkpoint_path: str | Path | None = None, weights_only: bool | None = None
    ) -> None:
        """Reads the file."""
        with malformed(str(checkpoint_path)):
            super().resume_start(checkpoint_path, weights_only=weights_only)

    def restore_model(self) -> None:
        """Restores the model's weights."""
        with malformed(str(self._ckpt_path)):
            super().restore_model()

    def restore_callbacks(self) -> None:
        """Restores the callbacks' states."""
        with malformed(str(self._ckpt_path)):
            super().restore_callbacks()

    def restore_training_state(self) -> None:
        """Restores loops and optimizers; moments must have the shapes of the weights."""
        with malformed(str(self._ckpt_path)):
            super().restore_training_state()
            check_moments(self.trainer.optimizers, str(self._ckpt_path))


class _SignalHandling(_SignalConnector):
    """Leaves SIGTERM to the handler that the command line has set.

    Lightning's own runs first, and broadcasts to the other processes in the middle of a step.
    """

    def register_signal_handlers(self) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        super().register_signal_handlers()
        if callable(handler):
            self._register_signal(signal.SIGTERM, handler)


class PeasTrainer(Trainer):
    """Trainer whose `limit_*_batches: 1` means one batch.

    Lightning's own annotations reach the parser as `float | int` (Python caches equal unions),
    so that 1 would turn into 1.0: the whole epoch. Here the integer comes first.
    """

    def __init__(
        self,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            **kwargs,
        )
        self._checkpoint_connector = _CheckpointLoading(self)
        self._signal_connector = _SignalHandling(self)


class _MetricsWriter(ExperimentWriter):
    """Appends to `metrics.csv`; new columns rewrite the file atomically.

    Lightning's own writer empties the file first, so a run that is killed then loses its log.
    """

    def save(self) -> None:
        """Write the lines that came since the last call."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        columns = self.metrics_keys
        self.metrics_keys = sorted({*columns, *(key for line in self.metrics for key in line)})
        if path.exists() and self.metrics_keys == columns:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        else:
            earlier = []
            if path.exists():
                with path.open(newline="") as file:
                    earlier = list(csv.DictReader(file))
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, self.metrics_keys)
            writer.writeheader()
            writer.writerows([*earlier, *self.metrics])
            write_text(path, table.getvalue(), fsync=False)
        self.metrics = []


class RunLog(CSVLogger):
    """Lightning's CSV logger, whose file survives a kill."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _MetricsWriter:
        """The writer, created at first use."""
        if self._experiment is None:
            with writing(Path(self.root_dir)):
                Path(self.root_dir).mkdir(parents=True, exist_ok=True)
                self._experiment = _MetricsWriter(log_dir=self.log_dir)
        writer: _MetricsWriter = self._experiment  # type: ignore[assignment]
        return writer

    @rank_zero_only
    def save(self) -> None:
        """Write settings and metrics.

        Raises:
            PeasError: The disk is full, or the folder is gone.
        """
        with writing(Path(self.log_dir), Path(self.save_dir)):
            super().save()
