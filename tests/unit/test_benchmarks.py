"""The scripts run and print their tables; no figure of theirs is tested."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ("--size", "tiny", "--batch", "1", "--repeats", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script with arguments and gives what it printed."""

    def runner(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.syspath_prepend(FOLDER)
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        return capsys.readouterr().out

    # Scripts import `timing` as their neighbour; under that name other tests may mean another.
    yield runner
    sys.modules.pop("timing", None)


@pytest.fixture(autouse=True)
def _same_threads() -> None:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_front_end(run) -> None:
    printed = run("frontend.py", "--clips", "1", "--seconds", "1", "--repeats", "1")
    assert "| ratio |" in printed


def test_training_step_without_the_official_code(run) -> None:
    printed = run("training_step.py", *TINY)
    assert "| peas (s) |" in printed
    assert "says nothing about the official code" in printed


def test_training_step_refuses_another_folder(run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no src/models/ast_models\.py there"):
        run("training_step.py", *TINY, "--peer", str(tmp_path))


def test_peas_step(run) -> None:
    few = ("--epochs", "1", "--batches", "1", "--memory-repeats", "0")
    printed = run("peas_step.py", *TINY, *few)
    assert "| PEAS (1,1) step (s) |" in printed
    assert "epochs 1 to 1, without the first" in printed
