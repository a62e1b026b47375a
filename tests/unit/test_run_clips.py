"""What is refused, and what is said, when the clips of a run are others than before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from toys import StandIn, data

from peas.data import AudioFolder
from peas.errors import CheckpointError
from peas.training import run_clips
from peas.training.run_clips import as_saved, check, clips_of


def trainer(sounds: Path, stage: str = "training", **settings: Any) -> Any:
    stages = dict.fromkeys(("training", "validating", "testing"), False) | {stage: True}
    return StandIn(datamodule=data(sounds, **settings), **stages)


@pytest.fixture
def saved(sounds: Path) -> dict[str, Any]:
    clips = clips_of(trainer(sounds))
    assert clips is not None
    return {"clips": as_saved(clips)}


def test_what_is_saved_is_small_and_read_without_code(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(saved, tmp_path / "clips")
    known = torch.load(tmp_path / "clips", weights_only=True)
    assert {key: value.dtype for key, value in known["clips"]["train"].items()} == run_clips.FIELDS
    assert [len(known["clips"][split]["ids"]) for split in ("train", "validation")] == [32, 8]


@pytest.mark.parametrize("stage", ["training", "validating", "testing"])
def test_the_run_s_own_clips_are_no_matter(
    sounds: Path, saved: dict[str, Any], stage: str, recwarn: pytest.WarningsRecorder
) -> None:
    check(trainer(sounds, stage), saved, "last.ckpt")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("stage", "split"),
    [("training", "validation"), ("validating", "validation"), ("testing", "test")],
)
@pytest.mark.filterwarnings("ignore:the .* clips are not those")
def test_another_fold_is_refused(
    sounds: Path, saved: dict[str, Any], stage: str, split: str
) -> None:
    with pytest.raises(CheckpointError, match=f"8 of the 8 {split} clips .*fold, split and seed"):
        check(trainer(sounds, stage, fold=3), saved, "last.ckpt")


def test_clips_that_the_user_names_for_the_test_are_scored_with_a_warning(
    tmp_path: Path,
) -> None:
    for label in ("a", "b"):
        for number in range(4):
            path = tmp_path / label / f"{number}.wav"
            path.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(number).uniform(-0.5, 0.5, 8_000)
            soundfile.write(path, noise, 16_000)
    rows = [f"{label}/{number}.wav,{label}" for label in ("a", "b") for number in range(4)]
    folds = [f"{row},{number % 2}" for number, row in enumerate(rows)]
    (tmp_path / "folds.csv").write_text("\n".join(["path,label,fold", *folds]))
    tests = [f"{row},test" for row in rows]
    (tmp_path / "test.csv").write_text("\n".join(["path,label,split", *tests]))

    def run(stage: str, **settings: Any) -> Any:
        known = {"mean": 0.0, "std": 1.0, "frames": 32, "cache_dir": "", **settings}
        stages = dict.fromkeys(("training", "validating", "testing"), False) | {stage: True}
        return StandIn(datamodule=AudioFolder(str(tmp_path), **known), **stages)

    clips = clips_of(run("training", csv="folds.csv", fold=0))
    assert clips is not None
    saved = {"clips": as_saved(clips)}
    with pytest.warns(UserWarning, match="4 of the 8 test clips"):
        check(run("testing", csv="test.csv"), saved, "last.ckpt")
    with pytest.raises(CheckpointError, match="4 of the 4 test clips"):
        check(run("testing", csv="folds.csv", fold=1), saved, "last.ckpt")


def test_a_split_that_shares_clips_by_its_own_tables_may_be_scored(
    sounds: Path, saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(sounds, "testing")
    table = run.datamodule.clips("train")
    monkeypatch.setattr(run.datamodule, "clips", lambda split: table)
    check(run, saved, "last.ckpt")


def test_a_smaller_training_set_is_said(sounds: Path, saved: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=r"training clips .*16 clips removed \(32 before, 16 now"):
        check(trainer(sounds, label_fraction=0.5), saved, "last.ckpt")


def test_an_older_checkpoint_knows_no_clips(sounds: Path, printed: Any) -> None:
    check(trainer(sounds, fold=3), {}, "last.ckpt")
    assert "older version" in printed.text


@pytest.mark.parametrize(
    "clips",
    [
        5,
        {},
        {"train": {}, "validation": {}},
        {"train": {"ids": [1]}, "validation": {}},
        {"train": {"ids": torch.ones(2), "classes": torch.ones(2), "sounds": torch.ones(2)}},
    ],
)
def test_clips_that_are_none_are_refused(sounds: Path, clips: Any) -> None:
    with pytest.raises(CheckpointError, match=r"`clips\.train` does not hold"):
        check(trainer(sounds), {"clips": clips}, "last.ckpt")


def test_all_processes_do_what_the_first_has_found(
    sounds: Path, saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_clips, "is_first", lambda: False)
    monkeypatch.setattr(run_clips, "gather", lambda own: ["another fold", own])
    with pytest.raises(CheckpointError, match="another fold"):
        check(trainer(sounds), saved, "last.ckpt")
