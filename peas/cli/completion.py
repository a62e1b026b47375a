"""`peas completion`: a shell script that completes verbs and options."""

import argparse
import importlib
from typing import Any, Literal, get_args, get_origin

from peas.errors import ConfigError

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""shtab's completion of file names."""


def completion(shell: Literal["bash", "zsh", "tcsh"] = "bash") -> None:
    """Print a script that completes commands of peas in a shell.

    For bash: `peas completion > ~/.local/share/bash-completion/completions/peas`. For zsh:
    `peas completion --shell zsh > DIR/_peas`, with DIR in `$fpath`. It needs the package shtab.

    Args:
        shell: The shell.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise ConfigError("the package shtab is not installed: `pip install shtab`") from error
    # Not `say`: this is for a shell.
    print(shtab.complete(_plain(), shell))  # noqa: T201


def _plain() -> argparse.ArgumentParser:
    """All verbs as argparse parsers, since a script of all types and their classes has 78 MB."""
    from peas.cli.fit import FitReader
    from peas.cli.parser import arguments, build, types_of
    from peas.cli.verbs import LIGHTNING, VERBS

    top = argparse.ArgumentParser(prog="peas")
    levels = {"": top.add_subparsers()}
    for name, verb in VERBS.items():
        *outer, last = name.split()
        if outer and outer[0] not in levels:
            levels[outer[0]] = (
                levels[""].add_parser(outer[0], help=f"peas {outer[0]} VERB").add_subparsers()
            )
        plain = levels["".join(outer)].add_parser(last, help=verb.about)
        choices: dict[str, Any] = {}
        if name in LIGHTNING:
            parser = FitReader.parser(name)
        else:
            parser = build(name, verb.load())
            found = arguments(verb.load())
            for key, parameter in {**found.positional, **found.options}.items():
                for kind in types_of(parameter.annotation):
                    if get_origin(kind) is Literal:
                        choices[key] = get_args(kind)
        for action in parser._actions:
            names = [option for option in action.option_strings if option not in ("-h", "--help")]
            if names or not action.option_strings:
                options = choices.get(action.dest)
                added = plain.add_argument(*(names or [action.dest]), choices=options)
                if options is None:
                    added.complete = FILES  # type: ignore[attr-defined]
    return top
