"""`peas data`: fetch, check, measure and pack a data set, and cache a teacher's targets."""

import importlib

from peas.errors import ConfigError, PeasError, say
from peas.utils.quiet import be_harmless

VERBS = {
    "prepare": "download what may be downloaded, and check that it is whole",
    "verify": "decode every clip; report what is missing, broken, doubled or shared across splits",
    "stats": "mean and std of the log-mel, class counts, lengths",
    "pack": "write the set into shards that are read at random without a file per clip",
    "targets": "run a teacher over the set once, or take ready maps, as targets of pretraining",
}


def usage() -> str:
    """Text of `peas data --help`."""
    from peas.cli.data.sets import SETS

    lines = ["usage: peas data VERB SET ROOT [options]      peas data VERB --help", ""]
    lines += [f"  {verb:<8} {text}" for verb, text in VERBS.items()]
    lines += ["", f"SET is one of {', '.join(SETS)}"]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Runs `peas data`.

    Args:
        argv: The command line after `peas data`.

    Returns:
        The exit status: 1 where the verb has already said what is wrong.

    Raises:
        ConfigError: There is no such verb.
    """
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0
    if argv[0] not in VERBS:
        raise ConfigError(f"unknown verb {argv[0]!r}\n\n{usage()}")
    verb = importlib.import_module(f"peas.cli.data.{argv[0]}")
    # The module has imported Lightning.
    be_harmless()
    try:
        status: int | None = verb.main(argv[1:])
    except PeasError as error:
        from peas.cli.data.sets import in_arguments

        error.args = (in_arguments(str(error)),)
        raise
    return status or 0
