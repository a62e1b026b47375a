"""Runs of `peas fit` as jobs in folders of their own, for `peas kfold` and `peas sweep`.

A second call of the same command skips finished jobs and resumes the others.
"""

import fcntl
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from peas.cli.results import log_rows
from peas.errors import PeasError, say

ASKED, DONE = "job.json", "done.json"
"""Settings of a job, written when it starts, and the same when it is done."""
LOG = "fit.log"
"""Output of a job's processes; locked while one of them runs."""


class Job(Protocol):
    """A run and its folder."""

    @property
    def folder(self) -> Path:
        """Of the run."""

    @property
    def name(self) -> str:
        """For messages."""


def run_job(
    job: Job,
    settings: dict[str, Any],
    commands: Sequence[Callable[[], list[str]]],
    environment: Callable[[], dict[str, str]],
) -> None:
    """Runs the commands of a job unless it is done.

    Args:
        job: The job.
        settings: All that its result depends on.
        commands: Made when the folder is there.
        environment: Of the commands; made when the folder is there.

    Raises:
        PeasError: A command failed, and the message names its log; or the folder holds a job of
            other settings.
    """
    if is_done(job.folder, settings):
        return
    code = 0
    with started(job.folder, settings) as log:
        env = environment()
        for command in commands:
            code = subprocess.run(
                command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env
            ).returncode
            if code:
                break
    if code:
        raise PeasError(
            f"{job.name} ended with status {code}; its last lines:\n{tail(job.folder / LOG)}"
        )
    write_json(job.folder / DONE, settings)


def is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a job is finished. A job that never trained a step does not keep its folder.

    Args:
        folder: Of the job.
        settings: Its settings.

    Raises:
        PeasError: The folder holds a job of other settings, finished or started.
    """
    for name in (DONE, ASKED):
        file = folder / name
        if not file.exists() or json.loads(file.read_text()) == settings:
            continue
        if name == ASKED and not has_trained(folder) and not is_busy(folder):
            return False
        raise PeasError(
            f"{folder} holds a job of another config or other arguments: choose another --out"
        )
    return (folder / DONE).exists()


@contextmanager
def started(folder: Path, settings: dict[str, Any]) -> Iterator[IO[str]]:
    """Log of a job that starts or resumes; the folder of one that never trained is renamed.

    Args:
        folder: Of the job, for which `is_done` is False.
        settings: Its settings.

    Raises:
        PeasError: Another process runs this job.
    """
    file = folder / ASKED
    if file.exists() and json.loads(file.read_text()) != settings:
        count = 1
        while (aside := folder.with_name(f"{folder.name}.failed{count}")).exists():
            count += 1
        folder.rename(aside)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        # The processes of the job inherit the lock, and hold it as long as they live.
        if not _locks(log):
            raise PeasError(f"{folder}: another call runs this job: wait for it")
        write_json(file, settings)
        yield log


def is_busy(folder: Path) -> bool:
    """Whether a process of a job runs, of this call or another one.

    Args:
        folder: Of the job.
    """
    if not (folder / LOG).exists():
        return False
    with (folder / LOG).open("a") as log:
        return not _locks(log)


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
    """Whether a job has left anything of a trained step: a checkpoint or a line of its log."""
    return bool(checkpoints(folder) or log_rows(folder))


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run."""
    return [*folder.glob("checkpoints/*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]


def write_json(path: Path, settings: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(settings))
    partial.replace(path)


def tail(log: Path, lines: int = 6) -> str:
    """Last lines of a log, and its path."""
    text = log.read_text(errors="replace").strip().splitlines()
    return "\n".join([f"  {line}" for line in text[-lines:]] + [f"  (full log: {log})"])


class Devices:
    """Gives each of several jobs at a time its share of GPUs and threads."""

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


J = TypeVar("J", bound=Job)
R = TypeVar("R")


class Loop(Generic[J, R]):
    """Runs jobs, keeps their results, and prints a line for each.

    Args:
        work: Runs a job in an environment and reads its result.
        describe: Text about a result.
        total: Number of jobs.
        parallel: Jobs at a time.
        noun: What jobs are called, in the plural.
    """

    def __init__(
        self,
        work: Callable[[J, dict[str, str]], R],
        describe: Callable[[R], str],
        *,
        total: int,
        parallel: int,
        noun: str,
    ) -> None:
        self.work, self.describe = work, describe
        self.total, self.parallel, self.noun = total, parallel, noun
        self.results: list[R] = []
        self.failed: list[str] = []
        self._devices = Devices(parallel)
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, jobs: Sequence[J]) -> None:
        """Runs some jobs, `parallel` at a time."""
        with ThreadPoolExecutor(self.parallel) as pool:
            list(pool.map(self._run_one, jobs))

    def _run_one(self, job: J) -> None:
        if self._stop.is_set():
            return
        since = time.perf_counter()
        try:
            result = self.work(job, self._devices.environment())
        except PeasError as error:
            with self._lock:
                first = not self.results and not self.failed
                self.failed.append(str(error))
                say(f"{job.name}: failed")
            # What stops the first job before its first step will stop the others, too.
            if first and not has_trained(job.folder):
                self._stop.set()
            return
        with self._lock:
            self.results.append(result)
            minutes = (time.perf_counter() - since) / 60
            count = len(self.results) + len(self.failed)
            say(f"[{count}/{self.total}] {job.name}: {self.describe(result)}  ({minutes:.1f} min)")

    def check(self) -> None:
        """Raises PeasError where jobs failed; the message names them."""
        if self.failed:
            remaining = self.total - len(self.results) - len(self.failed)
            skipped = f", {remaining} were not started" if remaining else ""
            raise PeasError(
                f"{len(self.failed)} of {self.total} {self.noun} failed{skipped}; call again to "
                "resume.\n" + "\n".join(self.failed)
            )
