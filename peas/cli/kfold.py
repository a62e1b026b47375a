"""`peas kfold --config X.yaml --folds 1-5 --seeds 0-2`: folds x seeds of one config, one table.

Every fold and seed is a fresh `peas fit` in a folder of its own. A second call goes on where the
first one stopped. What the command does not know itself is handed on to `peas fit`.
"""

import fcntl
import importlib
import inspect
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from peas.cli.arguments import Arguments
from peas.cli.config_file import read_config
from peas.cli.errors import nearest_class
from peas.cli.kfold_table import Result, log_rows, read_result, write_tables
from peas.errors import ConfigError, PeasError, say

ASKED, DONE = "job.json", "done.json"
"""What a job was asked for when it began, and the mark of a finished one, with the same."""
LOG = "fit.log"
"""What the processes of a job print; locked while one of them runs."""


@dataclass(frozen=True)
class Job:
    """One fold (None where the set has none) and one seed."""

    fold: int | None
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold} seed {self.seed}"

    def command(self, configs: list[str], rest: list[str]) -> list[str]:
        """`peas fit` of this job, which goes on from its last checkpoint if there is one."""
        command = [sys.executable, "-m", "peas", "fit"]
        for config in configs:
            command += ["--config", config]
        command += rest
        if self.fold is not None:
            command += [f"--data.init_args.fold={self.fold}"]
        command += [f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.folder}"]
        return [*command, "--ckpt_path=last"]

    def test_command(self) -> list[str]:
        """`peas test` of the best validation epoch, where a set has no folds."""
        return [
            *(sys.executable, "-m", "peas", "test", "--config", str(self.folder / "config.yaml")),
            f"--ckpt_path={self.folder / 'checkpoints' / 'best.ckpt'}",
        ]


def parser() -> Arguments:
    """Arguments of the command."""
    p = Arguments(prog="peas kfold", description=__doc__)
    p.add_argument("--config", "-c", action="append", required=True, help="as for `peas fit`")
    p.add_argument("--folds", help="such as 1-5 or 1,3 (default 1-5 where the config has a fold)")
    p.add_argument("--seeds", default="0", help="such as 0-2 or 0,7 (default 0)")
    p.add_argument("--out", help="folder of the jobs and the table (default runs/kfold/<config>)")
    p.add_argument("--parallel", type=int, default=1, help="jobs at once (default 1)")
    p.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return p


def numbers(text: str, key: str) -> list[int]:
    """Numbers of `1-5`, `1,3` or a mixture.

    Raises:
        ConfigError: The text is something else.
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise ConfigError(f"`{key}` is {text!r}: give numbers such as 1-5 or 1,3") from error
    if not found or len(set(found)) != len(found):
        raise ConfigError(f"`{key}` is {text!r}: it names no number, or one twice")
    return found


def has_folds(configs: Iterable[str], asked: bool = False, rest: Sequence[str] = ()) -> bool:
    """Whether the data set of the config is divided into folds.

    Args:
        configs: Files, the later ones over the earlier ones.
        asked: Whether folds were asked for. Else a set that may have folds, and whose `fold` is
            null, is trained on its splits.
        rest: Arguments of `peas fit`, over the files.

    Raises:
        ConfigError: A file cannot be read, or names no data set; or folds were asked for and the
            set has none.
    """
    class_path: str | None = None
    given: dict[str, Any] = {}
    for config in configs:
        data_settings = read_config(config).get("data") or {}
        if not isinstance(data_settings, dict):
            raise ConfigError(f"--config {config}: `data` is no block of keys")
        class_path = data_settings.get("class_path", class_path)
        given |= data_settings.get("init_args") or {}
    options = _options(rest)
    class_path = options.get("--data.class_path", options.get("--data", class_path))
    if "--data.init_args.fold" in options:
        given["fold"] = yaml.safe_load(options["--data.init_args.fold"])
    if class_path is None:
        raise ConfigError(f"{configs}: no `data.class_path`, so nothing to divide into folds")
    room, _, name = str(class_path).rpartition(".")
    try:
        data = getattr(importlib.import_module(room), name)
    except (ImportError, AttributeError, ValueError) as error:
        near = nearest_class(str(class_path))
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(
            f"`data.class_path: {class_path}` cannot be imported: {error}{hint}"
        ) from error
    fold = inspect.signature(data).parameters.get("fold")
    if fold is None:
        if asked:
            raise ConfigError(f"`--folds` is given, and {class_path} has no folds: leave it out")
        return False
    return asked or given.get("fold", fold.default) is not None


def _options(words: Sequence[str]) -> dict[str, str]:
    """Options of a command line, as `--key VALUE` or `--key=VALUE`."""
    pairs = dict(itertools.pairwise(words))
    return pairs | {key: value for key, sign, value in (w.partition("=") for w in words) if sign}


def run_job(job: Job, configs: list[str], rest: list[str], env: dict[str, str]) -> Result:
    """Trains one job unless it is done, and reads its result.

    Raises:
        PeasError: The process failed, and the message names its log; or the folder holds a job
            of another config, begun or finished.
    """
    asked = asked_for(configs, rest)
    if is_done(job.folder, asked):
        return read_result(job.folder, job.fold, job.seed)
    commands = [job.command(configs, rest)]
    if job.fold is None:
        commands.append(job.test_command())
    with begun(job.folder, asked) as file:
        for command in commands:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env
            ).returncode
            if code:
                raise PeasError(
                    f"{job.name} ended with status {code}; its last words:\n"
                    f"{tail(job.folder / LOG)}"
                )
    write_atomic(job.folder / DONE, asked)
    return read_result(job.folder, job.fold, job.seed)


def asked_for(configs: list[str], rest: list[str]) -> dict[str, Any]:
    """All that a job's result depends on but its fold and seed."""
    return {"configs": [Path(c).read_text() for c in configs], "arguments": rest}


def is_done(folder: Path, asked: dict[str, Any]) -> bool:
    """Whether a job is finished. A job that never trained a step does not hold its folder.

    Args:
        folder: Of the job.
        asked: Its settings.

    Raises:
        PeasError: The folder holds a job of other settings, finished or begun.
    """
    for name in (DONE, ASKED):
        before = folder / name
        if not before.exists() or json.loads(before.read_text()) == asked:
            continue
        if name == ASKED and not has_trained(folder) and not is_busy(folder):
            return False
        raise PeasError(
            f"{folder} holds a job of another config or other arguments: choose another --out"
        )
    return (folder / DONE).exists()


@contextmanager
def begun(folder: Path, asked: dict[str, Any]) -> Iterator[IO[str]]:
    """Log of a job that begins or goes on. One that never trained a step makes room for it.

    Args:
        folder: Of the job, which `is_done` has let pass.
        asked: Its settings.

    Raises:
        PeasError: Another call of the command is at this job.
    """
    before = folder / ASKED
    if before.exists() and json.loads(before.read_text()) != asked:
        count = 1
        while (aside := folder.with_name(f"{folder.name}.failed{count}")).exists():
            count += 1
        folder.rename(aside)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as file:
        # The processes of the job inherit it, and hold it as long as they live.
        if not _locks(file):
            raise PeasError(f"{folder}: another call is at this job: wait for it")
        write_atomic(before, asked)
        yield file


def is_busy(folder: Path) -> bool:
    """Whether a process of a job runs, here or in another call of the command.

    Args:
        folder: Of the job.
    """
    if not (folder / LOG).exists():
        return False
    with (folder / LOG).open("a") as file:
        return not _locks(file)


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True


def has_trained(folder: Path) -> bool:
    """Whether a job left anything of a trained step: a checkpoint or a line of its log."""
    saved = [*folder.glob("checkpoints/*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    return bool(saved or log_rows(folder))


def check(jobs: Sequence[Job], configs: list[str], rest: list[str], *, opens: bool) -> None:
    """Reads every job's settings as `peas fit` does, and the tables of its data.

    Args:
        jobs: Those that will run.
        configs: Their config files.
        rest: Arguments that are handed on.
        opens: Whether the data are opened.

    Raises:
        PeasError: A setting is wrong, or the data cannot be opened.
    """
    from peas.cli.sweep_checks import CommandCheck

    read = CommandCheck(allow_test_selection=True)
    for job in jobs:
        read(job.command(configs, rest))
    if opens:
        read.open_data("fit")
        if jobs[0].fold is None:
            read.open_data("test")


def write_atomic(path: Path, asked: dict[str, Any]) -> None:
    """Writes a JSON file that is there whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asked))
    partial.replace(path)


def tail(log: Path, lines: int = 6) -> str:
    """Last words of a process, and where all of them are."""
    text = log.read_text(errors="replace").strip().splitlines()
    return "\n".join([f"  {line}" for line in text[-lines:]] + [f"  (whole log: {log})"])


class Devices:
    """Hands each job at a time the GPUs and threads that are its share."""

    def __init__(self, parallel: int) -> None:
        import torch

        self._gpus = list(range(torch.cuda.device_count())) if parallel > 1 else []
        self._threads = max(1, (os.cpu_count() or 1) // parallel) if parallel > 1 else None
        self._lock = threading.Lock()
        self._count = 0

    def environment(self) -> dict[str, str]:
        """Environment of the next job."""
        env = dict(os.environ)
        if self._threads is not None:
            env.setdefault("OMP_NUM_THREADS", str(self._threads))
        with self._lock:
            if self._gpus:
                env["CUDA_VISIBLE_DEVICES"] = str(self._gpus[self._count % len(self._gpus)])
            self._count += 1
        return env


def main(argv: list[str]) -> None:
    """Runs the command; failed jobs are named at the end, finished ones are kept."""
    args, rest = parser().parse_known_args(argv)
    if args.parallel < 1:
        raise ConfigError(f"`--parallel` is {args.parallel}: give 1 or more")
    seeds = numbers(args.seeds, "--seeds")
    folds: list[int | None] = (
        list(numbers(args.folds or "1-5", "--folds"))
        if has_folds(args.config, asked=args.folds is not None, rest=rest)
        else [None]
    )
    name = "_".join(Path(config).stem for config in args.config)
    out = Path(args.out) if args.out else Path("runs") / "kfold" / name
    jobs = [
        Job(fold, seed, out / (f"seed{seed}" if fold is None else f"fold{fold}_seed{seed}"))
        for seed in seeds
        for fold in folds
    ]
    asked = asked_for(args.config, rest)
    todo = [job for job in jobs if not is_done(job.folder, asked)]
    if todo:
        check(todo, args.config, rest, opens=not args.dry_run)
    if args.dry_run:
        say("\n".join(shlex.join(job.command(args.config, rest)) for job in todo))
        return
    devices = Devices(args.parallel)
    # What stops the first job before its first step will stop the others, too.
    hopeless = threading.Event()
    results: list[Result] = []
    failed: list[str] = []
    lock = threading.Lock()

    def work(job: Job) -> None:
        if hopeless.is_set():
            return
        since = time.perf_counter()
        try:
            result = run_job(job, args.config, rest, devices.environment())
        except PeasError as error:
            with lock:
                failed.append(str(error))
                say(f"{job.name}: failed")
            if job is todo[0] and not has_trained(job.folder):
                hopeless.set()
            return
        with lock:
            results.append(result)
            minutes = (time.perf_counter() - since) / 60
            count = len(results) + len(failed)
            say(f"[{count}/{len(jobs)}] {job.name}: {result}  ({minutes:.1f} min)")

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(work, jobs))
    if failed:
        left = len(jobs) - len(results) - len(failed)
        skipped = f", {left} were not started" if left else ""
        raise PeasError(
            f"{len(failed)} of {len(jobs)} jobs failed{skipped}; call again to resume.\n"
            + "\n".join(failed)
        )
    config: dict[str, Any] = yaml.safe_load((jobs[0].folder / "config.yaml").read_text())
    say(write_tables(out, name, config, results))
