"""The data sets by the names that `peas data` gives them."""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

from peas.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from peas.data.module import ClipDataModule

SETS = {
    "esc50": "peas.data.esc50.ESC50",
    "speech_commands": "peas.data.speech_commands.module.SpeechCommands",
    "audioset": "peas.data.audioset.module.AudioSet",
    "librispeech": "peas.data.librispeech.LibriSpeech",
    "folder": "peas.data.folder.module.AudioFolder",
    "packed": "peas.data.packed.module.PackedSet",
}
# Arguments of the data modules that say how training reads, and not what is there.
_NOT_ASKED: set[str | int] = {
    "root",
    "batch_size",
    "eval_batch_size",
    "num_workers",
    "mixup",
    "on_error",
    "cache_dir",
    "sampling",
    "epoch_clips",
    "replacement",
    "label_fraction",
    "mean",
    "std",
}


def set_class(name: str) -> type[ClipDataModule]:
    """Class of a data set.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in SETS:
        raise ConfigError(f"SET is {name!r}: give one of {', '.join(SETS)}")
    module, _, attribute = SETS[name].rpartition(".")
    found: type[ClipDataModule] = getattr(importlib.import_module(module), attribute)
    return found


def make_set(name: str, root: str, **arguments: Any) -> ClipDataModule:
    """Data module of a set, for checks rather than training.

    Args:
        name: Key of `SETS`.
        root: Its folder.
        **arguments: Of its class.

    Raises:
        ConfigError: There is no such set, or an argument is out of its range.
    """
    # Every clip is read once: nothing would be gained by keeping what was resampled.
    return set_class(name)(root, **{"cache_dir": "", "batch_size": 1, **arguments})


def in_arguments(text: str) -> str:
    """A message of a data set with the names that its settings have on a verb's command line.

    Args:
        text: Names them as a config does.
    """
    options = re.sub(r"data\.init_args\.(?!root\b)(\w+)", r"--\1", text)
    return options.replace("data.init_args.root", "ROOT")


class SetParser:
    """Parser of `peas data VERB SET ROOT`, which also knows the arguments of SET's class.

    Args:
        verb: Name of the verb.
        about: What it does, in a sentence.
        argv: The command line; SET is looked up there, since it decides which options exist.
    """

    def __init__(self, verb: str, about: str, argv: list[str]) -> None:
        from peas.cli.parser import PeasParser

        self.argv = argv
        self.name = _set_name(argv)
        self.parser = PeasParser(prog=f"peas data {verb}", description=about, exit_on_error=False)
        self.parser.add_argument(
            "set", metavar="SET", choices=list(SETS), help=f"one of {', '.join(SETS)}"
        )
        self.parser.add_argument("root", metavar="ROOT", type=str, help="folder of the data set")

    def parse(self) -> tuple[Namespace, ClipDataModule]:
        """Options of the verb, and the data module.

        Raises:
            ConfigError: The command line is wrong.
        """
        from jsonargparse import ArgumentError

        keys: set[str] = set()
        if self.name in SETS:
            group = self.parser.add_class_arguments(set_class(self.name), None, skip=_NOT_ASKED)
            keys = set(group)
        try:
            options = self.parser.parse_args(self.argv)
        except ArgumentError as error:
            self._refuse(error)
        arguments = {key: options[key] for key in keys if key in options}
        return options, make_set(options.set, os.path.expanduser(options.root), **arguments)

    def _refuse(self, error: Exception) -> NoReturn:
        from peas.cli.errors import cause
        from peas.cli.parser import keys_of

        told = cause(str(error), keys_of(self.parser))
        raise ConfigError(f"{told}\n\n{self.parser.format_usage()}") from None


def _set_name(argv: list[str]) -> str | None:
    """The word of a command line that is SET; a folder given to an option may have its name."""
    found = [place for place, word in enumerate(argv) if word in SETS]
    alone = [place for place in found if place == 0 or not argv[place - 1].startswith("-")]
    return argv[(alone or found)[0]] if found else None
