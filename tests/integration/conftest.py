"""The command line on generated sounds: one data set and one trained run for all tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from drive import BASE, CLASSES, CLIPS, Run, Write, changed, fit
from forks import Forks

# Imported now, while the standard streams are those of the whole session: Lightning's log handler
# keeps the stream that it finds.
import peas.cli.main  # noqa: F401
from peas.data.synthetic import write_sounds


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Calls of `peas` that are processes of their own."""
    with Forks() as parent:
        yield parent


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty clips of three kinds, in ESC-50's layout."""
    folder = tmp_path_factory.mktemp("data") / "sounds"
    return write_sounds(folder, classes=CLASSES, clips_per_class=CLIPS // CLASSES, seconds=0.64)


@pytest.fixture
def damaged(sounds: Path, tmp_path: Path) -> Path:
    """A copy of the sounds for a test to damage."""
    return Path(shutil.copytree(sounds, tmp_path / "damaged"))


@pytest.fixture
def write(sounds: Path, tmp_path: Path) -> Write:
    """Writes a config with changes; `KEY-` takes a key away."""

    def config(name: str = "tiny.yaml", /, **changes: Any) -> Path:
        given = {"data.init_args.root": str(sounds), **changes.pop("changes", {}), **changes}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(changed(BASE, given)))
        return path

    return config


@pytest.fixture(scope="session")
def trained(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run of three epochs. Tests that write into its folder take `copied`."""
    run, done = fit(tmp_path_factory.mktemp("runs") / "unbroken", sounds)
    assert done.code == 0, done.err
    # Whoever trains on with this run's config adds lines where it names its file.
    return Run(run.folder, run.config, run.masks.rename(run.masks.with_name("whole.jsonl")))


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Run:
    """A copy of the trained run, to write into."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copied"))
    return Run(folder, trained.config, trained.masks)
