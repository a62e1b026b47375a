"""`peas probe`: its table and files, names, layers and frames that are missing, leaks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from peas.__main__ import main
from peas.cli.probe import probe_set, row_names
from peas.errors import DataError, UsageError
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


def began(pretrained: object) -> dict[str, object]:
    return {"model": {"init_args": {"pretrained": pretrained}}}


def listed(run: Path, recordings: list[int], pretrained: object = None) -> Path:
    """A run whose config names a CSV with these Freesound ids, and what it began with."""
    (run / "checkpoints").mkdir(parents=True)
    with (run / "clips.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "label", "freesound_id"])
        writer.writerows([f"{number}.wav", "a", number] for number in recordings)
    data = {
        "class_path": "peas.data.AudioFolder",
        "init_args": {"root": str(run), "csv": "clips.csv", "mean": 0.0, "std": 1.0},
    }
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data, **began(pretrained)}))
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


@pytest.mark.parametrize(
    "class_path",
    [
        "peas.utils.files.checksum",
        "peas.data.packed.writer.Path",
        "peas.data.module.LightningDataModule",
        "peas.data",
        "peas.data.gone.AudioFolder",
        "peas.data.Renamed",
        "peas.database.AudioFolder",
        "AudioFolder",
        None,
    ],
)
def test_nothing_but_a_set_of_peas_is_called(
    class_path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr("peas.utils.files.checksum", lambda **_: called.append("checksum"))
    data: dict[str, object] = {"class_path": class_path, "init_args": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    found = require_disjoint(tmp_path, ["freesound:1"])
    assert found.startswith("not known")
    assert "is not a set of peas" in found
    assert not called


@pytest.mark.parametrize(
    "text",
    [
        "data: {class_path: peas.data.ESC50}",
        "data: {class_path: peas.data.ESC50, init_args: {batch_size: 2}}",
        "data: {class_path: peas.data.ESC50, init_args: [1]}",
        "data: {class_path: peas.data.ESC50, init_args: {root: 5}}",
        "data: {class_path: peas.data.ClipDataModule, init_args: {root: a}}",
        "data: [1]",
        "data:",
        "- 1",
        "",
        "data: {class_path: [",
        "\x00",
    ],
)
def test_a_config_that_says_too_little(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    found = require_disjoint(tmp_path, ["freesound:1"])
    assert found.startswith("not known")
    assert "config.yaml" in found


def test_what_a_run_began_with_is_compared_too(tmp_path: Path) -> None:
    clips = ["freesound:7"]
    first = listed(tmp_path / "first", [7, 900])
    second = listed(tmp_path / "second", [901], str(first))
    third = listed(tmp_path / "third", [902], str(second))
    with pytest.raises(DataError, match="first"):
        require_disjoint(third, clips)
    found = require_disjoint(third, ["freesound:8"])
    assert not found.startswith("not known")
    assert all(str(tmp_path / run) in found for run in ("first", "second", "third"))
    # What cannot be read of one run hides no recording of those before it.
    (tmp_path / "second" / "clips.csv").unlink()
    with pytest.raises(DataError, match="first"):
        require_disjoint(third, clips)
    assert require_disjoint(third, ["freesound:8"]).startswith("not known")


@pytest.mark.parametrize(
    ("pretrained", "known"),
    [("official.pth", False), ([1], False), ("timm:vit_base_patch16_224", True), (None, True)],
)
def test_weights_without_a_run(pretrained: object, known: bool, tmp_path: Path) -> None:
    if isinstance(pretrained, str) and pretrained.endswith("pth"):
        pretrained = str(tmp_path / "official" / pretrained)
    found = require_disjoint(listed(tmp_path / "run", [900], pretrained), ["freesound:7"])
    assert found.startswith("not known") is not known
    assert "1 clips, no shared recording" in found


def test_runs_that_began_with_each_other_end(tmp_path: Path) -> None:
    first = listed(tmp_path / "a", [900], str(tmp_path / "b"))
    listed(tmp_path / "b", [901], str(first))
    assert "no shared recording" in require_disjoint(first, ["freesound:7"])


def test_only_a_name_that_was_given_joins_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wanted, stores in {
        ("A/emb", "B/emb", "x"): ["A/emb", "B/emb", "x"],
        ("two", "two", "B/two"): ["two=A/emb", "two=B/emb", "B/two"],
        (tmp_path.name,): ["."],
    }.items():
        assert tuple(name for name, _ in row_names(stores)) == wanted
    for stores in (["A/emb", "A/../A/emb"], ["=A"], ["a="]):
        with pytest.raises(UsageError):
            row_names(stores)


def test_stores_of_one_folder_name_have_a_row_each(tmp_path: Path) -> None:
    stores = [str(store(tmp_path / run / "emb", number)) for number, run in enumerate("AB")]
    assert main(["probe", *stores, "--probes", "knn", "--out", str(tmp_path / "out")]) == 0
    rows = csv.DictReader((tmp_path / "out" / "probe.csv").open())
    assert [row["store"] for row in rows] == ["A/emb", "B/emb"]


def test_clips_of_a_recording_or_a_speaker_are_a_group(tmp_path: Path) -> None:
    written = write_store(
        tmp_path / "s",
        np.eye(8, 4),
        [str(row) for row in range(8)],
        labels=["a", "b"],
        classes=np.arange(8) % 2,
        recording=["r", "r", "q", "", "", "", "p", "anne"],
        speaker=["", "anne", "anne", "anne", "", "", "bob", ""],
    )
    groups = probe_set(written, "s").clusters
    assert len(set(groups[:4])) == 1
    assert len(set(groups)) == 5


@pytest.mark.parametrize("there", ["", "probe.md", "probe.csv", "probe.json"])
def test_out_is_refused_before_anything_is_trained(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    file = out / there if there else out
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    monkeypatch.setattr("peas.evaluation.probes.evaluate", None)
    assert main(["probe", str(store(tmp_path / "s")), "--out", str(out)]) == 1
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "mine"
