"""`peas data stats`: lines to paste, JSON, picture, and what it does with broken clips."""

import json
import re

import matplotlib.image
import numpy as np
import pytest

from peas.__main__ import main
from peas.cli.data.stats import plot
from peas.data.esc50 import ESC50
from peas.data.statistics import measure
from peas.errors import DataError


def run(root, out, *options, name="esc50", workers=0):
    arguments = [name, str(root), "--workers", str(workers), "--out", str(out), *options]
    status = main(["data", "stats", *arguments])
    return status, json.loads((out / "stats.json").read_text())


@pytest.mark.parametrize("padded", [False, True])
def test_what_is_printed_and_written(sounds, tmp_path, capsys, padded):
    options = ["--frames", "80", "--fold", "2", *(["--padded"] if padded else [])]
    status, facts = run(sounds, tmp_path / "out", *options)
    assert status == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    train = ESC50(str(sounds), cache_dir="", fold=2).clips("train")
    found = measure(train, 80, padded=padded, workers=0)
    assert (facts["mean"], facts["std"]) == (found.mean, found.std)
    assert (facts["clips"], facts["unreadable"], facts["frames"]) == (32, 0, 80)
    # 0.64 s are 62 of the 80 frames.
    assert facts["bins"] == 32 * 128 * (80 if padded else 62)
    assert facts["padded"] == padded
    assert facts["padding"] == pytest.approx(1 - 0.64 / 0.815, abs=1e-3)
    assert facts["cut"] == 0
    assert facts["lengths"] == {"min": 0.64, "median": 0.64, "mean": 0.64, "max": 0.64}
    assert facts["splits"]["train"]["clips"] == 32
    assert list(facts["splits"]["test"]["classes"].values()) == [2, 2, 2, 2]
    # As they stand they go into a config.
    lines = re.findall(r"^(mean|std): (\S+)$", shown, re.MULTILINE)
    assert [name for name, _ in lines] == ["mean", "std"]
    assert [float(value) for _, value in lines] == pytest.approx([found.mean, found.std], abs=1e-5)
    picture = matplotlib.image.imread(tmp_path / "out" / "lengths.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


def test_longer_clips_lose_their_end(sounds, tmp_path):
    assert run(sounds, tmp_path / "out", "--frames", "62")[1]["cut"] == 0
    _, facts = run(sounds, tmp_path / "out", "--frames", "61")
    assert (facts["cut"], facts["padding"]) == (32, 0.0)
    assert facts["bins"] == 32 * 128 * 61


def test_nothing_is_written_unasked(sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats", "esc50", str(sounds), "--workers", "0"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "std: " in capsys.readouterr().out


def test_nothing_changes_with_workers(sounds, tmp_path):
    found = []
    for workers in (0, 1, 3):
        _, facts = run(sounds, tmp_path / "out", workers=workers)
        found.append({**facts, "command": ""})
    assert found[0] == found[1] == found[2]


@pytest.fixture
def copied(sounds, tmp_path):
    root = tmp_path / "set"
    for folder in ("meta", "audio"):
        (root / folder).mkdir(parents=True)
        for path in (sounds / folder).iterdir():
            (root / folder / path.name).write_bytes(path.read_bytes())
    return root


def test_broken_clips_are_left_out_and_named(copied, tmp_path, capsys):
    train = ESC50(str(copied), cache_dir="").clips("train")
    bad = train.ids[3]
    (copied / "audio" / bad).write_bytes(b"broken")
    status, facts = run(copied, tmp_path / "out")
    assert status == 1
    shown, errors = capsys.readouterr()
    assert re.search(r"^mean: -?\d", shown, re.MULTILINE)
    assert "1 of 32 training clips cannot be read" in errors
    assert bad in errors
    assert "peas data verify" in errors
    assert (facts["clips"], facts["unreadable"]) == (31, 1)
    rest = train.take([row for row in range(32) if row != 3])
    assert facts["mean"] == pytest.approx(measure(rest, 512, workers=0).mean, abs=1e-6)


def test_a_split_that_is_not_there_is_told(sounds, tmp_path, capsys, monkeypatch):
    clips = ESC50.clips

    def without_test(self, split):
        if split == "test":
            raise DataError("there is no list of test clips")
        return clips(self, split)

    monkeypatch.setattr(ESC50, "clips", without_test)
    status, facts = run(sounds, tmp_path / "out")
    assert status == 0
    assert facts["splits"]["test"] == {
        "clips": 0,
        "classes": {},
        "message": "there is no list of test clips",
    }
    assert "test: there is no list of test clips" in capsys.readouterr().out


def test_no_set(tmp_path, capsys):
    assert main(["data", "stats", "esc50", str(tmp_path / "nowhere")]) == 1
    assert "there is no " in capsys.readouterr().err


def test_ctrl_c(sounds, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("peas.data.statistics.measure", interrupted)
    assert main(["data", "stats", "esc50", str(sounds)]) == 130
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seconds", [[1.0], [5.0] * 400, [0.0001, 3600.0], np.linspace(0.3, 35, 5_000)]
)
def test_pictures_of_any_lengths(tmp_path, seconds):
    figure = plot(np.array(seconds), 10.24, "lengths")
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == len(seconds)
    figure.savefig(tmp_path / "lengths.png")


def test_real_recordings(shared, tmp_path, capsys):
    status, facts = run(
        shared / "data" / "speech_commands_3words", tmp_path, name="speech_commands", workers=2
    )
    assert status == 0
    assert facts["splits"]["train"]["clips"] == facts["clips"] == 586
    # The whole set's official numbers are -6.85 and 5.57, padding counted.
    assert -12 < facts["mean"] < -4
    assert 3 < facts["std"] < 8
