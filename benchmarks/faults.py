"""Faults that runs meet on real machines, made on purpose: what is lost?

A small fine-tuning with PEAS, dropped blocks, noise, mixup and a reading process is run once
without a fault. Then each fault strikes the same run, which goes on with `--ckpt_path last`; its
weights must in the end be those of the unbroken run, bit for bit, and its logs, taken together,
must hold its every line (on two processes, means of an epoch within 1e-6). Where a fault is to end
a run, it must end within a minute, with one message and no traceback.

A full disk is a small file system of memory, which needs root.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from fault_run import (
    EPOCHS,
    STEPS,
    Run,
    alive,
    children,
    config,
    family,
    ranks_of,
    readers_of,
    small_disk,
)

PATIENCE = 60
"""Seconds in which a run must end that cannot go on."""
KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "accumulated": (
        1,
        ("--trainer.accumulate_grad_batches=4", "--checkpoints.every_n_train_steps=1"),
    ),
    "validated": (1, ("--trainer.val_check_interval=5", "--checkpoints.every_n_train_steps=1")),
    "averaged": (1, ("--config", "configs/overlays/ema.yaml")),
    "two": (2, ()),
}
"""Kinds of run that are killed at random: processes and arguments."""


@dataclass
class Row:
    """What became of a fault.

    Attributes:
        name: The fault.
        tried: How often it struck.
        survived: How often what must follow did.
        lost: In words; empty = nothing.
        expected: What may be lost.
        seconds: Longest time that a run took to end, where it had to.
    """

    name: str
    tried: int = 0
    survived: int = 0
    lost: str = ""
    expected: str = ""
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
        self._whole: dict[tuple[int, tuple[str, ...]], Run] = {}

    def whole(self, processes: int, argv: tuple[str, ...] = ()) -> Run:
        """The unbroken run of a kind, made when it is first asked for."""
        kind = (processes, argv)
        if kind not in self._whole:
            run = self._run(f"whole_{len(self._whole)}", processes)
            run.argv = argv
            if not run.finish():
                sys.exit("the run without a fault failed")
            self._whole[kind] = run
        return self._whole[kind]

    def _run(self, name: str, processes: int = 1, **environment: str) -> Run:
        return Run(self.folder / name, self.config, processes, environment)

    def lost(self, run: Run) -> str:
        """What differs from the unbroken run."""
        whole = self.whole(run.processes, run.argv)
        ours, theirs = run.rows(), whole.rows()
        told = []
        missing = [place[0] for place in theirs if place not in ours]
        if missing:
            told.append(f"lines of steps {sorted(set(missing))} of the log")
        exact = run.processes == 1
        others = [
            place[0]
            for place, rows in theirs.items()
            if place in ours
            and not all(same(one, two, exact) for one in rows for two in ours[place])
        ]
        if others:
            told.append(f"figures of steps {sorted(set(others))} differ")
        weights = whole.weights()
        if any(not torch.equal(value, weights[key]) for key, value in run.weights().items()):
            told.append("final weights differ")
        return "; ".join(told)

    def signalled(self, number: signal.Signals, times: int, *, group: bool = False) -> Row:
        """One run, struck at random steps, going on after each.

        Args:
            number: The signal.
            times: How often it strikes.
            group: Whether the workers get it as well, as from a terminal or `timeout`.
        """
        name = f"{number.name} to the group" if group else number.name
        row, run = Row(name), self._run(f"signal_{number.name}_{group}")
        places = sorted(self.random.sample(range(1, EPOCHS * STEPS - 2), times))
        code = -number if number == signal.SIGKILL else 128 + number
        for place in places:
            started = run.start()
            run.wait_for(place, started)
            # Anywhere in the next steps: while a batch is read, trained on, saved or validated.
            time.sleep(self.random.uniform(0, 0.3))
            row.tried += 1
            processes = family(started.pid)
            if group and started.poll() is None:
                os.killpg(started.pid, number)
            else:
                started.send_signal(number)
            _, told = started.communicate()
            # It may have come to its end, or further than the next place, by then.
            fine = started.returncode in (code, 0) and "Traceback" not in told
            if not fine:
                print(told[-2000:], file=sys.stderr)
            row.survived += fine and not self._left(processes)
        if not run.finish():
            row.survived -= 1
        row.lost = self.lost(run)
        return row

    def _left(self, processes: set[int]) -> set[int]:
        """Those that live on ten seconds later."""
        until = time.monotonic() + 10
        while (left := {pid for pid in processes if alive(pid)}) and time.monotonic() < until:
            time.sleep(0.1)
        if left:
            print(f"orphans: {left}", file=sys.stderr)
        return left

    def kind_killed(self, name: str, times: int) -> Row:
        """A run of some kind, killed inside steps and validations."""
        row, (processes, argv) = Row(f"SIGKILL, {name}"), KINDS[name]
        run = self._run(f"kind_{name}", processes)
        run.argv = argv
        last = EPOCHS * STEPS // (4 if name == "accumulated" else 1) - 2
        for step in sorted(self.random.sample(range(1, last), min(times, last - 1))):
            where = self.random.choice(("step", "validation"))
            strike = {"class_path": "fault_run.Strike", "init_args": {"step": step, "where": where}}
            started = run.start(f"--trainer.callbacks+={json.dumps(strike)}")
            started.communicate()
            row.tried += 1
            row.survived += started.returncode in (-signal.SIGKILL, 0)
        if not run.finish():
            row.survived -= 1
        row.lost = self.lost(run)
        return row

    def first_killed_early(self, times: int) -> Row:
        """The first of two processes is killed before they know one another."""
        row = Row("the first process killed at the start")
        for number in range(times):
            started = self._run(f"early_{number}", 2).start()
            while started.poll() is None and not (others := ranks_of(started.pid)):
                time.sleep(0.05)
            time.sleep(self.random.uniform(0, 5))
            processes = family(started.pid) - {started.pid} | set(others)
            started.kill()
            since = time.monotonic()
            row.tried += 1
            row.survived += not self._left(processes)
            row.seconds = max(row.seconds or 0.0, time.monotonic() - since)
            started.communicate()
        return row

    def worker_stopped(self) -> Row:
        """A worker that does not answer: as one that waits for a lock, or for a disk."""
        row, run = Row("a worker that does not answer"), self._run("silent")
        started = run.start("--data.init_args.timeout=5")
        run.wait_for(STEPS + 2, started)
        processes = family(started.pid)
        os.kill(readers_of(started.pid)[0], signal.SIGSTOP)
        self.ended(row, run, started, "data.init_args.timeout")
        row.survived -= bool(self._left(processes))
        return row

    def service_killed(self) -> Row:
        """W&B's own process is killed."""
        row = Row("W&B's service killed", tried=1)
        run = self._run("service", WANDB_MODE="offline", HOME=str(self.folder))
        logger = {"class_path": "lightning.pytorch.loggers.WandbLogger"}
        logger["init_args"] = {"project": "peas", "save_dir": None}  # type: ignore[assignment]
        started = run.start(f"--trainer.logger={json.dumps(logger)}")
        run.wait_for(STEPS + 2, started)
        for child in children(started.pid):
            if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(child, signal.SIGKILL)
        _, told = started.communicate()
        row.survived = int(started.returncode == 0 and "Traceback" not in told)
        row.lost = self.lost(run)
        return row

    def ended(
        self,
        row: Row,
        run: Run,
        started: subprocess.Popen[str],
        *words: str,
        mend: Callable[[], object] = lambda: None,
    ) -> None:
        """A run that a fault has to end: in time, in words, and it goes on once that is mended."""
        since = time.monotonic()
        row.tried += 1
        try:
            _, told = started.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            row.lost = "it hung"
            return
        row.seconds = max(row.seconds or 0.0, time.monotonic() - since)
        clear = any(word in told for word in words) and "Traceback" not in told
        if not clear:
            print(told[-2000:], file=sys.stderr)
        mend()
        row.survived += clear and run.finish()
        row.lost = row.lost or ("" if clear else "the message") or self.lost(run)

    def process_killed(self, which: str, times: int) -> Row:
        """One of two processes is killed."""
        row = Row(f"the {which} of two processes killed")
        for number in range(times):
            run = self._run(f"killed_{which}_{number}", 2)
            started = run.start()
            run.wait_for(self.random.randrange(STEPS, 2 * STEPS), started)
            others = ranks_of(started.pid)
            if which == "second":
                (victim,) = others
                os.kill(victim, signal.SIGKILL)
                words = ("terminated with code -9", "another process of this run")
                self.ended(row, run, started, *words)
                continue
            started.kill()
            since = time.monotonic()
            while any(alive(pid) for pid in others) and time.monotonic() - since < PATIENCE:
                time.sleep(0.1)
            took = time.monotonic() - since
            row.tried += 1
            row.seconds = max(row.seconds or 0.0, took)
            row.survived += took < PATIENCE and run.finish()
            row.lost = row.lost or self.lost(run)
        return row

    def reader_killed(self, times: int) -> Row:
        """The process that reads clips is killed."""
        row = Row("a reading process killed")
        for number in range(times):
            run = self._run(f"reader_{number}")
            started = run.start()
            run.wait_for(self.random.randrange(STEPS, 2 * STEPS), started)
            os.kill(readers_of(started.pid)[-1], signal.SIGKILL)
            self.ended(row, run, started, "SIGKILL")
        return row

    def disk_full(self, times: int) -> Row:
        """No room for a checkpoint, from some page of it on."""
        row = Row("disk full while a checkpoint is written")
        for number in range(times):
            run = self._run(f"full_{number}")
            with small_disk(run.folder, megabytes=96) as made:
                if not made:
                    row.lost = row.expected = "not tried: needs root"
                    return row
                started = run.start()
                run.wait_for(STEPS // 2, started)
                ballast, room = run.folder / "ballast", self.random.randrange(1 << 14, 1 << 20)
                free = shutil.disk_usage(run.folder).free
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, free - room)
                self.ended(row, run, started, "No space left", mend=ballast.unlink)
        return row

    def no_number(self, policy: str) -> Row:
        """A loss that is no number."""
        row, run = Row(f"a loss that is no number, on_nonfinite: {policy}"), self._run(policy)
        strike = {"class_path": "fault_run.Poison", "init_args": {"step": STEPS + 3}}
        argv = [f"--trainer.callbacks+={json.dumps(strike)}"]
        if policy == "stop":
            self.ended(row, run, run.start(*argv), "a gradient is not a number")
            return row
        row.tried = 1
        argv.append("--model.init_args.recipe.init_args.on_nonfinite=skip")
        finite = run.finish(*argv) and all(
            bool(value.isfinite().all()) for value in run.weights().values()
        )
        row.survived = int(finite)
        row.lost = row.expected = "that step, counted in the log"
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
        # It would reach its end while the second one still imports.
        first.send_signal(signal.SIGSTOP)
        second = run.start()
        _, told = second.communicate()
        first.send_signal(signal.SIGCONT)
        refused = second.returncode == 1 and "is writing its run here" in told
        _, message = first.communicate()
        if not refused or first.returncode:
            print(told[-1000:], message[-1000:], file=sys.stderr)
        row.survived, row.lost = int(refused and first.returncode == 0), self.lost(run)
        return row

    def all(self, only: list[str]) -> Iterator[Row]:
        """Every fault, or those named."""
        few = max(1, self.kills // 4)
        tries: dict[str, Callable[[], Row]] = {
            "SIGKILL": lambda: self.signalled(signal.SIGKILL, self.kills),
            "SIGTERM": lambda: self.signalled(signal.SIGTERM, few),
            "SIGUSR1": lambda: self.signalled(signal.SIGUSR1, few),
            "group": lambda: self.signalled(signal.SIGTERM, few, group=True),
            "ctrl-c": lambda: self.signalled(signal.SIGINT, few, group=True),
            **{kind: lambda kind=kind: self.kind_killed(kind, few) for kind in KINDS},
            "early": lambda: self.first_killed_early(few),
            "second": lambda: self.process_killed("second", few),
            "first": lambda: self.process_killed("first", few),
            "silent": self.worker_stopped,
            "reader": lambda: self.reader_killed(few),
            "disk": lambda: self.disk_full(few),
            "stop": lambda: self.no_number("stop"),
            "skip": lambda: self.no_number("skip"),
            "server": self.no_server,
            "service": self.service_killed,
            "twice": self.started_twice,
        }
        for name, strike in tries.items():
            if not only or name in only:
                yield strike()


def same(one: str, two: str, exact: bool) -> bool:
    """Whether two lines of a log tell the same.

    Means of an epoch that was broken off are added up in another order on two processes, and may
    differ in the last digit of a float32.
    """
    if exact or one == two:
        return one == two
    ours, theirs = json.loads(one), json.loads(two)
    return all(
        math.isclose(float(value), float(theirs[key]), rel_tol=1e-6) for key, value in ours.items()
    )


def main() -> None:
    """Strike, and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--kills",
        type=int,
        default=20,
        help="SIGKILLs (default 20); a fourth of every other interruption",
    )
    p.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="SIGKILL, SIGTERM, SIGUSR1, group, ctrl-c, accumulated, validated, averaged, two, "
        "early, second, first, silent, reader, disk, stop, skip, server, service, twice",
    )
    p.add_argument("--seed", type=int, default=0, help="of the places where faults strike")
    p.add_argument("--out", type=Path, help="keep the runs there (default: a temporary folder)")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        faults = Faults((options.out or Path(scratch)).resolve(), options.kills, options.seed)
        print("| fault | tried | survived | lost | longest end (s) |\n|---|---:|---:|---|---:|")
        failed = False
        for row in faults.all(options.only):
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            lost = row.lost or "nothing"
            print(f"| {row.name} | {row.tried} | {row.survived} | {lost} | {seconds} |", flush=True)
            failed |= row.survived < row.tried or row.lost != row.expected
    sys.exit(failed)


if __name__ == "__main__":
    main()
