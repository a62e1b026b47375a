"""A run that a signal or a limit stops: it finishes the optimizer step, saves and exits."""

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
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from peas.callbacks.checkpoints import LastCheckpoint, pause_follows, write_held
from peas.training.trainer import (
    callbacks_of,
    epoch_has_more_batches,
    stops_here,
    validation_is_due,
)
from peas.utils.processes import STOPPING

_AGAIN = 1.0
"""Seconds after which another Ctrl-C counts: `timeout` sends each signal twice at once."""


class Stopped(SystemExit):
    """A run that a signal has ended.

    Attributes:
        number: Of the signal.
        saved: Whether the run was saved because of it.
    """

    def __init__(self, number: int, *, saved: bool = False) -> None:
        # The exit status that a shell gives to a process ended by a signal.
        super().__init__(128 + number)
        self.number = number
        self.saved = saved


class StopRequest:
    """Signal handler that remembers the signal.

    Args:
        at_once: Whether the first signal ends the process; False = it is only noted.

    Attributes:
        number: Of the last signal; 0 = none.

    Raises:
        Stopped: From the handler; always at a second Ctrl-C.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.number = 0
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        first, self.number = self.number == 0, number
        if first:
            self._since = time.monotonic()
        impatient = number == signal.SIGINT and time.monotonic() - self._since > _AGAIN
        # A second SIGTERM must not interrupt what the first one has started.
        if impatient or (first and self.at_once):
            raise Stopped(number)


@contextmanager
def ending_by_signals() -> Iterator[StopRequest]:
    """Make SIGTERM and Ctrl-C raise `Stopped` in the main thread.

    During training `StopOnSignal` handles them. SIGUSR1 is left to Lightning, which handles it in
    a SLURM job.
    """
    request = StopRequest(at_once=True)
    earlier = _set_handler(request, (signal.SIGTERM, signal.SIGINT))
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _set_handler(
    handler: Callable[[int, FrameType | None], Any], numbers: tuple[signal.Signals, ...]
) -> dict[signal.Signals, Any]:
    """Sets a handler; returns the earlier ones."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    earlier = {number: signal.getsignal(number) for number in numbers}
    # A shell ignores Ctrl-C in what it starts in the background.
    replaced = {number: old for number, old in earlier.items() if old not in (signal.SIG_IGN, None)}
    for number in replaced:
        signal.signal(number, handler)
    return replaced


def _save_last(trainer: Trainer) -> None:
    for callback in callbacks_of(trainer, LastCheckpoint):
        callback.save(trainer)


class StopOnSignal(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C the run finishes the optimizer step, is saved and exits.

    Lightning handles a signal wherever training is at that moment: a checkpoint written between
    the loading of a batch and its step would lose that batch, and one process alone would wait for
    the others. Here the processes agree after each step, so that a signal to one is enough and the
    resumed run equals an uninterrupted one.

    It must come before all callbacks but `WriteAfterLog`, so that none sees a batch that is not
    trained on, and `SaveOnSignal` last, so that it saves what all others have done.

    Attributes:
        request: The signal that came.
        saved: Signal because of which the run was saved; 0 = none.
        lightnings: Signal to Lightning's handler.
    """

    def __init__(self) -> None:
        self.request = StopRequest(at_once=False)
        self.saved = 0
        self.lightnings: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the handlers, after Lightning has set its own."""
        self.request, self.saved = StopRequest(at_once=False), 0
        earlier = _set_handler(self._note, STOPPING)
        self.lightnings = {number: old for number, old in earlier.items() if callable(old)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.request.number and not getattr(rank_zero_only, "rank", 0):
            text = f"{signal.Signals(number).name}: the run saves after this step and stops"
            again = "; Ctrl-C again stops it at once" if number == signal.SIGINT else ""
            # Not through Python's streams: the signal may have come inside one of them.
            os.write(2, f"{text}{again}\n".encode())
        self.request(number, frame)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, now that the previous step is in the log.

        Raises:
            Stopped: The run was saved because of a signal.
        """
        if self.saved:
            rank_zero_info(
                f"stopped by {signal.Signals(self.saved).name} after step {trainer.global_step}; "
                f"to resume: the same command with `--trainer.default_root_dir "
                f"{trainer.default_root_dir} --ckpt_path last`"
            )
            # Lightning kills this process five seconds after another one has exited, before the
            # loggers have written everything.
            if processes := getattr(trainer.strategy.launcher, "procs", None):
                processes.clear()
            raise Stopped(self.saved, saved=True)


class SaveOnSignal(Checkpoint):
    """Saves the run at the end of a step, when one of its processes got a signal.

    In a SLURM job, SIGUSR1 is passed on to Lightning, which writes its checkpoint and requeues the
    job.

    Args:
        stop: Knows the signal.
    """

    def __init__(self, stop: StopOnSignal) -> None:
        self._stop = stop
        self._step = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step before the batch."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after an optimizer step; accumulated gradients would be lost.

        Where a validation or the end of the epoch follows, it and one more step come first.
        """
        stop = self._stop
        if trainer.global_step == self._step or pause_follows(trainer):
            return
        number = stop.request.number
        if trainer.world_size > 1:
            highest = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
            number = int(highest)
        if not number:
            return
        stop.saved = number
        if number == signal.SIGUSR1 and number in stop.lightnings:
            # The job may end as soon as it is requeued.
            write_held(trainer, holds=False)
            stop.lightnings[number](number, None)
            return
        _save_last(trainer)


class SaveBeforeEarlyEnd(Checkpoint):
    """Saves a run that `max_steps`, `max_time` or an early stop ends inside an epoch.

    Lightning then closes the epoch: it validates, logs the means and counts the epoch as done, so
    that a resumed run would never train the rest. The state is saved before that, and
    `LastCheckpoint` keeps it. A stop between two optimizer steps is delayed until the step:
    accumulated gradients would be lost.

    It must come after all callbacks that may stop the run.
    """

    def __init__(self) -> None:
        self._step = 0
        self._delayed = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the step before the batch."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, delays the stop, or leaves saving to a validation that is due anyway."""
        if self._delayed:
            trainer.should_stop, self._delayed = True, False
        if self._ends_here(trainer) and not validation_is_due(trainer, at_stop=False):
            _save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after a validation that was due anyway, or that has stopped the run."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self._ends_here(trainer):
            _save_last(trainer)

    def _ends_here(self, trainer: Trainer) -> bool:
        """Whether the run ends inside the epoch; delays a stop between two steps."""
        if not epoch_has_more_batches(trainer):
            return False
        if 0 <= trainer.fit_loop.epoch_loop.max_steps <= trainer.global_step:
            return True
        if not stops_here(trainer):
            return False
        if trainer.global_step == self._step:
            trainer.should_stop, self._delayed = False, True
            return False
        return True
