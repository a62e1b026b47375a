"""Links, paths, commands and navigation of README and docs; the strict build of the site."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from peas.__main__ import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
DATA_VERBS = {"prepare", "verify", "stats", "pack", "targets"}

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


def code(page: Path) -> str:
    """Shell blocks and inline code of a page."""
    text = page.read_text()
    blocks = re.findall(r"(?ms)^ *```(?:bash|sh)\n(.*?)^ *```$", text)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [line.split("#")[0] for line in lines if re.match(r"\s*(srun )?peas ", line)]
    return "\n".join(
        [*commands, *(f"`{span}`" for span in re.findall(r"`([^`\n]+)`", prose(page)))]
    )


@by_page
def test_relative_links_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        # The headings of reference pages come from docstrings.
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@by_page
def test_configs_exist(page: Path) -> None:
    for name in re.findall(r"configs/[\w./-]+\w", page.read_text()):
        # `esc50_$row.yaml` of a loop.
        assert (ROOT / name).exists() or name.endswith("_"), name


@pytest.fixture
def verbs(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """First words of the verbs that `peas --help` lists."""
    assert main(["--help"]) == 0
    return set(re.findall(r"^  ([a-z]+)", capsys.readouterr().out, re.M))


@by_page
def test_verbs_exist(page: Path, verbs: set[str]) -> None:
    for verb in re.findall(r"(?:^|`|\s)peas ([a-z_]+)(?= |`|$)", code(page), re.M):
        assert verb in verbs, verb
    for verb in re.findall(r"peas data ([a-z]+)", code(page)):
        assert verb in DATA_VERBS, verb


def pages(nav: Any) -> list[str]:
    """Files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [name for entry in entries for name in pages(entry)]


def test_the_navigation_names_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    files = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(pages(nav)) == sorted(files)


def test_images_are_used() -> None:
    used = {Path(link).name for page in PAGES for link in LINK.findall(page.read_text())}
    assert {path.name for path in (DOCS / "images").iterdir()} <= used


def test_the_quick_start_has_the_python_of_the_readme() -> None:
    # The README's lines are run by tests/integration/test_readme.py.
    code, _ = re.findall(r"(?ms)^```python\n.*?^```", (ROOT / "README.md").read_text())
    assert code in (DOCS / "quickstart.md").read_text()


def test_the_citation_has_what_its_schema_requires() -> None:
    from peas import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason="mkdocs-material and mkdocstrings[python] are not installed (extra `docs`)",
)
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "peas.tasks.Classification" in (tmp_path / "site/api/tasks/index.html").read_text()
