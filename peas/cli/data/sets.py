"""SET ROOT on the command line, and the progress of verbs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import TYPE_CHECKING, Any

from peas.errors import ConfigError, printable, say

if TYPE_CHECKING:
    from peas.cli.parser import VerbParser
    from peas.data.fetch.download import Progress
    from peas.data.module import ClipDataModule

SETS = {
    "esc50": "peas.data.esc50.ESC50",
    "speech_commands": "peas.data.speech_commands.module.SpeechCommands",
    "audioset": "peas.data.audioset.module.AudioSet",
    "librispeech": "peas.data.librispeech.LibriSpeech",
    "folder": "peas.data.folder.module.AudioFolder",
    "packed": "peas.data.packed.module.PackedSet",
}
# Arguments of the data modules that are about training, not about the clips.
_SKIPPED: set[str | int] = {
    *("root", "batch_size", "eval_batch_size", "num_workers", "mixup", "on_error", "cache_dir"),
    *("sampling", "epoch_clips", "replacement", "label_fraction", "mean", "std"),
}


@dataclass(frozen=True)
class DataSet:
    """A data set of the command line.

    Attributes:
        name: Key of `SETS`.
        module: The set.
        command: The command line.
        root: Its folder.
        arguments: Of its class.
    """

    name: str
    module: ClipDataModule
    command: str
    root: str
    arguments: dict[str, Any]

    def changed(self, **arguments: Any) -> ClipDataModule:
        """The set with other arguments, such as another fold."""
        return make_set(self.name, self.root, **{**self.arguments, **arguments})


def set_class(name: str) -> type[ClipDataModule]:
    """Class of a data set.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in SETS:
        near = get_close_matches(name, SETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"SET is {name!r}: {hint}give one of {', '.join(SETS)}")
    module, _, attribute = SETS[name].rpartition(".")
    cls: type[ClipDataModule] = getattr(importlib.import_module(module), attribute)
    return cls


def make_set(name: str, root: str, **arguments: Any) -> ClipDataModule:
    """Data module of a set, for checks rather than training.

    Args:
        name: Key of `SETS`.
        root: Its folder.
        **arguments: Of its class.

    Raises:
        ConfigError: There is no such set, or an argument is out of its range.
    """
    # Every clip is read once: caching resampled clips would not pay.
    return set_class(name)(root, **{"cache_dir": "", "batch_size": 1, **arguments})


def in_arguments(text: str) -> str:
    """A message of a data set with its settings named as on the command line of a verb.

    Args:
        text: Names them as a config does.
    """
    options = re.sub(r"data\.init_args\.(?!root\b)(\w+)", r"--\1", text)
    return options.replace("data.init_args.root", "ROOT")


def add_set(parser: VerbParser, argv: Sequence[str], skip: Iterable[str] = ()) -> None:
    """Adds SET ROOT and, once SET is known, the arguments of its class.

    Args:
        parser: Of the verb.
        argv: The command line.
        skip: Options of the verb, which hide arguments of the same names.
    """
    parser.error_class = ConfigError
    parser.epilog = f"`{parser.prog} SET --help` also lists the options of a set."
    parser.add_argument("set_name", type=str, help=f"one of {', '.join(SETS)}")
    parser.add_argument("root", type=str, help="folder of the data set")
    name = _set_name(argv)
    if name is not None:
        parser.add_class_arguments(set_class(name), None, skip={*_SKIPPED, *skip})


def chosen_set(name: str, root: str, arguments: dict[str, Any], words: Sequence[str]) -> DataSet:
    """The data set of a command line.

    Args:
        name: Key of `SETS`.
        root: Its folder.
        arguments: Of its class.
        words: The command line.
    """
    root = os.path.expanduser(root)
    module = make_set(name, root, **arguments)
    return DataSet(name, module, shlex.join(words), root, arguments)


def parse_set(text: str, option: str, **arguments: Any) -> ClipDataModule:
    """Data module of `SET=ROOT[,KEY=VALUE…]`.

    Args:
        text: In that form.
        option: Whose value it is, for errors.
        **arguments: Further ones of the set's class.

    Raises:
        ConfigError: The text has another form.
    """
    from peas.cli.parser import VerbParser

    name, _, rest = text.partition("=")
    root, *pairs = rest.split(",")
    if name not in SETS or not root or not all("=" in pair for pair in pairs):
        raise ConfigError(
            f"{option} is {text!r}: give SET=ROOT, with one of {', '.join(SETS)} as SET, and "
            "arguments of the set after commas: folder=DIR,csv=clips.csv"
        )
    parser = VerbParser(prog=f"peas data verify {option}")
    parser.error_class = ConfigError
    keys = parser.add_class_arguments(set_class(name), None, skip=_SKIPPED)
    options = parser.parse_args([f"--{pair}" for pair in pairs])
    given = {key: options[key] for key in keys if key in options}
    return make_set(name, os.path.expanduser(root), **{**given, **arguments})


def _set_name(argv: Sequence[str]) -> str | None:
    """The word of a command line that is SET; an option's value may be equal to a set's name."""
    indices = [index for index, word in enumerate(argv) if word in SETS]
    alone = [index for index in indices if index == 0 or not argv[index - 1].startswith("-")]
    return argv[(alone or indices)[0]] if indices else None


_UNITS = {"decoding": "clips", "targets": "clips", "embeddings": "clips"}
"""Units of the stages that do not count bytes."""


class Bar:
    """A progress bar on a terminal; elsewhere a line when a stage begins, and one now and then.

    Args:
        every: Seconds between two lines.
    """

    def __init__(self, every: float = 30.0) -> None:
        self.every = every
        self._text = ""
        self._printed = 0.0
        self._bar = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                # A server's words may look like markup.
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
                # The shared console keeps the stream that it found when it was made.
                console=Console(file=sys.stdout),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, amount="")

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def of(self, name: str) -> Progress:
        """A callback that shows progress.

        Args:
            name: Of what is worked on.
        """

        def show(stage: str, done: int, total: int | None) -> None:
            self._show(f"{name}: {stage}", done, total, _UNITS.get(stage))

        return show

    def _show(self, text: str, done: int, total: int | None, unit: str | None) -> None:
        text = printable(text)
        new, self._text = text != self._text, text
        if self._bar is not None:
            if new:
                # What an earlier connection fetched does not count for the speed.
                self._bar.reset(self._task, description=text, total=total, completed=done)
            amount = _amount(done, total, unit)
            speed = self._bar.tasks[0].speed
            if unit is None and speed:
                amount += f", {speed / 1e6:.1f} MB/s"
            self._bar.update(self._task, completed=done, total=total, amount=amount)
        elif new or time.monotonic() > self._printed + self.every:
            say(f"{text} {_amount(done, total, unit)}")
            self._printed = time.monotonic()


def _amount(done: int, total: int | None, unit: str | None) -> str:
    """`1.50 of 6.39 GB`, or `30 of 2,000 clips`."""
    if unit is not None:
        return f"{done:,} of {total:,} {unit}"
    size = max(done, total or 0)
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    of_total = "" if total is None else f" of {total / scale:.2f}"
    return f"{done / scale:.2f}{of_total} {unit}"
