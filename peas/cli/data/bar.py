"""One progress bar for all that a command does; lines where nobody looks."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from peas.data.fetch.download import Progress
from peas.errors import printable, say

_COUNTED = {"decoding": "clips", "targets": "clips"}
"""Stages that do not count bytes, and what they count."""


class Bar:
    """A bar on a terminal; elsewhere a line when something begins, and one now and then.

    Args:
        every: Seconds between two lines.
    """

    def __init__(self, every: float = 30.0) -> None:
        self.every = every
        self._now = ""
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
                # The shared console keeps what it found when another part of the program made it.
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
        """What a function calls to show its progress.

        Args:
            name: Of what it works on.
        """

        def show(stage: str, done: int, total: int | None) -> None:
            self._show(f"{name}: {stage}", done, total, _COUNTED.get(stage))

        return show

    def _show(self, text: str, done: int, total: int | None, counted: str | None) -> None:
        text = printable(text)
        fresh, self._now = text != self._now, text
        if self._bar is not None:
            if fresh:
                # What an earlier connection brought is no speed of this one.
                self._bar.reset(self._task, description=text, total=total, completed=done)
            amount = _amount(done, total, counted)
            speed = self._bar.tasks[0].speed
            if counted is None and speed:
                amount += f", {speed / 1e6:.1f} MB/s"
            self._bar.update(self._task, completed=done, total=total, amount=amount)
        elif fresh or time.monotonic() > self._printed + self.every:
            say(f"{text} {_amount(done, total, counted)}")
            self._printed = time.monotonic()


def _amount(done: int, total: int | None, counted: str | None) -> str:
    """`1.50 of 6.39 GB`, or `30 of 2,000 clips`."""
    if counted is not None:
        return f"{done:,} of {total:,} {counted}"
    size = max(done, total or 0)
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    whole = "" if total is None else f" of {total / scale:.2f}"
    return f"{done / scale:.2f}{whole} {unit}"
