"""The scripts run and print their tables; no figure of theirs is tested."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

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
    for name in ("timing", "peer"):
        sys.modules.pop(name, None)


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


def test_pretraining_step_without_the_official_code(run) -> None:
    printed = run("ssast_pretraining_step.py", *TINY)
    assert "| peas, one shared pass (s) |" in printed
    assert "says nothing about the official code" in printed


def test_pretraining_step_refuses_another_folder(run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no src/models/ast_models\.py there"):
        run("ssast_pretraining_step.py", *TINY, "--peer", str(tmp_path))


def test_masked_audio_modeling_without_the_official_code(run) -> None:
    printed = run("mae_pretraining_step.py", *TINY, "--parts", "autoencoder")
    assert "| peas (s) |" in printed
    assert "says nothing about the official code" in printed
    assert "- peas: " in printed


def test_masked_audio_modeling_with_targets(run) -> None:
    printed = run("mae_pretraining_step.py", *TINY, "--parts", "distillation")
    assert "| cached / constant |" in printed
    assert "A live teacher's share of its step" in printed


def test_masked_audio_modeling_refuses_another_folder(run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no models_mae\.py there"):
        run("mae_pretraining_step.py", *TINY, "--peer", str(tmp_path))


def test_peas_step(run) -> None:
    few = ("--epochs", "1", "--batches", "1", "--memory-repeats", "0")
    printed = run("peas_step.py", *TINY, *few)
    assert "| PEAS (1,1) step (s) |" in printed
    assert "epochs 1 to 1, without the first" in printed


def test_scale_of_data(run) -> None:
    printed = run("data_scale.py", "--rows", "3000", "--draws", "100", "--repeats", "1")
    assert "3,000" in printed
    assert "private" in printed


def test_loading_without_the_official_code(run, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    few = ("--count", "4", "--seconds", "1", "--frames", "100", "--batch", "2", "--repeats", "1")
    printed = run("loading.py", "--clips", str(tmp_path), *few)
    assert "| peas, packed FLAC |" in printed
    assert "says nothing about the official loader" in printed


def test_loading_refuses_a_folder_without_the_official_code(run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.1), 16_000)
    few = ("--count", "1", "--seconds", "0.1", "--frames", "10")
    with pytest.raises(SystemExit, match=r"no dataset\.py of AudioMAE"):
        run("loading.py", "--clips", str(tmp_path), *few, "--peer", str(tmp_path / "none"))


def test_embeddings(run) -> None:
    few = ("--count", "3", "--seconds", "0.5", "--sizes", "mini", "--frames", "64")
    printed = run("embed.py", *few, "--repeats", "1", "--workers", "0", "--bf16")
    assert "| peas embed / plain loop, ratio |" in printed
    assert "| peas embed, bf16 |" in printed
