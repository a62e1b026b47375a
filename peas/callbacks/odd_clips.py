"""Counts the clips that could not be read, over all processes, in the log of the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from peas.data.module import ClipDataModule
from peas.training.distributed import gather


class OddClipCount(Callback):
    """Says after an epoch how many clips were odd; logs `data/unreadable` where those are skipped.

    The processes exchange the names, so that a clip which two of them met counts once.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchanges, says and logs."""
        data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            return
        odd = data.bad_clips
        for other in gather(odd):
            odd.join(other)
        data.report_bad_clips()
        if odd.on_error == "skip":
            pl_module.log("data/unreadable", float(len(odd.unreadable)), rank_zero_only=True)
