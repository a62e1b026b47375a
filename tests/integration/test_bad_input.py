"""Bad files, tables, checkpoints and settings: one clear message, and nothing is lost."""

import csv
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from drive import Run, Write, call, contents

from peas.data.synthetic import write_sounds


def broken_fit(write: Write, tmp_path: Path, *argv: object, root: Path | None = None) -> str:
    """Message of a `fit` that has to fail; the files of an earlier run in its folder stay."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (run / name).write_text(f"an earlier {name}")
    before = contents(run)
    changes: dict[str, object] = {"data.init_args.root": str(root)} if root else {}
    config = write(changes={"masking": None, **changes})
    done = call("fit", "--new", "--config", config, "--trainer.default_root_dir", run, *argv)
    after = contents(run)
    for name, content in before.items():
        aside = [after[path] for path in after if path.startswith("earlier/")]
        assert content in [after.get(name), *aside]
    return done.message


# --- sound files --------------------------------------------------------------------------------


def _unreadable(path: Path) -> None:
    path.write_bytes(b"this is no sound at all" * 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5_000])


def _nan(path: Path) -> None:
    wave = np.zeros(10_240, np.float32)
    wave[77] = np.nan
    soundfile.write(path, wave, 16_000, subtype="FLOAT")


def _infinite(path: Path) -> None:
    wave = np.zeros(10_240, np.float32)
    wave[77] = np.inf
    soundfile.write(path, wave, 16_000, subtype="FLOAT")


SOUNDS: list[tuple[Callable[[Path], None], str]] = [
    (_unreadable, ""),
    (_empty, "empty"),
    (_truncated, "cut short|truncated"),
    (_nan, "NaN"),
    (_infinite, "[Ii]nf"),
]


def a_clip(root: Path, fold: int) -> Path:
    return sorted((root / "audio").glob(f"{fold}-*"))[0]


@pytest.mark.parametrize(("damage", "words"), SOUNDS, ids=[d.__name__ for d, _ in SOUNDS])
def test_a_bad_sound_file_is_named(
    write: Write, tmp_path: Path, damaged: Path, damage: Callable[[Path], None], words: str
) -> None:
    clip = a_clip(damaged, fold=2)
    damage(clip)
    message = broken_fit(write, tmp_path, "--data.init_args.mixup=0", root=damaged)
    assert str(clip) in message
    assert re.search(words, message), message


def test_a_bad_sound_file_in_a_worker_is_named(write: Write, tmp_path: Path, damaged: Path) -> None:
    clip = a_clip(damaged, fold=1)
    _nan(clip)
    # Validation reads it, in a process of its own.
    message = broken_fit(write, tmp_path, "--data.init_args.num_workers=1", root=damaged)
    assert str(clip) in message


def test_bad_sound_files_are_skipped_and_counted(
    write: Write, tmp_path: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [a_clip(damaged, fold) for fold in (1, 2)]
    for (damage, _), clip in zip(SOUNDS[2:], bad, strict=False):
        damage(clip)
    changes = {"data.init_args.root": str(damaged), "trainer.max_epochs": 1}
    config = write(changes={**changes, "masking": None})
    argv = ["--config", config, "--data.init_args.on_error=skip", "--data.init_args.mixup=0"]
    caplog.set_level("INFO")
    done = call("fit", *argv, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 0, done.err
    said = [record.getMessage() for record in caplog.records]
    for clip in bad:
        assert sum(str(clip) in text for text in said) == 1
    assert "bad clips: 0 silent, 0 shorter than one frame, 2 unreadable" in said
    logits = np.load(tmp_path / "run" / "logits" / "val_last.npz")
    assert len(logits["ids"]) == 5
    assert bad[0].name not in logits["ids"]


def test_tag_names_the_bad_file_and_scores_the_others(
    trained: Run, damaged: Path, tmp_path: Path
) -> None:
    clip, good = a_clip(damaged, 1), a_clip(damaged, 2)
    _nan(clip)
    gone = tmp_path / "gone.wav"
    done = call("tag", clip, good, gone, "--checkpoint", trained.best)
    assert str(clip) in done.message
    assert str(gone) in done.message
    assert done.out.startswith(str(good))


# --- the table of clips -------------------------------------------------------------------------


Rows = list[dict[str, str]]


def _no_column(rows: Rows) -> None:
    for row in rows:
        del row["category"]


def _unknown_fold(rows: Rows) -> None:
    rows[3]["fold"] = "9"


def _fold_no_number(rows: Rows) -> None:
    rows[3]["fold"] = "one"


def _duplicate(rows: Rows) -> None:
    rows[4]["filename"] = rows[3]["filename"]


def _not_there(rows: Rows) -> None:
    rows[3]["filename"] = "missing.wav"


def _no_rows(rows: Rows) -> None:
    rows.clear()


TABLES: list[tuple[Callable[[Rows], None], tuple[str, ...]]] = [
    (_no_column, ("category",)),
    (_unknown_fold, ("line 5", "fold 9", "1 to 5")),
    (_fold_no_number, ("line 5", "fold", "'one'")),
    (_duplicate, ("more than once",)),
    (_not_there, ("missing.wav", "github.com/karolpiczak/ESC-50", "data.init_args.root")),
    (_no_rows, ("0 classes",)),
]


@pytest.mark.parametrize(("change", "words"), TABLES, ids=[c.__name__ for c, _ in TABLES])
def test_a_bad_table_is_named(
    write: Write,
    tmp_path: Path,
    damaged: Path,
    change: Callable[[Rows], None],
    words: tuple[str, ...],
) -> None:
    table = damaged / "meta" / "esc50.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    fields = list(rows[0])
    change(rows)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else fields)
        writer.writeheader()
        writer.writerows(rows)
    message = broken_fit(write, tmp_path, root=damaged)
    for word in (str(table), *words):
        assert word in message


def test_missing_data_says_what_to_fetch_and_where_to_put_it(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    message = broken_fit(write, tmp_path, root=root)
    assert "https://github.com/karolpiczak/ESC-50" in message
    assert f"{root}/meta/esc50.csv" in message
    assert "data.init_args.root" in message


def test_missing_speech_commands(write: Write, tmp_path: Path) -> None:
    config = write(
        changes={
            "data.class_path": "peas.data.SpeechCommands",
            "data.init_args.root": str(tmp_path / "nowhere"),
        }
    )
    message = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "x").message
    assert str(tmp_path / "nowhere") in message
    assert "speech_commands_v0.02.tar.gz" in message


def test_a_fold_that_is_not_there(write: Write, tmp_path: Path) -> None:
    message = broken_fit(write, tmp_path, "--data.init_args.fold=7")
    assert "data.init_args.fold is 7" in message


# --- checkpoints --------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int]]:
        return os.mkdir, (self.path, 0o755)


def _another_kind(path: Path, trained: Run) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def _cut(path: Path, trained: Run) -> None:
    path.write_bytes(trained.last.read_bytes()[:100_000])


def _malicious(path: Path, trained: Run) -> None:
    state = torch.load(trained.last, weights_only=True)
    state["hyper_parameters"]["extra"] = Payload(path.parent / "executed")
    torch.save(state, path)


def _malicious_pickle(path: Path, trained: Run) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload(path.parent / "executed")}))


def _missing(path: Path, trained: Run) -> None:
    pass


FILES: list[tuple[Callable[[Path, Run], None], str]] = [
    (_another_kind, ""),
    (_cut, "cut short"),
    (_malicious, "nothing was executed"),
    (_malicious_pickle, "nothing was executed"),
    (_missing, "no such checkpoint file"),
]


@pytest.mark.parametrize(("make", "words"), FILES, ids=[m.__name__ for m, _ in FILES])
def test_a_bad_checkpoint_is_refused_everywhere(
    trained: Run,
    write: Write,
    tmp_path: Path,
    sounds: Path,
    make: Callable[[Path, Run], None],
    words: str,
) -> None:
    path = tmp_path / "bad.ckpt"
    make(path, trained)
    config = write(changes={"masking": None})
    run = ["--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    for argv in (
        ["fit", *run, "--ckpt_path", path],
        ["test", *run, "--ckpt_path", path],
        ["fit", *run, "--model.init_args.pretrained", path],
        ["tag", a_clip(sounds, 1), "--checkpoint", path],
        ["export", "--checkpoint", path, "--out", tmp_path / "out.pth"],
        ["import", path],
    ):
        message = call(*argv).message
        assert str(path) in message, argv
        assert words in message, argv
        assert not (tmp_path / "executed").exists(), argv
    assert not (tmp_path / "out.pth").exists()
    # The payload does its work where somebody opens the file without care.
    if words == "nothing was executed":
        torch.load(path, weights_only=False) if make is _malicious else pickle.loads(
            path.read_bytes()
        )
        assert (tmp_path / "executed").is_dir()


def test_missing_pretrained_weights_say_where_they_come_from(write: Write, tmp_path: Path) -> None:
    message = broken_fit(write, tmp_path, "--model.init_args.pretrained=nowhere.pth")
    assert "nowhere.pth" in message
    assert "github.com/YuanGongND/ssast" in message


def test_weights_only_stays_on(write: Write, trained: Run) -> None:
    done = call("test", "--config", write(), "--ckpt_path", trained.best, "--weights_only=false")
    assert "weights_only" in done.message


def test_pretrained_weights_of_another_size(trained: Run, write: Write, tmp_path: Path) -> None:
    argv = [
        f"--model.init_args.pretrained={trained.best}",
        "--model.init_args.encoder.init_args.size=small",
    ]
    message = broken_fit(write, tmp_path, *argv)
    assert str(trained.best) in message
    assert "set size to mini" in message


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_data_of_other_classes_is_not_scored(
    verb: str, trained: Run, write: Write, tmp_path: Path
) -> None:
    other = write_sounds(tmp_path / "two", classes=2, clips_per_class=10, seconds=0.64)
    config = write(changes={"data.init_args.root": str(other), "masking": None})
    message = call(verb, "--config", config, "--ckpt_path", trained.best).message
    assert str(trained.best) in message
    assert "trained on 3 classes, and the data has 2 classes" in message
    assert "peas predict" in message
    told = call("predict", "--config", config, "--ckpt_path", trained.best)
    assert told.code == 0, told.err


def test_resume_of_an_imported_checkpoint_is_refused(
    trained: Run, write: Write, tmp_path: Path
) -> None:
    # As `peas import` writes them: weights and settings, but no state of a training loop.
    state = torch.load(trained.best, weights_only=True)
    path = tmp_path / "imported.ckpt"
    kept = ("state_dict", "hyper_parameters", "pytorch-lightning_version")
    torch.save({key: state[key] for key in kept}, path)
    folder = tmp_path / "run"
    argv = ["--trainer.default_root_dir", folder, "--ckpt_path", path]
    message = call("fit", "--config", write(changes={"masking": None}), *argv).message
    assert str(path) in message
    assert "pretrained" in message


# --- settings -----------------------------------------------------------------------------------


SETTINGS = {
    "mask wider than the spectrogram": (
        {"masking.init_args.max_time": 65},
        ("PEAS.init_args.max_time", "65", "64"),
    ),
    "mask higher than the spectrogram": (
        {"masking.init_args.max_freq": 129},
        ("PEAS.init_args.max_freq", "129", "128"),
    ),
    "no classes": ({"model.init_args.labels": []}, ("model.init_args.labels",)),
    "no learning rate": (
        {"model.init_args.recipe.init_args.lr": 0.0},
        ("model.init_args.recipe.init_args.lr", "positive"),
    ),
    "no clips in a batch": (
        {"data.init_args.batch_size": 0},
        ("data.init_args.batch_size is 0",),
    ),
    "more clips in a batch than there are": (
        {"data.init_args.batch_size": 100},
        ("24 clips", "data.init_args.batch_size"),
    ),
    "half precision": (
        {"trainer.precision": "bf16-true"},
        ("trainer.precision", "bf16-mixed"),
    ),
    "no end": ({"trainer.max_epochs": -1}, ("trainer.max_epochs",)),
    "two strategies": (
        {
            "masking": None,
            "trainer.callbacks": [
                {"class_path": "peas.callbacks.PEAS", "init_args": {"max_time": 24}},
                {"class_path": "peas.callbacks.SpecAugment", "init_args": {"max_time": 24}},
            ],
        },
        ("trainer.callbacks", "PEAS, SpecAugment"),
    ),
    "strategies in both places": (
        {
            "trainer.callbacks": [
                {"class_path": "peas.callbacks.SpecAugment", "init_args": {"max_time": 24}}
            ]
        },
        ("`masking`", "`trainer.callbacks`", "PEAS", "SpecAugment"),
    ),
}


@pytest.mark.parametrize(("changes", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_an_impossible_setting_is_named(
    write: Write, tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    config = write(changes=changes)
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    for word in words:
        assert word in done.message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_folder_that_is_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious")
    done = call("fit", "--config", write(), "--trainer.default_root_dir", tmp_path / "taken")
    assert str(tmp_path / "taken") in done.message
    assert (tmp_path / "taken").read_text() == "precious"


def test_evaluation_without_weights(write: Write, tmp_path: Path) -> None:
    config = write(changes={"masking": None})
    for verb in ("validate", "test", "predict"):
        done = call(verb, "--config", config, "--trainer.default_root_dir", tmp_path / "run")
        assert "--ckpt_path" in done.message


# --- a process of its own, with everything that reaches the terminal ----------------------------


def test_the_whole_of_stderr(write: Write, tmp_path: Path, damaged: Path) -> None:
    clip = a_clip(damaged, fold=1)
    _nan(clip)
    config = write(changes={"data.init_args.root": str(damaged), "trainer.limit_train_batches": 1})
    argv = ["fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "peas", *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("peas fit: error: ")
    assert str(clip) in last
    assert done.stderr.count("error: ") == 1
