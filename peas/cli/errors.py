"""What the parser says about a wrong setting, in one sentence that names the key.

jsonargparse reports each way in which a value failed to be each type that its key allows, and the
whole value each time: tens of lines in which the cause is one.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

KEY = re.compile(r"""Parser key "([^"]+)"(?: element \d+)?:(.*)""")
OPTION = re.compile(r"(?:(?:Group '([^']+)' )?does not accept option|Option) '([^']+)'")
UNKNOWN = re.compile(r"unrecognized arguments: (--[\w.-]+)")
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
BARE = re.compile(r"Expected a dot import path string: (\w+)$")
REQUIRED = re.compile(r"the following arguments are required: (.+)")
EXPECTED = re.compile(r"Expected (?:an? )?(.+?)(?:\. Got value: (.*))?$")
GIVEN = re.compile(r"Given value: (.+)")
NESTED = re.compile(r"NestedArg\(key='([^']+)', val=(.*)\)$")

FRAME = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Not a valid subclass of",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
    "a dict without",
    "Problem with given class_path",
    "Expected a path but",
)
"""Beginnings of lines that say nothing about the cause."""


HELPED = (
    *("data", "masking", "trainer.callbacks", "model", "model.encoder", "model.front_end"),
    *("model.masking", "model.eval_masking", "model.recipe"),
)
"""Keys whose classes tell their settings by `--KEY.help CLASS`."""
NAMED = (
    *("peas.data", "peas.tasks", "peas.callbacks"),
    *("peas.models", "peas.recipes", "peas.masking", "peas.objectives"),
)
"""Modules whose classes a config names."""
INSTALLED = ("peas", "lightning")
"""Packages in which a config's classes lie, beside the user's own."""


def cause(message: str, known: Sequence[str] = ()) -> str:
    """The cause in a parser's message, its key first.

    Args:
        message: Of jsonargparse, of many lines.
        known: Keys of the parser.

    Returns:
        One line, or the few lines of a message that has another form.
    """
    keys: list[str] = []
    said: list[str] = []
    expected: list[str] = []
    given = class_path = flag = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if found := KEY.match(text):
            # Of a class inside a class both keys are told, the inner one's class after them.
            keys, class_path = [*_inside(keys, class_path), found[1]], ""
            text = found[2].strip()
        if found := CLASS.match(text) or BARE.match(text):
            # A list's base class is tried after the class that was meant.
            class_path = class_path or found[1]
        if found := GIVEN.match(text):
            # The outermost one has the whole flag.
            given, flag = given or found[1], found[1]
        elif BARE.match(text):
            continue
        elif found := EXPECTED.match(text):
            expected.append(_type(found[1]))
            given = given or (found[2] or "")
        elif text and not text.startswith(FRAME):
            said.append(text)
    if near := nearest_class(class_path):
        return f"`{_key(keys)}`: there is no class {class_path}; did you mean {near}?"
    if class_path and "." not in class_path:
        return f"`{_key(keys)}`: there is no class {class_path}: give MODULE.CLASS"
    known = _arguments(class_path) if class_path else known
    inside = _inside(keys, class_path)
    expected = [kind for kind in expected if kind != "NoneType"]
    return _sentence(keys, inside, said, expected, given, NESTED.match(flag), known) or message


def _inside(keys: list[str], class_path: str) -> list[str]:
    """Where the arguments of a key's class are."""
    # An objective is named by the user, and the parser does not repeat that.
    name = ["NAME"] if class_path and keys[-1:] == ["objectives"] else []
    return [*keys, *name, *(["init_args"] if class_path and keys else [])]


def nearest_class(path: str) -> str | None:
    """The class whose path is most like one that leads nowhere.

    Args:
        path: Of a class, or its name alone.

    Returns:
        Its path; None where there is none alike, or the path leads to something.
    """
    parts = path.split(".")
    if len(parts) == 1:
        homes: dict[str, str] = {}
        for room in NAMED:
            homes |= dict.fromkeys(importlib.import_module(room).__all__, room)
        alike = get_close_matches(path, homes, n=1)
        return f"{homes[alike[0]]}.{alike[0]}" if alike else None
    found: Any = None
    for place, part in enumerate(parts):
        whole = ".".join(parts[: place + 1])
        try:
            found = getattr(found, part, None) or importlib.import_module(whole)
        # Whatever else a module of the user's own raises was told already.
        except Exception as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != whole:
                return None
            alike = get_close_matches(part, _members(found) if place else INSTALLED, n=1)
            if not alike:
                # A module inside `peas.data`, say, names its classes in that one.
                return nearest_class(part) if place and whole == path else None
            return ".".join([*parts[:place], *alike, *parts[place + 1 :]])
    return None


def _members(module: Any) -> list[str]:
    """Names in a module that a path may go on with."""
    inside = pkgutil.iter_modules(getattr(module, "__path__", []))
    own = getattr(module, "__all__", vars(module))
    return [*own, *(entry.name for entry in inside)]


def _arguments(path: str) -> list[str]:
    """Names of a class's arguments, those of its bases where it hands them on."""
    room, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(room), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for base in found.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [parameter.name for parameter in parameters]
        for parameter in parameters:
            if is_dataclass(parameter.default):
                names += [f"{parameter.name}.{field.name}" for field in fields(parameter.default)]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _where_listed(key: str) -> str:
    """Where a user finds the keys that are known beside a wrong one."""
    parts = key.split(".")
    if "init_args" not in parts:
        return "`--help` lists the keys"
    last = len(parts) - parts[::-1].index("init_args") - 1
    owner = ".".join(part for part in parts[:last] if part != "init_args")
    if owner in HELPED:
        return f"`peas fit --config FILE --{owner}.help CLASS` lists the keys"
    return "the docstring of its class lists the keys"


def _sentence(
    keys: list[str],
    inside: list[str],
    said: list[str],
    expected: list[str],
    given: str,
    flag: re.Match[str] | None,
    known: Sequence[str],
) -> str:
    """The cause, from its parts; empty where they do not tell it."""
    text = " ".join(said)
    whole = _key([keys[0], "init_args", flag[1]]) if flag and keys else ""
    unknown = UNKNOWN.match(text)
    if found := unknown or OPTION.search(text):
        name = ".".join(filter(None, found.groups()))
        # Of a command line's own keys they are part of the name.
        dashes = "--" if unknown and not keys else ""
        name = name.removeprefix("--")
        wrong = whole or _key([*inside, dashes + name])
        advice = _where_listed(wrong)
        if near := _nearest_key(name, known):
            advice = f"did you mean `{wrong.removesuffix(name)}{near}`? {advice}"
        elif flag:
            advice = "is the flag behind the `--config` that names its class? " + advice
        return f"`{wrong}`: there is no such key; {advice}"
    if found := REQUIRED.search(text):
        # Below a subcommand jsonargparse puts its name before the key.
        names = re.sub(r"\b(?:fit|validate|test|predict)\.", "", found[1])
        missing = [_key([*inside, key]) for key in names.split(", ")]
        return f"`{'`, `'.join(missing)}` must be given"
    if said:
        return f"`{_key(keys)}`: {text}" if keys else text
    if keys and not flag and not expected and given.startswith("{"):
        return f"`{_key(keys)}`: nothing names its class: add `class_path` beside `init_args`"
    if flag and NESTED.match(given):
        given = flag[2].strip("'")
    if expected:
        wanted = " or ".join(dict.fromkeys(expected))
        given = "null" if given == "None" else given
        return f"`{whole or _key(keys)}` is {given}: give {wanted}"
    return ""


def _nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key that is most like another; None where none is."""
    block, _, name = key.rpartition(".")
    names = [last for first, _, last in (k.rpartition(".") for k in known) if first == block]
    # What all keys of a block begin with makes none of them alike.
    if alike := get_close_matches(name, names, n=1):
        return ".".join(filter(None, [block, *alike]))
    return None if names else next(iter(get_close_matches(key, known, n=1)), None)


def _key(keys: list[str]) -> str:
    """Whole name of a key."""
    return ".".join(keys) or "config"


def _type(text: str) -> str:
    """`int` for `<class 'int'>`, and the values of a Literal."""
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    return re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", text)


ABSENT = re.compile(
    r"(?i)No supported gpu backend|accelerator is not available|your machine only has"
    r"|No CUDA GPUs are available|no NVIDIA driver|not compiled with CUDA|invalid device ordinal"
    r"|selected with `CPUAccelerator`"
)
"""What Lightning and PyTorch say of a device that is not there."""


def no_device(message: str) -> str:
    """A message with what to do about a device that is not there, if it is of one.

    Args:
        message: Of Lightning or PyTorch.
    """
    if not ABSENT.search(message):
        return message
    return (
        f"{message.rstrip('.')}. `peas doctor` shows the devices of this machine; give "
        "`--trainer.accelerator cpu`, or fewer `--trainer.devices` (`--device cpu` of other verbs)"
    )
