"""Parts: what a user may replace by a class of their own, named in YAML by its class path."""

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, cast

from peas.errors import CheckpointError

LONGEST = 200
"""Characters of a class path."""
_DAMAGED = "the file is damaged or was changed: get it again"


class Part:
    """An object that remembers its constructor's arguments, so that a checkpoint can store them.

    A part is chosen by `class_path` and `init_args`; its arguments should be plain: numbers, texts,
    lists, tables, or parts.
    """

    unsaved: tuple[str, ...] = ()
    """Arguments that are not saved in checkpoints, such as a teacher."""
    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Stores the arguments."""
        part = super().__new__(cls)
        # A copy is made without any.
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(part, *args, **kwargs)
        bound.apply_defaults()
        _, *named = bound.arguments.items()
        settings: dict[str, Any] = {}
        for name, value in named:
            rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            settings |= value if rest else {name: value}
        # torch.nn.Module refuses attributes before its constructor has run.
        object.__setattr__(part, "_given", settings)
        return part

    def setting(self, name: str) -> Any:
        """Value of a setting; None for one that this part does not have."""
        return self._given.get(name)

    def settle(self, **values: Any) -> None:
        """Sets values of settings that were null, here and for `spec`."""
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
    """A setting as a checkpoint stores it: parts by their class paths, tuples as lists.

    Anything else is represented by its class path: a checkpoint that held an object could not be
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


def make(spec: object, base: type[Part], *, where: str, modules: Sequence[str] = ()) -> Part:
    """The part that a checkpoint names: the inverse of `Part.spec`.

    Only modules of `peas` and those that the user has named are imported, and only subclasses of
    `base` that are defined there are called. Tables with a `class_path` among the arguments are
    parts too.

    Args:
        spec: `class_path` and `init_args`.
        base: What the part must be.
        where: The file and the field in it, for errors.
        modules: Modules that the user trusts, each with those below it.

    Raises:
        CheckpointError: The part is of another kind or of a module that was not allowed, or it
            cannot be made.
    """
    if not isinstance(spec, Mapping) or set(spec) != {"class_path", "init_args"}:
        raise CheckpointError(
            f"{where}: is {_short(spec)}, but a part has `class_path` and `init_args` and nothing "
            f"else; {_DAMAGED}"
        )
    path, init_args = spec["class_path"], spec["init_args"]
    if not isinstance(path, str) or "." not in path or not is_dotted(path):
        raise CheckpointError(
            f"{where}: class_path: {_short(path)} is not MODULE.CLASS; {_DAMAGED}"
        )
    if not isinstance(init_args, Mapping):
        raise CheckpointError(f"{where}: init_args: {_short(init_args)} is no table; {_DAMAGED}")
    cls = _find(path, base, where, modules)
    _require_accepted(cls, init_args, f"{where}: {path}")
    arguments = {
        key: _restore(value, Part, f"{where}: init_args: {key}", modules)
        for key, value in init_args.items()
    }
    try:
        return cls(**arguments)
    # A part of the user's own may raise anything.
    except Exception as error:
        raise CheckpointError(
            f"{where}: {path} cannot be made of its init_args ({_text(error)}); use the release "
            "of its module that wrote the file, or get the file again"
        ) from error


def make_parts(
    settings: Mapping[str, Any],
    bases: Mapping[str, type[Part]],
    *,
    where: str,
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """A checkpoint's settings with parts instead of their class paths.

    Args:
        settings: By key: parts, or lists or tables of parts.
        bases: What a part must be, by key; other keys may hold no part.
        where: The file, for errors.
        modules: As in `make`.

    Raises:
        CheckpointError: As in `make`; or a part is where none belongs.
    """
    return {
        key: _restore(value, bases.get(key), f"{where}: {key}", modules)
        for key, value in settings.items()
    }


def is_dotted(text: str) -> bool:
    """Whether a text can name a module: names with dots between, none of them Python's own."""
    return len(text) <= LONGEST and all(
        name.isidentifier() and not name.startswith("__") for name in text.split(".")
    )


def _restore(value: Any, base: type[Part] | None, where: str, modules: Sequence[str]) -> Any:
    """A plain value as it is, and parts in it made."""
    try:
        if isinstance(value, Mapping):
            if "class_path" not in value:
                return {
                    key: _restore(item, base, f"{where}: {_short(key)}", modules)
                    for key, item in value.items()
                }
            if base is None:
                raise CheckpointError(
                    f"{where}: names {_short(value['class_path'])}, and this setting is no part; "
                    f"nothing of it was imported. {_DAMAGED.capitalize()}"
                )
            return make(value, base, where=where, modules=modules)
        if isinstance(value, list | tuple):
            items = [_restore(item, base, where, modules) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
    except RecursionError:
        raise CheckpointError(f"{where[:LONGEST]}…: is nested too deeply; {_DAMAGED}") from None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{where}: is a {type(value).__name__}, but a setting is plain: numbers, texts, lists, "
        f"tables; {_DAMAGED}"
    )


def _find(path: str, base: type[Part], where: str, modules: Sequence[str]) -> type[Part]:
    """The class of a path, if it is one that may be made."""
    module, _, name = path.rpartition(".")
    if not _is_allowed(module, modules):
        raise CheckpointError(
            f"{where}: names {path}, which is not of `peas`; nothing of it was imported. If you "
            f"trust its code, add `--allow_module {module}`"
        )
    try:
        cls = getattr(importlib.import_module(module), name, None)
    # A module of the user's own may raise anything.
    except Exception as error:
        raise CheckpointError(
            f"{where}: names {path}, and its module cannot be imported ({_text(error)}); check "
            "that Python finds the module (`PYTHONPATH=.` for a file in this folder), and that it "
            "is of the release that wrote the file"
        ) from error
    if not isinstance(cls, type):
        raise CheckpointError(
            f"{where}: names {path}, and there is no such class; use the release of {module} that "
            "wrote the file"
        )
    if cls is Part or not issubclass(cls, base):
        raise CheckpointError(
            f"{where}: names {path}, which is no {base.__name__} and was not called; {_DAMAGED}"
        )
    if not _is_allowed(cls.__module__, modules):
        raise CheckpointError(
            f"{where}: names {path}, which is defined in {cls.__module__} and was not called. "
            f"If you trust that module too, add `--allow_module {cls.__module__}`"
        )
    return cls


def _is_allowed(module: str, modules: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in ("peas", *modules))


def _require_accepted(cls: type[Part], init_args: Mapping[Any, Any], where: str) -> None:
    """Refuses arguments that a class does not take, or that no checkpoint holds."""
    accepted: list[str] = []
    open_ended = False
    # A class without a constructor of its own has that of `object`, which claims to take all.
    if cls.__init__ is not object.__init__:
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        accepted = [p.name for p in parameters if p.name not in cls.unsaved]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in init_args:
        valid = key in accepted or (open_ended and key not in cls.unsaved)
        if not isinstance(key, str) or not valid:
            raise CheckpointError(
                f"{where}: init_args: {_short(key)} is not taken from a checkpoint, only "
                f"{', '.join(accepted) or 'nothing'}; use the release of its module that wrote "
                "the file"
            )


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST else f"{value[:60]!r}…"
    # It looks no deeper than a few levels.
    return reprlib.repr(value)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def made(value: P | Mapping[str, Any] | None, base: type[Any]) -> P | None:
    """A part as it is, or from a checkpoint's table of class path and settings.

    Raises:
        CheckpointError: The table names no class of `peas` that is such a part.
    """
    if isinstance(value, Mapping):
        return cast(P, make(value, base, where="hyper_parameters"))
    return value
