"""Files that document a run and let it be repeated: its config, environment and classes."""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from peas import __version__
from peas.callbacks.outputs import write_new
from peas.callbacks.wandb_run import call_wandb
from peas.data.module import ClipDataModule
from peas.errors import CheckpointError
from peas.training.distributed import gather
from peas.training.run_checkpoints import run_id
from peas.training.run_folder import writing
from peas.training.trainer import is_accumulating

PACKAGES = (
    "torch",
    "torchaudio",
    "lightning",
    "timm",
    "torchmetrics",
    "soundfile",
    "numpy",
    "jsonargparse",
    "wandb",
)


UNHASHED = (
    "config",
    "seed_everything",
    "ckpt_path",
    "allow_test_selection",
    "checkpoints",
    "defaults",
)
"""Keys of a config that `config_hash` ignores."""


def config_hash(config: dict[str, Any]) -> str:
    """Eight letters that change with any setting but the run's paths, seed, fold and safety.

    The runs of one table row share it.

    Args:
        config: The complete configuration, as saved in the run folder.
    """
    config = json.loads(json.dumps(config, default=str))
    for key in UNHASHED:
        config.pop(key, None)
    # It describes the row, and changes no result.
    (config.get("paper") or {}).pop("requires", None)
    config.get("trainer", {}).pop("default_root_dir", None)
    config.get("trainer", {}).pop("enable_progress_bar", None)
    model = (config.get("model") or {}).get("init_args", {})
    for key in ("on_nonfinite", "compile"):
        model.pop(key, None)
    data = (config.get("data") or {}).get("init_args", {})
    for key in ("fold", "root", "num_workers", "cache_dir"):
        data.pop(key, None)
    text = json.dumps(config, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def versions() -> dict[str, str]:
    """Versions of `peas`, Python and the packages that decide a result."""
    installed = {"peas": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def environment() -> dict[str, Any]:
    """What a result depends on beside the config: versions, machine, code, command."""
    return {
        "command": sys.argv,
        "versions": versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of the checkout that `peas` runs from, with `+` for local changes."""
    here = Path(__file__).parents[1]
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class RunFiles(SaveConfigCallback):
    """Writes `config.yaml` and `environment.json` into the run folder, and both to W&B.

    `fit` also writes `labels.csv`: index and name of each class, and its number of training clips.
    Other verbs write `config_<verb>.yaml`. Nothing is overwritten: a start with other settings in
    the same folder writes `config.1.yaml`, and so on. Every checkpoint gets the run's id and the
    number of earlier saves.

    Args:
        files: Whether to write the files; checkpoints get the id in any case.
        settings: Of LightningCLI's callback.
    """

    _run: str | None = None
    _saves: int = 0

    def __init__(self, *args: Any, files: bool = True, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.files = files

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes, once all processes agree on the checkpoint.

        Raises:
            CheckpointError: They would resume from different files.
        """
        # Each has looked for `last` itself, and hosts of a cluster may see an outdated state of a
        # shared folder. Weights would differ, or one process wait for another for ever.
        if len(paths := set(gather(self.config.get("ckpt_path")))) > 1:
            names = ", ".join(sorted(str(path or "nothing") for path in paths))
            raise CheckpointError(
                f"the processes of this run would resume from different files: {names}. Start it "
                f"again when all hosts see the same in {trainer.default_root_dir}, or name one "
                "file with `--ckpt_path`"
            )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning on rank 0 before anything runs."""
        folder = Path(trainer.default_root_dir)
        self._run = run_id(folder)
        if self.files:
            with writing(folder):
                self._write(folder, trainer, stage)

    def _write(self, folder: Path, trainer: Trainer, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.config.clone()
        # Of this start, and not of the run: its config must not start another one.
        settings.pop("new", None)
        text = self.parser.dump(settings, skip_none=False)
        config = yaml.safe_load(text)
        details = {**environment(), "config_hash": config_hash(config)}
        # Lightning passes an enum, whose name in a string depends on Python's version.
        suffix = "" if stage == "fit" else f"_{getattr(stage, 'value', stage)}"
        write_new(folder / f"config{suffix}.yaml", text)
        write_new(folder / f"environment{suffix}.json", json.dumps(details, indent=2) + "\n")
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ClipDataModule) and data.labels:
            write_new(folder / "labels.csv", label_map(data))
        # One nested group, so that a sweep's own flat keys stay apart.
        nested = {"config": config, "environment": details}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                call_wandb(logger, lambda run: run.config.update(nested, allow_val_change=True))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds run id, number of saves and whether gradients are being accumulated."""
        self._saves += 1
        # An epoch that is ended early is over: its last window is never completed.
        inside = not trainer.should_stop and is_accumulating(trainer)
        checkpoint["run"] = {"run": self._run, "saves": self._saves, "inside_window": inside}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the count."""
        self._saves = (checkpoint.get("run") or {}).get("saves", 0)


def label_map(data: ClipDataModule) -> str:
    """Classes of a data set as a CSV: `index`, `name`, `training_clips`."""
    counts = data.clips("train").targets.counts(len(data.labels))
    text = io.StringIO(newline="")
    # csv quotes a name with a line feed or carriage return only where both end a row.
    writer = csv.writer(text, lineterminator="\r\n")
    rows = ["index,name,training_clips\n"]
    for row in zip(range(len(counts)), data.labels, counts, strict=True):
        text.seek(text.truncate(0))
        writer.writerow(row)
        rows.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(rows)
