"""Weights & Biases: where a run of it lies, that it never stops training, and what it is told."""

import csv
import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from peas.errors import ConfigError
from peas.run_folder import wandb_id

VARIABLES = ("WANDB_RUN_ID", "WANDB_DIR")
"""Of the environment, which `place` sets where they are not."""
HIGHER = ("accuracy", "mAP", "AUC", "d_prime", "nce_accuracy")
LOWER = ("loss", "mse", "valid_mse", "feature_mse", "reconstruction", "distillation", "contrastive")
"""Metrics whose best value is the highest, or the lowest. Without, W&B's tables and sweeps would
take the last one."""


def place(folder: Path, *, afresh: bool) -> None:
    """Let W&B keep its files in the folder of a run, and go on with the curves that it knows.

    Args:
        folder: Of the run.
        afresh: Whether a run begins; False where one goes on or is evaluated.
    """
    # Absolute: a service of W&B that runs already has a working folder of its own.
    os.environ.setdefault("WANDB_DIR", str(folder.absolute()))
    if not getattr(rank_zero_only, "rank", 0) and not os.environ.get("WANDB_RUN_ID"):
        os.environ["WANDB_RUN_ID"] = wandb_id(folder, afresh=afresh)
    # A server that answers nothing would hold up the start for a minute and a half, and the end
    # for ever: what is not sent stays in the run's folder.
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "300")


def connect(loggers: Iterable[Logger]) -> None:
    """Begin W&B's runs; where the server cannot be reached, offline.

    Args:
        loggers: Of the trainer.

    Raises:
        ConfigError: W&B refuses the settings: it is online without a key, or with a wrong one.
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
            # Its service holds the id of the run that did not begin, and the settings of before.
            wandb.teardown()
            _ = logger.experiment


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


class WandbRun(Callback):
    """Tells W&B which value of each metric counts, and logs the scores of each class as a table.

    Args:
        run_dir: Folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says of each metric whether its highest or its lowest value is the run's."""
        for logger in _wandb(trainer):
            for names, best in ((HIGHER, "max"), (LOWER, "min")):
                for stage, name in product(("val", "test", "knn"), names):
                    logger.experiment.define_metric(f"{stage}/{name}", summary=best)

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
        facts = header.index("average_precision")
        data = [
            [*row[:facts], *(float(cell) if cell else None for cell in row[facts:])] for row in rows
        ]
        for logger in loggers:
            logger.log_table(f"classes/{name}", columns=header, data=data)


def _wandb(trainer: Trainer) -> list[WandbLogger]:
    """W&B's loggers, on the process that logs."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
