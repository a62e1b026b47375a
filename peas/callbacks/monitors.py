"""Metrics that callbacks wait for are asked about before training, not after an epoch."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from peas.errors import ConfigError
from peas.tasks.base import BaseTask

OURS = ("peas", "lightning")
"""Packages whose callbacks log what is known here."""
OTHERS = ("mask", "peas", "knn", "data", "grad", "lr")
"""Beginnings of what callbacks and the optimiser log."""
COUNTS = {"epoch", "step"}
"""What Lightning itself lets a ModelCheckpoint monitor."""


class RequireMonitors(Callback):
    """Refuses a callback whose `monitor` is no metric of the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares each monitor with what the task logs.

        Raises:
            ConfigError: A metric has no such name.
        """
        known = logged(pl_module)
        # What a class of the user's own logs cannot be known.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if known is None or any(type(c).__module__.split(".")[0] not in OURS for c in callbacks):
            return
        for callback in callbacks:
            name = getattr(callback, "monitor", None)
            if not isinstance(name, str) or getattr(callback, "strict", True) is False:
                continue
            kind = name.partition("/")[0]
            if isinstance(callback, ModelCheckpoint) and name in COUNTS:
                continue
            blind = kind == "val" and not trainer.enable_validation
            if isinstance(callback, EarlyStopping) and blind:
                raise ConfigError(
                    f"`trainer.callbacks`: EarlyStopping's `monitor` is {name!r}, and this run has "
                    "no validation (`trainer.limit_val_batches: 0`): give a metric of training, "
                    "such as 'train/loss'"
                )
            if name not in known and kind not in OTHERS:
                raise ConfigError(
                    f"`trainer.callbacks`: {type(callback).__name__}'s `monitor` is {name!r}, "
                    f"which this run does not log: give one of {', '.join(sorted(known))}"
                )


def logged(task: LightningModule) -> set[str] | None:
    """Names of a built task's metrics in a run with validation; None for another class.

    Args:
        task: The task.
    """
    if not isinstance(task, BaseTask):
        return None
    train, val, step = task.metric_names()
    if task.recipe.on_nonfinite == "skip":
        train = train | {"skipped_steps"}
    return {f"train/{name}" for name in train} | {f"val/{name}" for name in val} | step
