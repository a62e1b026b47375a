"""Checkpoints that survive a kill, a full disk or a damaged file."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from peas.errors import ConfigError, PeasError
from peas.models.weights import read_state
from peas.models.weights.checking import check_run
from peas.models.weights.writing import save, to_disk
from peas.training.run_checkpoints import (
    BEST,
    LAST,
    LoadedCheckpoint,
    Record,
    is_complete,
    write_record,
)
from peas.training.run_folder import remedy
from peas.training.trainer import epoch_has_more_batches, validation_is_due


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it once every byte is on disk.

    Lightning moves the file from the system's temporary folder, which across file systems is a
    copy: a job killed meanwhile leaves half a checkpoint under the final name. It also holds a
    second copy in memory.

    An existing `last.ckpt` becomes `last.before.ckpt`. Each file has a record of its run, step and
    count of saves, which can be read without the rest.

    Args:
        loaded: A checkpoint that the command line has read; it is not read again.

    Attributes:
        holds: Whether checkpoints are kept in memory, without a copy, until `write_held`.
    """

    def __init__(self, loaded: LoadedCheckpoint | None = None) -> None:
        self.holds = False
        self._loaded = loaded
        self._held: list[tuple[dict[str, Any], Path]] = []
        self._written: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write, or hold.

        Raises:
            PeasError: The disk is full, or the folder is not writable. An earlier file stays.
        """
        if self.holds:
            self._held.append((checkpoint, Path(path)))
        else:
            self._write(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read and check a checkpoint, before any other code sees its content.

        Raises:
            CheckpointError: It cannot be read, or a field is invalid.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded.path == Path(path):
            return loaded.content
        content = read_state(path)
        check_run(content, str(path))
        return content

    def write_held(self) -> None:
        """Write what is held; before anything changes the weights.

        Raises:
            PeasError: As `save_checkpoint`; the rest is dropped.
        """
        held, self._held = self._held, []
        for checkpoint, path in held:
            self._write(checkpoint, path)

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(checkpoint, partial)
            write_record(partial, Record.of(checkpoint))
            to_disk(partial)
            # A damaged file, left by another process, must not replace a complete one.
            if path.name == LAST and (path in self._written or is_complete(path)):
                path.replace(path.with_suffix(".before.ckpt"))
            partial.replace(path)
            self._written.add(path)
        except OSError as error:
            raise PeasError(
                f"{path}: the checkpoint could not be written ({error.strerror or error}). "
                f"{remedy(path.parent, path.parent.glob('*.ckpt'))}"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def pause_follows(trainer: Trainer) -> bool:
    """Whether a validation or the end of the epoch comes between this batch and the next.

    Lightning takes a checkpoint saved at the end of such a batch for one saved after the pause: a
    run resumed from it would skip that validation and that epoch's log lines.

    Args:
        trainer: At the end of a training batch.
    """
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return last or validation_is_due(trainer)


def _require_complete_windows(trainer: Trainer) -> None:
    """Refuses validations between two optimizer steps.

    A checkpoint saved there would lack the accumulated gradients, and a resumed run would train
    other weights.
    """
    window, every = trainer.accumulate_grad_batches, trainer.val_check_batch
    batches = trainer.num_training_batches
    per_epoch = trainer.check_val_every_n_epoch is not None
    ends_epochs = per_epoch and every in (batches, float("inf"), None)
    if window == 1 or not trainer.enable_validation or ends_epochs:
        return
    # Each epoch starts a window, and ends one.
    last = batches if per_epoch else math.inf
    if every is None or (every % window and every < last):
        raise ConfigError(
            f"`trainer.val_check_interval` is {every} batches, and `trainer.accumulate_grad_batches"
            f": {window}` makes a step of {window}: give a multiple of {window} batches, so that "
            "no validation comes between two steps"
        )
    if not per_epoch and batches % window:
        raise ConfigError(
            f"`trainer.check_val_every_n_epoch` is null and an epoch has {batches} batches, not a "
            f"multiple of `trainer.accumulate_grad_batches: {window}`: a validation would come "
            "between two steps. Leave the key at 1, or choose another batch size or window"
        )


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, from the validation with the best finite metric.

    Args:
        dirpath: Folder.
        monitor: The metric.
        mode: Whether the lowest (`min`) or highest (`max`) is the best.
        every_n_epochs: Epochs from one validation to the next.
    """

    def __init__(self, dirpath: Path, monitor: str, mode: str, every_n_epochs: int = 1) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """A key of its own: the config may have a ModelCheckpoint of the same metric."""
        return "BestCheckpoint"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the best metric so far, if its file exists in this folder.

        Lightning would drop it in a folder that was moved or copied, and the next epoch, however
        bad, would replace the file.
        """
        states = checkpoint["callbacks"]
        prefix = f"ModelCheckpoint{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}, "
        # Earlier releases used Lightning's class.
        legacy = [key for key in states if str(key).startswith(prefix)]
        state = states.pop(self.state_key, None) or (states[legacy[0]] if legacy else None)
        assert self.dirpath is not None
        path = str(Path(self.dirpath) / BEST)
        exists = trainer.strategy.broadcast(os.path.exists(path))
        score = state["best_model_score"] if state else None
        if state is None or score is None or not exists or not math.isfinite(score):
            return
        states[self.state_key] = {
            **state,
            "dirpath": self.dirpath,
            "best_model_path": path,
            "kth_best_model_path": path,
            "best_k_models": {path: score},
            "kth_value": score,
        }

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a metric is the best so far; a non-finite one never is."""
        finite = current is not None and bool(current.isfinite())
        if not trainer.strategy.reduce_boolean_decision(finite):
            return False
        return super().check_monitor_top_k(trainer, current)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns if no validation had a finite metric."""
        if not self.best_model_path and self.monitor in trainer.callback_metrics:
            rank_zero_warn(
                f"no validation of this run had a finite {self.monitor}: there is no {BEST}"
            )

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        # A validation inside an epoch is saved at once, the last one when the epoch is closed.
        return trainer.check_val_every_n_epoch is not None and not epoch_has_more_batches(trainer)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, written after every epoch.

    Lightning's `save_last` writes only when the best has improved, so that an interrupted run
    would resume from its best epoch.

    Args:
        folder: Of the checkpoints.
        every_n_train_steps: Also save after so many optimizer steps, unless a validation or the
            end of the epoch follows; null = never inside an epoch.
        after_epochs: Whether to save after each epoch; else after each validation.
    """

    def __init__(
        self, folder: Path, every_n_train_steps: int | None = None, *, after_epochs: bool = True
    ) -> None:
        self.path = folder / LAST
        self.every = every_n_train_steps
        self.after_epochs = after_epochs
        self._step = 0
        self._saved = 0

    def save(self, trainer: Trainer, *, again: bool = False) -> None:
        """Save the current state.

        Args:
            trainer: Of the run.
            again: Also when the state after this step is saved already.
        """
        dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not dry_run and (again or self._saved != trainer.global_step):
            # False: with the optimiser's state. Reading is with `weights_only=True` all the same.
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that no validation comes between two steps.

        Raises:
            ConfigError: One would.
        """
        _require_complete_windows(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step before the batch."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves inside an epoch, if this batch has made the last step of the interval."""
        # While gradients are accumulated the step stays what it was.
        stepped = trainer.global_step != self._step
        due = bool(self.every) and stepped and trainer.global_step % (self.every or 1) == 0
        if due and not pause_follows(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, if validations count and not epochs."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and not self.after_epochs and not self.every:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, unless the epoch ends early and the state inside it is saved."""
        saved_inside = epoch_has_more_batches(trainer) and self._saved == trainer.global_step
        if not saved_inside and (self.every or self.after_epochs):
            self.save(trainer, again=True)


def write_held(trainer: Trainer, *, holds: bool) -> None:
    """Write the checkpoints that a run's writer holds.

    Args:
        trainer: Of the run.
        holds: Whether later ones are held again.
    """
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, AtomicCheckpointIO):
        writer.holds = holds
        writer.write_held()


class WriteAfterLog(Callback):
    """Writes checkpoints of a step or epoch once the log has that step or epoch.

    Lightning saves first and logs later. A run killed in between would resume from the checkpoint,
    and its log would lack a line for ever.

    It must be the first callback: nothing may change what is held.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to hold."""
        write_held(trainer, holds=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Writes those of the previous step."""
        write_held(trainer, holds=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes those of the previous epoch."""
        write_held(trainer, holds=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes those of the last epoch, and stops holding."""
        write_held(trainer, holds=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes what is held; the error came later."""
        write_held(trainer, holds=False)
