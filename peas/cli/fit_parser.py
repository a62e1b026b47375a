"""The parser of fit, validate, test and predict: Lightning's, made strict."""

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, Self

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from peas.cli.configs import config_files, read_config, resolved
from peas.cli.parser import StrictParser
from peas.cli.verbs import LIGHTNING
from peas.parts import Part, class_path
from peas.utils.migration import config as of_this_release
from peas.utils.migration import words as words_of_this_release

_load = get_loader("yaml")


def _load_config(text: str) -> Any:
    return of_this_release(_load(text))


set_loader("yaml", _load_config, exceptions=(yaml.YAMLError,))

HELP = {
    "ckpt_path": "checkpoint of the run to resume, or to score: a file, or `last`, `best` or `hpc` "
    "for one in `--trainer.default_root_dir`",
    "trainer.default_root_dir": "folder of the run (default: runs/<config>/<time>)",
    "weights_only": "always true: peas never executes code of a checkpoint",
}
"""Help of options whose texts in Lightning do not hold for peas."""


class _DiscardLogger(logging.Logger):
    """Warns of the settings that jsonargparse drops when one class replaces another."""

    def __init__(self) -> None:
        super().__init__("peas.discards")
        # Else logging would print the other messages of jsonargparse.
        self.addHandler(logging.NullHandler())
        self.warned: set[str] = set()

    def debug(self, msg: object, *args: object, **_: object) -> None:
        """Warns where the message is about discarded settings."""
        match = re.match(
            r"Due to class_path change from (\S+) to (\S+), discarding .*?: (.*)\.$", str(msg)
        )
        if match and match[3] not in self.warned:
            self.warned.add(match[3])
            rank_zero_warn(
                f"{match[2]} replaces {match[1]} and has no such settings: {match[3]}. "
                "Settings that both have are kept; others have the new class's defaults"
            )

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: parsers are copied, and a logger outside logging's tree cannot be."""
        return self


class PeasParser(StrictParser, LightningArgumentParser):
    """Lightning's parser, strict, which also reads configs of earlier releases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"logger": _DiscardLogger(), **kwargs})
        self._default_parts: dict[str, type[Part]] = {}

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of a class."""
        # Lightning takes null for arguments whose types do not allow it.
        self.null_anywhere = theclass.__module__.startswith("lightning.")
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        self._default_parts = getattr(theclass, "default_parts", {})
        for action in self._actions:
            if part := self._default_parts.get(action.dest):
                # For settings without a class.
                action.default = {"class_path": class_path(part)}
        return added

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Defaults of all arguments; null for a part, whose settings depend on its class."""
        defaults: Namespace = super().get_defaults(*args, **kwargs)
        for key in self._default_parts:
            defaults[key] = None
        return defaults

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any
    ) -> Namespace:
        """Parses a command line; `--config` may name a config that comes with peas."""
        if not getattr(self, "_inner_parser", False):
            args = resolved(words_of_this_release(sys.argv[1:] if args is None else args))
            for file in config_files(args):
                read_config(file)
        return super().parse_args(args, *more, **kwargs)

    def merge_config(self, cfg_from: Namespace, cfg_to: Namespace) -> Namespace:
        """One config over another; of a mapping with named entries, only the entries it names."""
        merged: Namespace = super().merge_config(cfg_from, cfg_to)
        for key, value in list(merged.items()):
            below = cfg_to.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                merged[key] = {**below, **value}
        return merged

    def format_usage(self) -> str:
        """The form of a command; the help lists the options."""
        verb = self.prog.split()[-1]
        if verb not in LIGHTNING:
            return str(super().format_usage())
        return f"usage: peas {verb} [--config FILE ...] [--KEY VALUE ...]\n"

    def format_help(self) -> str:
        """Help with the texts of `HELP`."""
        for action in self._actions:
            action.help = HELP.get(action.dest, action.help)
        if self.prog.split()[-1] in LIGHTNING:
            self.usage = self.format_usage().removeprefix("usage: ").rstrip()
        return str(super().format_help())
