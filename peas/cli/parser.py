"""The parser of Lightning's verbs: jsonargparse, where it guesses made to ask."""

import ast
import itertools
import json
import logging
import re
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from peas.cli.arguments import NEGATIVE
from peas.cli.config_file import read_config
from peas.cli.errors import cause
from peas.errors import ConfigError
from peas.parts import Part, class_path
from peas.utils.migration import config as of_this_release
from peas.utils.migration import words

_load = get_loader("yaml")


def _load_config(text: str) -> Any:
    return of_this_release(_load(text))


set_loader("yaml", _load_config, exceptions=(yaml.YAMLError,))


class _Discards(logging.Logger):
    """Says aloud which settings jsonargparse drops when a class is exchanged for another."""

    def debug(self, msg: object, *args: object, **_: object) -> None:
        """Warns where the message is of discarded settings."""
        found = re.match(
            r"Due to class_path change from (\S+) to (\S+), discarding .*?: (.*)\.$", str(msg)
        )
        if found and found[3] not in self.said:
            self.said.add(found[3])
            rank_zero_warn(
                f"{found[2]} takes the place of {found[1]} and has no such settings: {found[3]}. "
                "Settings that both have are kept; others have the new class's defaults"
            )

    def __init__(self) -> None:
        super().__init__("peas.discards")
        # Else logging prints what else jsonargparse says.
        self.addHandler(logging.NullHandler())
        self.said: set[str] = set()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: parsers are copied, and a logger outside logging's tree cannot be."""
        return self


class PeasParser(LightningArgumentParser):
    """Parser without abbreviations, whose `null` is null at any depth and only where it may be.

    It raises ConfigError in place of printing its usage and ending the process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "logger": _Discards(), **kwargs})
        self._negative_number_matcher = NEGATIVE
        self._lightnings = False
        self._default_parts: dict[str, type[Part]] = {}

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of a class."""
        # Lightning takes null for arguments whose types do not say so.
        self._lightnings = theclass.__module__.startswith("lightning.")
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        self._default_parts = getattr(theclass, "default_parts", {})
        for action in self._actions:
            if part := self._default_parts.get(action.dest):
                # Of settings without a class.
                action.default = {"class_path": class_path(part)}
        return added

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Defaults of all arguments; of a part null, or its settings would be another class's."""
        defaults: Namespace = super().get_defaults(*args, **kwargs)
        for key in self._default_parts:
            defaults[key] = None
        return defaults

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any
    ) -> Namespace:
        """Parses a command line.

        A key inside a class inside a class reaches the inner class's parser as `--key=VALUE` with
        Python's text of a value that was parsed already: None, which is a word in YAML.
        """
        if getattr(self, "_inner_parser", False):
            args = None if args is None else [_yaml(word) for word in args]
        else:
            args = words(sys.argv[1:] if args is None else args)
            for file in _config_files(args):
                read_config(file)
        config: Namespace = super().parse_args(args, *more, **kwargs)
        return config

    def merge_config(self, cfg_from: Namespace, cfg_to: Namespace) -> Namespace:
        """One config over another; of a table whose entries have names, only those it names."""
        merged: Namespace = super().merge_config(cfg_from, cfg_to)
        for key, value in list(merged.items()):
            below = cfg_to.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                merged[key] = {**below, **value}
        return merged

    def validate(self, cfg: Namespace, skip_none: bool = True, *more: Any, **kwargs: Any) -> None:
        """Checks a configuration; nulls too, which jsonargparse takes for values not given."""
        super().validate(cfg, skip_none and self._lightnings, *more, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ConfigError with the cause.

        Raises:
            ConfigError: Always, except inside jsonargparse's own trials.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError(cause(message, keys_of(self))) from ex


def keys_of(parser: ArgumentParser) -> list[str]:
    """Keys of a parser and, where it has verbs, of theirs."""
    actions = parser._actions
    verbs = [a.choices.values() for a in actions if isinstance(a, _SubParsersAction)]
    inner = [key for parsers in verbs for verb in parsers for key in keys_of(verb)]
    return [*(action.dest for action in actions), *inner]


def _config_files(words: Sequence[str]) -> list[str]:
    """The files that a command line names behind `--config`."""
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    pairs = itertools.pairwise(words)
    return files + [file for option, file in pairs if option in ("--config", "-c")]


def _yaml(word: str) -> str:
    """`--key=VALUE` with Python's text of a null, list or mapping in YAML's words."""
    key, sign, text = word.partition("=")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word
    if value is None or isinstance(value, list | dict):
        return key + sign + json.dumps(value)
    return word
