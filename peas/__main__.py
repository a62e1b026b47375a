"""Entry of the `peas` command: the verbs, and errors in one clear message.

Lightning's verbs go to `peas.cli.verbs`, the others to one module each. A module is imported when
its verb is called, so `peas --version` answers at once.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from peas import __version__
from peas.cli.boundary import UNEXPECTED, known
from peas.errors import say
from peas.utils.processes import end_with_launcher
from peas.utils.quiet import be_harmless

LIGHTNING_VERBS = {
    "fit": "train a model from a config; --ckpt_path goes on with the same run",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "scores of every clip of a data set, as predictions.csv",
}
OWN_VERBS = {
    "kfold": "folds x seeds of one config in fresh processes, and one table",
    "sweep": "the points of a W&B sweep file, one after another on this machine, and one table",
    "data": "fetch, check, measure and pack a data set",
    "tag": "labels for sound files, from a checkpoint alone",
    "export": "a checkpoint of peas in the official layout of SSAST or AudioMAE",
    "import": "an official file of SSAST or AudioMAE as a checkpoint of peas; reports its keys",
    "doctor": "versions, devices, decoders, and what is missing",
}


def usage() -> str:
    """Text of `peas --help`."""
    lines = [f"peas {__version__}: pretrain, fine-tune and compare masked audio models", ""]
    lines += ["usage: peas VERB [options]      peas VERB --help", ""]
    lines += [f"  {verb:<9} {text}" for verb, text in (LIGHTNING_VERBS | OWN_VERBS).items()]
    return "\n".join(lines)


def dispatch(argv: Sequence[str]) -> int:
    """Calls the verb that `argv` begins with; returns the exit status."""
    verb = argv[0]
    if verb in LIGHTNING_VERBS:
        end_with_launcher()
        from peas.cli.verbs import run

        run(argv)
        return 0
    module = importlib.import_module(f"peas.cli.{'import_' if verb == 'import' else verb}")
    # The module may have imported Lightning.
    be_harmless()
    # A verb that has already said what is wrong returns 1; others return nothing, or raise.
    status: int | None = module.main(list(argv[1:]))
    return status or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0
    if argv[0] == "--version":
        say(f"peas {__version__}")
        return 0
    if argv[0] not in LIGHTNING_VERBS | OWN_VERBS:
        say(f"peas: unknown verb {argv[0]!r}\n\n{usage()}", sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A terminal in ASCII, or a file name that is no text, must not end a verb.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    be_harmless()
    try:
        status = dispatch(argv)
        # Here, where a full disk can still be told.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _say(f"\npeas {argv[0]}: stopped")
        return 130
    except BrokenPipeError:
        # The reader (`head`, say) left.
        _close_stdout()
        return 1
    except Exception as error:
        message = known(error)
        if message is None:
            error.add_note(UNEXPECTED.format(verb=argv[0]))
            raise
        _say(f"peas {argv[0]}: error: {message}")
        try:
            sys.stdout.flush()
        except OSError:
            _close_stdout()
        return 1


def _say(line: str) -> None:
    """Prints to stderr, if anybody can still read it."""
    with contextlib.suppress(OSError):
        say(line, sys.stderr)


def _close_stdout() -> None:
    """Leaves nothing in stdout that Python would fail to write once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
