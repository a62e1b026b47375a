"""A sweep file of W&B: read, checked, and expanded into commands.

The package `sweeps`, which W&B's server runs, chooses the points. The rest is what the server and
W&B's agent do with a point: the server sends its values as JSON, and the agent makes a command.
"""

import copy
import hashlib
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from peas.errors import ConfigError

Args = dict[str, dict[str, Any]]
"""Values of a point as the server sends them: a dotted name to `{"value": …}`."""

SERVER_ONLY = ("early_terminate", "scheduler", "controller")
"""Keys of a sweep that only W&B's server can follow."""


@dataclass(frozen=True)
class Measured:
    """A finished point, for the choice of the next one.

    Attributes:
        args: Its values.
        curve: The sweep's metric at each of its evaluations.
    """

    args: Args
    curve: list[float]


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        file: Its path.
        config: What it holds, valid for W&B.
        seed: Of random points.
    """

    file: Path
    config: dict[str, Any]
    seed: int = 0

    @property
    def metric(self) -> str:
        """Name of the objective, as it is logged."""
        return str(self.config["metric"]["name"])

    @property
    def maximise(self) -> bool:
        """Whether more of it is better."""
        return bool(self.config["metric"]["goal"] == "maximize")

    @property
    def sequential(self) -> bool:
        """Whether a point depends on the results of the points before it."""
        return bool(self.config["method"] == "bayes")

    @property
    def local_id(self) -> str:
        """An id of the sweep on this machine, the same for the same file and seed."""
        text = json.dumps([self.config, self.seed], sort_keys=True, default=str)
        return f"local-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    @property
    def swept(self) -> list[str]:
        """Names of the parameters that vary."""
        parameters = self.config["parameters"]
        return sorted(name for name, how in parameters.items() if "value" not in how)

    def count(self, limit: int | None) -> int | None:
        """Number of points, the user's or the file's own limit; None = all of a grid.

        Raises:
            ConfigError: Points are random, and there is no limit.
        """
        limits = [n for n in (limit, self.config.get("run_cap")) if n is not None]
        if not limits and self.config["method"] != "grid":
            raise ConfigError(
                f"{self.file}: `method` is {self.config['method']}, which never ends: give "
                "`--count`, or `run_cap` in the file"
            )
        return min(limits, default=None)

    def points(self, count: int | None) -> list[Args]:
        """The first points of a grid or of random ones; more points begin with the same ones.

        Args:
            count: How many; None = the whole grid.

        Raises:
            ConfigError: A value cannot be written on a command line, or the engine refuses.
        """
        # The engine stops at the end of a grid.
        number = sys.maxsize if count is None else count
        return [self._sent(run) for run in self._next([], number, self.seed) if run is not None]

    def following(self, finished: Sequence[Measured]) -> Args:
        """The point after finished ones, by a Gaussian process.

        Raises:
            ConfigError: As `points`.
        """
        sweeps = _engine()
        runs = [
            sweeps.SweepRun(
                name=str(index),
                state=sweeps.RunState.finished,
                config=point.args,
                history=[{self.metric: value} for value in point.curve],
                summaryMetrics={self.metric: point.curve[-1]},
            )
            for index, point in enumerate(finished)
        ]
        # Another seed for each point, else all of them would try the same candidates.
        return self._sent(self._next(runs, 1, self.seed + len(runs))[0])

    def _next(self, runs: list[Any], number: int, seed: int) -> Sequence[Any]:
        sweeps = _engine()
        # The engine uses both global generators.
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            runs_of_points: Sequence[Any] = sweeps.next_runs(
                copy.deepcopy(self.config), runs, n=number
            )
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"{self.file}: {error}") from error
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        return runs_of_points

    def _sent(self, run: Any) -> Args:
        """A point's values as they arrive, through JSON."""
        args: Args = json.loads(json.dumps(run.config, default=lambda number: number.item()))
        for name, entry in args.items():
            if None in _flat(entry["value"]):
                raise ConfigError(
                    f"{self.file}: `{name}` is null, which the agent writes as None, a word: "
                    'give the text "null", in quotes'
                )
        return args

    def command(self, args: Args) -> list[str]:
        """The command that W&B's agent runs for a point.

        Raises:
            ConfigError: The file's `command` has a macro that the agent does not know.
        """
        words: list[str] = []
        for word in map(str, self.config["command"]):
            macro = re.fullmatch(r"\$\{(.*)\}", word)
            name = macro[1] if macro else ""
            if not macro:
                words.append(word)
            elif name == "args":
                words += [f"--{key}={entry['value']}" for key, entry in args.items()]
            elif name == "args_no_equals":
                for key, entry in args.items():
                    words += [f"--{key}", str(entry["value"])]
            elif name in ("program", "env"):
                words.append(self.config["program"] if name == "program" else "/usr/bin/env")
            elif variable := re.fullmatch(r"envvar:(\w+)", name):
                words.append(os.environ.get(variable[1], variable[1]))
            else:
                raise ConfigError(
                    f"{self.file}: `command` has {word}, which peas does not know: use "
                    "${env}, ${program} and ${args}"
                )
        return words


def read_sweep(file: Path, seed: int = 0) -> Sweep:
    """Reads a sweep file.

    Args:
        file: In W&B's format.
        seed: Of random points.

    Raises:
        ConfigError: The file is missing, is not a valid sweep, does not run `peas fit`, has no
            metric, or needs W&B's server; or the package `sweeps` is not installed.
    """
    try:
        sweeps = _engine()
    except ImportError as error:
        raise ConfigError(
            'the package `sweeps` is not installed: `pip install "peas[sweeps]"`, or let W&B '
            f"choose the points: `wandb sweep {file}`"
        ) from error
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a sweep: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: not a sweep: it holds no keys such as `method`")
    try:
        violations = sweeps.schema_violations_from_proposed_config(config)
    except (ValueError, KeyError, TypeError) as error:
        violations = [str(error)]
    if violations:
        raise ConfigError(f"{file}: W&B refuses it: {'; '.join(violations)}")
    _require_fit(file, config)
    for key in SERVER_ONLY:
        if key in config:
            raise ConfigError(
                f"{file}: `{key}` needs W&B's server: take it out, or run `wandb sweep {file}`"
            )
    metric = config.get("metric") or {}
    if not metric.get("name") or metric.get("goal") not in ("minimize", "maximize"):
        raise ConfigError(
            f"{file}: `metric` must have a `name`, such as val/accuracy, and a `goal`, minimize "
            "or maximize"
        )
    return Sweep(file, config, seed)


def _engine() -> Any:
    with warnings.catch_warnings():
        # Its classes are written in a form that pydantic renames.
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def _require_fit(file: Path, config: dict[str, Any]) -> None:
    command = config.get("command")
    begins = ["${env}", "${program}", "fit"]
    fits = isinstance(command, list) and command[:3] == begins and "${args}" in command
    if config.get("program") != "peas" or not fits:
        raise ConfigError(
            f"{file}: it does not run `peas fit`: give `program: peas` and `command: "
            '["${env}", "${program}", fit, --config, FILE, "${args}"]`'
        )
    assert isinstance(command, list)
    if "--config" in command and command.index("--config") > command.index("${args}"):
        raise ConfigError(
            f"{file}: `command` has ${{args}} before --config, which then overrides them: put "
            "--config first"
        )


def _flat(value: Any) -> list[Any]:
    """The scalars of a value."""
    if isinstance(value, dict):
        return [scalar for part in value.values() for scalar in _flat(part)]
    if isinstance(value, list):
        return [scalar for part in value for scalar in _flat(part)]
    return [value]
