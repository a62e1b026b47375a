"""One call of one of Lightning's verbs, and what a user reads when it fails."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from peas.callbacks.wandb_run import VARIABLES
from peas.cli import RUN_DIR_VARIABLE, SETTINGS, PeasCLI
from peas.errors import ConfigError, PeasError
from peas.noise import be_quiet

KILLED_READER = "DataLoader worker"
"""What PyTorch's message of a reading process that was killed begins with."""
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
    known = {name: os.environ.get(name) for name in (RUN_DIR_VARIABLE, "WANDB_MODE", *VARIABLES)}
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
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
    with _command(argv):
        try:
            PeasCLI(**SETTINGS)
        except MisconfigurationException as error:
            raise ConfigError(" ".join(str(error).split())) from error
        except RuntimeError as error:
            if KILLED_READER in str(error):
                raise PeasError(
                    f"{str(error).strip()} It read clips for this run; the system does that when "
                    "memory is short: lower `data.init_args.num_workers` or the batch size, and "
                    "go on with `--ckpt_path last`"
                ) from error
            if not any(phrase in str(error) for phrase in LOST_PROCESS):
                raise
            # The process that failed has told why; fifty lines of this one's would bury it.
            raise PeasError(
                "another process of this run stopped, so this one stops too; what went wrong is "
                "in that process's message, above or in its own log"
            ) from error
