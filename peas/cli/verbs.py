"""One call of one of Lightning's verbs, and what a user reads when it fails."""

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from peas.callbacks.stopping import Stopped, ending_by_signals
from peas.callbacks.wandb_run import VARIABLES
from peas.cli.main import RUN_DIR_VARIABLE, SETTINGS, PeasCLI
from peas.errors import ConfigError, PeasError, say
from peas.utils.processes import PARENT, end_workers, signal_that_ended, why_killed
from peas.utils.quiet import be_quiet

KILLED_WORKER = re.compile(r"DataLoader worker \(pid\D*(\d+)")
"""PyTorch's message of a worker that was killed, with its number."""
LOST_PROCESS = (
    # gloo
    "Connection closed by peer",
    "Connection reset by peer",
    # NCCL and its watchdog
    "NCCL communicator was aborted",
    "remote process exited",
)
"""What the survivors of a broken run report, while they wait for a process that is gone."""


@contextmanager
def _command(argv: Sequence[str]) -> Iterator[None]:
    """Leaves the process as it was, so that one process may run several verbs.

    LightningCLI warns when it is given arguments while the process has some of its own, and DDP
    starts the other processes with the arguments of this one.
    """
    before = sys.argv
    known = {
        name: os.environ.get(name) for name in (RUN_DIR_VARIABLE, PARENT, "WANDB_MODE", *VARIABLES)
    }
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        end_workers()
        sys.argv = before
        for name, value in known.items():
            if value is None:
                os.environ.pop(name, None)


def run(argv: Sequence[str]) -> None:
    """Runs one of Lightning's verbs.

    Args:
        argv: Arguments, the verb first.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or impossible.
        PeasError: Any other fault of the user's files, data or settings.
    """
    os.environ.setdefault("WANDB_MODE", "offline")
    be_quiet(argv[0])
    with _command(argv), ending_by_signals() as asked:
        os.environ[PARENT] = str(os.getpid())
        try:
            PeasCLI(**SETTINGS)
        except Stopped as stop:
            if not stop.saved and os.environ.get("LOCAL_RANK", "0") == "0":
                say(f"\npeas {argv[0]}: {_stopped(argv[0], stop.number)}", sys.stderr)
            raise
        except MisconfigurationException as error:
            raise ConfigError(" ".join(str(error).split())) from error
        except RuntimeError as error:
            if killed := KILLED_WORKER.search(str(error)):
                told = why_killed() or _killed(str(error), int(killed[1]))
                raise PeasError(told) from error
            if not any(phrase in str(error) for phrase in LOST_PROCESS):
                raise
            if asked.number:
                # All were asked, and another one has left before.
                raise Stopped(asked.number) from error
            # The process that failed has told why; fifty lines of this one's would bury it.
            raise PeasError(
                "another process of this run stopped, so this one stops too; what went wrong is "
                "in that process's message, above or in its own log"
            ) from error


def _stopped(verb: str, number: int) -> str:
    """What a process says that a signal has ended before or after training, or a second Ctrl-C."""
    told = f"stopped by {signal.Signals(number).name}, at once"
    saved = "; what was saved before resumes with `--ckpt_path last`"
    return told + (saved if verb == "fit" else "")


def _killed(message: str, pid: int) -> str:
    """What a run says that has lost a worker."""
    number = signal_that_ended(pid)
    name = number.name if number else "a signal"
    advice = "one of its clips may crash a decoder: `peas data verify` finds it"
    if number == signal.SIGKILL:
        advice = (
            "the system does that when memory is short: lower `data.init_args.num_workers` or the "
            "batch size"
        )
    return (
        f"{message.strip().rstrip('.')}. It read clips for this run and was ended by {name}; "
        f"{advice}. Resume with `--ckpt_path last`"
    )
