"""Starts of three processes under load, many of them killed: does one hang, or leave an orphan?

Each start is a short fine-tuning with PEAS on three processes, each with a worker for training and
one for validation. Some end by themselves; in others one process or all of them are killed, or all
are asked to stop, at a random moment after each has a worker (before, only their launcher can know
that one is gone). Then every process must end in time, and so must its workers.

The processes are forks of this one, which has imported everything and has no thread: a start costs
seconds and not the imports.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROCESSES = 3
PATIENCE = 120
"""Seconds in which a start must end."""
FATES = ("none", "none", "one killed", "all killed", "all asked to stop")


def rank(folder: Path, config: Path, number: int, port: int) -> int:
    """Forks one process of a start; its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        with (folder / f"{number}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(PROCESSES),
            "NODE_RANK": "0",
            "LOCAL_RANK": str(number),
        }
        from peas.__main__ import main

        argv = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder)]
        argv += [f"--trainer.devices={PROCESSES}", "--trainer.strategy=ddp"]
        argv += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3"]
        argv += ["--data.init_args.batch_size=2", "--trainer.num_sanity_val_steps=1"]
        code = main(argv)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Start:
    """One start, its fate and what is left of it.

    Args:
        folder: Of the run.
        config: Its settings.
        fate: One of `FATES`.
        moment: Seconds after which the fate comes, once every process has a worker.
    """

    def __init__(self, folder: Path, config: Path, fate: str, moment: float) -> None:
        from fault_run import alive, children

        self._alive, self._children = alive, children
        folder.mkdir(parents=True)
        port = free_port()
        self.ranks = [rank(folder, config, number, port) for number in range(PROCESSES)]
        self.fate, self.moment = fate, moment
        self.workers: set[int] = set()
        self.codes: dict[int, int] = {}

    def end(self, source: random.Random) -> str:
        """Waits for its end; what is wrong with it, or nothing."""
        begun, struck = time.monotonic(), self.fate == "none"
        ready: set[int] = set()
        since = begun
        while len(self.codes) < PROCESSES:
            for pid in self.ranks:
                if pid not in self.codes:
                    if workers := self._children(pid):
                        self.workers.update(workers)
                        ready.add(pid)
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        self.codes[pid] = os.waitstatus_to_exitcode(status)
            spent = time.monotonic() - begun
            if len(ready) < PROCESSES:
                since = time.monotonic()
            elif not struck and time.monotonic() - since > self.moment:
                struck = True
                self._strike(source)
            if spent > PATIENCE:
                stacks = [Path(f"/proc/{pid}/wchan").read_text() for pid in self.workers]
                for pid in [*self.ranks, *self.workers]:
                    if pid not in self.codes and self._alive(pid):
                        os.kill(pid, signal.SIGKILL)
                return f"hung ({self.fate}): {self.codes}, workers wait in {stacks}"
            time.sleep(0.05)
        until = time.monotonic() + 10
        while (left := [pid for pid in self.workers if self._alive(pid)]) and (
            time.monotonic() < until
        ):
            time.sleep(0.1)
        if left:
            return f"orphans ({self.fate}): {left}"
        codes = sorted(set(self.codes.values()))
        fine = self.fate != "none" or codes == [0]
        if self.fate == "all asked to stop":
            fine = set(codes) <= {0, 143}
        return "" if fine else f"ended with {codes} ({self.fate})"

    def _strike(self, source: random.Random) -> None:
        left = [pid for pid in self.ranks if pid not in self.codes]
        if self.fate == "one killed":
            left = source.sample(left, min(1, len(left)))
        for pid in left:
            number = signal.SIGTERM if self.fate == "all asked to stop" else signal.SIGKILL
            os.kill(pid, number)
            if number == signal.SIGTERM:
                for worker in self._children(pid):
                    os.kill(worker, number)


def main() -> None:
    """Starts, and counts."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--starts", type=int, default=200, help="default 200")
    p.add_argument("--seconds", type=float, default=1e9, help="begin no start after so many")
    p.add_argument("--load", type=int, default=2, help="busy processes beside it (default 2)")
    p.add_argument("--seed", type=int, default=0, help="of fates and moments")
    options = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    import yaml
    from fault_run import config

    import peas.callbacks
    import peas.cli.main
    import peas.data
    import peas.tasks  # noqa: F401
    from peas.data.synthetic import write_sounds

    source, begun = random.Random(options.seed), time.monotonic()
    busy = []
    for _ in range(options.load):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            parent = os.getppid()
            while os.getppid() == parent:
                sum(range(100_000))
            os._exit(0)
        busy.append(child)
    faults: list[str] = []
    fates: Counter[str] = Counter()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            sounds = write_sounds(
                Path(scratch) / "sounds", classes=4, clips_per_class=20, seconds=0.96
            )
            settings = Path(scratch) / "config.yaml"
            settings.write_text(yaml.safe_dump(config(sounds)))
            for number in range(options.starts):
                if time.monotonic() - begun > options.seconds:
                    break
                fate, moment = source.choice(FATES), source.uniform(0, 8)
                folder = Path(scratch) / f"run{number}"
                told = Start(folder, settings, fate, moment).end(source)
                fates[fate] += 1
                if told:
                    faults.append(told)
                    print(f"start {number}: {told}", flush=True)
                    for log in sorted(folder.glob("*.log")):
                        print(log.read_text()[-600:], flush=True)
    finally:
        for child in busy:
            os.kill(child, signal.SIGKILL)
    minutes = (time.monotonic() - begun) / 60
    print(f"{sum(fates.values())} starts in {minutes:.1f} min: {dict(fates)}; faults: {faults}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
