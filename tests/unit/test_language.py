"""Words that have a standard term in the field do not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Where 0.1's words are told in today's.
EXEMPT = {"peas/utils/migration.py", "tests/unit/test_language.py"}

# A word or phrase, and what is written in its place.
BANNED = {
    r"draws?|drawn|drawing": "sample, random numbers, reconstruct, plot, split",
    r"(?:goes|go|going|gone) on": "resume, continue",
    r"(?:tells?|told|telling) apart": "discriminate",
    r"(?:is|are|was) told": "is given, is logged",
    r"reading process(?:es)?": "worker",
    r"trivial": "baseline",
    r"facts?": "info, metadata",
    r"hidden (?:patch(?:es)?|cells?|bins?)": "masked",
    r"cells?": "bins",
    r"(?:is|are|be) no numbers?|no number,": "non-finite, not a number",
    r"arms?": "condition",
    r"odd (?:clips?|files?|sounds?)": "bad clips",
    r"pictures?": "plot",
    r"without a word": "silently",
    r"(?:says|say|said) so": "warns, reports",
    r"likely": "reference_code",
    r"hears?|listens?": "takes as input",
    r"as ever": "",
}
# Where the word is the standard one, or a stored name. The line is read without these.
STANDARD = re.compile(
    r"cells? of (?:a|the) table|empty cell|cells \(cluster|a cell's sum|(?:more|less) likely"
    r"|most likely|non-?trivial|`?\"?\bdrawn\"|`drawn`|\"cells\"|cells: `Moments`|pictures[`|]"
    # HEAR, the evaluation suite.
    r"|(?-i:HEAR)|suites[./]hear|\(#hear\)|hear-validator"
    r"|b\"fact\"|`fact`|`Pictures`|\"Pictures\"",
    re.IGNORECASE,
)


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a page, or of a module's strings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    if path.suffix == ".yaml":
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.partition("#")[2]
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def _files(*patterns: str) -> list[Path]:
    found = [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]
    return [file for file in found if file.relative_to(ROOT).as_posix() not in EXEMPT]


ROOMS = sorted({path.relative_to(ROOT).parts[1] for path in (ROOT / "peas").rglob("*.py")})


@pytest.mark.parametrize("room", [*ROOMS, "docs", "configs", "examples"])
def test_the_terms_of_the_field(room: str) -> None:
    """Docstrings, comments, messages, help and pages."""
    files = {
        "docs": _files("README.md", "CONTRIBUTING.md", "docs/**/*.md"),
        "configs": _files("configs/**/*.yaml", "configs/*.md"),
        "examples": _files("examples/**/*.py", "examples/**/*.md"),
    }.get(room) or _files(f"peas/{room}/**/*.py", f"peas/{room}")
    found = []
    for file in files:
        if file.is_dir():
            continue
        for number, line in _prose(file):
            line = STANDARD.sub("", line)
            for word, term in BANNED.items():
                if match := re.search(rf"\b(?:{word})\b", line, re.IGNORECASE):
                    where = f"{file.relative_to(ROOT)}:{number}"
                    found.append(f"{where}: {match.group()!r} ({term}): {line.strip()[:90]}")
    assert not found, "\n".join(found)


WORDS = {
    "draw",
    "draws",
    "drawn",
    "trivial",
    "facts",
    "told",
    "whole",
    "odd",
    "cells",
    "arm",
    "arms",
}


def test_names_of_the_field() -> None:
    """Names of modules, classes, functions and their arguments."""
    found = []
    for file in _files("peas/**/*.py"):
        names = [file.stem]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.append(node.name)
            if isinstance(node, ast.FunctionDef):
                names += [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
        for name in names:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
            if WORDS & set(words):
                found.append(f"{file.relative_to(ROOT)}: {name}")
    assert not found, "\n".join(sorted(set(found)))


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Else pytest collects one of two in one process, and the other is an error."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
