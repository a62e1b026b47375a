"""`PeasCLI`: how a configuration becomes a run, with its folder and what is always on."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from peas.callbacks.checkpoints import AtomicCheckpointIO
from peas.callbacks.defaults import (
    Defaults,
    RunSettings,
    default_callbacks,
    shows_bar,
    summarises,
)
from peas.callbacks.masking import MaskingStrategy
from peas.callbacks.run_files import RunFiles
from peas.callbacks.wandb_run import connect, use_run_folder
from peas.cli.errors import cause, no_device
from peas.cli.parser import PeasParser
from peas.data.module import ClipDataModule, refuse_selection_on_test
from peas.errors import CheckpointError, ConfigError
from peas.models.weights import read_state
from peas.models.weights.checking import check_run
from peas.tasks.base import BaseTask
from peas.training.distributed import is_launched_first
from peas.training.run_checkpoints import (
    BEST,
    CHECKPOINTS,
    HPC,
    LoadedCheckpoint,
    newest_checkpoint,
)
from peas.training.run_folder import open_run, require_new, require_outside, require_own, writing
from peas.training.trainer import PeasTrainer, RunLog

RUN_DIR_VARIABLE = "PEAS_RUN_DIR"
"""Tells the processes that Lightning starts for DDP which folder rank 0 chose."""


class PeasCLI(LightningCLI):
    """LightningCLI with a folder for each run and default callbacks.

    A run's folder is `trainer.default_root_dir` itself; without it `runs/<config>/<time>`. What
    every run does (`peas.callbacks.defaults`) is added in code, since a list in a second config
    file replaces the first one's.
    """

    _checkpoint: LoadedCheckpoint | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Holds the lock of the run's folder.
        with ExitStack() as self._run:
            super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `masking`, `paper` (a config's row in a paper), and what a run may do."""
        parser.add_argument(
            "--masking",
            type=MaskingStrategy | None,
            default=None,
            help="which bins of the training clips are masked in fine-tuning: "
            "`peas.callbacks.PEAS`, `SpecAugment`, `RandomMasking`, or a class of your own",
        )
        parser.add_argument(
            "--paper.table",
            type=str | None,
            default=None,
            help="table of a paper that this config reproduces a row of, e.g. PEAS II",
        )
        parser.add_argument(
            "--paper.row", type=str | None, default=None, help="that row, e.g. PEAS (1, 1)"
        )
        parser.add_argument(
            "--paper.accuracy",
            type=float | None,
            default=None,
            help="the accuracy that the paper reports there, in per cent",
        )
        parser.add_argument(
            "--paper.requires",
            type=dict[str, Any] | None,
            default=None,
            help="settings of the row by their whole keys, and `clips`, the scored ones; a table "
            "leaves the figure out where a run differs",
        )
        parser.add_class_arguments(Defaults, "defaults")
        parser.add_argument(
            "--checkpoints.every_n_train_steps",
            type=int | None,
            default=None,
            help="also save last.ckpt inside an epoch, after so many optimiser steps",
        )
        parser.add_argument(
            "--new",
            action="store_true",
            help="begin another run where one has checkpoints; what it wrote is put into earlier/",
        )
        parser.add_argument(
            "--paper.preset",
            type=str | None,
            default=None,
            help="reading of what the paper leaves open: reference_code or paper_literal",
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
        config = self.config[verb]
        given = config.get("ckpt_path")
        if config.get("new"):
            self._require_possible(verb, given)
        loaded = self._load(verb, given)
        config.ckpt_path = str(loaded.path) if loaded else None
        folder = config.trainer.default_root_dir
        if loaded is None:
            if verb == "fit" and folder is not None and not config.get("new"):
                require_new(Path(folder))
            return
        path, state = self._checkpoint = loaded
        check_run(state, str(path))
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

        if verb == "fit" and folder is not None and given != "last":
            require_own(Path(folder), path)

    def _require_possible(self, verb: str, given: str | None) -> None:
        """Refuses `--new` where it contradicts what else is asked for."""
        if verb != "fit":
            raise ConfigError(f"`--new` begins a run: leave it out of `peas {verb}`")
        if given:
            raise ConfigError(
                f"`--new` begins a run and `--ckpt_path {given}` goes on with one: give one of them"
            )
        folder = self.config.fit.trainer.default_root_dir
        if folder is not None:
            items = self.config.fit.items()
            named = [(key, value) for key, value in items if key != "trainer.default_root_dir"]
            require_outside(Path(folder), _texts(named))

    def _load(self, verb: str, given: str | None) -> LoadedCheckpoint | None:
        """The checkpoint of `--ckpt_path`, read once for the run; None where nothing is loaded."""
        if not given:
            return None
        if Path(given).is_dir():
            raise CheckpointError(
                f"{given}: is a folder. For the run in it give `--trainer.default_root_dir {given} "
                f"--ckpt_path last`; or name a file, such as {Path(given) / CHECKPOINTS / BEST}"
            )
        if given not in ("last", "best", "hpc") and not given.startswith("registry"):
            if Path(given).name == given and not Path(given).suffix and not Path(given).exists():
                raise ConfigError(
                    f"`--ckpt_path {given}`: there is no such file. Is `last` meant? `last` and "
                    "`best` take a checkpoint of `--trainer.default_root_dir`"
                )
            return LoadedCheckpoint(Path(given), read_state(given))
        if given not in ("last", "best", "hpc"):
            if Path(given).is_file():
                return LoadedCheckpoint(Path(given), read_state(given))
            raise ConfigError(
                f"`--ckpt_path {given}`: there is no model registry in peas. Give `last`, or a file"
            )
        folder = self.config[verb].trainer.default_root_dir
        if folder is None:
            raise ConfigError(
                f"`--ckpt_path {given}` takes a checkpoint of a run's folder: name that folder "
                "with `--trainer.default_root_dir`"
            )
        best = Path(folder) / CHECKPOINTS / BEST
        if given == "best" and verb == "fit":
            raise ConfigError(
                "`--ckpt_path best`: a run goes on from its end, which `--ckpt_path last` takes. "
                "To train another one from the best weights give "
                f"`--model.init_args.pretrained {best}`"
            )
        if given == "best":
            loaded = LoadedCheckpoint(best, read_state(best)) if best.is_file() else None
        else:
            loaded = newest_checkpoint(Path(folder), HPC if given == "hpc" else None)
        if loaded is None and (verb != "fit" or given == "hpc"):
            raise ConfigError(
                f"`--ckpt_path {given}`: there is no checkpoint of that kind in {folder}"
            )
        rank_zero_info(f"resuming from {loaded.path}" if loaded else f"{folder}: a new run starts")
        return loaded

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and the default logger."""
        config = self.config[self.config.subcommand]
        first = is_launched_first()
        if config.trainer.default_root_dir is None:
            if RUN_DIR_VARIABLE not in os.environ:
                os.environ[RUN_DIR_VARIABLE] = str(_new_run_dir(config, make=first))
            config.trainer.default_root_dir = os.environ[RUN_DIR_VARIABLE]
        self.run_dir = Path(config.trainer.default_root_dir)
        if first and self.config.subcommand == "fit":
            # Before a logger writes into the folder.
            start = Path(config.ckpt_path) if config.ckpt_path else None
            self._run.enter_context(open_run(self.run_dir, start=start, new=config.new))
        if config.defaults.wandb and "Wandb" in str(config.trainer.logger):
            fresh = self.config.subcommand == "fit" and not config.ckpt_path
            use_run_folder(self.run_dir, afresh=fresh)

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
            refuse_selection_on_test(self.datamodule, allowed=allowed)
        self.model.resumes = bool(self._get(self.config_init, "ckpt_path"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the logger and the default callbacks."""
        config = self._get(self.config_init, "trainer")
        on: Defaults = self._get(self.config_init, "defaults")
        self.save_config_kwargs = {**self.save_config_kwargs, "files": on.run_files}
        wandb = False
        if config.logger is not False:
            given = config.logger if isinstance(config.logger, list) else [config.logger]
            loggers = [logger for logger in given if logger not in (None, True)]
            if on.csv_log and not any(isinstance(logger, CSVLogger) for logger in loggers):
                # A fresh version_N for each start: CSVLogger deletes an older file in its place.
                loggers.append(RunLog(self.run_dir, name="logs"))
            kwargs["logger"] = loggers
            wandb = any(isinstance(logger, WandbLogger) for logger in loggers)
            if wandb and on.wandb:
                connect(loggers)
        # Lightning's Trainer takes a callback for a list of one.
        callbacks = config.callbacks or []
        own = list(callbacks if isinstance(callbacks, list) else [callbacks])
        own += self._masking(own)
        verb = self.config.subcommand
        plain = yaml.safe_load(self._parser(verb).dump(self.config[verb], skip_none=False))
        run = RunSettings(self.run_dir, verb, plain, self._monitor(), own, wandb)
        kwargs["callbacks"] = default_callbacks(on, run)
        if not shows_bar(run.trainer):
            kwargs["enable_progress_bar"] = False
        if verb != "fit":
            # Lightning refuses the switch beside a config's own ModelCheckpoint.
            if not any(isinstance(callback, ModelCheckpoint) for callback in own):
                kwargs["enable_checkpointing"] = False
        elif summarises(run):
            # Else Lightning logs that it adds none of its own.
            kwargs["enable_model_summary"] = False
        if not _writes_checkpoints(config.plugins):
            plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins]
            writer = AtomicCheckpointIO(self._checkpoint)
            kwargs["plugins"] = [*(p for p in plugins if p is not None), writer]
        self._checkpoint = None
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            # Only settings are looked at here, and most of Lightning's messages name no key.
            raise ConfigError(f"`trainer`: {no_device(' '.join(str(error).split()))}") from error

    def _masking(self, callbacks: list[Callback]) -> list[Callback]:
        """The strategy under `masking`, which may also stand in the list, as it did before.

        Raises:
            ConfigError: There is one in both places.
        """
        strategy = self._get(self.config_init, "masking")
        listed = [type(one).__name__ for one in callbacks if isinstance(one, MaskingStrategy)]
        if strategy is not None and listed:
            raise ConfigError(
                f"`masking` holds {type(strategy).__name__}, and `trainer.callbacks` "
                f"{', '.join(listed)}: a run has one masking strategy. Take it out of "
                "`trainer.callbacks`"
            )
        if listed:
            rank_zero_warn(
                f"`trainer.callbacks` holds the masking strategy {listed[0]}: that is deprecated, "
                "its place is the key `masking`",
                category=FutureWarning,
            )
        return [] if strategy is None else [strategy]

    def _monitor(self) -> tuple[str, Literal["min", "max"]]:
        """Metric that selects the best checkpoint, and whether less or more is better."""
        multi_label = self.model.hparams["multi_label"]
        if multi_label is None:
            multi_label = getattr(self.datamodule, "multi_label", False)
        monitor: tuple[str, Literal["min", "max"]] = self.model.monitor(multi_label)
        return monitor

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


def _texts(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every text below some keys, such as a path, with its key."""
    for key, value in named:
        if isinstance(value, dict | Namespace):
            yield from _texts((f"{key}.{inner}", item) for inner, item in value.items())
        elif isinstance(value, list | tuple):
            yield from _texts((key, item) for item in value)
        elif isinstance(value, str | os.PathLike):
            yield key, str(value)


def _new_run_dir(config: Any, *, make: bool) -> Path:
    """`runs/<name of the last config file>/<time>`, which no other start can have."""
    files = [str(path) for path in config.config or []]
    name = Path(files[-1]).stem if files else "run"
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, count = Path("runs") / name / stamp, 1
    with writing(folder.parent):
        while make:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                break
            except FileExistsError:
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
