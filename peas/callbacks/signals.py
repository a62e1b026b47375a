"""Ends a run at the end of a step when the cluster, or a user, asks it to."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from peas.callbacks.checkpoints import LastCheckpoint, pause_follows, write_held
from peas.run_folder import CHECKPOINTS

ASKED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that end a run: the cluster's last warning, and the one sent well before it."""


class Stopped(SystemExit):
    """A run that ended as asked by a signal, and can go on."""

    def __init__(self, number: int) -> None:
        # As a shell tells of a process that a signal ended.
        super().__init__(128 + number)


class StopOnSignal(Callback):
    """Ends a run after the optimiser step in which SIGTERM or SIGUSR1 came, once it is saved.

    Lightning answers a signal wherever training is at that moment. A checkpoint written between
    the reading of a batch and the step with it would lose that batch, and one written by a process
    alone would wait for the others. Here the processes agree after each step, so it is enough that
    one of them was asked, and what goes on later is the unbroken run.

    It stands before all callbacks but `WriteAfterLog`, so that none sees a batch that is not
    trained on, and `SaveOnSignal` last, so that it saves what all others have done.

    Attributes:
        asked: Number of the signal that came; 0 = none did.
        saved: Whether the run can be left.
        lightnings: Signal to what Lightning would have done.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.saved = False
        self.lightnings: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over, after Lightning has."""
        self.asked, self.saved = 0, False
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ASKED:
            before = signal.signal(number, self._note)
            if callable(before):
                self.lightnings[number] = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, now that the step before is in the log.

        Raises:
            Stopped: The run was saved for the sake of a signal.
        """
        if self.saved:
            rank_zero_info(
                f"stopped by {signal.Signals(self.asked).name} after step {trainer.global_step}; "
                f"to go on: the same command with `--trainer.default_root_dir "
                f"{trainer.default_root_dir} --ckpt_path last`"
            )
            raise Stopped(self.asked)


class SaveOnSignal(Checkpoint):
    """Saves the run at the end of a step, when any of its processes was asked to stop.

    In a SLURM job, SIGUSR1 is passed on to Lightning, which writes its checkpoint and puts the job
    back into the queue.

    Args:
        stop: What knows of the signal.
    """

    def __init__(self, stop: StopOnSignal) -> None:
        self._stop = stop
        self._step = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes where the batch begins."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves after an optimiser step; gradients that are being accumulated would be lost.

        Where a validation or an epoch's end follows, it and one more step are made first.
        """
        stop = self._stop
        if trainer.global_step == self._step or pause_follows(trainer):
            return
        asked = stop.asked
        if trainer.world_size > 1:
            told = torch.tensor(asked, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            asked = int(told)
        if not asked:
            return
        stop.asked, stop.saved = asked, True
        if asked == signal.SIGUSR1 and asked in stop.lightnings:
            # The job may end as soon as it is back in the queue.
            write_held(trainer, holds=False)
            stop.lightnings[asked](asked, None)
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_now(trainer)
                return
        # The config brings checkpoints of its own.
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        trainer.save_checkpoint(folder / "last.ckpt")
