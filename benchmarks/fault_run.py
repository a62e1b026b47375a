"""The run that faults strike, its processes, and its disk."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

EPOCHS = 5
STEPS = 16
"""Of an epoch."""


class Poison(Callback):
    """Puts a number that is none into a batch.

    Args:
        step: Optimiser step before which it does.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Strikes."""
        if trainer.global_step == self.step:
            batch["masked_log_mel"][0] = float("nan")


class Strike(Callback):
    """Kills its own process, where a watcher of the log would come too late.

    Args:
        step: Optimiser step.
        where: `step` = inside its training step; `validation` = in the next validation.
    """

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Strikes in a step."""
        if self.where == "step" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Strikes in a validation."""
        if self.where == "validation" and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def config(sounds: Path) -> dict[str, Any]:
    """The run: 16 steps an epoch, validated and saved in each, saved after every other step too."""
    return {
        "seed_everything": 0,
        "checkpoints": {"every_n_train_steps": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
        },
        "masking": {"class_path": "peas.callbacks.PEAS", "init_args": {"refresh_every": 2}},
        "model": {
            "class_path": "peas.tasks.Classification",
            "init_args": {
                "pretrained": None,
                "encoder": {
                    "class_path": "peas.models.SSAST",
                    "init_args": {"size": "mini", "stride": [16, 16], "drop_path": 0.1},
                },
                "recipe": {"class_path": "peas.recipes.SSASTRecipe", "init_args": {"lr": 5.0e-4}},
                "augmentation": {"noise_roll": True},
            },
        },
        "data": {
            "class_path": "peas.data.ESC50",
            "init_args": {
                "root": str(sounds),
                "batch_size": 4,
                "mean": -5.2,
                "std": 4.1,
                "frames": 96,
                "mixup": 0.3,
                "num_workers": 1,
                "cache_dir": "",
            },
        },
    }


@dataclass
class Run:
    """A run's folder, and its starts."""

    folder: Path
    config: Path
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Starts, or goes on with, the run."""
        command = [sys.executable, "-m", "peas", "fit", "--config", str(self.config)]
        command += ["--trainer.default_root_dir", str(self.folder), "--ckpt_path", "last"]
        if self.processes > 1:
            command += [f"--trainer.devices={self.processes}", "--trainer.strategy=ddp"]
            command += [f"--data.init_args.batch_size={4 // self.processes}"]
        here = str(Path(__file__).parent)
        return subprocess.Popen(
            [*command, *self.argv, *argv],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, as a terminal or `timeout` makes one.
            start_new_session=True,
        )

    def finish(self, *argv: str) -> bool:
        """Goes on to the end; whether it came there."""
        started = self.start(*argv)
        _, told = started.communicate()
        if started.returncode:
            print(told[-2000:], file=sys.stderr)
        return started.returncode == 0

    def rows(self) -> dict[tuple[str, ...], set[str]]:
        """Every line that any start has logged, by its step and the names of its figures."""
        found: dict[tuple[str, ...], set[str]] = {}
        for log in self.folder.glob("logs/version_*/metrics.csv"):
            with log.open(newline="") as file:
                for row in csv.DictReader(file):
                    # What is measured in seconds differs from one run to the next.
                    told = {k: v for k, v in row.items() if v and "seconds" not in k}
                    place = (row["step"].zfill(6), *sorted(told))
                    found.setdefault(place, set()).add(json.dumps(told, sort_keys=True))
        return found

    def step(self) -> int:
        """The last step in the log; -1 where there is none yet."""
        return max((int(place[0]) for place in self.rows()), default=-1)

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        state = torch.load(self.folder / "checkpoints/last.ckpt", weights_only=True)
        weights: dict[str, torch.Tensor] = state["state_dict"]
        return weights

    def wait_for(self, step: int, started: subprocess.Popen[str]) -> None:
        """Until a step is in the log."""
        while started.poll() is None and self.step() < step:
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Processes that a process has started, the oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return sorted(found)


def ranks_of(pid: int) -> list[int]:
    """The other processes of a DDP run, whose environment holds their rank."""
    found = []
    for child in children(pid):
        with suppress(OSError):
            if "LOCAL_RANK=" in Path(f"/proc/{child}/environ").read_text():
                found.append(child)
    return found


def readers_of(pid: int) -> list[int]:
    """Processes that read clips: forks, with the command line of their parent."""

    def command(one: int) -> str:
        with suppress(OSError):
            return Path(f"/proc/{one}/cmdline").read_text()
        return ""

    ranks = ranks_of(pid)
    own = command(pid)
    return [child for child in children(pid) if child not in ranks and command(child) == own]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def family(pid: int) -> set[int]:
    """A process and all that come from it."""
    found, waiting = set(), [pid]
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting += children(one)
    return found


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of so many megabytes at a folder; False where it cannot be made."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
