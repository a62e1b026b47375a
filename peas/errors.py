"""Errors that a user can act on.

Each message names the file or key, says what is wrong and what to do next. The command line
prints it without a traceback and exits with status 1.
"""

from typing import TextIO


def printable(text: str, keep: str = "") -> str:
    """Text with control characters escaped: labels and file names could move the cursor.

    Args:
        text: What is to be printed.
        keep: Control characters to keep.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        # Spaces of other widths are not printable to Python, and harm nothing.
        if char.isprintable() or char in keep or (char.isspace() and ord(char) > 0xA0)
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def say(text: str, file: TextIO | None = None) -> None:
    """Print and flush, control characters escaped.

    Args:
        text: One or more lines.
        file: Where to; None = standard output.
    """
    print(printable(text, keep="\n\t"), file=file, flush=True)


class PeasError(Exception):
    """Base of all errors caused by the user's files, data or settings."""

    def __str__(self) -> str:
        """The message, control characters escaped."""
        return printable(super().__str__(), keep="\n\t")


class AudioError(PeasError):
    """A sound file or byte string cannot be used."""


class DataError(PeasError):
    """A data set is missing, incomplete or contradicts itself."""


class CheckpointError(PeasError):
    """A checkpoint is missing, damaged, unsafe or of another kind."""


class ConfigError(PeasError):
    """A setting is impossible, or contradicts another one."""


class UsageError(ConfigError):
    """A command line is wrong; the command ends with status 2."""


class NoReconstruction(PeasError):
    """The model has no head that reconstructs spectrograms."""
