"""`peas kfold --config X.yaml --folds 1-5 --seeds 0-2`: folds x seeds of one config, one table.

Every fold and seed is a fresh `peas fit` in a folder of its own. A second call goes on where the
first one stopped. What the command does not know itself is handed on to `peas fit`.
"""

import argparse
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peas.commands.kfold_table import Result, read_result, write_tables
from peas.errors import ConfigError, PeasError

ASKED, DONE = "job.json", "done.json"
"""What a job was asked for when it began, and the mark of a finished one, with the same."""


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


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    p = argparse.ArgumentParser(prog="peas kfold", description=__doc__, allow_abbrev=False)
    p.add_argument("--config", "-c", action="append", required=True, help="as for `peas fit`")
    p.add_argument("--folds", help="such as 1-5 or 1,3 (default 1-5 where the config has a fold)")
    p.add_argument("--seeds", default="0", help="such as 0-2 or 0,7 (default 0)")
    p.add_argument("--out", help="folder of the jobs and the table (default runs/kfold/<config>)")
    p.add_argument("--parallel", type=int, default=1, help="jobs at once (default 1)")
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


def has_folds(configs: Iterable[str], asked: bool = False) -> bool:
    """Whether the data set of the config is divided into folds.

    Args:
        configs: Files, the later ones over the earlier ones.
        asked: Whether folds were asked for. Else a set that may have folds, and whose `fold` is
            null, is trained on its splits.

    Raises:
        ConfigError: A file cannot be read, or names no data set; or folds were asked for and the
            set has none.
    """
    class_path: str | None = None
    given: dict[str, Any] = {}
    for config in configs:
        path = Path(config)
        if not path.is_file():
            raise ConfigError(f"--config {config}: there is no such file")
        try:
            settings = yaml.safe_load(path.read_text()) or {}
            data_settings = settings.get("data") or {}
            class_path = data_settings.get("class_path", class_path)
            given |= data_settings.get("init_args") or {}
        except (yaml.YAMLError, AttributeError) as error:
            raise ConfigError(f"--config {config}: not a config: {error}") from error
    if class_path is None:
        raise ConfigError(f"{configs}: no `data.class_path`, so nothing to divide into folds")
    room, _, name = str(class_path).rpartition(".")
    try:
        data = getattr(importlib.import_module(room), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`data.class_path: {class_path}` cannot be imported: {error}") from error
    fold = inspect.signature(data).parameters.get("fold")
    if fold is None:
        if asked:
            raise ConfigError(f"`--folds` is given, and {class_path} has no folds: leave it out")
        return False
    return asked or given.get("fold", fold.default) is not None


def run_job(job: Job, configs: list[str], rest: list[str], env: dict[str, str]) -> Result:
    """Trains one job unless it is done, and reads its result.

    Raises:
        PeasError: The process failed, and the message names its log; or the folder holds a job
            of another config, begun or finished.
    """
    marker = job.folder / DONE
    asked = {"configs": [Path(c).read_text() for c in configs], "arguments": rest}
    for before in (marker, job.folder / ASKED):
        if before.exists() and json.loads(before.read_text()) != asked:
            raise PeasError(
                f"{job.folder} holds a job of another config or other arguments: "
                "choose another --out"
            )
    if marker.exists():
        return read_result(job.folder, job.fold, job.seed)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(job.folder / ASKED, asked)
    log = job.folder / "fit.log"
    commands = [job.command(configs, rest)]
    if job.fold is None:
        commands.append(job.test_command())
    with log.open("a") as file:
        for command in commands:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env
            ).returncode
            if code:
                raise PeasError(
                    f"{job.name} ended with status {code}; its last words:\n{tail(log)}"
                )
    write_whole(marker, asked)
    return read_result(job.folder, job.fold, job.seed)


def write_whole(path: Path, asked: dict[str, Any]) -> None:
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
        if has_folds(args.config, asked=args.folds is not None)
        else [None]
    )
    name = "_".join(Path(config).stem for config in args.config)
    out = Path(args.out) if args.out else Path("runs") / "kfold" / name
    jobs = [
        Job(fold, seed, out / (f"seed{seed}" if fold is None else f"fold{fold}_seed{seed}"))
        for seed in seeds
        for fold in folds
    ]
    devices = Devices(args.parallel)
    results: list[Result] = []
    failed: list[str] = []
    lock = threading.Lock()

    def work(job: Job) -> None:
        since = time.perf_counter()
        try:
            result = run_job(job, args.config, rest, devices.environment())
        except PeasError as error:
            with lock:
                failed.append(str(error))
                print(f"{job.name}: failed", flush=True)
            return
        with lock:
            results.append(result)
            minutes = (time.perf_counter() - since) / 60
            count = len(results) + len(failed)
            print(f"[{count}/{len(jobs)}] {job.name}: {result}  ({minutes:.1f} min)", flush=True)

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(work, jobs))
    if failed:
        raise PeasError(
            f"{len(failed)} of {len(jobs)} jobs failed; call again to go on.\n" + "\n".join(failed)
        )
    config: dict[str, Any] = yaml.safe_load((jobs[0].folder / "config.yaml").read_text())
    print(write_tables(out, name, config, results))
