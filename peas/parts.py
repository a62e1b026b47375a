"""What a researcher may replace from a file of their own: named in YAML by its class path."""

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any, Self, TypeVar


class Part:
    """An object that remembers what it was made with, so that a checkpoint can say it.

    A part is chosen by `class_path` and `init_args`; what it is given should be plain: numbers,
    texts, lists, tables, or parts.
    """

    unsaved: tuple[str, ...] = ()
    """Arguments that no checkpoint holds: a teacher, say."""
    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Notes the arguments."""
        part = super().__new__(cls)
        # A copy is made without any.
        signature = inspect.signature(cls.__init__)
        given = signature.bind_partial(part, *args, **kwargs)
        given.apply_defaults()
        _, *named = given.arguments.items()
        told: dict[str, Any] = {}
        for name, value in named:
            rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            told |= value if rest else {name: value}
        # A torch module wants its own constructor to come first.
        object.__setattr__(part, "_given", told)
        return part

    def setting(self, name: str) -> Any:
        """What a setting was given as; None for one that this part does not have."""
        return self._given.get(name)

    def settle(self, **values: Any) -> None:
        """Notes what settings that were null have come to, here and for `spec`."""
        for name, value in values.items():
            setattr(self, name, value)
            self._given[name] = value

    def spec(self) -> dict[str, Any]:
        """`class_path` and `init_args`, plain."""
        given = {key: value for key, value in self._given.items() if key not in self.unsaved}
        return {
            "class_path": class_path(type(self)),
            "init_args": {key: plain(value) for key, value in given.items()},
        }


P = TypeVar("P", bound=Part)


def class_path(cls: type) -> str:
    """Where a class is imported from: the shortest package that offers it under its name."""
    home = cls.__module__
    parts = home.split(".")
    for count in range(1, len(parts)):
        package = sys.modules.get(".".join(parts[:count]))
        if getattr(package, cls.__name__, None) is cls:
            home = ".".join(parts[:count])
            break
    return f"{home}.{cls.__qualname__}"


def plain(value: Any) -> Any:
    """A setting as a checkpoint holds it: parts by their class paths, tuples as lists.

    Anything else is told by its class path alone: a checkpoint that held an object could not be
    read without executing it.
    """
    if isinstance(value, Part):
        return value.spec()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return class_path(type(value))


def made(value: P | Mapping[str, Any] | None, base: type[Any]) -> P | None:
    """A part as it is, or from a checkpoint's table of class path and settings.

    Raises:
        CheckpointError: The table names no class of `peas` that is such a part.
    """
    if isinstance(value, Mapping):
        part: P = make(value, base, where="hyper_parameters")
        return part
    return value
