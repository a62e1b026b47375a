"""Packages whose names are imported at first use, so that `peas --help` is fast."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a package or module.

    Args:
        package: Its name.
        homes: Module of each public name.
        renamed: Name in an earlier release -> name in `package` today. An old name still works
            and gives a `DeprecationWarning`.
    """
    renamed = renamed or {}

    def get(name: str) -> Any:
        if name in renamed:
            new = renamed[name]
            warnings.warn(
                f"{package}.{name} has been renamed: use {package}.{new}",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(import_module(package), new)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get
