"""Entry of the `peas` command: calls a verb, and prints an expected error as one message."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from peas import __version__
from peas.cli.verbs import dispatch, usage
from peas.errors import UsageError, say
from peas.utils.quiet import be_harmless

UNEXPECTED = (
    "peas {verb}: this error is unexpected. Please report it with the lines above, the command "
    "and the output of `peas doctor`. A run that has saved a checkpoint resumes with "
    "`--ckpt_path last`."
)
"""Last line of a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0
    if argv[0] == "--version":
        say(f"peas {__version__}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        # An ASCII terminal or an undecodable file name must not end a verb.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    be_harmless()
    try:
        status = dispatch(argv)
        # Here, where a full disk can still be reported.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _report(f"\npeas {argv[0]}: stopped")
        return 130
    except BrokenPipeError:
        # Whoever read the output (`head`, say) has left.
        _close_stdout()
        return 1
    except Exception as error:
        from peas.cli.errors import expected

        message = expected(error)
        if message is None:
            error.add_note(UNEXPECTED.format(verb=argv[0]))
            raise
        _report(f"peas {argv[0]}: error: {message}")
        try:
            sys.stdout.flush()
        except OSError:
            _close_stdout()
        return 2 if isinstance(error, UsageError) else 1


def _report(line: str) -> None:
    with contextlib.suppress(OSError):
        say(line, sys.stderr)


def _close_stdout() -> None:
    """Leaves nothing in stdout that Python would try to write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
