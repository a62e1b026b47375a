"""The scripts run and print their tables; no figure of theirs is tested."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ("--size", "tiny", "--batch", "1", "--repeats", "1", "--threads", "1")


def run(script: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_front_end() -> None:
    printed = run("frontend.py", "--clips", "1", "--seconds", "1", "--repeats", "1")
    assert "| ratio |" in printed


def test_training_step_without_the_official_code() -> None:
    printed = run("training_step.py", *TINY)
    assert "| peas (s) |" in printed
    assert "says nothing about the official code" in printed


def test_training_step_names_what_is_wrong_with_the_official_code(tmp_path: Path) -> None:
    arguments = [str(FOLDER / "training_step.py"), *TINY, "--peer", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, *arguments], check=False, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode != 0
    assert "ast_models" in ended.stderr


@pytest.mark.slow
def test_peas_step() -> None:
    printed = run("peas_step.py", *TINY, "--epochs", "1", "--batches", "1", "--memory-repeats", "0")
    assert "| PEAS (1,1) step (s) |" in printed
    assert "epochs 1 to 1, without the first" in printed
