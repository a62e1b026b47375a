"""The table of verbs, `peas --help`, and the call of a verb.

A verb's module is imported when the verb is called, and modules of the own verbs import torch only
where they need it, so help is quick.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from peas import __version__
from peas.cli import fit_help
from peas.errors import UsageError, say
from peas.utils.processes import end_with_launcher
from peas.utils.quiet import be_harmless

LIGHTNING = ("fit", "validate", "test", "predict")
"""Verbs of LightningCLI, which `peas.cli.fit` runs."""
GROUPS = {
    "train": "Train and compare",
    "use": "Use a checkpoint",
    "data": "Data sets (peas data VERB SET ROOT)",
    "machine": "This machine",
}


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        group: Key of `GROUPS`.
        about: One line for `peas --help`.
        function: `MODULE:NAME` below `peas.cli`; its signature and docstring are the verb's
            options and help. Empty for the verbs of LightningCLI.
    """

    group: str
    about: str
    function: str = ""

    def load(self) -> Callable[..., int | None]:
        """The function; its module is imported."""
        module, _, name = self.function.partition(":")
        function: Callable[..., int | None] = getattr(import_module(f"peas.cli.{module}"), name)
        return function


VERBS: dict[str, Verb] = {
    "fit": Verb("train", "train a model from a config; --ckpt_path last resumes the run"),
    "kfold": Verb(
        "train", "folds x seeds of one config, each in a process, and a table", "kfold:kfold"
    ),
    "sweep": Verb(
        "train", "the points of a W&B sweep file on this machine, and a table", "sweep:sweep"
    ),
    "configs ls": Verb("train", "list the configs that come with peas", "configs:ls"),
    "configs copy": Verb("train", "copy one of them, to edit it", "configs:copy"),
    "validate": Verb("use", "score a checkpoint on the validation split"),
    "test": Verb("use", "score a checkpoint on the test split"),
    "predict": Verb("use", "scores of every clip of a data set, as predictions.csv"),
    "tag": Verb("use", "label sound files with a checkpoint alone", "tag:tag"),
    "embed": Verb("use", "embeddings of a set, or of sound files, in one store", "embed:embed"),
    "probe": Verb("use", "kNN, linear and other probes on stored embeddings", "probe:probe"),
    "export": Verb(
        "use", "write a model for a hub, as ONNX, or in the official layout", "convert:export"
    ),
    "import": Verb(
        "use", "make a checkpoint of an official file or exported folder", "convert:import_"
    ),
    "data prepare": Verb(
        "data", "download a set, where that is allowed, and check it", "data.prepare:prepare"
    ),
    "data verify": Verb(
        "data", "decode every clip; report missing, bad and shared ones", "data.verify:verify"
    ),
    "data stats": Verb(
        "data", "mean and std of the log-mel, class counts, lengths", "data.stats:stats"
    ),
    "data pack": Verb("data", "write a set into shards for fast random access", "data.pack:pack"),
    "data targets": Verb(
        "data", "compute a teacher's targets of a set once", "data.targets:targets"
    ),
    "doctor": Verb(
        "machine", "versions, devices, decoders; --cluster compares all ranks", "doctor:doctor"
    ),
    "completion": Verb(
        "machine", "print a script that completes commands in your shell", "completion:completion"
    ),
}
"""Every verb, in the order of the help."""


def usage(first: str = "") -> str:
    """Text of `peas --help`, or of `peas FIRST --help` where FIRST has verbs of its own.

    Args:
        first: Such as `data`.
    """
    lines = [f"peas {__version__}: pretrain, fine-tune and compare masked audio models", ""]
    lines += ["usage: peas VERB [options]      peas VERB --help"]
    for group, title in GROUPS.items():
        verbs = {
            name: verb.about
            for name, verb in VERBS.items()
            if verb.group == group and name.startswith(first)
        }
        if verbs:
            lines += ["", f"{title}:", *(f"  {name:<13} {text}" for name, text in verbs.items())]
    return "\n".join(lines)


def find(argv: Sequence[str]) -> str:
    """Name of the verb that a command line begins with.

    Raises:
        UsageError: There is no such verb.
    """
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in VERBS:
            return name
    firsts = list(dict.fromkeys(name.split()[0] for name in VERBS))
    if argv[0] in firsts:
        name, choices = " ".join(argv[:2]), [n for n in VERBS if n.startswith(f"{argv[0]} ")]
    else:
        name, choices = argv[0], firsts
    if name in firsts:
        raise UsageError(f"give one of {', '.join(choices)}")
    near = get_close_matches(name, choices, n=1)
    hint = f"did you mean `peas {near[0]}`? " if near else ""
    raise UsageError(f"there is no verb {name!r}; {hint}`peas --help` lists the verbs")


def dispatch(argv: Sequence[str]) -> int:
    """Calls the verb that `argv` begins with; returns the exit status."""
    asks = len(argv) == 1 or argv[1] in ("-h", "--help")
    if asks and any(name.startswith(f"{argv[0]} ") for name in VERBS):
        say(usage(f"{argv[0]} "))
        return 0
    name = find(argv)
    if name in LIGHTNING:
        if fit_help.asks(argv):
            say(fit_help.page(name))
            return 0
        end_with_launcher()
        from peas.cli.fit import run

        run(argv)
        return 0
    from peas.cli.parser import call

    function = VERBS[name].load()
    # The module may have imported Lightning.
    be_harmless()
    return call(name, function, argv[len(name.split()) :])
