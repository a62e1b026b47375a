"""Runs fit, validate, test or predict; reads the settings of a `peas fit` without running it."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from peas.callbacks.stopping import Stopped, ending_by_signals
from peas.callbacks.wandb_run import VARIABLES
from peas.cli.errors import cause
from peas.cli.main import RUN_DIR_VARIABLE, SETTINGS, PeasCLI
from peas.data.module import ClipDataModule, refuse_selection_on_test
from peas.errors import ConfigError, PeasError, say
from peas.utils.processes import PARENT, end_workers, signal_that_ended, why_killed
from peas.utils.quiet import be_quiet

KILLED_WORKER = re.compile(r"DataLoader worker \(pid\D*(\d+)")
"""PyTorch's message about a killed worker, with its process id."""
LOST_PROCESS = (
    # gloo
    "Connection closed by peer",
    "Connection reset by peer",
    # NCCL and its watchdog
    "NCCL communicator was aborted",
    "remote process exited",
)
"""Messages of the other processes when one of a run has ended."""


@contextmanager
def _command(argv: Sequence[str]) -> Iterator[None]:
    """Restores the process's state, so that one process may run several verbs.

    LightningCLI warns when it is given arguments while the process has some of its own, and DDP
    starts the other processes with the arguments of this one.
    """
    before = sys.argv
    names = (RUN_DIR_VARIABLE, PARENT, "WANDB_MODE", *VARIABLES)
    variables = {name: os.environ.get(name) for name in names}
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        end_workers()
        sys.argv = before
        for name, value in variables.items():
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
    if {"-h", "--help"} & set(argv):
        argv = [word for word in argv if word != "all"]
        _import_choices()
    with _command(argv), ending_by_signals() as stopping:
        os.environ[PARENT] = str(os.getpid())
        try:
            PeasCLI(**SETTINGS)
        except Stopped as stop:
            if not stop.saved and os.environ.get("LOCAL_RANK", "0") == "0":
                saved = "; resume from the last checkpoint with `--ckpt_path last`"
                name = signal.Signals(stop.number).name
                text = f"stopped by {name}, at once" + (saved if argv[0] == "fit" else "")
                say(f"\npeas {argv[0]}: {text}", sys.stderr)
            raise
        except MisconfigurationException as error:
            raise ConfigError(" ".join(str(error).split())) from error
        except RuntimeError as error:
            if match := KILLED_WORKER.search(str(error)):
                message = why_killed() or _killed(str(error), int(match[1]))
                raise PeasError(message) from error
            if not any(phrase in str(error) for phrase in LOST_PROCESS):
                raise
            if stopping.number:
                # All processes were signalled, and another one has left before.
                raise Stopped(stopping.number) from error
            # The process that failed has printed why; this traceback would bury it.
            raise PeasError(
                "another process of this run failed, so this one stops too; the cause is in that "
                "process's message, above or in its own log"
            ) from error


def _import_choices() -> None:
    """Imports the classes of `--model` and `--data`, which the help lists."""
    import peas.data
    import peas.tasks

    for package in (peas.tasks, peas.data):
        for name in package.__all__:
            getattr(package, name)


def _killed(message: str, pid: int) -> str:
    """Message of a run that has lost a worker."""
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


class _Built(Exception):
    """Carries the parser out of a constructor."""


class FitReader:
    """Reads commands as `peas fit` does; refuses model selection by test clips.

    Args:
        allow_test_selection: Whether a sweep may choose by them.
    """

    def __init__(self, allow_test_selection: bool = False) -> None:
        self._parser = self.parser("fit")
        self._allowed = allow_test_selection
        self._modules: dict[str, ClipDataModule] = {}

    @staticmethod
    def parser(verb: str) -> ArgumentParser:
        """Parser of one of Lightning's verbs.

        Args:
            verb: Its name.
        """

        class Reader(PeasCLI):
            """Stops before LightningCLI parses its arguments and runs them."""

            def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
                # The parser of the verb: the outer one would check every value twice.
                raise _Built(self._subcommand_parsers[verb])

        try:
            Reader(**SETTINGS)
        except _Built as built:
            return cast(ArgumentParser, built.args[0])
        raise AssertionError

    def settings(self, words: Sequence[str]) -> Namespace:
        """Settings of a run.

        Args:
            words: Arguments of `peas fit`.

        Raises:
            ConfigError: `peas fit` does not take a word.
        """
        config: Namespace = self._parser.parse_args(list(words))
        return config

    def data(self, config: Namespace) -> ClipDataModule:
        """The data set of some settings; one of equal ones.

        Raises:
            ConfigError: Its class refuses a setting.
        """
        data = config.data.as_dict() if isinstance(config.data, Namespace) else config.data
        text = json.dumps(data, sort_keys=True, default=str)
        if text not in self._modules:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(ClipDataModule, "data")
            try:
                made = parser.instantiate_classes(parser.parse_object({"data": data}))
            except ValueError as error:
                raise ConfigError(cause(str(error))) from error
            self._modules[text] = made.data
        return self._modules[text]

    def check(self, command: Sequence[str]) -> Namespace:
        """Settings of a run that selects by validation clips only.

        Args:
            command: `peas fit` and its arguments.

        Raises:
            ConfigError: `peas fit` does not take a word, or the validation clips are test clips.
        """
        config = self.settings(command[command.index("fit") + 1 :])
        allowed = self._allowed or bool(config.allow_test_selection)
        refuse_selection_on_test(self.data(config), allowed=allowed)
        return config

    def open_data(self, stage: str) -> None:
        """Reads the tables of all data sets of the commands.

        Args:
            stage: `fit` for the clips of training and validation, or `test`.

        Raises:
            DataError: A data set is missing, incomplete or inconsistent.
        """
        for module in self._modules.values():
            # Not the set's own: it may measure every clip, which the first run does anyway.
            ClipDataModule.setup(module, stage)
