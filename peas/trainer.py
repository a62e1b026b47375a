"""Lightning's Trainer with what `peas` needs of it."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector


class _AsToldConnector(_CheckpointConnector):
    """Restores what it is told to, and no file that a cluster's requeueing left in the folder.

    In a SLURM job Lightning would take up any such file, for a new run and for `test` too, and say
    nothing. `--ckpt_path last` takes it up where it is the newest.
    """

    @property
    def _hpc_resume_path(self) -> str | None:
        return None


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
