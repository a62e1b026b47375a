"""A run that ends inside an epoch can go on inside it."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from peas.callbacks.checkpoints import LastCheckpoint, is_cut


class SaveBeforeTheCut(Checkpoint):
    """Saves a run that `max_steps`, `max_time` or an early stop ends inside an epoch.

    Lightning then closes the epoch: validates, logs its means and calls it done, so that a run
    which goes on from there would never train its rest. The state is saved before that, and what
    is saved last stays so (`LastCheckpoint`). A stop that can wait does so until the optimiser has
    stepped: gradients that are being accumulated would be lost.

    It stands behind all callbacks that may ask for an end.
    """

    def __init__(self) -> None:
        self._step = 0
        self._waits = False

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
        """Saves, or lets the end wait, or leaves it to the validation that is due anyway."""
        if self._waits:
            trainer.should_stop, self._waits = True, False
        if self._ends_here(trainer) and not _validation_is_due(trainer):
            _save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after one that belongs to the unbroken run too, or that has asked for an end."""
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fits and self._ends_here(trainer):
            _save(trainer)

    def _ends_here(self, trainer: Trainer) -> bool:
        """Whether the epoch is cut here; lets an end wait that comes between two steps."""
        if not is_cut(trainer):
            return False
        if 0 <= trainer.fit_loop.epoch_loop.max_steps <= trainer.global_step:
            return True
        if not (trainer.should_stop and trainer.fit_loop._can_stop_early):
            return False
        if trainer.global_step == self._step:
            trainer.should_stop, self._waits = False, True
            return False
        return True


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether one would follow if nobody had asked for an end."""
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None:
        return False
    asked, trainer.should_stop = trainer.should_stop, False
    try:
        return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = asked


def _save(trainer: Trainer) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            # Once: nothing changes between the step and the end of its validation.
            callback.save_now(trainer)
