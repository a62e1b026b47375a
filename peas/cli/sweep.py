"""`peas sweep FILE --out DIR`: the points of a W&B sweep file, one after another on this machine.

Each point is the command that W&B's agent would run, in a folder of its own, without W&B's server.
A second call goes on where the first one stopped. What the command does not know itself is handed
on to every `peas fit`. On a cluster: `wandb sweep FILE`, then `wandb agent ID`.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peas.cli.arguments import Arguments
from peas.cli.kfold import (
    ASKED,
    DONE,
    LOG,
    Devices,
    begun,
    has_trained,
    is_done,
    tail,
    write_atomic,
)
from peas.cli.sweep_points import Args, Measured, Sweep, read_sweep
from peas.cli.sweep_table import Result, read_result, write_tables
from peas.errors import ConfigError, PeasError, say


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        number: From 1.
        args: Its values.
        words: The agent's command, and what the user added.
        folder: Of the run.
    """

    number: int
    args: Args
    words: list[str]
    folder: Path

    @property
    def asked(self) -> dict[str, Any]:
        """All that the point's result depends on: its words, and what its config files hold."""
        files = [word.partition("=")[2] for word in self.words if word.startswith("--config=")]
        pairs = zip(self.words, self.words[1:], strict=False)
        files += [file for option, file in pairs if option in ("--config", "-c")]
        return {
            "words": self.words,
            "args": self.args,
            "configs": {file: Path(file).read_text(encoding="utf-8") for file in files},
        }

    def command(self) -> list[str]:
        """The command in the point's folder, going on from its last checkpoint if there is one."""
        command = [*self.words, f"--trainer.default_root_dir={self.folder}"]
        saved = [*self.folder.glob("checkpoints/*.ckpt"), *self.folder.glob("hpc_ckpt_*.ckpt")]
        return [*command, "--ckpt_path=last"] if saved else command

    def environment(self, sweep: Sweep, env: dict[str, str]) -> dict[str, str]:
        """What the agent sets for a run, W&B offline, and this installation's `peas` first.

        The values lie in a file of the point too, which W&B's logger reads.
        """
        from wandb.sdk.lib import config_util

        save: Callable[[str, Args], None] = config_util.save_config_file_from_dict
        values = self.folder / "sweep_values.yaml"
        save(str(values), self.args)
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
        rest: Arguments behind every command.
        allow_test_selection: Whether a choice by test clips is allowed.
    """

    def __init__(
        self, sweep: Sweep, out: Path, rest: list[str], allow_test_selection: bool
    ) -> None:
        from peas.cli.sweep_checks import CommandCheck

        self.sweep, self.out = sweep, out
        self.rest = [*rest, *(["--allow_test_selection=true"] if allow_test_selection else [])]
        self._check = CommandCheck(allow_test_selection)

    def point(self, number: int, args: Args) -> Point:
        """A point of given values.

        Raises:
            ConfigError: `peas fit` would not read the command, or would choose by test clips.
        """
        words = [*self.sweep.command(args), *self.rest]
        point = Point(number, args, words, self.out / f"point{number:03d}")
        try:
            self._check(point.command())
        except ConfigError as error:
            raise ConfigError(f"{self.sweep.file}, point {number}: {error}") from error
        return point

    def open_data(self) -> None:
        """Reads the tables of the points' data.

        Raises:
            DataError: A data set is missing, incomplete or contradicts itself.
        """
        self._check.open_data("fit")

    def known(self, count: int | None) -> list[Point]:
        """All points, where none depends on a result."""
        return [self.point(number, args) for number, args in enumerate(self.sweep.points(count), 1)]

    def following(self, results: list[Result]) -> Point:
        """The point after some that are finished; the one that a call before began, if any."""
        number = len(results) + 1
        asked = self.out / f"point{number:03d}" / ASKED
        if asked.exists():
            return self.point(number, json.loads(asked.read_text())["args"])
        before = [Measured(result.args, result.curve) for result in results]
        return self.point(number, self.sweep.following(before))


def parser() -> Arguments:
    """Arguments of the command."""
    p = Arguments(prog="peas sweep", description=__doc__)
    p.add_argument("file", help="a sweep in W&B's format, such as those of configs/sweeps")
    p.add_argument("--out", help="folder of the points and the table (default runs/sweep/<file>)")
    p.add_argument("--count", type=int, help="number of points (a grid has an end of its own)")
    p.add_argument("--seed", type=int, default=0, help="of points that are drawn (default 0)")
    p.add_argument("--parallel", type=int, default=1, help="points at once (default 1)")
    p.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    p.add_argument(
        "--allow-test-selection",
        action="store_true",
        help="let it choose by validation clips that are the test clips",
    )
    return p


def run_point(point: Point, sweep: Sweep, env: dict[str, str]) -> Result:
    """Trains one point unless it is done, and reads its result.

    Raises:
        PeasError: The process failed, and the message names its log; or the folder holds another
            point, begun or finished.
    """
    asked = point.asked
    if not is_done(point.folder, asked):
        with begun(point.folder, asked) as file:
            code = subprocess.run(
                point.command(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=point.environment(sweep, env),
            ).returncode
        if code:
            raise PeasError(
                f"point {point.number} ended with status {code}; its last words:\n"
                f"{tail(point.folder / LOG)}"
            )
        write_atomic(point.folder / DONE, asked)
    return read_result(point.folder, point.number, point.args, sweep.metric)


class Loop:
    """Runs points, keeps their results, and tells how each has ended."""

    def __init__(self, sweep: Sweep, total: int, parallel: int) -> None:
        self.sweep, self.total, self.parallel = sweep, total, parallel
        self.results: list[Result] = []
        self.failed: list[str] = []
        self._devices = Devices(parallel)
        self._hopeless = threading.Event()
        self._lock = threading.Lock()

    def run(self, points: list[Point]) -> None:
        """Runs some points, several at once if asked."""
        with ThreadPoolExecutor(self.parallel) as pool:
            list(pool.map(self._work, points))

    def _work(self, point: Point) -> None:
        if self._hopeless.is_set():
            return
        since = time.perf_counter()
        values = ", ".join(f"{name}={point.args[name]['value']}" for name in self.sweep.swept)
        try:
            result = run_point(point, self.sweep, self._devices.environment())
        except PeasError as error:
            with self._lock:
                self.failed.append(str(error))
                say(f"point {point.number} ({values}): failed")
            # What stops the first point before its first step will stop the others, too.
            if point.number == 1 and not has_trained(point.folder):
                self._hopeless.set()
            return
        with self._lock:
            self.results.append(result)
            minutes = (time.perf_counter() - since) / 60
            count = len(self.results) + len(self.failed)
            best, epoch = result.best(self.sweep.maximise)
            say(
                f"[{count}/{self.total}] point {point.number} ({values}): {self.sweep.metric} "
                f"{best:.4f} best in epoch {epoch}, {result.curve[-1]:.4f} last  "
                f"({minutes:.1f} min)"
            )


def main(argv: list[str]) -> None:
    """Runs the command; failed points are named at the end, finished ones are kept."""
    args, rest = parser().parse_known_args(argv)
    for key, value in (("--parallel", args.parallel), ("--count", args.count)):
        if value is not None and value < 1:
            raise ConfigError(f"`{key}` is {value}: give 1 or more")
    sweep = read_sweep(Path(args.file), args.seed)
    count = sweep.count(args.count)
    out = Path(args.out) if args.out else Path("runs") / "sweep" / Path(args.file).stem
    points = Points(sweep, out, rest, args.allow_test_selection)
    if sweep.sequential:
        assert count is not None
        if args.parallel > 1 or args.dry_run:
            raise ConfigError(
                f"{sweep.file}: `method` is bayes, where each point follows from the results "
                "before it: leave out --parallel and --dry-run; `wandb sweep` and several "
                "`wandb agent` run it at once"
            )
        loop = Loop(sweep, count, 1)
        while len(loop.results) < count and not loop.failed:
            following = points.following(loop.results)
            points.open_data()
            loop.run([following])
    else:
        known = points.known(count)
        if args.dry_run:
            say("\n".join(shlex.join(point.command()) for point in known))
            return
        points.open_data()
        loop = Loop(sweep, len(known), args.parallel)
        loop.run(known)
    if loop.results:
        say(write_tables(out, sweep, loop.results))
    if loop.failed:
        left = loop.total - len(loop.results) - len(loop.failed)
        skipped = f", {left} were not started" if left else ""
        raise PeasError(
            f"{len(loop.failed)} of {loop.total} points failed{skipped}; call again to resume.\n"
            + "\n".join(loop.failed)
        )
