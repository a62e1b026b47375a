"""Checkpoints that a kill, a full disk or a damaged file cannot take away."""

import os
from contextlib import suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from peas.errors import PeasError
from peas.run_folder import is_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when every byte is on the disk.

    Lightning's own way writes into the system's folder for temporary files and moves the file
    from there, which across file systems is a copy: a job that is killed meanwhile leaves half a
    checkpoint under the good name. It also holds a second copy in memory.

    A `last.ckpt` that is there becomes `last.before.ckpt`.

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
        stream = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _Stream(FileIO(partial, "wb")) as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            # Beside an older run's, the name is last-v1. A damaged file, which another process
            # left, must not take the place of a whole one.
            if place.stem.split("-v")[0] == "last" and (place in self._written or is_whole(place)):
                place.replace(place.with_suffix(".before.ckpt"))
            partial.replace(place)
            self._written.add(place)
        except (OSError, RuntimeError) as error:
            failure = error if isinstance(error, OSError) else stream and stream.failure
            # Of something else, such as the death of a reading process, which is told wherever
            # Python stands.
            if not failure:
                raise
            raise PeasError(
                f"{place}: the checkpoint could not be written ({failure.strerror or failure}). "
                "Earlier ones are whole: make room, then go on with `--ckpt_path last`"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


class _Stream(BufferedWriter):
    """A file that knows why it could not be written.

    torch's writer lets such an error pass, and fails later over the state of its own table.

    Attributes:
        failure: What the system said.
    """

    failure: OSError | None = None

    def write(self, buffer: Any) -> int:
        try:
            return super().write(buffer)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


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


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, written after every epoch, and the one before it as `last.before.ckpt`.

    Args:
        dirpath: Folder.
        every_n_train_steps: Also after so many optimiser steps, but for one that a validation
            or an epoch's end follows; null = never inside an epoch.
        **settings: Of `ModelCheckpoint`.
    """

    def __init__(
        self, dirpath: Path, every_n_train_steps: int | None = None, **settings: Any
    ) -> None:
        super().__init__(
            dirpath=dirpath, filename="last", every_n_train_steps=every_n_train_steps, **settings
        )

    @property
    def state_key(self) -> str:
        """The same for any interval: a run may go on with another one."""
        return "LastCheckpoint"

    def save_now(self, trainer: Trainer) -> None:
        """Save the state after this step, whatever the interval, unless that is done."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves inside an epoch, if the interval is over."""
        if not pause_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves."""
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
