"""Ends a run at the end of a step when the cluster, or a user, asks it to."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from peas.callbacks.checkpoints import LastCheckpoint, pause_follows, write_held
from peas.utils.children import STOPPING

_AGAIN = 1.0
"""Seconds after which another Ctrl-C is one: `timeout` sends each signal twice at once."""


class Stopped(SystemExit):
    """A run that a signal has ended.

    Attributes:
        number: Of the signal.
        saved: Whether the run has saved itself because of it.
    """

    def __init__(self, number: int, *, saved: bool = False) -> None:
        # As a shell tells of a process that a signal ended.
        super().__init__(128 + number)
        self.number = number
        self.saved = saved


class Asked:
    """Signal handler that remembers the first signal of those that ask a process to stop.

    Args:
        at_once: Whether the first signal ends the process; False = it is only noted.

    Attributes:
        number: Of the last signal; 0 = none came.

    Raises:
        Stopped: From the handler; in any case at a second Ctrl-C.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.number = 0
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Answers a signal."""
        first, self.number = self.number == 0, number
        if first:
            self._since = time.monotonic()
        impatient = number == signal.SIGINT and time.monotonic() - self._since > _AGAIN
        # A second SIGTERM must not break into what the first one has begun.
        if impatient or (first and self.at_once):
            raise Stopped(number)


@contextmanager
def ending_by_signals() -> Iterator[Asked]:
    """SIGTERM and Ctrl-C end what runs in here as an exception does, from the main thread.

    While a model is trained, `StopOnSignal` answers them. SIGUSR1 is left to Lightning, which
    answers it in a SLURM job.
    """
    asked = Asked(at_once=True)
    before = _take_over(asked, (signal.SIGTERM, signal.SIGINT))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_over(
    handler: Callable[[int, FrameType | None], Any], numbers: tuple[signal.Signals, ...]
) -> dict[signal.Signals, Any]:
    """Sets a handler; returns those before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in numbers}
    # A shell has Ctrl-C ignored in what it starts in the background.
    taken = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, handler)
    return taken


class StopOnSignal(Callback):
    """Ends a run after the optimiser step in which a signal of `STOPPING` came, once it is saved.

    Lightning answers a signal wherever training is at that moment. A checkpoint written between
    the reading of a batch and the step with it would lose that batch, and one written by a process
    alone would wait for the others. Here the processes agree after each step, so it is enough that
    one of them was asked, and the resumed run is the unbroken one.

    It stands before all callbacks but `WriteAfterLog`, so that none sees a batch that is not
    trained on, and `SaveOnSignal` last, so that it saves what all others have done.

    Attributes:
        asked: The signal that came.
        saved: Signal for whose sake the run was saved; 0 = none.
        lightnings: Signal to what Lightning would have done.
    """

    def __init__(self) -> None:
        self.asked = Asked(at_once=False)
        self.saved = 0
        self.lightnings: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over, after Lightning has."""
        self.asked, self.saved = Asked(at_once=False), 0
        before = _take_over(self._note, STOPPING)
        self.lightnings = {number: old for number, old in before.items() if callable(old)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked.number and not getattr(rank_zero_only, "rank", 0):
            told = f"{signal.Signals(number).name}: the run saves after this step and stops"
            again = "; Ctrl-C again stops it at once" if number == signal.SIGINT else ""
            # Past Python's streams, in one of which the signal may have come.
            os.write(2, f"{told}{again}\n".encode())
        self.asked(number, frame)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, now that the step before is in the log.

        Raises:
            Stopped: The run was saved for the sake of a signal.
        """
        if self.saved:
            rank_zero_info(
                f"stopped by {signal.Signals(self.saved).name} after step {trainer.global_step}; "
                f"to resume: the same command with `--trainer.default_root_dir "
                f"{trainer.default_root_dir} --ckpt_path last`"
            )
            # Lightning kills this process five seconds after another one has left, with whatever
            # the loggers still have to write.
            if processes := getattr(trainer.strategy.launcher, "procs", None):
                processes.clear()
            raise Stopped(self.saved, saved=True)


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
        asked = stop.asked.number
        if trainer.world_size > 1:
            told = torch.tensor(asked, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            asked = int(told)
        if not asked:
            return
        stop.saved = asked
        if asked == signal.SIGUSR1 and asked in stop.lightnings:
            # The job may end as soon as it is back in the queue.
            write_held(trainer, holds=False)
            stop.lightnings[asked](asked, None)
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_now(trainer)
