"""CLAP as a teacher: sound in, a frozen map of features out. Names are resolved when first used."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.teachers.base import Teacher
    from peas.teachers.clap_laion import LaionClapTeacher
    from peas.teachers.clap_transformers import TransformersClapTeacher

__all__ = ["LaionClapTeacher", "Teacher", "TransformersClapTeacher"]

__getattr__ = lazily(
    __name__,
    {
        "LaionClapTeacher": "peas.teachers.clap_laion",
        "Teacher": "peas.teachers.base",
        "TransformersClapTeacher": "peas.teachers.clap_transformers",
    },
)
