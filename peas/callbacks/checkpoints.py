"""Checkpoints that a kill, a full disk or a damaged file cannot take away."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from peas.errors import ConfigError, PeasError
from peas.models.weights import read_state
from peas.models.weights.checking import check_run
from peas.models.weights.writing import save, to_disk
from peas.training.run_checkpoints import Record, is_whole, write_record
from peas.training.run_folder import remedy

BEST, LAST = "best.ckpt", "last.ckpt"
"""Files of the best validation, and of the end of the run so far."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when every byte is on the disk.

    Lightning's own way writes into the system's folder for temporary files and moves the file
    from there, which across file systems is a copy: a job that is killed meanwhile leaves half a
    checkpoint under the good name. It also holds a second copy in memory.

    A `last.ckpt` that is there becomes `last.before.ckpt`. Each file has a record of where it
    belongs, which is read without the rest.

    Attributes:
        holds: Whether checkpoints are kept in memory, without a copy, until `write_held`.
    """

    def __init__(self) -> None:
        self.holds = False
        self._held: list[tuple[dict[str, Any], Path]] = []
        self._written: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write, wait for the disk, rename; or hold.

        Raises:
            PeasError: The disk is full, or the folder cannot be written. What lay there is whole.
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
        """Read and check a checkpoint, before any other code sees what it says.

        Raises:
            CheckpointError: It cannot be read, or a field is not what it should be.
        """
        content = read_state(path)
        check_run(content, str(path))
        return content

    def write_held(self) -> None:
        """Write what is held; before anything changes the weights.

        Raises:
            PeasError: As `save_checkpoint`; what was not written then is given up.
        """
        held, self._held = self._held, []
        for checkpoint, path in held:
            self._write(checkpoint, path)

    def _write(self, checkpoint: dict[str, Any], place: Path) -> None:
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save(checkpoint, partial)
            write_record(partial, Record.of(checkpoint))
            to_disk(partial)
            # A damaged file, which another process left, must not take the place of a whole one.
            if place.name == LAST and (place in self._written or is_whole(place)):
                place.replace(place.with_suffix(".before.ckpt"))
            partial.replace(place)
            self._written.add(place)
        except OSError as error:
            raise PeasError(
                f"{place}: the checkpoint could not be written ({error.strerror or error}). "
                f"{remedy(place.parent, place.parent.glob('*.ckpt'))}"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def pause_follows(trainer: Trainer) -> bool:
    """Whether a validation or an epoch's end comes between this batch and the next one.

    Lightning takes a checkpoint of such a batch's end for one of after the pause, so that a run
    which goes on from it would never have that validation, nor the lines of that epoch's end.

    Args:
        trainer: At the end of a training batch.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    if loop.epoch_loop.batch_progress.is_last_batch or fetcher is None:
        return True
    return loop.epoch_loop._should_check_val_fx(fetcher)


def is_cut(trainer: Trainer) -> bool:
    """Whether the present epoch has batches left at this moment.

    Args:
        trainer: At the end of a batch or of an epoch.
    """
    return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def ends_epochs_only(trainer: Trainer) -> bool:
    """Whether every validation comes at the end of an epoch.

    Args:
        trainer: Of the run.
    """
    if trainer.check_val_every_n_epoch is None:
        return False
    return trainer.val_check_batch in (trainer.num_training_batches, float("inf"), None)


def require_whole_windows(trainer: Trainer) -> None:
    """Refuse validations that fall between two optimiser steps.

    What is saved then would lack the gradients accumulated so far, and a run that resumed from it
    would train other weights.

    Args:
        trainer: Of the run, whose loaders are known.

    Raises:
        ConfigError: There are such validations.
    """
    window, every = trainer.accumulate_grad_batches, trainer.val_check_batch
    batches = trainer.num_training_batches
    if window == 1 or not trainer.enable_validation or ends_epochs_only(trainer):
        return
    # Each epoch begins a window, and ends one.
    last = batches if trainer.check_val_every_n_epoch is not None else math.inf
    if every is None or (every % window and every < last):
        raise ConfigError(
            f"`trainer.val_check_interval` is {every} batches, and `trainer.accumulate_grad_batches"
            f": {window}` makes a step of {window}: give a multiple of {window} batches, so that "
            "no validation comes between two steps"
        )
    if trainer.check_val_every_n_epoch is None and batches % window:
        raise ConfigError(
            f"`trainer.check_val_every_n_epoch` is null and an epoch has {batches} batches, no "
            f"multiple of `trainer.accumulate_grad_batches: {window}`: a validation would come "
            "between two steps. Leave the key at 1, or choose another batch size or window"
        )


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, of the validation with the best finite metric.

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
        """Its own: the config may have a ModelCheckpoint of the same metric."""
        return "BestCheckpoint"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the best metric so far, if its file lies here.

        Lightning would forget it in a folder that was moved or copied, and the next epoch, however
        bad, replace the file.
        """
        states = checkpoint["callbacks"]
        own = f"{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}, "
        # Releases before had Lightning's class.
        before = [key for key in states if str(key).startswith(f"ModelCheckpoint{own}")]
        state = states.pop(self.state_key, None) or (states[before[0]] if before else None)
        assert self.dirpath is not None
        path = str(Path(self.dirpath) / BEST)
        here = trainer.strategy.broadcast(os.path.exists(path))
        score = state["best_model_score"] if state else None
        if state is None or score is None or not here or not math.isfinite(score):
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
        """Whether a metric is the best so far; one that is not finite never is."""
        finite = current is not None and bool(current.isfinite())
        if not trainer.strategy.reduce_boolean_decision(finite):
            return False
        return super().check_monitor_top_k(trainer, current)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where no validation had a finite metric."""
        if not self.best_model_path and self.monitor in trainer.callback_metrics:
            rank_zero_warn(
                f"no validation of this run had a finite {self.monitor}: there is no {BEST}"
            )

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        # After a validation inside an epoch at once; after the last one when the epoch is closed.
        return trainer.check_val_every_n_epoch is not None and not is_cut(trainer)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, written after every epoch, and the one before it as `last.before.ckpt`.

    Args:
        dirpath: Folder.
        every_n_train_steps: Also after so many optimiser steps, but for one that a validation
            or an epoch's end follows; null = never inside an epoch.
        save_on_train_epoch_end: Whether after each epoch; else after each validation.
    """

    def __init__(
        self,
        dirpath: Path,
        every_n_train_steps: int | None = None,
        *,
        save_on_train_epoch_end: bool = True,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=Path(LAST).stem,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=False,
        )
        self._step = 0

    @property
    def state_key(self) -> str:
        """The same for any interval: a run may go on with another one."""
        return "LastCheckpoint"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: its one file has the same name in every folder."""

    def save_now(self, trainer: Trainer) -> None:
        """Save the state after this step, whatever the interval, unless that is done."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that no validation comes between two steps.

        Raises:
            ConfigError: One would.
        """
        super().on_train_start(trainer, pl_module)
        require_whole_windows(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step before the batch."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves inside an epoch, if the interval is over with this batch.

        The step alone says that through the whole next window of accumulated gradients.
        """
        if trainer.global_step != self._step and not pause_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, unless the epoch ends before its time and the state inside it is saved."""
        if is_cut(trainer) and self._last_global_step_saved == trainer.global_step:
            return
        if self._every_n_train_steps:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        else:
            super().on_train_epoch_end(trainer, pl_module)


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
    """Has checkpoints of a step, or of an epoch, written once the log has the same step or epoch.

    Lightning saves first and logs then. A run that is killed in between would go on from the
    checkpoint, and its log would lack a line for ever.

    It stands first among the callbacks: nothing may change what is held.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to hold."""
        write_held(trainer, holds=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Writes those of the step before."""
        write_held(trainer, holds=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes those of the epoch before."""
        write_held(trainer, holds=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes those of the last epoch, and holds no longer."""
        write_held(trainer, holds=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes what is whole; what went wrong came later."""
        write_held(trainer, holds=False)
