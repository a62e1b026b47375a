"""Lightning's Trainer with what `peas` needs of it."""

import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from peas.models.weights.checking import check_moments, malformed


class _AsToldConnector(_CheckpointConnector):
    """Restores what it is told to, and no file that a cluster's requeueing left in the folder.

    In a SLURM job Lightning would take up any such file, for a new run and for `test` too, and say
    nothing. `--ckpt_path last` takes it up where it has the most steps.
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
        """Gives the model its weights; a contradiction is one message."""
        with malformed(str(self._ckpt_path)):
            super().restore_model()

    def restore_callbacks(self) -> None:
        """Gives the callbacks their states; a contradiction is one message."""
        with malformed(str(self._ckpt_path)):
            super().restore_callbacks()

    def restore_training_state(self) -> None:
        """Gives loops and optimizers their states, whose shapes must be those of the weights."""
        with malformed(str(self._ckpt_path)):
            super().restore_training_state()
            check_moments(self.trainer.optimizers, str(self._ckpt_path))


class _LaterSignals(_SignalConnector):
    """Leaves SIGTERM to the handler that the command line has set.

    Lightning's own would come before it, and broadcasts to the other processes wherever this one
    is at that moment.
    """

    def register_signal_handlers(self) -> None:
        own = signal.getsignal(signal.SIGTERM)
        super().register_signal_handlers()
        if callable(own):
            self._register_signal(signal.SIGTERM, own)


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
        self._checkpoint_connector = _AsToldConnector(self)
        self._signal_connector = _LaterSignals(self)
