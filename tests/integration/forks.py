"""Calls `peas` in processes of their own, without a start of Python and torch for each.

    python forks.py

It imports the package once. Each line of its input is a list of calls that run at the same time,
each in a fork; the answer is a line with their statuses.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

SECONDS = 240
"""Longest time of a group of calls."""


@dataclass
class Call:
    """A call of the command line.

    Attributes:
        argv: Its words after `peas`.
        log: File for what it prints.
        env: Variables, above those of the parent.
    """

    argv: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)


class Forks:
    """The parent of all calls; a context manager."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        # This checkout's package, whichever is installed.
        path = os.pathsep.join([str(here), str(here.parents[1])])
        # A test may have started a service of W&B before.
        own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        self._parent = subprocess.Popen(
            [sys.executable, str(here / "forks.py")],
            env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate()

    def run(self, *calls: Call) -> list[int]:
        """Their statuses once all have ended; minus the number of a signal that killed one."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        told = [{**asdict(call), "log": str(call.log)} for call in calls]
        print(json.dumps(told), file=self._parent.stdin, flush=True)
        codes: list[int] = json.loads(self._parent.stdout.readline())
        return codes

    def fit(self, config: Path, run: Path, world: int, verb: str = "fit", *argv: str) -> None:
        """Runs a verb on so many processes; all must end well."""
        words = [verb, "--config", str(config), "--trainer.default_root_dir", str(run), *argv]
        calls = world_of([words] * world, run)
        codes = self.run(*calls)
        assert not any(codes), "\n".join(call.log.read_text()[-2000:] for call in calls)


def world_of(argv: list[list[str]], log: Path) -> list[Call]:
    """Calls of one world, each with its words, started as a launcher starts them."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(len(argv)),
        "NODE_RANK": "0",
    }
    return [
        Call(words, log.with_suffix(f".{rank}.log"), {**shared, "LOCAL_RANK": str(rank)})
        for rank, words in enumerate(argv)
    ]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _fork(call: Call) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        with open(call.log, "w") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        # Ignored where the tests run in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(call.env)
        from peas.__main__ import main

        code = main(call.argv)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(children: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    until = time.monotonic() + SECONDS
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    import torch

    # Before the children are there; nothing may run in threads in their parent.
    torch.set_num_threads(1)
    import peas.callbacks
    import peas.cli.main
    import peas.data
    import peas.tasks  # noqa: F401

    for line in sys.stdin:
        calls = [Call(**told) for told in json.loads(line)]
        print(json.dumps(_ended([_fork(call) for call in calls])), flush=True)


if __name__ == "__main__":
    main()
