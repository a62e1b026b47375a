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
from peas.cli.fit_parser import PeasParser
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
"""Gives the processes that Lightning starts for DDP the folder that rank 0 chose."""

PAPER_REQUIRES = (
    "settings of the row by their full keys, and `clips`, the number scored; a table leaves the "
    "paper's number out where a run differs"
)
"""Help of `paper.requires`."""


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
        add = parser.add_argument
        add(
            "--masking",
            type=MaskingStrategy | None,
            help="which bins of the training clips are masked in fine-tuning: "
            "`peas.callbacks.PEAS`, `SpecAugment`, `RandomMasking`, or a class of your own",
        )
        parser.add_class_arguments(Defaults, "defaults")
        for key, kind, text in (
            ("paper.table", str, "table of a paper with this config's row, e.g. PEAS II"),
            ("paper.row", str, "that row, e.g. PEAS (1, 1)"),
            ("paper.accuracy", float, "accuracy that the paper reports there, in per cent"),
            ("paper.requires", dict[str, Any], PAPER_REQUIRES),
            ("paper.preset", str, "reading of what the paper leaves open: an overlay's name"),
            (
                "checkpoints.every_n_train_steps",
                int,
                "also save last.ckpt inside an epoch, after so many optimiser steps",
            ),
        ):
            add(f"--{key}", type=kind | None, help=text)
        add(
            "--new",
            action="store_true",
            help="start a new run in a folder that has one; the old files move to earlier/",
        )
        add(
            "--allow_test_selection",
            type=bool,
            default=False,
            help="let a sweep choose by validation clips that are the test clips",
        )

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint early; its settings never replace the user's.

        LightningCLI would merge the checkpoint's hyperparameters over config and command line.
        Here the task compares them when it loads, and names contradictions.
        """
        verb = self.config.subcommand
        config = self.config[verb]
        asked = config.get("ckpt_path")
        if config.get("new"):
            self._check_new(verb, asked)
        loaded = self._load(verb, asked)
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
                f"{', '.join(missing)}). `--ckpt_path` resumes a run; other weights go into "
                " `--model.init_args.pretrained`"
            )

        if verb == "fit" and folder is not None and asked != "last":
            require_own(Path(folder), path)

    def _check_new(self, verb: str, asked: str | None) -> None:
        """Refuses `--new` where it contradicts another option."""
        if verb != "fit":
            raise ConfigError(f"`--new` starts a run: leave it out of `peas {verb}`")
        if asked:
            raise ConfigError(
                f"`--new` starts a run and `--ckpt_path {asked}` resumes one: give one of them"
            )
        folder = self.config.fit.trainer.default_root_dir
        if folder is not None:
            items = self.config.fit.items()
            named = [(key, value) for key, value in items if key != "trainer.default_root_dir"]
            require_outside(Path(folder), _texts(named))

    def _load(self, verb: str, asked: str | None) -> LoadedCheckpoint | None:
        """The checkpoint of `--ckpt_path`, read once for the run; None where nothing is loaded."""
        if not asked:
            return None
        if Path(asked).is_dir():
            raise CheckpointError(
                f"{asked}: is a folder. For the run in it give `--trainer.default_root_dir {asked} "
                f"--ckpt_path last`; or name a file, such as {Path(asked) / CHECKPOINTS / BEST}"
            )
        if asked not in ("last", "best", "hpc"):
            if asked.startswith("registry") and not Path(asked).is_file():
                raise ConfigError(
                    f"`--ckpt_path {asked}`: peas has no model registry. Give `last`, or a file"
                )
            if Path(asked).name == asked and not Path(asked).suffix and not Path(asked).exists():
                raise ConfigError(
                    f"`--ckpt_path {asked}`: there is no such file. Is `last` meant? `last` and "
                    "`best` take a checkpoint of `--trainer.default_root_dir`"
                )
            return LoadedCheckpoint(Path(asked), read_state(asked))
        folder = self.config[verb].trainer.default_root_dir
        if folder is None:
            raise ConfigError(
                f"`--ckpt_path {asked}` takes a checkpoint of a run's folder: name that folder "
                "with `--trainer.default_root_dir`"
            )
        best = Path(folder) / CHECKPOINTS / BEST
        if asked == "best" and verb == "fit":
            raise ConfigError(
                "`--ckpt_path best`: a run resumes from its end, which is `--ckpt_path last`. "
                "To train another one from the best weights give "
                f"`--model.init_args.pretrained {best}`"
            )
        if asked == "best":
            loaded = LoadedCheckpoint(best, read_state(best)) if best.is_file() else None
        else:
            loaded = newest_checkpoint(Path(folder), HPC if asked == "hpc" else None)
        if loaded is None and (verb != "fit" or asked == "hpc"):
            raise ConfigError(
                f"`--ckpt_path {asked}`: there is no checkpoint of that kind in {folder}"
            )
        action = "resuming from" if verb == "fit" else "loading"
        rank_zero_info(f"{action} {loaded.path}" if loaded else f"{folder}: a new run starts")
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
        """Instantiates everything; an argument that a class refuses is one message."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a constructor raised, and keeps its text only.
            if not str(error).startswith("Does not validate against"):
                raise
            raise ConfigError(cause(str(error))) from error

    def before_fit(self) -> None:
        """Sets whether the task's weights come from a checkpoint of the run.

        Raises:
            ConfigError: A sweep would choose by the test clips.
        """
        if "WANDB_SWEEP_ID" in os.environ:
            # The agent sets it, for every process of the run.
            allowed = self._setting("allow_test_selection")
            refuse_selection_on_test(self.datamodule, allowed=allowed)
        self.model.resumes = bool(self._setting("ckpt_path"))

    def _setting(self, key: str) -> Any:
        """A setting of the verb that runs, with classes instantiated."""
        return self.config_init[str(self.subcommand)].get(key)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the logger and the default callbacks."""
        config = self._setting("trainer")
        on: Defaults = self._setting("defaults")
        self.save_config_kwargs = {**self.save_config_kwargs, "files": on.run_files}
        wandb = False
        if config.logger is not False:
            loggers = [logger for logger in _listed(config.logger) if logger not in (None, True)]
            if on.csv_log and not any(isinstance(logger, CSVLogger) for logger in loggers):
                # A new version_N for each start: CSVLogger would delete an older file.
                loggers.append(RunLog(self.run_dir, name="logs"))
            kwargs["logger"] = loggers
            wandb = any(isinstance(logger, WandbLogger) for logger in loggers)
            if wandb and on.wandb:
                connect(loggers)
        # Lightning's Trainer takes a callback for a list of one.
        own = list(_listed(config.callbacks or []))
        own += self._masking(own)
        verb = self.config.subcommand
        plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[verb]
        run = RunSettings(self.run_dir, verb, plain, self._monitor(), own, wandb)
        kwargs["callbacks"] = default_callbacks(on, run)
        if not shows_bar(run.trainer):
            kwargs["enable_progress_bar"] = False
        if verb != "fit":
            # Lightning refuses the switch beside a config's own ModelCheckpoint.
            if not any(isinstance(callback, ModelCheckpoint) for callback in own):
                kwargs["enable_checkpointing"] = False
        elif summarises(run):
            # Else Lightning adds its own, or logs that it does not.
            kwargs["enable_model_summary"] = False
        if not any(isinstance(plugin, CheckpointIO) for plugin in _listed(config.plugins)):
            plugins = [plugin for plugin in _listed(config.plugins) if plugin is not None]
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO(self._checkpoint)]
        self._checkpoint = None
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            # Only settings are checked here, and most of Lightning's messages name no key.
            raise ConfigError(f"`trainer`: {no_device(' '.join(str(error).split()))}") from error

    def _masking(self, callbacks: list[Callback]) -> list[Callback]:
        """The strategy under `masking`; earlier releases had it among the callbacks.

        Raises:
            ConfigError: There is one in both.
        """
        strategy = self._setting("masking")
        listed = [type(c).__name__ for c in callbacks if isinstance(c, MaskingStrategy)]
        if strategy is not None and listed:
            raise ConfigError(
                f"`masking` holds {type(strategy).__name__}, and `trainer.callbacks` "
                f"{', '.join(listed)}: a run has one masking strategy. Take it out of "
                "`trainer.callbacks`"
            )
        if listed:
            rank_zero_warn(
                f"`trainer.callbacks` holds the masking strategy {listed[0]}: that is deprecated, "
                "use the key `masking`",
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


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every string below some keys, such as a path, with its key."""
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
    "parser_kwargs": {"prog": "peas"},
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
"""Arguments of `PeasCLI`."""
