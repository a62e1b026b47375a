"""A user's own folder, from a fit to the test of other clips and the scores of unknown ones."""

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from drive import BASE, call, changed
from yaml import safe_dump

RATE = 16_000


def _clip(path: Path, hertz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.4 * np.sin(hertz * np.arange(9_600) / RATE * 2 * np.pi), RATE)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder a class; a clip of it is longer than the input."""
    root = tmp_path_factory.mktemp("own")
    for number in range(6):
        _clip(root / "set" / "low" / f"{number}.wav", 200 + 10 * number)
        _clip(root / "set" / "high" / f"{number}.wav", 4_000 + 100 * number)
    config = changed(BASE, {"masking": None, "trainer.max_epochs": 1})
    config["data"] = {
        "class_path": "peas.data.AudioFolder",
        "init_args": {
            "root": str(root / "set"),
            "holdout": 0.2,
            "frames": 64,
            "batch_size": 3,
            "num_workers": 0,
            "cache_dir": str(root / "cache"),
        },
    }
    (root / "own.yaml").write_text(safe_dump(config))
    done = call("fit", "--config", root / "own.yaml", "--trainer.default_root_dir", root / "run")
    assert done.code == 0, done.err
    return root / "run"


def _after(run: Path, verb: str, root: Path, *argv: object) -> list[object]:
    head = [verb, "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    return [*head, "--data.init_args.root", root, "--data.init_args.holdout=null", *argv]


def test_test_clips_alone_and_of_one_class_are_tested(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    _clip(other / "a.wav", 220)
    _clip(other / "b.wav", 230)
    (other / "c.csv").write_text("path,label,split\na.wav,low,test\nb.wav,low,test\n")
    argv = ["--data.init_args.csv=c.csv", "--trainer.default_root_dir", tmp_path / "out"]
    done = call(*_after(run, "test", other, *argv))
    assert done.code == 0, done.err
    with np.load(tmp_path / "out" / "logits" / "test.npz") as logits:
        assert logits["labels"].tolist() == ["high", "low"]
        # The checkpoint's second class, though the clips know one alone.
        assert logits["targets"].tolist() == [[0, 1], [0, 1]]
    (other / "c.csv").write_text("path,label,split\na.wav,low,test\nb.wav,middle,test\n")
    message = call(*_after(run, "test", other, *argv)).message
    assert "2 classes" in message
    assert "'high' and 'low'" in message


def test_a_folder_without_labels_is_predicted_and_nothing_overwritten(
    run: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    _clip(plain / "x.wav", 210)
    _clip(plain / "2026" / "y.wav", 4_100)
    out = tmp_path / "out"
    argv = ["--trainer.default_root_dir", out]
    done = call(*_after(run, "predict", plain, *argv))
    assert done.code == 0, done.err
    rows = _rows(out / "predictions.csv")
    assert [row["id"] for row in rows] == ["x.wav", "2026/y.wav"]
    for row in rows:
        assert row["file"] == str(plain / row["id"])
        assert row["set"] == str(plain)
        assert (row["split"], row["true_label"]) == ("", "")
        assert row["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
        assert row["label"] in ("high", "low")
    # Another set, of known classes.
    known = Path(shutil.copytree(run.parent / "set", tmp_path / "known"))
    for _ in range(2):
        done = call(*_after(run, "predict", known, *argv))
        assert done.code == 0, done.err
    again = _rows(out / "predictions.1.csv")
    assert {row["split"] for row in again} == {""}
    assert [row["true_label"] for row in again] == ["high"] * 6 + ["low"] * 6
    assert _rows(out / "predictions.csv") == rows
    assert not (out / "predictions.2.csv").exists()


def test_the_holdout_of_the_training_is_none_of_another_folder(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch")
    config = run / "config.yaml"
    head = ["predict", "--config", config, "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    other = tmp_path / "other"
    for number in range(4):
        _clip(other / "low" / f"{number}.wav", 200 + number)
    argv = ["--data.init_args.root", other, "--trainer.default_root_dir", tmp_path / "out"]
    done = call(*head, *argv)
    assert done.code == 0, done.err
    rows = _rows(tmp_path / "out" / "predictions.csv")
    assert [row["split"] for row in rows] == [""] * 4
    # Its own folder has the splits that it drew.
    done = call(*head, "--trainer.default_root_dir", tmp_path / "own")
    assert done.code == 0, done.err
    splits = [row["split"] for row in _rows(tmp_path / "own" / "predictions.csv")]
    assert len(splits) == 12
    assert set(splits) == {"train", "validation", "test"}
    # A set that names its test clips: the others are counted.
    (other / "c.csv").write_text(
        "path,label,split\nlow/0.wav,low,train\nlow/1.wav,low,dev\nlow/2.wav,low,test\n"
    )
    argv += ["--data.init_args.csv=c.csv", "--data.init_args.holdout=null"]
    done = call(*head, *argv)
    assert done.code == 0, done.err
    assert "1 predictions" in caplog.messages[-1]
    assert "2 other clips" in caplog.messages[-1]
