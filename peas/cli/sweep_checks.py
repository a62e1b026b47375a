"""What is asked of every command of a sweep or of folds before the first one runs."""

import json
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from peas.cli.errors import cause
from peas.data.module import ClipDataModule, refuse_selection_on_test
from peas.errors import ConfigError


class _Built(Exception):
    """Carries the parser out of a constructor."""


class CommandCheck:
    """Reads commands as `peas fit` does, refuses a choice by test clips.

    Args:
        allow_test_selection: Whether a sweep may choose by them.
    """

    def __init__(self, allow_test_selection: bool = False) -> None:
        from peas.cli.main import SETTINGS, PeasCLI

        class Reader(PeasCLI):
            """Stops where LightningCLI would read its arguments and go on to run them."""

            def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
                # The parser of the verb: the whole one would check every value twice.
                raise _Built(self._subcommand_parsers["fit"])

        try:
            Reader(**SETTINGS)
        except _Built as built:
            self._parser = built.args[0]
        self._allowed = allow_test_selection
        self._seen: dict[str, ClipDataModule] = {}

    def __call__(self, command: list[str]) -> Namespace:
        """The settings of a run.

        Args:
            command: Of a point, `fit` its verb.

        Raises:
            ConfigError: A word is not one that `peas fit` takes, or the validation clips of the
                run are its test clips.
        """
        config: Namespace = self._parser.parse_args(command[command.index("fit") + 1 :])
        self._require_test_apart(config)
        return config

    def open_data(self, stage: str) -> None:
        """Reads the tables of all data sets that the commands have named.

        Args:
            stage: `fit` for the clips of training and validation, or `test`.

        Raises:
            DataError: A data set is missing, incomplete or contradicts itself.
        """
        for module in self._seen.values():
            # Not the set's own: it may measure every clip, which the first run does anyway.
            ClipDataModule.setup(module, stage)

    def _require_test_apart(self, config: Namespace) -> None:
        data = config.data.as_dict() if isinstance(config.data, Namespace) else config.data
        text = json.dumps(data, sort_keys=True, default=str)
        if text in self._seen:
            return
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(ClipDataModule, "data")
        try:
            module = parser.instantiate_classes(parser.parse_object({"data": data})).data
        except ValueError as error:
            raise ConfigError(cause(str(error))) from error
        refuse_selection_on_test(module, allowed=self._allowed or bool(config.allow_test_selection))
        self._seen[text] = module
