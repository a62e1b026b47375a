"""`peas kfold`: folds x seeds of one config, and one table."""

import importlib
import inspect
import itertools
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peas.cli.configs import find_config, read_config
from peas.cli.errors import nearest_class
from peas.errors import ConfigError, say


@dataclass(frozen=True)
class Job:
    """One fold (None where the set has none) and one seed."""

    fold: int | None
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold} seed {self.seed}"

    def command(self, configs: Sequence[str], fit_args: Sequence[str]) -> list[str]:
        """`peas fit` of this job, which resumes from its last checkpoint if there is one."""
        command = [sys.executable, "-m", "peas", "fit"]
        for config in configs:
            command += ["--config", config]
        command += fit_args
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


def kfold(
    *fit_args: str,
    config: list[str],
    folds: str | None = None,
    seeds: str = "0",
    out: str | None = None,
    parallel: int = 1,
    dry_run: bool = False,
) -> None:
    """Train folds x seeds of one config, and write one table.

    Every fold and seed is a new `peas fit` in its own folder. A second call resumes. Options that
    are none of these are passed to `peas fit`. Failed jobs are named at the end, and finished ones
    are kept.

    Args:
        fit_args: For `peas fit`.
        config: As for `peas fit`; may be repeated.
        folds: Such as 1-5 or 1,3; default 1-5 where the config has a fold.
        seeds: Such as 0-2 or 0,7.
        out: Folder of the jobs and the table; default runs/kfold/<config>.
        parallel: Jobs at once.
        dry_run: Print the commands and run none.

    Raises:
        PeasError: A setting is wrong, or jobs failed.
    """
    if parallel < 1:
        raise ConfigError(f"`--parallel` is {parallel}: give 1 or more")
    configs = [find_config(name) for name in config]
    seed_list = numbers(seeds, "--seeds")
    fold_list: list[int | None] = [None]
    if has_folds(configs, asked=folds is not None, fit_args=fit_args):
        fold_list = list(numbers(folds or "1-5", "--folds"))
    name = "_".join(Path(path).stem for path in configs)
    folder = Path(out) if out else Path("runs") / "kfold" / name
    jobs = [
        Job(fold, seed, folder / (f"seed{seed}" if fold is None else f"fold{fold}_seed{seed}"))
        for seed in seed_list
        for fold in fold_list
    ]
    from peas.cli.jobs import Loop, is_done, run_job
    from peas.cli.results import FoldResult, read_folds, write_folds

    settings = {
        "configs": [Path(path).read_text() for path in configs],
        "arguments": list(fit_args),
    }
    todo = [job for job in jobs if not is_done(job.folder, settings)]
    if todo:
        _check(todo, configs, fit_args, opens=not dry_run)
    if dry_run:
        say("\n".join(shlex.join(job.command(configs, fit_args)) for job in todo))
        return

    def work(job: Job, env: dict[str, str]) -> FoldResult:
        commands = [lambda: job.command(configs, fit_args)]
        if job.fold is None:
            commands.append(job.test_command)
        run_job(job, settings, commands, lambda: env)
        return read_folds(job.folder, job.fold, job.seed)

    loop: Loop[Job, FoldResult] = Loop(work, str, total=len(jobs), parallel=parallel, noun="jobs")
    loop.run(jobs)
    loop.check()
    saved: dict[str, Any] = yaml.safe_load((jobs[0].folder / "config.yaml").read_text())
    say(write_folds(folder, name, saved, loop.results))


def numbers(text: str, key: str) -> list[int]:
    """Numbers of `1-5`, `1,3` or a mixture.

    Raises:
        ConfigError: The text is something else.
    """
    result: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            result += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise ConfigError(f"`{key}` is {text!r}: give numbers such as 1-5 or 1,3") from error
    if not result or len(set(result)) != len(result):
        raise ConfigError(f"`{key}` is {text!r}: it has no number, or one twice")
    return result


def has_folds(configs: Iterable[str], asked: bool = False, fit_args: Sequence[str] = ()) -> bool:
    """Whether the data set of the config is divided into folds.

    Args:
        configs: Files, the later ones over the earlier ones.
        asked: Whether folds were asked for. Else a set that may have folds, and whose `fold` is
            null, is trained on its splits.
        fit_args: Arguments of `peas fit`, over the files.

    Raises:
        ConfigError: A file cannot be read, or names no data set; or folds were asked for and the
            set has none.
    """
    class_path: str | None = None
    init_args: dict[str, Any] = {}
    for config in configs:
        block = read_config(config).get("data") or {}
        if not isinstance(block, dict):
            raise ConfigError(f"--config {config}: `data` is not a block of keys")
        class_path = block.get("class_path", class_path)
        init_args |= block.get("init_args") or {}
    # As `--key VALUE` or `--key=VALUE`.
    options = dict(itertools.pairwise(fit_args))
    options |= {key: value for key, sign, value in (w.partition("=") for w in fit_args) if sign}
    class_path = options.get("--data.class_path", options.get("--data", class_path))
    if "--data.init_args.fold" in options:
        init_args["fold"] = yaml.safe_load(options["--data.init_args.fold"])
    if class_path is None:
        raise ConfigError(f"{configs}: no `data.class_path`, so nothing to divide into folds")
    module, _, name = str(class_path).rpartition(".")
    try:
        data = getattr(importlib.import_module(module), name)
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
    return asked or init_args.get("fold", fold.default) is not None


def _check(
    jobs: Sequence[Job], configs: Sequence[str], fit_args: Sequence[str], *, opens: bool
) -> None:
    """Reads every job's settings as `peas fit` does and, if `opens`, the tables of its data."""
    from peas.cli.fit import FitReader

    reader = FitReader(allow_test_selection=True)
    for job in jobs:
        reader.check(job.command(configs, fit_args))
    if opens:
        reader.open_data("fit")
        if jobs[0].fold is None:
            reader.open_data("test")
