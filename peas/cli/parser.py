"""Parsers of the command line: strict ones, and the call of a verb that is a function.

A verb is a function. Its positional parameters are positional arguments, its keyword-only
parameters are options of the same names, and its Google docstring is the help. `*fit_args` takes
what the verb does not know, for `peas fit`; a parameter `data_set` takes SET ROOT and the arguments
of the set's class. Where it is a keyword, SET ROOT may stand in place of the positional arguments.
"""

import ast
import inspect
import json
import re
import sys
import warnings
from argparse import ArgumentParser as ArgparseParser
from argparse import _SubParsersAction
from collections import deque
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, NamedTuple, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from peas.cli.errors import cause
from peas.errors import ConfigError, PeasError, UsageError

NEGATIVE = re.compile(r"-\.?\d|-(?:inf|nan)$")
"""A value and not an option. Python's own pattern leaves out -1e-3."""
ALIASES = {"-c": "config", "--from": "maps"}
"""Short options, and options of earlier releases."""
FIT_KEYS = (
    *("config", "trainer", "model", "data", "masking", "paper", "checkpoints", "new", "ckpt_path"),
    *("seed_everything", "allow_test_selection", "weights_only", "print_config"),
)
"""First words of the options of `peas fit`."""


class StrictParser(ArgumentParser):
    """Parser without abbreviations, whose `null` is null only where the type allows it.

    It raises an error instead of printing its usage and ending the process.
    """

    error_class: type[ConfigError] = ConfigError
    null_anywhere = False
    """Whether null is allowed for arguments whose types do not include it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "peas", "allow_abbrev": False, **kwargs})
        self._negative_number_matcher = NEGATIVE

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any
    ) -> Namespace:
        """Parses a command line.

        A key inside a class inside a class reaches the inner class's parser as `--key=VALUE` with
        the Python text of a parsed value: None, which is a word in YAML.
        """
        if getattr(self, "_inner_parser", False) and args is not None:
            args = [_yaml(word) for word in args]
        config: Namespace = super().parse_args(args, *more, **kwargs)
        return config

    def validate(self, cfg: Namespace, skip_none: bool = True, *more: Any, **kwargs: Any) -> None:
        """Checks a configuration; nulls too, which jsonargparse takes for values not given."""
        super().validate(cfg, skip_none and self.null_anywhere, *more, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the cause, except inside jsonargparse's own trials."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise self.error_class(cause(message, keys_of(self))) from ex


class VerbParser(StrictParser):
    """Parser of a verb that is a function."""

    error_class: type[ConfigError] = UsageError

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the cause; the argument is named as on the command line."""
        options = {action.dest for action in self._actions if action.option_strings}

        def spelled(match: re.Match[str]) -> str:
            name = match[1]
            return f"`--{name}`" if name in options else name.removesuffix("_name").upper()

        try:
            super().error(message, ex)
        except ConfigError as error:
            raise type(error)(re.sub(r"^`(\w+)`", spelled, str(error))) from ex


def keys_of(parser: ArgparseParser) -> list[str]:
    """Keys of a parser and, where it has verbs, of theirs."""
    verbs = [a.choices.values() for a in parser._actions if isinstance(a, _SubParsersAction)]
    inner = [key for parsers in verbs for verb in parsers for key in keys_of(verb)]
    return [*(action.dest for action in parser._actions), *inner]


def _yaml(word: str) -> str:
    """`--key=VALUE` with the Python text of a null, list or mapping as YAML."""
    key, sign, text = word.partition("=")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word
    if value is None or isinstance(value, list | dict):
        return key + sign + json.dumps(value)
    return word


class Arguments(NamedTuple):
    """Parameters of a verb's function by their roles."""

    positional: dict[str, inspect.Parameter]
    options: dict[str, inspect.Parameter]
    takes_fit_args: bool
    takes_data_set: bool


def arguments(function: Callable[..., Any], argv: Sequence[str] = ()) -> Arguments:
    """Parameters of a verb's function by their roles.

    Args:
        function: Of the verb.
        argv: Command line; its first free word may be SET.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    kinds: dict[Any, dict[str, inspect.Parameter]] = {}
    for name, parameter in parameters.items():
        kinds.setdefault(parameter.kind, {})[name] = parameter
    positional = kinds.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, {})
    options = kinds.get(inspect.Parameter.KEYWORD_ONLY, {})
    data_set = positional.pop("data_set", None) is not None
    if options.pop("data_set", None) is not None:
        from peas.cli.data.sets import SETS

        data_set = _first_word(argv, options) in SETS
        positional = {} if data_set else positional
    return Arguments(positional, options, inspect.Parameter.VAR_POSITIONAL in kinds, data_set)


def _first_word(argv: Sequence[str], options: dict[str, inspect.Parameter]) -> str:
    """The first word of a command line that is neither an option nor its value."""
    queue = deque(argv)
    while queue:
        word = queue.popleft()
        if not _is_option(word):
            return word
        name, sign, _ = word.removeprefix("--").partition("=")
        option = options.get(name.replace("-", "_"))
        is_switch = option is not None and bool in types_of(option.annotation)
        if queue and not sign and (not is_switch or queue[0] in ("true", "false")):
            queue.popleft()
    return ""


def build(name: str, function: Callable[..., Any], argv: Sequence[str] = ()) -> VerbParser:
    """Parser of a verb.

    Args:
        name: Of the verb.
        function: What it calls.
        argv: Command line, where SET decides which options there are.
    """
    found = arguments(function, argv)
    # As types: for strings jsonargparse would import all that the module imports for typing.
    function.__annotations__ = inspect.get_annotations(function, eval_str=True)
    about, _, _ = (inspect.getdoc(function) or "").partition("\nArgs:")
    parser = VerbParser(prog=f"peas {name}", description=about.strip())
    if found.takes_data_set:
        from peas.cli.data.sets import add_set

        add_set(parser, argv, skip=found.options)
    special = {"data_set", "fit_args"}
    if add_arguments := getattr(sys.modules.get(function.__module__), "add_arguments", None):
        # Of a type that is expensive to import.
        special |= set(add_arguments(parser, argv))
    given = {name for name in function.__annotations__ if name not in found.options} - {"return"}
    replaced = given - {*found.positional}
    parser.add_function_arguments(
        function, as_group=False, as_positional=True, skip={*found.options, *special, *replaced}
    )
    parser.add_function_arguments(
        function, as_group=False, as_positional=False, skip={*given, *special}
    )
    for action in parser._actions:
        if not action.option_strings and not action.choices:
            action.metavar = action.dest.removesuffix("_name").upper()
    return parser


def call(name: str, function: Callable[..., int | None], argv: Sequence[str]) -> int:
    """Calls a verb with a command line; returns the exit status.

    Args:
        name: Of the verb.
        function: What it calls; returns the status, or None for 0.
        argv: Words after the verb.

    Raises:
        UsageError: The command line is wrong.
    """
    found = arguments(function, argv)
    parser = build(name, function, argv)
    words, rest = spell(argv, found, keys_of(parser))
    options = parser.parse_args(words)
    values = [options[key] for key in found.positional]
    values = [_names(value) if isinstance(value, list) else value for value in values]
    keywords: dict[str, Any] = {}
    try:
        if found.takes_data_set:
            from peas.cli.data.sets import chosen_set

            own = {"set_name", "root", *found.options}
            of_set = {key: value for key, value in vars(options).items() if key not in own}
            command = ["peas", *name.split(), *argv]
            chosen = chosen_set(options.set_name, options.root, of_set, command)
            if "data_set" not in (function.__kwdefaults__ or {}):
                values = [chosen]
            else:
                values, keywords = [[]], {"data_set": chosen}
        return function(*values, *rest, **keywords, **{k: options[k] for k in found.options}) or 0
    except PeasError as error:
        if found.takes_data_set or name.startswith("data "):
            from peas.cli.data.sets import in_arguments

            error.args = (in_arguments(str(error)),)
        raise


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not NEGATIVE.match(word)


def spell(
    argv: Sequence[str], found: Arguments, keys: Sequence[str]
) -> tuple[list[str], list[str]]:
    """A command line as jsonargparse takes it, and the words for `peas fit`.

    A switch needs no value, a list option may be repeated, a tuple is several words, and hyphens
    in the name of an option are underscores, as release 0.1 spelled some.

    Args:
        argv: Words after the verb.
        found: Parameters of the verb's function.
        keys: Of the verb's parser.

    Raises:
        UsageError: A word is not understood, or one is missing.
    """
    words: list[str] = []
    rest: list[str] = []
    free: list[str] = []
    queue = deque(argv)
    last_list = ""
    while queue:
        word = queue.popleft()
        if not _is_option(word):
            free.append(word)
            continue
        key, sign, value = word.partition("=")
        name = ALIASES.get(key, key.removeprefix("--").removesuffix("+").replace("-", "_"))
        if name not in found.options:
            if word in ("-h", "--help"):
                return [word], []
            _require_known(name, found, keys)
            following = [] if sign or not queue or _is_option(queue[0]) else [queue.popleft()]
            (rest if found.takes_fit_args else words).extend([word, *following])
            continue
        if "-" in key.removeprefix("--") and key not in ALIASES:
            warnings.warn(f"{key} is deprecated: write --{name}", FutureWarning, stacklevel=2)
        types = types_of(found.options[name].annotation)
        origins = [get_origin(kind) for kind in types]
        if bool in types:
            if not sign:
                value = queue.popleft() if queue and queue[0] in ("true", "false") else "true"
            words.append(f"--{name}={value}")
        elif tuple in origins:
            inner = get_args(next(kind for kind in types if get_origin(kind) is tuple))
            if sign:
                words.append(f"--{name}={value}")
                continue
            values = [queue.popleft() for _ in inner if queue and not _is_option(queue[0])]
            words.append(f"--{name}=[{', '.join(map(_plain, values, inner))}]")
        elif not sign and (not queue or _is_option(queue[0])):
            raise UsageError(f"`--{name}` needs a value")
        else:
            value = value if sign else queue.popleft()
            is_list = list in origins
            last_list = name if is_list else ""
            words.append(f"--{name}{'+' * is_list}={value}")
            # Further choices of a list are no positional words.
            while is_list and queue and queue[0] in _choices(types):
                words.append(f"--{name}+={queue.popleft()}")
    given = {word.partition("=")[0].removesuffix("+") for word in words}
    missing = [
        f"`--{name}`"
        for name, parameter in found.options.items()
        if parameter.default is parameter.empty and f"--{name}" not in given
    ]
    placed = _placed(free, found, last_list)
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given (required)")
    return words + placed, rest


def types_of(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, or the type itself."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _choices(types: Sequence[Any]) -> list[Any]:
    """Choices of a list whose members are a Literal."""
    members = [get_args(kind)[0] for kind in types if get_origin(kind) is list]
    return [value for member in members for value in get_args(member)]


def _names(values: list[str]) -> list[str]:
    """Positional words as they were typed; see `_placed`."""
    return [value.encode("latin-1").decode("utf-8", "surrogateescape") for value in values]


def _plain(word: str, kind: type) -> str:
    return json.dumps(word) if kind is str else word


def _placed(free: list[str], found: Arguments, last_list: str) -> list[str]:
    """Positional arguments: required ones as they are, others by name."""
    words: list[str] = []
    missing: list[str] = []
    if found.takes_data_set:
        words, free = free[:2], free[2:]
        missing = ["SET", "ROOT"][len(words) :]
    for name, parameter in found.positional.items():
        required = parameter.default is parameter.empty
        if not free and required:
            missing.append(name.removesuffix("_name").upper())
        elif get_origin(parameter.annotation) is list:
            # By their bytes: YAML has no file names that are not UTF-8.
            names = [word.encode("utf-8", "surrogateescape").decode("latin-1") for word in free]
            words, free = [*words, json.dumps(names)], []
        elif free:
            word, *free = free
            words.append(word if required else f"--{name}={word}")
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given (required)")
    if free and not last_list:
        raise UsageError(f"{free[0]!r} is one argument too many")
    return words + [f"--{last_list}+={word}" for word in free]


def _require_known(name: str, found: Arguments, keys: Sequence[str]) -> None:
    """Refuses an option that there is not; `peas fit` checks those that are passed on to it."""
    first = name.partition(".")[0]
    if first in keys or (found.takes_fit_args and ("." in name or name in FIT_KEYS)):
        return
    near = get_close_matches(name, [*found.options, *keys], n=1)
    if near or not found.takes_fit_args:
        hint = f"did you mean `--{near[0]}`? " if near else ""
        raise UsageError(f"`--{name}`: there is no such option; {hint}`--help` lists the options")
