"""The wheel alone, outside the checkout: what `pip install peas` gives a user."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, to be put before the checkout on the path."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("peas-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _run(site: Path, cwd: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "peas", *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_config_is_listed(site: Path, tmp_path: Path) -> None:
    listed = _run(site, tmp_path, "configs", "ls")
    for folder in ("finetune", "pretrain"):
        for file in (ROOT / "configs" / folder).glob("*.yaml"):
            assert file.stem in listed


def test_a_shipped_config_trains(site: Path, tmp_path: Path) -> None:
    """By its name, on sounds that the run makes itself; the checkpoint then labels one of them."""
    fast = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    _run(
        site, tmp_path, "fit", "--config", "demo_pretrain", "--trainer.default_root_dir", "P", *fast
    )
    encoder = ("--model.init_args.pretrained", "P/checkpoints/last.ckpt")
    words = ("--config", "demo", "--trainer.default_root_dir", "F", *encoder, *fast)
    _run(site, tmp_path, "fit", *words)
    sound = next((tmp_path / "runs").rglob("*.wav"))
    scores = _run(site, tmp_path, "tag", str(sound), "--checkpoint", "F/checkpoints/last.ckpt")
    assert "%" in scores
