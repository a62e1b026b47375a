"""Error messages: which exceptions are one message, and the parser's errors in one line.

jsonargparse reports each way in which a value failed to be each type that its key allows, and the
value in full each time: tens of lines with one cause.
"""

import errno
import importlib
import inspect
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from peas.errors import PeasError

# Which exceptions are no fault of peas

SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH),
    *(errno.ETIMEDOUT, errno.EADDRINUSE),
}
"""Errors of disks, limits and networks, which may come without a file's name."""
DISK = "free some space, or write to another disk"
LIMIT = "raise the limit (`ulimit -n`), or lower the number of workers"
MEMORY = "lower the batch size, or the number of workers"
HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), DISK),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), LIMIT),
    errno.ENOMEM: MEMORY,
}
NO_DEVICE = re.compile(
    r"(?i)No supported gpu backend|accelerator is not available|your machine only has"
    r"|No CUDA GPUs are available|no NVIDIA driver|not compiled with CUDA|invalid device ordinal"
    r"|selected with `CPUAccelerator`"
)
"""Messages of Lightning and PyTorch about a missing device."""


def expected(error: Exception) -> str | None:
    """The message for a user; None where the error is a fault of peas.

    Args:
        error: What ended a verb.
    """
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, PeasError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is None and error.errno not in SYSTEM:
            return None
        what = f"{error.filename}: " if error.filename is not None else ""
        hint = HINTS.get(error.errno or 0)
        return f"{what}{error.strerror or error}" + (f": {hint}" if hint else "")
    if isinstance(error, MemoryError):
        return f"out of memory: {MEMORY}"
    # By name, so that torch is not imported for it.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "out of GPU memory: lower `data.init_args.batch_size` (and raise "
            f"`trainer.accumulate_grad_batches`), or use another precision. {text}"
        )
    if isinstance(error, RuntimeError | AssertionError):
        if "home directory" in text:
            return "~ is a home directory, and this user has none: write the full path"
        if NO_DEVICE.search(text):
            return no_device(text)
    return None


def no_device(message: str) -> str:
    """A message, with what to do if it is about a missing device.

    Args:
        message: Of Lightning or PyTorch.
    """
    if not NO_DEVICE.search(message):
        return message
    return (
        f"{message.rstrip('.')}. `peas doctor` shows the devices of this machine; give "
        "`--trainer.accelerator cpu`, or fewer `--trainer.devices` (`--device cpu` of other verbs)"
    )


# Messages of jsonargparse

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
    *("Does not validate against", "Subtypes:", "Errors:", "Given value type:", "a dict with"),
    *("Not a valid subclass of", "Subclass types expect one of", "a class path (str)"),
    *("Problem with given class_path", "Expected a path but"),
)
"""Beginnings of lines that do not name the cause."""
HELPED = (
    *("data", "masking", "trainer.callbacks", "model", "model.encoder", "model.front_end"),
    *("model.masking", "model.eval_masking", "model.recipe"),
)
"""Keys whose classes list their settings by `--KEY.help CLASS`."""
NAMED = (
    *("peas.data", "peas.tasks", "peas.callbacks"),
    *("peas.models", "peas.recipes", "peas.masking", "peas.objectives"),
)
"""Modules whose classes a config names."""
INSTALLED = ("peas", "lightning")
"""Packages with classes for configs, beside the user's own."""


def cause(message: str, keys: Sequence[str] = ()) -> str:
    """The cause in a parser's message, in one line that begins with the key.

    Args:
        message: Of jsonargparse, of many lines.
        keys: Keys of the parser.

    Returns:
        One line, or the few lines of a message of another form.
    """
    path: list[str] = []
    texts: list[str] = []
    types: list[str] = []
    value = class_path = flag = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if match := KEY.match(text):
            # Of a class inside a class both keys are named, the inner one's class after them.
            path, class_path = [*_inside(path, class_path), match[1]], ""
            text = match[2].strip()
        if match := CLASS.match(text) or BARE.match(text):
            # A list's base class is tried after the class that was meant.
            class_path = class_path or match[1]
        if match := GIVEN.match(text):
            # The outermost one has the complete flag.
            value, flag = value or match[1], match[1]
        elif BARE.match(text):
            continue
        elif match := EXPECTED.match(text):
            types.append(_type(match[1]))
            value = value or (match[2] or "")
        elif text and not text.startswith(FRAME):
            texts.append(text)
    if near := nearest_class(class_path):
        return f"`{_key(path)}`: there is no class {class_path}; did you mean {near}?"
    if class_path and "." not in class_path:
        return f"`{_key(path)}`: there is no class {class_path}: give MODULE.CLASS"
    keys = _arguments(class_path) if class_path else keys
    inside = _inside(path, class_path)
    types = [kind for kind in types if kind != "NoneType"]
    nested = NESTED.match(flag)
    full_key = _key([path[0], "init_args", nested[1]]) if nested and path else ""
    text = " ".join(texts)
    if match := UNKNOWN.match(text) or OPTION.search(text):
        return _unknown_key(match, path, inside, full_key, keys)
    if match := REQUIRED.search(text):
        # Below a subcommand jsonargparse puts its name before the key.
        names = re.sub(r"\b(?:fit|validate|test|predict)\.", "", match[1])
        missing = [_key([*inside, key]) for key in names.split(", ")]
        return f"`{'`, `'.join(missing)}` must be given (required)"
    if texts:
        return f"`{_key(path)}`: {text}" if path else text
    if path and not nested and not types and value.startswith("{"):
        return f"`{_key(path)}`: nothing names its class: add `class_path` beside `init_args`"
    if nested and NESTED.match(value):
        value = nested[2].strip("'")
    if types:
        value = "null" if value == "None" else value
        return f"`{full_key or _key(path)}` is {value}: give {' or '.join(dict.fromkeys(types))}"
    return message


def _unknown_key(
    match: re.Match[str], path: list[str], inside: list[str], full_key: str, keys: Sequence[str]
) -> str:
    name = ".".join(filter(None, match.groups()))
    # On a command line the dashes are part of a key of its own.
    dashes = "--" if match.re is UNKNOWN and not path else ""
    name = name.removeprefix("--")
    wrong = full_key or _key([*inside, dashes + name])
    advice = _where_listed(wrong)
    if near := _nearest_key(name, keys):
        advice = f"did you mean `{wrong.removesuffix(name)}{near}`? {advice}"
    elif full_key:
        advice = "is the flag behind the `--config` that names its class? " + advice
    return f"`{wrong}`: there is no such key; {advice}"


def _inside(keys: list[str], class_path: str) -> list[str]:
    """Path of the arguments of a key's class."""
    # An objective is named by the user, and the parser does not repeat the name.
    name = ["NAME"] if class_path and keys[-1:] == ["objectives"] else []
    return [*keys, *name, *(["init_args"] if class_path and keys else [])]


def nearest_class(path: str) -> str | None:
    """The class whose path is most like one that does not exist.

    Args:
        path: Of a class, or its name alone.

    Returns:
        Its path; None where none is similar, or the path exists.
    """
    parts = path.split(".")
    if len(parts) == 1:
        modules: dict[str, str] = {}
        for module in NAMED:
            modules |= dict.fromkeys(importlib.import_module(module).__all__, module)
        similar = get_close_matches(path, modules, n=1)
        return f"{modules[similar[0]]}.{similar[0]}" if similar else None
    parent: Any = None
    for index, part in enumerate(parts):
        prefix = ".".join(parts[: index + 1])
        try:
            parent = getattr(parent, part, None) or importlib.import_module(prefix)
        # Anything else that a user's module raises was reported already.
        except Exception as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != prefix:
                return None
            similar = get_close_matches(part, _members(parent) if index else INSTALLED, n=1)
            if not similar:
                # The classes of a module inside `peas.data`, say, are offered by that package.
                return nearest_class(part) if index and prefix == path else None
            return ".".join([*parts[:index], *similar, *parts[index + 1 :]])
    return None


def _members(module: Any) -> list[str]:
    """Names that may follow a module's in a path."""
    inside = pkgutil.iter_modules(getattr(module, "__path__", []))
    own = getattr(module, "__all__", vars(module))
    return [*own, *(entry.name for entry in inside)]


def _arguments(path: str) -> list[str]:
    """Names of a class's arguments, and of its bases' where it passes them on."""
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [parameter.name for parameter in parameters]
        for parameter in parameters:
            if is_dataclass(parameter.default):
                names += [f"{parameter.name}.{field.name}" for field in fields(parameter.default)]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _where_listed(key: str) -> str:
    """Where a user finds the valid keys."""
    parts = key.split(".")
    if "init_args" not in parts:
        return "`--help` lists the keys"
    last = len(parts) - parts[::-1].index("init_args") - 1
    owner = ".".join(part for part in parts[:last] if part != "init_args")
    if owner in HELPED:
        return f"`peas fit --config FILE --{owner}.help CLASS` lists the keys"
    return "the docstring of its class lists the keys"


def _nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """The key that is most similar; None where none is."""
    block, _, name = key.rpartition(".")
    names = [last for first, _, last in (k.rpartition(".") for k in keys) if first == block]
    # The common beginning of a block's keys must not make them similar.
    if similar := get_close_matches(name, names, n=1):
        return ".".join(filter(None, [block, *similar]))
    return None if names else next(iter(get_close_matches(key, keys, n=1)), None)


def _key(keys: list[str]) -> str:
    """Full name of a key."""
    return ".".join(keys) or "config"


def _type(text: str) -> str:
    """`int` for `<class 'int'>`, and the values of a Literal."""
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    return re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", text)
