"""The whole way on generated sounds: fit, stop, resume, validate, test, predict, tag, export."""

import csv
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from cli_recorder import recorded
from drive import BASE, FOLD, Run, Write, call, changed, contents, fit, metrics

# --- fit, stop, resume --------------------------------------------------------------------------


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any, where: str = "") -> None:
    """Fails at the first place where two trees of tensors and plain values differ by a bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for place, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{where}.{place}")
    else:
        assert a == b, where


def test_a_run_leaves_its_files(trained: Run) -> None:
    have = set(contents(trained.folder))
    assert {
        "config.yaml",
        "environment.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
        "logits/val_best.npz",
        "logits/val_last.npz",
        "mask_starts.csv",
    } <= have
    kept = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert kept["trainer"]["default_root_dir"] == str(trained.folder)
    info = json.loads((trained.folder / "environment.json").read_text())
    assert info["command"][1] == "fit"
    assert info["versions"]["torch"] == torch.__version__.partition("+")[0]
    logits = np.load(trained.folder / "logits" / "val_last.npz")
    assert len(set(logits["ids"])) == FOLD
    assert logits["logits"].shape == (FOLD, 3)
    # Whether the last epoch is the best or not.
    assert checkpoint(trained.last)["epoch"] == 2
    # Two blocks an axis, and some of them adaptive from the second epoch on.
    by_epoch = {row["epoch"]: row for row in metrics(trained.folder / "logs/version_0/metrics.csv")}
    shares = [float(row["mask/adaptive_share"]) for row in by_epoch.values()]
    assert shares[0] == 0 < shares[1] < shares[2]


def test_a_resumed_run_does_not_ask_for_the_weights_it_began_with(
    trained: Run, sounds: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes(trained.last.read_bytes())
    argv = ["--model.init_args.pretrained", str(weights), "--trainer.max_epochs", "1"]
    run, done = fit(tmp_path / "run", sounds, *argv)
    assert done.code == 0, done.err
    weights.unlink()
    argv = ["--trainer.max_epochs", "2", "--ckpt_path", str(run.last)]
    resumed = call("fit", "--config", tmp_path / "run" / "config.yaml", *argv)
    assert resumed.code == 0, resumed.err
    assert checkpoint(run.last)["epoch"] == 1


@pytest.mark.parametrize("inside", [False, True], ids=["at_epoch_start", "inside_an_epoch"])
def test_a_resumed_run_equals_the_unbroken_one(
    trained: Run, sounds: Path, tmp_path: Path, inside: bool
) -> None:
    argv: list[str] = []
    folder = tmp_path / "broken"
    if inside:
        # A list flag that appends: the recorder stays.
        saving = {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {
                "dirpath": str(folder / "checkpoints"),
                "every_n_train_steps": 1,
                "filename": "last",
                "enable_version_counter": False,
            },
        }
        argv = [f"--trainer.callbacks+={json.dumps(saving)}"]
    # Of the second epoch's four batches two are done; a checkpoint of this batch comes after the
    # recorder, so the run goes on with batch 2 (inside) or batch 0 (at the epoch's start).
    run, done = fit(folder, sounds, *argv, stop=[1, 2])
    assert done.code == 1
    masks = recorded(run.masks)
    assert [(line["epoch"], line["step"]) for line in masks][-1] == (1, 2)
    before = contents(folder)

    # The run's own config, but for the recorder's order to stop.
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["trainer"]["callbacks"][0]["init_args"]["stop"] = None
    (tmp_path / "on.yaml").write_text(yaml.safe_dump(settings))
    resumed = call("fit", "--config", tmp_path / "on.yaml", "--ckpt_path", run.last)
    assert resumed.code == 0, resumed.err

    whole = {(line["epoch"], line["step"]): line for line in recorded(trained.masks)}
    seen = recorded(run.masks)
    on = [(line["epoch"], line["step"]) for line in seen[len(masks) :]]
    assert on[0] == ((1, 2) if inside else (1, 0))
    assert {(line["epoch"], line["step"]) for line in seen} == set(whole)
    for line in seen:
        assert line == whole[line["epoch"], line["step"]]

    ours, theirs = checkpoint(run.last), checkpoint(trained.last)
    same(ours["state_dict"], theirs["state_dict"])
    same(ours["optimizer_states"], theirs["optimizer_states"])
    peas = next(key for key in theirs["callbacks"] if key.startswith("PEAS"))
    cache = theirs["callbacks"][peas]["cache"]
    assert cache["ids"]
    same(ours["callbacks"][peas]["cache"], cache)

    rows = metrics(trained.folder / "logs/version_0/metrics.csv")
    assert metrics(folder / "logs/version_1/metrics.csv") == [r for r in rows if r["epoch"] != "0"]
    after = contents(folder)
    for name in ("config.yaml", "environment.json", "logs/version_0/metrics.csv"):
        assert after[name] == before[name], name
    assert "ckpt_path: null" in after["config.yaml"].decode()
    assert str(run.last) in after["config.1.yaml"].decode()


# --- validate, test, predict --------------------------------------------------------------------


@pytest.fixture(scope="session")
def evaluated(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which the trained run was validated, tested and predicted with."""
    folder = tmp_path_factory.mktemp("evaluated")
    for verb in ("validate", "test", "predict"):
        argv = [verb, "--config", trained.folder / "config.yaml", "--ckpt_path", trained.best]
        done = call(*argv, "--trainer.default_root_dir", folder)
        assert done.code == 0, done.err
        assert (folder / f"config_{verb}.yaml").exists()
    return folder


def test_validate_repeats_the_best_epoch(trained: Run, evaluated: Path) -> None:
    rows = metrics(trained.folder / "logs/version_0/metrics.csv")
    best = max(float(row["val/accuracy"]) for row in rows if "val/accuracy" in row)
    (row,) = metrics(evaluated / "logs/version_0/metrics.csv")
    assert float(row["val/accuracy"]) == best
    assert float(row["val/clips"]) == FOLD
    ours, theirs = (
        np.load(folder / "logits" / name)
        for folder, name in ((evaluated, "val.npz"), (trained.folder, "val_best.npz"))
    )
    np.testing.assert_array_equal(ours["logits"], theirs["logits"])


def test_test_scores_the_fold(evaluated: Path) -> None:
    (row,) = metrics(evaluated / "logs/version_1/metrics.csv")
    logits = np.load(evaluated / "logits" / "test.npz")
    hits = logits["logits"].argmax(1) == logits["targets"].argmax(1)
    assert float(row["test/accuracy"]) == pytest.approx(hits.mean(), abs=1e-6)
    assert float(row["test/clips"]) == FOLD == len(set(logits["ids"]))


def test_predictions_have_a_row_for_every_clip(sounds: Path, evaluated: Path) -> None:
    with (evaluated / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (sounds / "meta" / "esc50.csv").open(newline="") as file:
        fold = [row["filename"] for row in csv.DictReader(file) if row["fold"] == "1"]
    assert sorted(row["id"] for row in rows) == sorted(fold)
    labels = list(rows[0])[list(rows[0]).index("score") + 1 :]
    assert labels == ["tone", "up_chirp", "down_chirp"]
    for row in rows:
        assert Path(row["file"]) == sounds / "audio" / row["id"]
        assert (row["set"], row["split"]) == (str(sounds), "test")
        assert row["true_label"] in labels
        assert row["checkpoint"].endswith(".ckpt")
        scores = {label: float(row[label]) for label in labels}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(scores, key=scores.__getitem__)
        assert float(row["score"]) == max(scores.values())


# --- tag, export, import ------------------------------------------------------------------------


def tags(checkpoint: Path, *argv: object) -> list[dict[str, Any]]:
    done = call("tag", *argv, "--checkpoint", checkpoint, "--json")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_tag_agrees_with_predict(trained: Run, sounds: Path, evaluated: Path) -> None:
    with (evaluated / "predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    (found,) = tags(trained.best, sounds / "audio" / row["id"])
    assert found["tags"][0]["label"] == row["label"]
    for tag in found["tags"]:
        assert tag["score"] == pytest.approx(float(row[tag["label"]]), abs=2e-5)


def test_tag_takes_any_rate_and_length(trained: Run, sounds: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    wave = np.random.default_rng(0).normal(0, 0.1, (8_000 * 2, 2))
    soundfile.write(path, wave, 8_000)
    short = next((sounds / "audio").iterdir())
    found, other = tags(trained.best, path, short, "--per_window", "--top", 2)
    assert found["clip"] == str(path)
    assert found["seconds"] == 2
    # Sixty-four frames are 0.655 s and a window begins every 0.64 s.
    spans = [(w["start"], w["end"]) for w in found["windows"]]
    # The patch from 1.92 s on has its centre behind the end.
    assert spans == [(0, 0.655), (0.64, 1.295), (1.28, 1.935)]
    assert len(found["tags"]) == len(found["windows"][0]["tags"]) == 2
    assert found["scored"] == found["seconds"]
    assert [(w["start"], w["end"]) for w in other["windows"]] == [(0, 0.64)]
    (half,) = tags(trained.best, path, "--per_window", "--overlap", 0.5)
    assert [w["start"] for w in half["windows"]][:3] == [0, 0.32, 0.64]


def test_tag_scores_a_long_clip_by_the_mean_of_its_windows_or_by_the_first(
    trained: Run, tmp_path: Path
) -> None:
    path = tmp_path / "long.wav"
    # Two windows of full length.
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 2 * 10_240), 16_000)
    (mean,) = tags(trained.best, path, "--per_window")
    windows = [{t["label"]: t["score"] for t in w["tags"]} for w in mean["windows"]]
    assert len(windows) == 2
    for tag in mean["tags"]:
        expected = (windows[0][tag["label"]] + windows[1][tag["label"]]) / 2
        assert tag["score"] == pytest.approx(expected, abs=2e-6)
    # As in `test`: the model's own frames, from the beginning.
    (first,) = tags(trained.best, path, "--long", "first", "--per_window")
    assert first["tags"] == first["windows"][0]["tags"] == mean["windows"][0]["tags"]
    assert first["scored"] == first["windows"][0]["end"] < first["seconds"]


def test_tag_prints_for_people(trained: Run, sounds: Path) -> None:
    clip = next((sounds / "audio").iterdir())
    done = call("tag", clip, "--checkpoint", trained.best, "--top", 1)
    first, second = done.out.splitlines()
    assert first == f"{clip}  (0.64 s)"
    score, label = second.split()
    assert label in ("tone", "up_chirp", "down_chirp")
    assert 0 < float(score.removesuffix("%")) <= 100


def test_export_and_import_give_the_same_scores(sounds: Path, tmp_path: Path) -> None:
    # Import gives the labels and statistics of ESC-50, so this run has them: 50 classes.
    from peas.data.labels import read_labels

    labels = read_labels("esc50")
    model, run = tmp_path / "fifty.yaml", tmp_path / "run"
    changes = {
        "data.init_args": {"root": str(sounds), "num_workers": 0, "cache_dir": "", "batch_size": 6},
        "model.init_args.labels": labels,
        "masking": None,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.max_epochs": 1,
    }
    model.write_text(yaml.safe_dump(changed(BASE, changes)))
    done = call("fit", "--config", model, "--trainer.default_root_dir", run)
    assert done.code == 0, done.err
    own = run / "checkpoints" / "last.ckpt"
    file, back = tmp_path / "official.pth", tmp_path / "back.ckpt"
    done = call("export", "--checkpoint", own, "--out", file)
    assert done.code == 0, done.err
    assert all(key.startswith("module.v.") or "." in key for key in torch.load(file))
    size = file.stat().st_size
    assert str(file) in call("export", "--checkpoint", own, "--out", file).message
    assert file.stat().st_size == size

    stride = ["--stride", 16, 16]
    report = call("import", file, *stride)
    assert report.code == 0, report.err
    assert "fine-tuned" in report.out
    assert not back.exists()
    done = call("import", file, "--out", back, *stride)
    assert done.code == 0, done.err
    clip = next((sounds / "audio").iterdir())
    assert tags(own, clip, "--top", 50) == tags(back, clip, "--top", 50)
    assert str(back) in call("import", file, "--out", back, *stride).message


# --- kfold --------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Jobs of `peas kfold` run here, which saves each its imports. Holds their commands."""
    from peas.cli import jobs

    started: list[list[str]] = []

    def run(command: list[str], *, stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "peas"]
        started.append(command[3:])
        done = call(*command[3:])
        stdout.write(done.out + done.err)
        stdout.flush()
        return subprocess.CompletedProcess(command, done.code)

    own = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(jobs, "subprocess", own)
    return started


SMALL = {"trainer.limit_train_batches": 1, "trainer.max_epochs": 2, "masking": None}


def test_kfold_of_two_folds(write: Write, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    paper = {
        "table": "PEAS II",
        "row": "Conventional (1, 1)",
        "accuracy": 88.8,
        "preset": "reference_code",
    }
    config = write(changes={**SMALL, "paper": paper})
    argv = ["kfold", "--config", config, "--out", tmp_path / "folds"]
    # The first fold in a process of its own, as always; a second call adds the other one.
    done = call(*argv, "--folds", "1")
    assert done.code == 0, done.err
    first = contents(tmp_path / "folds" / "fold1_seed0")
    started = request.getfixturevalue("in_this_process")
    argv += ["--folds", "1-2"]
    done = call(*argv)
    assert done.code == 0, done.err
    assert [line[:5] for line in done.out.splitlines() if line.startswith("[")] == [
        "[1/2]",
        "[2/2]",
    ]
    assert contents(tmp_path / "folds" / "fold1_seed0") == first
    assert ["--data.init_args.fold=2" in command for command in started] == [True]

    with (tmp_path / "folds" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["folds"] == "1, 2"
    assert row["seeds"] == "0"
    assert row["clips"] == str(2 * FOLD)
    assert row["paper row"] == row["paper"] == "-"
    assert "best epoch of each fold (optimistic)" in row
    with (tmp_path / "folds" / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [(r["fold"], r["epoch"]) for r in runs] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
        ("2", "2"),
    ]
    last = np.mean([float(r["accuracy"]) for r in runs if r["epoch"] == "2"])
    assert row["last epoch"] == f"{last:.2%}"
    assert (tmp_path / "folds" / "results.md").read_text().strip() in done.out

    # Again: nothing is trained, and the same table is printed.
    before = contents(tmp_path / "folds")
    again = call(*argv)
    assert again.code == 0
    assert contents(tmp_path / "folds") == before
    assert again.out.splitlines()[-5:] == done.out.splitlines()[-5:]
    # Other settings belong into another folder.
    refused = call(*argv, "--model.init_args.recipe.init_args.lr=0.1")
    assert "--out" in refused.message
    assert contents(tmp_path / "folds") == before


def test_kfold_goes_on_and_keeps_what_is_done(
    write: Write, tmp_path: Path, in_this_process: list[list[str]]
) -> None:
    config, out = write(changes=SMALL), tmp_path / "folds"
    argv = ["kfold", "--config", config, "--folds", "1,2", "--out", out]
    # Nothing begins while a setting is wrong or the data cannot be opened.
    for wrong, named in (
        (["--folds", "1,7"], "fold is 7"),
        (["--model.init_args.lrr", "1"], "lrr"),
        (["--data.init_args.root", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert named in call(*argv, *wrong).message
        assert not out.exists()
    dry = call(*argv, "--dry_run")
    assert [line.count(" fit ") for line in dry.out.splitlines()] == [1, 1]
    assert not out.exists()
    # What only the run finds out ends with its first job, whose folder then takes the right one.
    bad = call(*argv, "--model.init_args.pretrained", tmp_path / "no.pth").message
    assert "1 of 2 jobs failed, 1 were not started" in bad
    assert "fold 1 seed 0 ended with status 1" in bad
    assert "no.pth" in bad
    assert "fit.log" in bad
    # To ask what would run changes nothing; and a job that runs still keeps its folder.
    left = contents(out)
    assert len(call(*argv, "--dry_run").out.splitlines()) == 2
    with (out / "fold1_seed0" / "fit.log").open("a") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        assert "fold1_seed0" in call(*argv).message
    assert contents(out) == left
    assert call(*argv[:-3], "1", *argv[-2:]).code == 0
    assert "no.pth" in (out / "fold1_seed0.failed1" / "fit.log").read_text()
    done = (out / "fold1_seed0" / "done.json").read_bytes()

    started = len(in_this_process)
    # The second fold is broken off after its first epoch: what a killed process leaves behind.
    fold = out / "fold2_seed0"
    first = [*in_this_process[-1], "--data.init_args.fold=2", f"--trainer.default_root_dir={fold}"]
    assert call(*first, "--trainer.limit_val_batches=1").code == 0
    assert (fold / "checkpoints" / "last.ckpt").exists()
    good = call(*argv)
    assert good.code == 0, good.err
    assert (out / "fold1_seed0" / "done.json").read_bytes() == done
    (resumed,) = in_this_process[started:]
    assert "--ckpt_path=last" in resumed
    went_on = yaml.safe_load((fold / "config.1.yaml").read_text())
    assert went_on["ckpt_path"] == str(fold / "checkpoints" / "last.ckpt")
    # A job that has only begun is held to its settings, too.
    (fold / "done.json").unlink()
    refused = call(*argv, "--folds", "2", "--model.init_args.recipe.init_args.lr=0.1")
    assert str(fold) in refused.message
    assert len(in_this_process) == started + 1


def test_kfold_without_folds_tests_the_best_epoch(
    write: Write, tmp_path: Path, in_this_process: list[list[str]]
) -> None:
    root = tmp_path / "words"
    rng = np.random.default_rng(0)
    for word in ("yes", "no"):
        (root / word).mkdir(parents=True)
        for clip in range(6):
            wave = rng.normal(0, 0.1, 8_000)
            soundfile.write(root / word / f"{clip}.wav", wave, 16_000)
    for name, clip in (("validation_list", 0), ("testing_list", 1)):
        (root / f"{name}.txt").write_text(f"yes/{clip}.wav\nno/{clip}.wav\n")
    changes = {
        **SMALL,
        "data.class_path": "peas.data.SpeechCommands",
        "data.init_args.root": str(root),
        "model.init_args.loss": "bce",
    }
    config = write(changes=changes)
    done = call("kfold", "--config", config, "--seeds", "0-1", "--out", tmp_path / "seeds")
    assert done.code == 0, done.err
    assert [words[0] for words in in_this_process] == ["fit", "test", "fit", "test"]
    best = tmp_path / "seeds" / "seed1" / "checkpoints" / "best.ckpt"
    assert f"--ckpt_path={best}" in in_this_process[3]
    with (tmp_path / "seeds" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["seeds"] == "0, 1"
    assert row["metric"] == "accuracy"
    assert "folds" not in row
    assert "±" in row["test at best validation epoch"]


# --- the rest -----------------------------------------------------------------------------------


def test_version_answers_without_torch() -> None:
    code = (
        "import sys; from peas.__main__ import main; main(['--version']); main([]);"
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *_, last = done.stdout.splitlines()
    assert first == "peas 0.1.0"
    assert last == "[]"


def test_unknown_verb() -> None:
    done = call("train")
    assert done.code == 2
    assert "'train'" in done.err


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    done = call("doctor")
    assert done.code == 0, done.out
    lines = {line.split()[1]: line for line in done.out.splitlines()}
    assert all(line.startswith("ok") for line in lines.values())
    assert torch.__version__.partition("+")[0] in lines["versions"]
    assert str(tmp_path / "cache") in lines["cache"]
    # A cache that cannot be: a file stands in its place.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEAS_CACHE", str(tmp_path / "file"))
    done = call("doctor")
    assert "cache" in done.message
    assert "MISSING  cache" in done.out
