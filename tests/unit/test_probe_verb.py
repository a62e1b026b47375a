"""`peas probe`: its table and files, names, layers and frames that are missing, leaks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from peas.__main__ import main
from peas.inference.leaks import require_disjoint
from peas.inference.store import ClipFrames, write_store

CLIPS = 40


def store(folder: Path, seed: int = 0, checkpoint: str = "", noise: float = 0.3) -> Path:
    source = np.random.default_rng(seed)
    classes = np.arange(CLIPS) % 2
    centres = 2 * np.eye(2, 4)[classes]
    embeddings = np.stack([centres + noise * source.standard_normal((CLIPS, 4)) for _ in range(2)])
    # Two bands of each time.
    frames = [
        ClipFrames(
            np.tile(embeddings[:, row, None], (1, 3, 2)).astype(np.float32),
            np.arange(3, dtype=np.float32),
        )
        for row in range(CLIPS)
    ]
    write_store(
        folder,
        embeddings,
        [f"clip{row}" for row in range(CLIPS)],
        layers=[2, 4],
        labels=["low", "high"],
        classes=classes,
        split=[str(row // 2 % 5) for row in range(CLIPS)],
        recording=[f"freesound:{row}" for row in range(CLIPS)],
        frames=frames,
        settings={"checkpoint": checkpoint, "pool": "mean"},
    )
    return folder


def listed(run: Path, recordings: list[int]) -> Path:
    """A run whose config names a CSV with these Freesound ids."""
    (run / "checkpoints").mkdir(parents=True)
    with (run / "clips.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "label", "freesound_id"])
        writer.writerows([f"{number}.wav", "a", number] for number in recordings)
    data = {
        "class_path": "peas.data.AudioFolder",
        "init_args": {"root": str(run), "csv": "clips.csv", "mean": 0.0, "std": 1.0},
    }
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return run / "checkpoints" / "last.ckpt"


def test_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peas.evaluation.probes.heads.EPOCHS", 10)
    monkeypatch.setattr("peas.evaluation.probes.closed.Weighted.grid", (0.1,))
    first, second = (store(tmp_path / f"seed{seed}", seed) for seed in (0, 1))
    probes = ("knn", "knn_xares", "linear", "weighted", "attentive", "prototypes")
    argv = ["probe", f"two={first}", f"two={second}", str(first), "--probes", *probes]
    assert main([*argv, "--seeds", "0,1", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "out" / "probe.md").read_text()
    assert text.strip() in out
    rows = list(csv.DictReader((tmp_path / "out" / "probe.csv").open()))
    assert [(row["store"], row["probe"]) for row in rows] == [
        (name, probe) for name in ("two", "seed0") for probe in probes
    ]
    assert rows[0]["clips"] == str(CLIPS)
    assert rows[3]["layers"] == "2, 4"
    content = json.loads((tmp_path / "out" / "probe.json").read_text())["rows"]
    assert content[0]["value"] > 0.9
    assert [len(runs) for runs in content[4]["by_run"]] == [2, 2]
    assert len(content[2]["chosen"][0]) == len(content[2]["partitions"]) == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--layer", "3"], ["no layer 3", "2, 4"]),
        (["--split", "test"], ["train and test"]),
        (["--seeds", "x"], ["--seeds"]),
        (["--probes", "nearest"], ["--probes"]),
    ],
)
def test_bad_input(
    argv: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(store(tmp_path / "s")), *argv]) != 0
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_a_folder_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err


def test_a_training_set_with_a_recording_of_the_store_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = listed(tmp_path / "leaky", [7, 900])
    assert main(["probe", str(store(tmp_path / "s", checkpoint=str(checkpoint)))]) == 1
    error = capsys.readouterr().err
    assert "1 recordings" in error
    assert "freesound:7" in error


def test_what_a_checkpoint_was_trained_on(tmp_path: Path) -> None:
    checkpoint = listed(tmp_path / "clean", [900, 901])
    for path in (checkpoint, tmp_path / "clean"):
        assert "2 clips, no shared recording" in require_disjoint(path, ["freesound:1", ""])
    assert require_disjoint(checkpoint, []).startswith("not known")
    assert require_disjoint(tmp_path / "else.pth", ["freesound:1"]).startswith("not known")
    (tmp_path / "clean" / "clips.csv").unlink()
    assert require_disjoint(checkpoint, ["freesound:1"]).startswith("not known")
