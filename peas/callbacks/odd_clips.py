"""Counts the clips that could not be read, over all processes, in the log of the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from peas.processes import gather


class OddClipCount(Callback):
    """Logs `data/unreadable` after every epoch of a run that skips what it cannot read.

    The processes exchange the names, so that a clip which two of them met counts once, and the
    main process's last line of the run tells of all.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchanges and logs."""
        odd: Any = getattr(getattr(trainer, "datamodule", None), "odd_clips", None)
        if odd is None or odd.on_error != "skip":
            return
        for broken, silent, short in gather((odd.broken, odd.silent, odd.short)):
            odd.broken |= broken
            odd.silent |= silent
            odd.short |= short
        pl_module.log("data/unreadable", float(len(odd.broken)), rank_zero_only=True)
