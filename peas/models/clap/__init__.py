"""CLAP as a teacher: sound in, a frozen map of features out. Names are resolved when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peas.models.clap.hub import TransformersClapTeacher
    from peas.models.clap.laion import LaionClapTeacher
    from peas.models.clap.teacher import Teacher

__all__ = ["LaionClapTeacher", "Teacher", "TransformersClapTeacher"]

_HOMES = {
    "LaionClapTeacher": "peas.models.clap.laion",
    "Teacher": "peas.models.clap.teacher",
    "TransformersClapTeacher": "peas.models.clap.hub",
}


def __getattr__(name: str) -> object:
    """Import a teacher when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
