"""Runs that an earlier release left are still scored alike and trained to the same end."""

from pathlib import Path

import pytest
import torch
from old_runs import RUNS, figures, kept, sounds

from peas.errors import CheckpointError
from peas.tasks import Classification, Pretraining

FILES = sorted(RUNS.glob("*/*.pt.xz"))
ABOUT = 2e-3
"""Two machines' rounding, through some steps of training."""
RANKED = ("mAP", "AUC", "accuracy", "d_prime", "agree")
"""Figures of few clips that rounding may turn over."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips that all of them were trained on."""
    return sounds(tmp_path_factory.mktemp("old") / "sounds")


RENAMED = {"fit train/accuracy": "fit train/nce_accuracy"}
"""Of SSAST's pretraining; fine-tuning still logs an accuracy of its own."""


def test_there_are_runs_of_every_kind() -> None:
    assert {path.name.split(".")[0] for path in FILES} >= {
        *("ssast", "audiomae", "supmam", "peas", "peas_mae"),
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name} {file.name}")
def test_an_earlier_release_s_run_goes_on(file: Path, clips: Path, tmp_path: Path) -> None:
    run = kept(file)
    found = figures(run, clips, tmp_path)
    renamed = RENAMED if file.name.startswith("ssast") else {}
    expected = {
        renamed.get(name, name).replace("/trivial_", "/baseline_"): value
        for name, value in run["figures"].items()
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if any(part in name for part in RANKED):
            continue
        assert found[name] == pytest.approx(value, rel=ABOUT, abs=ABOUT), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name} {file.name}")
def test_an_earlier_release_s_run_is_a_task_in_python(file: Path, tmp_path: Path) -> None:
    torch.save(kept(file)["checkpoint"], tmp_path / "old.ckpt")
    cls = Classification if file.name.startswith("peas") else Pretraining
    task = cls.load_from_checkpoint(tmp_path / "old.ckpt")
    assert task.built
    for name, weight in kept(file)["checkpoint"]["state_dict"].items():
        if name.startswith("model.") and name in task.state_dict():
            assert torch.equal(task.state_dict()[name], weight), name
    other = Pretraining if cls is Classification else Classification
    with pytest.raises(CheckpointError):
        other.load_from_checkpoint(tmp_path / "old.ckpt")
