"""`peas sweep`: the points of a W&B sweep file on this machine, without W&B's server."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from peas.cli.configs import config_files, find_config
from peas.errors import ConfigError, say

if TYPE_CHECKING:
    from peas.cli.results import PointResult
    from peas.cli.sweep_file import Args, Sweep


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        number: From 1.
        args: Its values.
        swept: Names of those that vary.
        words: The command of W&B's agent, and the user's `peas fit` arguments.
        folder: Of the run.
    """

    number: int
    args: "Args"
    swept: list[str]
    words: list[str]
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        values = ", ".join(f"{name}={self.args[name]['value']}" for name in self.swept)
        return f"point {self.number} ({values})"

    @property
    def settings(self) -> dict[str, Any]:
        """All that the point's result depends on: its words, and the text of its config files."""
        files = config_files(self.words)
        texts = {file: Path(find_config(file)).read_text(encoding="utf-8") for file in files}
        return {"words": self.words, "args": self.args, "configs": texts}

    def command(self) -> list[str]:
        """The command in the point's folder; resumes from its last checkpoint if there is one."""
        from peas.cli.jobs import checkpoints

        command = [*self.words, f"--trainer.default_root_dir={self.folder}"]
        return [*command, "--ckpt_path=last"] if checkpoints(self.folder) else command

    def environment(self, sweep: "Sweep", env: dict[str, str]) -> dict[str, str]:
        """What the agent sets for a run, with W&B offline, and this installation's `peas` first.

        W&B's logger reads the values from a file in the point's folder.
        """
        values = self.folder / "sweep_values.yaml"
        content = {"wandb_version": 1, **self.args}
        values.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        mode = env.get("WANDB_MODE", "")
        return {
            **env,
            "PATH": path,
            "WANDB_MODE": mode if mode == "disabled" else "offline",
            "WANDB_SWEEP_ID": sweep.local_id,
            "WANDB_RUN_ID": f"{sweep.local_id}-{self.number:03d}",
            "WANDB_SWEEP_PARAM_PATH": str(values.resolve()),
        }


class Points:
    """Makes the points of a sweep, each checked as `peas fit` would read it.

    Args:
        sweep: The sweep.
        out: Folder of the points.
        fit_args: Appended to every command.
        allow_test_selection: Whether selection by test clips is allowed.
    """

    def __init__(
        self, sweep: "Sweep", out: Path, fit_args: Sequence[str], allow_test_selection: bool
    ) -> None:
        from peas.cli.fit import FitReader

        self.sweep, self.out = sweep, out
        self.fit_args = [*fit_args, *["--allow_test_selection=true"] * allow_test_selection]
        self.reader = FitReader(allow_test_selection)

    def point(self, number: int, args: "Args") -> Point:
        """A point of given values.

        Raises:
            ConfigError: `peas fit` does not take the command, or would select by test clips.
        """
        words = [*self.sweep.command(args), *self.fit_args]
        point = Point(number, args, self.sweep.swept, words, self.out / f"point{number:03d}")
        try:
            self.reader.check(point.command())
        except ConfigError as error:
            raise ConfigError(f"{self.sweep.file}, point {number}: {error}") from error
        return point

    def all(self, count: int | None) -> list[Point]:
        """All points, where none depends on a result."""
        return [self.point(number, args) for number, args in enumerate(self.sweep.points(count), 1)]

    def following(self, results: Sequence["PointResult"]) -> Point:
        """The point after finished ones; the one that an earlier call started, if any."""
        from peas.cli.jobs import ASKED
        from peas.cli.sweep_file import Measured

        number = len(results) + 1
        file = self.out / f"point{number:03d}" / ASKED
        if file.exists():
            return self.point(number, json.loads(file.read_text())["args"])
        finished = [Measured(result.args, result.curve) for result in results]
        return self.point(number, self.sweep.following(finished))


def sweep(
    file: str,
    *fit_args: str,
    out: str | None = None,
    count: int | None = None,
    seed: int = 0,
    parallel: int = 1,
    dry_run: bool = False,
    allow_test_selection: bool = False,
) -> None:
    """Run the points of a W&B sweep file, and write one table.

    Each point is the command that W&B's agent would run, in its own folder. A second call resumes.
    Options that are none of these are passed to every `peas fit`. Failed points are named at the
    end, and finished ones are kept. On a cluster: `wandb sweep FILE`, then `wandb agent ID`.

    Args:
        file: A sweep in W&B's format, such as those of configs/sweeps.
        fit_args: For `peas fit`.
        out: Folder of the points and the table; default runs/sweep/<file>.
        count: Number of points; default: all of a grid, or the file's `run_cap`.
        seed: Of random points.
        parallel: Points at once.
        dry_run: Print the commands and run none.
        allow_test_selection: Let it select by validation clips that are the test clips.

    Raises:
        PeasError: The file or a setting is wrong, or points failed.
    """
    from peas.cli.sweep_file import read_sweep

    for key, value in (("--parallel", parallel), ("--count", count)):
        if value is not None and value < 1:
            raise ConfigError(f"`{key}` is {value}: give 1 or more")
    read = read_sweep(Path(find_config(file)), seed)
    limit = read.count(count)
    folder = Path(out) if out else Path("runs") / "sweep" / Path(file).stem
    points = Points(read, folder, fit_args, allow_test_selection)
    if read.sequential and (parallel > 1 or dry_run):
        raise ConfigError(
            f"{read.file}: `method` is bayes, where each point depends on the results before it: "
            "leave out --parallel and --dry_run; `wandb sweep` and several `wandb agent` run it "
            "in parallel"
        )
    todo = [] if read.sequential else points.all(limit)
    if dry_run:
        say("\n".join(shlex.join(point.command()) for point in todo))
        return
    from peas.cli.jobs import Loop, run_job
    from peas.cli.results import PointResult, read_point, write_points

    def work(point: Point, env: dict[str, str]) -> PointResult:
        run_job(point, point.settings, [point.command], partial(point.environment, read, env))
        return read_point(point.folder, point.number, point.args, read.metric)

    def describe(result: PointResult) -> str:
        best, epoch = result.best(read.maximise)
        return f"{read.metric} {best:.4f} best in epoch {epoch}, {result.curve[-1]:.4f} last"

    total = (limit or 0) if read.sequential else len(todo)
    loop: Loop[Point, PointResult] = Loop(
        work, describe, total=total, parallel=parallel, noun="points"
    )
    if read.sequential:
        while len(loop.results) < total and not loop.failed:
            point = points.following(loop.results)
            points.reader.open_data("fit")
            loop.run([point])
    else:
        points.reader.open_data("fit")
        loop.run(todo)
    if loop.results:
        say(write_points(folder, read.metric, read.maximise, read.swept, loop.results))
    loop.check()
