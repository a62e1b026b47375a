"""What the parser says about a wrong setting, in one sentence that names the key.

jsonargparse reports each way in which a value failed to be each type that its key allows, and the
whole value each time: tens of lines in which the cause is one.
"""

import re

KEY = re.compile(r"""Parser key "([^"]+)"(?: element \d+)?:(.*)""")
OPTION = re.compile(r"(?:Option|does not accept option) '([^']+)'")
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
)
"""Beginnings of lines that say nothing about the cause."""


def cause(message: str) -> str:
    """The cause in a parser's message, its key first.

    Args:
        message: Of jsonargparse, of many lines.

    Returns:
        One line, or the few lines of a message that has another form.
    """
    keys: list[str] = []
    said: list[str] = []
    expected: list[str] = []
    given = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if found := KEY.match(text):
            keys.append(found[1])
            text = found[2].strip()
        if found := GIVEN.match(text):
            given = given or found[1]
        elif found := EXPECTED.match(text):
            expected.append(_type(found[1]))
            given = given or (found[2] or "")
        elif text and not text.startswith(FRAME):
            said.append(text)
    return _sentence(keys, said, [e for e in expected if e != "NoneType"], given) or message


def _sentence(keys: list[str], said: list[str], expected: list[str], given: str) -> str:
    text = " ".join(said)
    flag = NESTED.match(given)
    if found := OPTION.search(text):
        advice = "`--help` lists the keys"
        if flag:
            advice = "is the flag behind the `--config` that names its class? " + advice
        return f"`{_key([*keys, found[1]])}`: there is no such key; {advice}"
    if found := REQUIRED.search(text):
        # Below a subcommand jsonargparse puts its name before the key.
        names = re.sub(r"\b(?:fit|validate|test|predict)\.", "", found[1])
        missing = [_key([*keys, key]) for key in names.split(", ")]
        return f"`{'`, `'.join(missing)}` must be given"
    if said:
        return f"`{_key(keys)}`: {text}" if keys else text
    if keys and not flag and not expected and given.startswith("{"):
        return f"`{_key(keys)}`: nothing names its class: add `class_path` beside `init_args`"
    if flag:
        # The flag's own key is the last one; a key that the parser named is the same.
        keys, given = [*keys[:1], flag[1]], flag[2]
    if expected:
        wanted = " or ".join(dict.fromkeys(expected))
        given = "null" if given == "None" else given
        return f"`{_key(keys)}` is {given}: give {wanted}"
    return ""


def _key(keys: list[str]) -> str:
    """Whole name of a key; below a class its arguments are in `init_args`."""
    if not keys:
        return "config"
    first, *rest = keys
    classes = first in ("model", "data", "masking") or first.endswith("callbacks")
    return ".".join([first, *(["init_args"] if rest and classes else []), *rest])


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
