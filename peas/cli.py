"""`PeasCLI`: how a configuration becomes a run, with its folder and what is always on."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from peas.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint, WriteAfterLog
from peas.callbacks.odd_clips import OddClipCount
from peas.callbacks.outputs import ClipOutputs
from peas.callbacks.progress import EpochLine, Progress
from peas.callbacks.run_files import RunFiles
from peas.callbacks.signals import SaveOnSignal, StopOnSignal
from peas.callbacks.wandb_run import WandbRun, connect, place
from peas.cli_errors import PeasParser, cause
from peas.data.module import ClipDataModule, require_test_apart
from peas.errors import CheckpointError, ConfigError
from peas.models.checkpoints import read_state
from peas.run_folder import newest_whole
from peas.run_log import RunLog
from peas.tasks.base import BaseTask
from peas.trainer import PeasTrainer

RUN_DIR_VARIABLE = "PEAS_RUN_DIR"
"""Tells the processes that Lightning starts for DDP which folder rank 0 chose."""


class PeasCLI(LightningCLI):
    """LightningCLI with a folder for each run and callbacks that are always on.

    A run's folder is `trainer.default_root_dir` itself; without it `runs/<config>/<time>`. The
    callbacks that every run needs (files, progress, checkpoints, logits per clip) are added in
    code, since a list in a second config file replaces the first one's.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `paper`, a config's row in a paper, and the leave to select on test clips."""
        parser.add_argument("--paper.table", type=str | None, default=None, help="e.g. PEAS II")
        parser.add_argument("--paper.row", type=str | None, default=None, help="e.g. PEAS (1, 1)")
        parser.add_argument(
            "--paper.accuracy", type=float | None, default=None, help="the paper's figure, in %%"
        )
        parser.add_argument(
            "--checkpoints.every_n_train_steps",
            type=int | None,
            default=None,
            help="also save last.ckpt inside an epoch, after so many optimiser steps",
        )
        parser.add_argument(
            "--paper.preset",
            type=str | None,
            default=None,
            help="how silent choices are read: likely or literal",
        )
        parser.add_argument(
            "--allow_test_selection",
            type=bool,
            default=False,
            help="let a sweep choose by validation clips that are the test clips",
        )

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint early; its settings never replace what the user asked for.

        LightningCLI would merge the checkpoint's hyperparameters over config and command line.
        Here the task compares them when it loads and says where they contradict.
        """
        verb = self.config.subcommand
        if self.config[verb].get("ckpt_path") == "last":
            self.config[verb].ckpt_path = self._last(verb)
        path = self.config[verb].get("ckpt_path")
        if not path or path in ("best", "hpc", "registry"):
            return
        state = read_state(Path(path))
        needed = ["state_dict", "hyper_parameters", "pytorch-lightning_version"]
        if verb == "fit":
            needed += ["loops", "optimizer_states"]
        missing = [key for key in needed if key not in state]
        if missing:
            raise CheckpointError(
                f"{path}: not a checkpoint of a run that `{verb}` can use (it has no "
                f"{', '.join(missing)}). `--ckpt_path` goes on with a run; weights of other "
                "origin go into `--model.init_args.pretrained`"
            )

    def _last(self, verb: str) -> str | None:
        """The newest whole checkpoint of the run folder; None where `fit` has still to begin."""
        folder = self.config[verb].trainer.default_root_dir
        if folder is None:
            raise ConfigError(
                "`--ckpt_path last` goes on with the run of a folder: name that folder with "
                "`--trainer.default_root_dir`"
            )
        found = newest_whole(Path(folder))
        if found is None and verb != "fit":
            raise ConfigError(f"`--ckpt_path last`: there is no checkpoint of a run in {folder}")
        rank_zero_info(f"going on from {found}" if found else f"{folder}: a new run begins")
        return str(found) if found else None

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and the default logger."""
        config = self.config[self.config.subcommand]
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = os.environ.setdefault(
                RUN_DIR_VARIABLE, str(_new_run_dir(config))
            )
        self.run_dir = Path(config.trainer.default_root_dir)
        given = config.trainer.logger
        if any(
            "Wandb" in str(logger) for logger in (given if isinstance(given, list) else [given])
        ):
            place(self.run_dir, afresh=self.config.subcommand == "fit" and not config.ckpt_path)

    def instantiate_classes(self) -> None:
        """Instantiates everything; an argument that a class refuses is one clear message."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps whatever a constructor raised, and keeps its text only.
            if not str(error).startswith("Does not validate against"):
                raise
            raise ConfigError(cause(str(error))) from error

    def before_fit(self) -> None:
        """Tells the task whether its weights come from a checkpoint of the run.

        Raises:
            ConfigError: A sweep would choose by the test clips.
        """
        if "WANDB_SWEEP_ID" in os.environ:
            # The agent sets it, for every process of the run.
            allowed = self._get(self.config_init, "allow_test_selection")
            require_test_apart(self.datamodule, allowed=allowed)
        self.model.resumes = bool(self._get(self.config_init, "ckpt_path"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the logger and the callbacks that are always on."""
        config = self._get(self.config_init, "trainer")
        wandb_run: list[Callback] = []
        if config.logger is not False:
            given = config.logger if isinstance(config.logger, list) else [config.logger]
            loggers = [logger for logger in given if logger not in (None, True)]
            if not any(isinstance(logger, CSVLogger) for logger in loggers):
                # A fresh version_N for each start: CSVLogger deletes an older file in its place.
                loggers.append(RunLog(self.run_dir, name="logs"))
            kwargs["logger"] = loggers
            if any(isinstance(logger, WandbLogger) for logger in loggers):
                connect(loggers)
                wandb_run.append(WandbRun(self.run_dir))
        callbacks = list(config.callbacks or [])
        always: list[Callback] = [
            OddClipCount(),
            ClipOutputs(self.run_dir),
            *wandb_run,
            EpochLine(),
        ]
        if config.enable_progress_bar is not False and sys.stderr.isatty():
            always.append(Progress())
        else:
            kwargs["enable_progress_bar"] = False
        if self.subcommand != "fit":
            # Lightning refuses the switch beside a config's own ModelCheckpoint.
            if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
                kwargs["enable_checkpointing"] = False
        elif config.enable_checkpointing is not False:
            always += self._checkpoints(callbacks)
            stop = StopOnSignal()
            callbacks[:0] = [WriteAfterLog(), stop]
            always.append(SaveOnSignal(stop))
        kwargs["callbacks"] = callbacks + always
        if not _writes_checkpoints(config.plugins):
            plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins]
            kwargs["plugins"] = [*(p for p in plugins if p is not None), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _checkpoints(self, callbacks: list[Callback]) -> list[Callback]:
        """`best.ckpt` and `last.ckpt` after every epoch, unless the config brings its own."""
        if any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            return []
        multi_label = self.model.hparams["multi_label"]
        if multi_label is None:
            multi_label = getattr(self.datamodule, "multi_label", False)
        monitor, mode = self.model.monitor(multi_label)
        per_epoch = self._get(self.config_init, "trainer").check_val_every_n_epoch
        common: dict[str, Any] = {
            "dirpath": self.run_dir / "checkpoints",
            # Where validations count steps, an epoch may be 100,000 of them.
            "save_on_train_epoch_end": per_epoch is not None,
            # A new run beside an older one's checkpoints leaves those alone: best-v1.ckpt.
            "enable_version_counter": not self._get(self.config_init, "ckpt_path"),
        }
        # Lightning's `save_last` writes only when the best has improved: an interrupted run would
        # go back to its best epoch. The second one saves always, and after the best was chosen.
        # Between two validations nothing is known that could be better.
        return [
            ModelCheckpoint(
                filename="best", monitor=monitor, mode=mode, every_n_epochs=per_epoch or 1, **common
            ),
            LastCheckpoint(
                every_n_train_steps=self._get(self.config_init, "checkpoints.every_n_train_steps"),
                **common,
            ),
        ]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is False:
            raise ConfigError(
                "`weights_only: false` would execute code from the checkpoint: peas never does. "
                "Leave the key out."
            )
        kwargs["weights_only"] = True
        return kwargs


def _writes_checkpoints(plugins: Any) -> bool:
    """Whether the user's plugins say how checkpoints are written."""
    given = plugins if isinstance(plugins, list) else [plugins]
    return any(isinstance(plugin, CheckpointIO) for plugin in given)


def _new_run_dir(config: Any) -> Path:
    """`runs/<name of the last config file>/<time>`."""
    files = [str(path) for path in config.config or []]
    name = Path(files[-1]).stem if files else "run"
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, count = Path("runs") / name / stamp, 1
    # Two starts in one second would write into each other's files.
    while folder.exists():
        folder, count = folder.with_name(f"{stamp}.{count}"), count + 1
    return folder


SETTINGS: dict[str, Any] = {
    "model_class": BaseTask,
    "datamodule_class": ClipDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "trainer_class": PeasTrainer,
    "parser_class": PeasParser,
    "save_config_callback": RunFiles,
    "save_config_kwargs": {"save_to_log_dir": False},
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
}
"""Of LightningCLI."""
