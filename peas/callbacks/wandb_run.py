"""Weights & Biases: where its files go, what is logged, and that it never stops training."""

import csv
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from peas.errors import ConfigError

VARIABLES = ("WANDB_RUN_ID", "WANDB_DIR")
"""Environment variables that `use_run_folder` sets."""
HIGHER = ("accuracy", "mAP", "AUC", "d_prime", "nce_accuracy")
LOWER = ("loss", "mse", "valid_mse", "feature_mse", "reconstruction", "distillation", "contrastive")
"""Metrics whose best value is the highest, or the lowest; by default W&B uses the last one."""
_CALLS = (
    "after_save_checkpoint",
    "finalize",
    "log_audio",
    "log_hyperparams",
    "log_image",
    "log_metrics",
    "log_table",
    "log_text",
    "log_video",
    "save",
    "watch",
)
"""Methods of a logger, none of which may end a run."""


def use_run_folder(folder: Path, *, afresh: bool) -> None:
    """Keep W&B's files in a run's folder, and continue its curves.

    Args:
        folder: Of the run.
        afresh: Whether a run starts; False if one resumes or is evaluated.
    """
    # Absolute: W&B's service, if it runs already, has its own working folder.
    os.environ.setdefault("WANDB_DIR", str(folder.absolute()))
    if not getattr(rank_zero_only, "rank", 0) and not os.environ.get("WANDB_RUN_ID"):
        os.environ["WANDB_RUN_ID"] = wandb_id(folder, afresh=afresh)
    # A server that does not answer would delay the start by a minute and a half, and the end for
    # ever: what is not sent stays in the run's folder.
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "300")


def wandb_id(folder: Path, *, afresh: bool) -> str:
    """Id of the W&B run of a folder.

    Args:
        folder: Of the run.
        afresh: Whether a run starts, which gets a new one.
    """
    path = folder / "wandb_id"
    if not afresh and path.is_file() and (earlier := path.read_text().strip()):
        return earlier
    folder.mkdir(parents=True, exist_ok=True)
    new = secrets.token_hex(4)
    path.write_text(new + "\n")
    return new


def connect(loggers: Iterable[Logger]) -> None:
    """Start W&B's runs; offline if the server cannot be reached.

    Args:
        loggers: Of the trainer.

    Raises:
        ConfigError: W&B refuses the settings, such as a missing or wrong key.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError

        try:
            _ = logger.experiment
        except (AuthenticationError, UsageError) as error:
            raise ConfigError(
                f"W&B: {_line(error)}. Give WANDB_API_KEY (or `wandb login` once), or set "
                "WANDB_MODE=offline and send the run later with `wandb sync`"
            ) from error
        except CommError as error:
            rank_zero_warn(
                f"W&B cannot be reached ({_line(error)}): this run is logged offline. Send it "
                f"later with `wandb sync {os.environ.get('WANDB_DIR', '.')}/wandb/offline-run-*`"
            )
            os.environ["WANDB_MODE"] = "offline"
            # Its service still has the failed run's id and settings.
            wandb.teardown()
            _ = logger.experiment
        _GUARDS[logger] = _Guard(logger)


class _Guard:
    """Lets a logger fail once, with a warning; it gets no further calls.

    Args:
        logger: Its methods are replaced.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self._lost = False
        for name in _CALLS:
            setattr(logger, name, self.guarded(getattr(logger, name)))

    def guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, which never raises."""

        @wraps(call)
        def safe(*args: Any, **settings: Any) -> Any:
            if self._lost:
                return None
            try:
                return call(*args, **settings)
            # W&B has no common base class for the loss of its service.
            except Exception as error:
                self._lost = True
                self._give_up(error)
                return None

        return safe

    def _give_up(self, error: Exception) -> None:
        import wandb

        rank_zero_warn(
            f"W&B has failed ({_line(error) or type(error).__name__}): the run continues without "
            "it, and logs/ has every metric. Send what W&B has with "
            f"`wandb sync {os.environ.get('WANDB_DIR', '.')}/wandb/*run-*`"
        )
        # At the end of the process it would fail again, with tracebacks.
        with suppress(Exception):
            wandb.finish(exit_code=1)
        with suppress(Exception):
            wandb.teardown(exit_code=1)


_GUARDS: WeakKeyDictionary[WandbLogger, _Guard] = WeakKeyDictionary()


def call_wandb(logger: WandbLogger, call: Callable[[Any], object]) -> None:
    """Call something with a logger's W&B run; a failure is a warning, once.

    Args:
        logger: Of the trainer.
        call: Gets the run.
    """

    def apply() -> None:
        call(logger.experiment)

    guard = _GUARDS.get(logger)
    (guard.guarded(apply) if guard else apply)()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


class WandbRun(Callback):
    """Defines the best value of each metric in W&B, and logs tables of class scores.

    Args:
        run_dir: Folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Defines whether the highest or lowest value of a metric is the best."""

        def define(run: Any) -> None:
            for names, best in ((HIGHER, "max"), (LOWER, "min")):
                for stage, name in product(("val", "test", "knn", "linear"), names):
                    run.define_metric(f"{stage}/{name}", summary=best)

        for logger in _wandb(trainer):
            call_wandb(logger, define)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the table of the best epoch."""
        self._log_table(trainer, "val_best")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the table of `peas validate`."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log_table(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the table of the test split."""
        self._log_table(trainer, "test")

    def _log_table(self, trainer: Trainer, name: str) -> None:
        path = self.run_dir / "logits" / f"{name}_classes.csv"
        loggers = _wandb(trainer)
        if not loggers or not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        first = header.index("average_precision")
        data = [
            [*row[:first], *(float(text) if text else None for text in row[first:])] for row in rows
        ]
        for logger in loggers:
            logger.log_table(f"classes/{name}", columns=header, data=data)


def _wandb(trainer: Trainer) -> list[WandbLogger]:
    """W&B's loggers, on rank 0."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
