"""Faults that runs meet on real machines, made on purpose: what is lost?

A small fine-tuning with PEAS, dropped blocks, noise, mixup and a reading process is run once without
a fault. Then each fault strikes the same run, which goes on with `--ckpt_path last`; its weights must
in the end be those of the unbroken run, bit for bit, and its logs, taken together, must hold every
step's loss. Where a fault is to end a run, it must end within a minute, with one message and no
traceback.

A full disk is a small file system of memory, which needs root.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

EPOCHS = 5
PATIENCE = 60
"""Seconds in which a run must end that cannot go on."""
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
            batch["log_mel"][0] = float("nan")


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
            "callbacks": [
                {"class_path": "peas.callbacks.PEAS", "init_args": {"refresh_every": 2}},
            ],
        },
        "model": {
            "class_path": "peas.tasks.Classification",
            "init_args": {
                "size": "mini",
                "pretrained": None,
                "stride": [16, 16],
                "drop_path": 0.1,
                "noise_roll": True,
                "lr": 5.0e-4,
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

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Starts, or goes on with, the run."""
        command = [sys.executable, "-m", "peas", "fit", "--config", str(self.config)]
        command += ["--trainer.default_root_dir", str(self.folder), "--ckpt_path", "last"]
        if self.processes > 1:
            command += [f"--trainer.devices={self.processes}", "--trainer.strategy=ddp"]
            command += [f"--data.init_args.batch_size={4 // self.processes}"]
        here = str(Path(__file__).parent)
        return subprocess.Popen(
            [*command, *argv],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *argv: str) -> bool:
        """Goes on to the end; whether it came there."""
        started = self.start(*argv)
        _, told = started.communicate()
        if started.returncode:
            print(told[-2000:], file=sys.stderr)
        return started.returncode == 0

    def losses(self) -> dict[int, set[str]]:
        """Step to the losses that any start has logged for it."""
        found: dict[int, set[str]] = {}
        for log in self.folder.glob("logs/version_*/metrics.csv"):
            with log.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("loss"):
                        found.setdefault(int(row["step"]), set()).add(row["loss"])
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        state = torch.load(self.folder / "checkpoints/last.ckpt", weights_only=True)
        weights: dict[str, torch.Tensor] = state["state_dict"]
        return weights

    def wait_for(self, step: int, started: subprocess.Popen[str]) -> None:
        """Until a step is in the log."""
        while started.poll() is None and max(self.losses(), default=-1) < step:
            time.sleep(0.05)


@dataclass
class Row:
    """What became of a fault.

    Attributes:
        name: The fault.
        tried: How often it struck.
        survived: How often what must follow did.
        lost: In words; empty = nothing.
        seconds: Longest time that a run took to end, where it had to.
    """

    name: str
    tried: int = 0
    survived: int = 0
    lost: str = ""
    seconds: float | None = None


class Faults:
    """All faults, against one unbroken run.

    Args:
        folder: Where all runs go.
        kills: How often a run is killed.
        seed: Of the places where faults strike.
    """

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        from peas.data.synthetic import write_sounds

        self.folder, self.kills = folder, kills
        self.random = random.Random(seed)
        # Four of five folds train: sixty-four clips, four a step.
        sounds = write_sounds(folder / "sounds", classes=4, clips_per_class=20, seconds=0.96)
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config(sounds)))
        self.whole = {count: self._run(f"whole_{count}", count) for count in (1, 2)}
        for run in self.whole.values():
            if not run.finish():
                sys.exit("the run without a fault failed")

    def _run(self, name: str, processes: int = 1, **environment: str) -> Run:
        return Run(self.folder / name, self.config, processes, environment)

    def lost(self, run: Run) -> str:
        """What differs from the unbroken run."""
        whole = self.whole[run.processes]
        ours, theirs = run.losses(), whole.losses()
        told = []
        missing = [step for step in theirs if step not in ours]
        if missing:
            told.append(f"log of steps {missing}")
        others = [step for step in theirs if step in ours and ours[step] != theirs[step]]
        if others:
            told.append(f"losses of steps {others} differ")
        weights = whole.weights()
        if any(not torch.equal(value, weights[key]) for key, value in run.weights().items()):
            told.append("final weights differ")
        return "; ".join(told)

    def signalled(self, number: signal.Signals, times: int) -> Row:
        """One run, struck at random steps, going on after each."""
        row, run = Row(number.name), self._run(f"signal_{number.name}")
        places = sorted(self.random.sample(range(1, EPOCHS * STEPS - 2), times))
        code = -number if number == signal.SIGKILL else 128 + number
        for place in places:
            started = run.start()
            run.wait_for(place, started)
            # Anywhere in the next steps: while a batch is read, trained on, saved or validated.
            time.sleep(self.random.uniform(0, 0.3))
            row.tried += 1
            started.send_signal(number)
            started.communicate()
            # It may have come to its end, or further than the next place, by then.
            row.survived += started.returncode in (code, 0)
        if not run.finish():
            row.survived -= 1
        row.lost = self.lost(run)
        return row

    def ended(self, row: Row, run: Run, started: subprocess.Popen[str], word: str) -> None:
        """A run that a fault has to end: in time, in words, and it goes on."""
        since = time.monotonic()
        row.tried += 1
        try:
            _, told = started.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            started.kill()
            row.lost = "it hung"
            return
        row.seconds = max(row.seconds or 0.0, time.monotonic() - since)
        clear = word in told and "Traceback" not in told
        if not clear:
            print(told[-2000:], file=sys.stderr)
        row.survived += clear and run.finish()
        row.lost = row.lost or ("" if clear else "the message") or self.lost(run)

    def process_killed(self, which: str) -> Row:
        """One of two processes is killed."""
        row = Row(f"the {which} of two processes killed")
        run = self._run(f"killed_{which}", 2)
        started = run.start()
        run.wait_for(self.random.randrange(STEPS, 2 * STEPS), started)
        if which == "second":
            (victim,) = [pid for pid in children(started.pid) if "fit" in command_of(pid)]
            os.kill(victim, signal.SIGKILL)
            self.ended(row, run, started, "another process of this run stopped")
            return row
        others = [pid for pid in children(started.pid) if "fit" in command_of(pid)]
        started.kill()
        since = time.monotonic()
        while any(alive(pid) for pid in others) and time.monotonic() - since < PATIENCE:
            time.sleep(0.1)
        row.tried, row.seconds = 1, time.monotonic() - since
        row.survived = int(row.seconds < PATIENCE and run.finish())
        row.lost = self.lost(run)
        return row

    def reader_killed(self) -> Row:
        """The process that reads clips is killed."""
        row, run = Row("a reading process killed"), self._run("reader")
        started = run.start()
        run.wait_for(self.random.randrange(STEPS, 2 * STEPS), started)
        victims = [
            pid for pid in children(started.pid) if "resource_tracker" not in command_of(pid)
        ]
        os.kill(victims[-1], signal.SIGKILL)
        self.ended(row, run, started, "It read clips for this run")
        return row

    def disk_full(self) -> Row:
        """No room for a checkpoint."""
        row, run = Row("disk full while a checkpoint is written"), self._run("full")
        with small_disk(run.folder, megabytes=96) as made:
            if not made:
                row.lost = "not tried: needs root"
                return row
            started = run.start()
            run.wait_for(STEPS // 2, started)
            ballast = run.folder / "ballast"
            free = shutil.disk_usage(run.folder).free
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - (1 << 20))
            row.tried = 0
            since = time.monotonic()
            row.tried += 1
            try:
                _, told = started.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                started.kill()
                row.lost = "it hung"
                return row
            row.seconds = time.monotonic() - since
            clear = "No space left" in told and "Traceback" not in told
            if not clear:
                print(told[-2000:], file=sys.stderr)
            ballast.unlink()
            row.survived += clear and run.finish()
            row.lost = ("" if clear else "the message") or self.lost(run)
        return row

    def no_number(self, policy: str) -> Row:
        """A loss that is no number."""
        row, run = Row(f"a loss that is no number, on_nonfinite: {policy}"), self._run(policy)
        strike = {"class_path": "faults.Poison", "init_args": {"step": STEPS + 3}}
        argv = [f"--trainer.callbacks+={json.dumps(strike)}"]
        if policy == "stop":
            self.ended(row, run, run.start(*argv), "a gradient is not a number")
            return row
        row.tried = 1
        argv.append("--model.init_args.on_nonfinite=skip")
        finite = run.finish(*argv) and all(
            bool(value.isfinite().all()) for value in run.weights().values()
        )
        row.survived, row.lost = int(finite), "that step, counted in the log"
        return row

    def no_server(self) -> Row:
        """W&B is online, and nothing answers."""
        row = Row("W&B out of reach", tried=1)
        run = self._run(
            "no_server",
            WANDB_MODE="online",
            WANDB_API_KEY="0" * 40,
            WANDB_BASE_URL="http://127.0.0.1:9",
            WANDB_INIT_TIMEOUT="5",
            HOME=str(self.folder),
        )
        logger = {"class_path": "lightning.pytorch.loggers.WandbLogger"}
        logger["init_args"] = {"project": "peas", "save_dir": None}  # type: ignore[assignment]
        row.survived = int(run.finish(f"--trainer.logger={json.dumps(logger)}"))
        kept = list(run.folder.glob("wandb/offline-run-*/*.wandb"))
        row.lost = self.lost(run) or ("" if kept else "W&B's log")
        return row

    def started_twice(self) -> Row:
        """The same folder, while its run goes on."""
        row, run = Row("the same folder started twice", tried=1), self._run("twice")
        first = run.start()
        run.wait_for(2, first)
        second = run.start()
        _, told = second.communicate()
        refused = second.returncode == 1 and "is writing its run here" in told
        _, message = first.communicate()
        if not refused or first.returncode:
            print(told[-1000:], message[-1000:], file=sys.stderr)
        row.survived, row.lost = int(refused and first.returncode == 0), self.lost(run)
        return row

    def all(self) -> Iterator[Row]:
        """Every fault."""
        few = max(1, self.kills // 4)
        tries: list[Callable[[], Row]] = [
            lambda: self.signalled(signal.SIGKILL, self.kills),
            lambda: self.signalled(signal.SIGTERM, few),
            lambda: self.signalled(signal.SIGUSR1, few),
            lambda: self.process_killed("second"),
            lambda: self.process_killed("first"),
            self.reader_killed,
            self.disk_full,
            lambda: self.no_number("stop"),
            lambda: self.no_number("skip"),
            self.no_server,
            self.started_twice,
        ]
        for strike in tries:
            yield strike()


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


def command_of(pid: int) -> str:
    """Command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


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


def main() -> None:
    """Strike, and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--kills", type=int, default=20, help="how often a run is killed (default 20)")
    p.add_argument("--seed", type=int, default=0, help="of the places where faults strike")
    p.add_argument("--out", type=Path, help="keep the runs there (default: a temporary folder)")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        faults = Faults((options.out or Path(scratch)).resolve(), options.kills, options.seed)
        print("| fault | tried | survived | lost | longest end (s) |\n|---|---:|---:|---|---:|")
        failed = False
        for row in faults.all():
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            lost = row.lost or "nothing"
            print(f"| {row.name} | {row.tried} | {row.survived} | {lost} | {seconds} |", flush=True)
            failed |= row.survived < row.tried
    sys.exit(failed)


if __name__ == "__main__":
    main()
