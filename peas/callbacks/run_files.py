"""Files that let a run be understood and repeated: its config, environment and classes."""

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
from lightning.pytorch.loggers import Logger, WandbLogger

from peas import __version__
from peas.callbacks.wandb_run import tell
from peas.data.module import ClipDataModule
from peas.errors import CheckpointError
from peas.training.distributed import gather
from peas.training.run_checkpoints import run_id
from peas.training.run_folder import writing

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


def config_hash(config: dict[str, Any]) -> str:
    """Eight letters that change with any setting but the run's place, seed, fold and safety.

    So the runs of one table row share it.

    Args:
        config: Whole configuration, as saved in the run folder.
    """
    config = json.loads(json.dumps(config, default=str))
    for key in ("config", "seed_everything", "ckpt_path", "allow_test_selection", "checkpoints"):
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
    found = {"peas": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


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

    `fit` also writes `labels.csv`: number and name of each class, and how many training clips have
    it. Other verbs write `config_<verb>.yaml`. Nothing is overwritten: a start with other
    settings in the same folder writes `config.1.yaml`, and so on. Every checkpoint gets the run's
    id and the number of saves before it.
    """

    _run: str | None = None
    _saves: int = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes, once it is sure that all processes mean the same run.

        Raises:
            CheckpointError: They would go on from different files.
        """
        # Each has looked for itself what `last` is, and hosts of a cluster may see a shared folder
        # as it was a while ago. Weights would differ, or one process wait for another for ever.
        if len(found := set(gather(self.config.get("ckpt_path")))) > 1:
            named = ", ".join(sorted(str(path or "nothing") for path in found))
            raise CheckpointError(
                f"the processes of this run would go on from different files: {named}. Start it "
                f"again when all hosts see the same in {trainer.default_root_dir}, or name one "
                "file with `--ckpt_path`"
            )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning on rank 0 before anything runs."""
        folder = Path(trainer.default_root_dir)
        with writing(folder):
            self._write(folder, trainer, stage)

    def _write(self, folder: Path, trainer: Trainer, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._run = run_id(folder)
        settings = self.config.clone()
        # Of this start, and not of the run: its config begins no other one.
        settings.pop("new", None)
        text = self.parser.dump(settings, skip_none=False)
        config = yaml.safe_load(text)
        facts = {**environment(), "config_hash": config_hash(config)}
        # Lightning hands over an enum, whose name in a string depends on Python's version.
        suffix = "" if stage == "fit" else f"_{getattr(stage, 'value', stage)}"
        _write_new(folder, f"config{suffix}", ".yaml", text)
        _write_new(folder, f"environment{suffix}", ".json", json.dumps(facts, indent=2) + "\n")
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ClipDataModule) and data.labels:
            _write_new(folder, "labels", ".csv", label_map(data))
        for logger in trainer.loggers:
            _log_settings(logger, config, facts)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds where the checkpoint belongs."""
        self._saves += 1
        # An epoch that is broken off is over: its last window is never made.
        inside = not trainer.should_stop and trainer.fit_loop.epoch_loop._should_accumulate()
        checkpoint["run"] = {"run": self._run, "saves": self._saves, "inside_window": inside}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on counting."""
        self._saves = (checkpoint.get("run") or {}).get("saves", 0)


def label_map(data: ClipDataModule) -> str:
    """Classes of a data set as a CSV: `index`, `name`, `training_clips`."""
    counts = data.clips("train").targets.counts(len(data.labels))
    text = io.StringIO(newline="")
    # A name with either sign of a line's end is quoted only where both end a row.
    writer = csv.writer(text, lineterminator="\r\n")
    rows = ["index,name,training_clips\n"]
    for row in zip(range(len(counts)), data.labels, counts, strict=True):
        text.seek(text.truncate(0))
        writer.writerow(row)
        rows.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(rows)


def _log_settings(logger: Logger, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """One nested group in W&B, so that a sweep's own flat keys stay apart."""
    if isinstance(logger, WandbLogger):
        settings = {"config": config, "environment": facts}
        tell(logger, lambda run: run.config.update(settings, allow_val_change=True))


def _write_new(folder: Path, stem: str, ending: str, text: str) -> None:
    """Writes a file, under a counted name where another text already has the plain one."""
    count = 0
    while True:
        path = folder / (f"{stem}{ending}" if count == 0 else f"{stem}.{count}{ending}")
        if not path.exists():
            path.write_text(text)
            return
        if path.read_text() == text:
            return
        count += 1
