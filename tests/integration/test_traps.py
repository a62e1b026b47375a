"""Traps of LightningCLI that `peas` goes round, each shown to be passed."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from cli_recorder import recorded
from drive import BASE, Run, Write, call, changed, contents, fit, metrics
from made import classification

QUICK = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]


def test_a_limit_of_one_batch_is_one_batch(sounds: Path, tmp_path: Path) -> None:
    limits = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches", "1"]
    run, done = fit(
        tmp_path / "run", sounds, *limits, "--trainer.max_epochs=2", "--data.init_args.batch_size=2"
    )
    assert done.code == 0, done.err
    assert [(line["epoch"], line["step"]) for line in recorded(run.masks)] == [(0, 0), (1, 0)]
    # Validation has twice the batch size: one batch is four of six clips.
    rows = metrics(run.folder / "logs/version_0/metrics.csv")
    assert [row["val/clips"] for row in rows if "val/clips" in row] == ["4.0", "4.0"]
    kept = yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]
    assert [kept["limit_train_batches"], kept["limit_val_batches"]] == [1, 1]
    assert isinstance(kept["limit_train_batches"], int)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_a_limit_of_one_batch_in_evaluation(
    trained: Run, write: Write, tmp_path: Path, verb: str
) -> None:
    # From a file this time, where 1 is an integer as well.
    config = write(
        changes={f"trainer.limit_{verb}_batches": 1, "data.init_args.eval_batch_size": 4}
    )
    argv = ["--config", config, "--ckpt_path", trained.best]
    done = call(verb, *argv, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 0, done.err
    if verb == "predict":
        assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 1 + 4
    else:
        (row,) = metrics(tmp_path / "run" / "logs/version_0/metrics.csv")
        assert row["test/clips"] == "4.0"


def test_fractions_and_whole_epochs_are_told_apart(write: Write) -> None:
    from jsonargparse import ArgumentParser

    from peas.training.trainer import PeasTrainer

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PeasTrainer, "trainer")
    for key in ("train", "val", "test", "predict"):
        for text, value in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("2", 2), ("null", None)):
            flag = f"limit_{key}_batches"
            got = parser.parse_args([f"--trainer.{flag}={text}"]).trainer[flag]
            assert (type(got), got) == (type(value), value)
    assert (
        type(parser.parse_args(["--trainer.val_check_interval=1"]).trainer.val_check_interval)
        is int
    )
    assert type(parser.parse_args(["--trainer.overfit_batches=1"]).trainer.overfit_batches) is int


def test_the_command_line_wins_over_the_checkpoint(
    trained: Run, write: Write, tmp_path: Path
) -> None:
    config = write(changes={"masking": None})
    argv = [
        "--config",
        config,
        "--ckpt_path",
        trained.best,
        "--model.init_args.recipe.init_args.lr",
        "0.5",
    ]
    done = call("test", *argv, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 0, done.err
    kept = yaml.safe_load((tmp_path / "run" / "config_test.yaml").read_text())
    assert kept["model"]["init_args"]["recipe"]["init_args"]["lr"] == 0.5
    logged = yaml.safe_load((tmp_path / "run" / "logs/version_0/hparams.yaml").read_text())
    assert logged["recipe"]["init_args"]["lr"] == 0.5
    # What the checkpoint knows and the command line left open does come from the checkpoint.
    logits = np.load(tmp_path / "run" / "logits" / "test.npz")
    assert list(logits["labels"]) == ["tone", "up_chirp", "down_chirp"]


def test_a_resumed_run_says_which_settings_changed(copied: Run, tmp_path: Path) -> None:
    argv = ["--config", copied.config, "--ckpt_path", copied.last]
    with pytest.warns(UserWarning, match="lr: 0.0005 → 0.5"):
        done = call(
            *("fit", *argv, "--model.init_args.recipe.init_args.lr=0.5"),
            *("--trainer.default_root_dir", copied.folder),
        )
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("key", "value", "had"),
    [
        ("encoder.init_args.size", "small", "mini"),
        ("encoder.init_args.pooling", "cls", "mean"),
        ("encoder.init_args.stride", "[8, 8]", "16"),
        ("front_end.init_args.frames", "128", "64"),
        ("labels", "[a, b]", "tone"),
    ],
)
def test_another_model_than_the_checkpoints_is_refused(
    trained: Run, write: Write, tmp_path: Path, key: str, value: str, had: str
) -> None:
    config = write(changes={"masking": None})
    argv = ["--config", config, "--ckpt_path", trained.best, f"--model.init_args.{key}={value}"]
    done = call("test", *argv, "--trainer.default_root_dir", tmp_path / "run")
    assert f"model.init_args.{key}" in done.message
    assert had in done.message
    assert str(trained.best) in done.message


def test_a_second_run_in_the_same_folder(copied: Run, write: Write) -> None:
    before = contents(copied.folder)
    first = (copied.folder / "run_id").read_text().strip()
    (copied.folder / "notes.txt").write_text("of the user")
    config = write(changes={"model.init_args.recipe.init_args.lr": 1.0e-5})
    argv = ["--config", config, "--trainer.default_root_dir", copied.folder]
    message = call("fit", *argv, *QUICK).message
    assert "last.ckpt" in message
    assert "--ckpt_path last" in message
    assert "--new" in message
    assert contents(copied.folder).keys() == {*before, "notes.txt"}
    done = call("fit", *argv, *QUICK, "--new")
    assert done.code == 0, done.err
    # The same evaluation twice writes one config.
    for _ in range(2):
        done = call("validate", *argv, "--ckpt_path", "best")
        assert done.code == 0, done.err
    after = contents(copied.folder)
    # All of the first run lies in one folder; all that is left here is of the second.
    for name, content in before.items():
        if name != "run.lock":
            assert after[f"earlier/{first}/{name}"] == content, name
    assert (copied.folder / "run_id").read_text().strip() != first
    kept = yaml.safe_load(after["config.yaml"])
    assert kept["model"]["init_args"]["recipe"]["init_args"]["lr"] == 1.0e-5
    assert "new" not in kept
    own = {name for name in after if not name.startswith("earlier/")}
    assert "config.1.yaml" not in own
    assert "config_validate.1.yaml" not in own
    assert {name for name in own if "ckpt" in name or "metrics" in name} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
        "logs/version_1/metrics.csv",
        "logs/version_2/metrics.csv",
    }
    assert after["notes.txt"] == b"of the user"
    # The first run goes on where it lies now.
    aside = copied.folder / "earlier" / first
    done = call(
        *("fit", "--config", copied.config, "--trainer.default_root_dir", aside),
        *("--ckpt_path", "last", "--trainer.max_epochs=4"),
    )
    assert done.code == 0, done.err
    assert torch.load(aside / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 3


def test_a_short_flag_reaches_the_class(write: Write, tmp_path: Path, trained: Run) -> None:
    argv = ["--config", write(), "--ckpt_path", trained.best, "--trainer.limit_test_batches=1"]
    done = call(
        *("test", *argv, "--model.recipe.lr", "0.25", "--data.eval_batch_size", "3"),
        *("--masking.n_time", "1", "--trainer.default_root_dir", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    kept = yaml.safe_load((tmp_path / "run" / "config_test.yaml").read_text())
    assert kept["model"]["init_args"]["recipe"]["init_args"]["lr"] == 0.25
    assert kept["data"]["init_args"]["eval_batch_size"] == 3
    assert kept["masking"]["init_args"]["n_time"] == 1


def test_random_weights_must_be_asked_for(write: Write, tmp_path: Path) -> None:
    config = write(changes={"model.init_args.pretrained-": None, "masking": None})
    argv = ["--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    done = call("fit", *argv)
    assert "model.init_args.pretrained" in done.message
    assert "`null`" in done.message
    with pytest.warns(UserWarning, match="random weights"):
        done = call("fit", *argv, *QUICK, "--model.init_args.pretrained=null")
    assert done.code == 0, done.err


# --- messages of the parser ---------------------------------------------------------------------

PARSED: dict[str, tuple[dict[str, Any], list[str], tuple[str, ...]]] = {
    "flag": ({}, ["--trainer.nosuch=3"], ("--trainer.nosuch",)),
    "top": ({"nosuch": 3}, [], ("`nosuch`",)),
    "trainer": ({"trainer.nosuch": 3}, [], ("`trainer.nosuch`",)),
    "model": ({"model.init_args.nosuch": 3}, [], ("`model.init_args.nosuch`",)),
    "model flag": ({}, ["--model.init_args.nosuch=3"], ("`model.init_args.nosuch`",)),
    "data": ({"data.init_args.nosuch": 3}, [], ("`data.init_args.nosuch`",)),
    "callback": (
        {
            "trainer.callbacks": [
                {"class_path": "peas.callbacks.MaskPlots", "init_args": {"nosuch": 3}}
            ]
        },
        [],
        ("`trainer.callbacks.init_args.nosuch`",),
    ),
    "masks": ({"masking.init_args.nosuch": 3}, [], ("`masking.init_args.nosuch`",)),
    "masks without class": (
        {"masking.class_path-": None},
        [],
        ("`masking`", "class_path"),
    ),
    "number": ({"trainer.max_epochs": "many"}, [], ("`trainer.max_epochs` is many", "int")),
    "type": (
        {"model.init_args.recipe.init_args.lr": "fast"},
        [],
        ("`model.init_args.recipe.init_args.lr` is fast", "float"),
    ),
    "choice": (
        {},
        ["--model.init_args.encoder.init_args.size=huge"],
        ("`model.init_args.encoder.init_args.size` is huge", "'tiny', 'small', 'base'"),
    ),
    "class": ({"model.class_path": "peas.tasks.Nosuch"}, [], ("`model`", "Nosuch")),
    "required": ({"data.init_args.root-": None}, [], ("`data.init_args.root`", "give")),
    "module": ({"data.class_path": "nosuch.Thing"}, [], ("`data`", "nosuch")),
}


@pytest.mark.parametrize(("changes", "flags", "words"), PARSED.values(), ids=PARSED.keys())
def test_a_wrong_key_is_one_line(
    write: Write, changes: dict[str, Any], flags: list[str], words: tuple[str, ...]
) -> None:
    done = call("fit", "--config", write(changes=changes), *flags)
    assert done.err == f"peas fit: error: {done.message}\n"
    assert done.message.count("\n") == 0
    assert len(done.message) < 200
    for word in words:
        assert word in done.message


def test_flags_before_the_config_are_explained(write: Write) -> None:
    done = call("fit", "--model.init_args.recipe.init_args.lr=1", "--config", write())
    assert "behind the `--config`" in done.message
    assert "`model.init_args.recipe.init_args.lr`" in done.message


def test_a_config_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    assert "nowhere.yaml" in call("fit", "--config", "nowhere.yaml").message
    assert "nowhere.yaml" in call("kfold", "--config", "nowhere.yaml").message
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: }")
    assert "line 2" in call("fit", "--config", tmp_path / "broken.yaml").message
    done = call("kfold", "--config", tmp_path / "broken.yaml")
    assert str(tmp_path / "broken.yaml") in done.message
    assert "`data`" in call("fit").message


# --- W&B and the run folder ---------------------------------------------------------------------


def test_wandb_is_offline_without_a_key_or_a_prompt(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")

    def no_prompt(*_: object) -> str:
        raise AssertionError("asked for input")

    monkeypatch.setattr("builtins.input", no_prompt)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        # W&B talks to its own service through a local socket.
        assert isinstance(address, str) or address[0] in ("127.0.0.1", "localhost", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    logger = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "peas", "save_dir": str(tmp_path / "run")},
    }
    changes = {"trainer.logger": [logger], "masking": None}
    settings = changed(BASE, {"data.init_args.root": str(sounds), **changes})
    (tmp_path / "wandb.yaml").write_text(yaml.safe_dump(settings))
    argv = ["--config", tmp_path / "wandb.yaml", "--trainer.default_root_dir", tmp_path / "run"]
    argv += QUICK
    # Twice: with this logger the log folder is not the run's, where Lightning's own file collides.
    for more in ([], ["--ckpt_path=last", "--trainer.max_epochs=2"]):
        done = call("fit", *argv, *more)
        assert done.code == 0, done.err
        # What the end of a process does.
        wandb.finish()
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    written = b"".join(path.read_bytes() for path in runs[0].rglob("*.wandb"))
    # The whole config is in the run, not only what the task saves of itself.
    assert b"config_hash" in written
    assert b"default_root_dir" in written
    assert (tmp_path / "run" / "config.yaml").exists()


def test_a_run_has_a_folder_of_its_own(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write("my_row.yaml", changes={"masking": None})
    # Within a second, and in one process.
    monkeypatch.setattr("time.strftime", lambda _: "2030-01-02_03-04-05")
    for _ in range(2):
        assert call("fit", "--config", config, *QUICK).code == 0
    folders = sorted((tmp_path / "runs" / "my_row").iterdir())
    assert [path.name for path in folders] == ["2030-01-02_03-04-05", "2030-01-02_03-04-05.1"]
    for folder in folders:
        assert (folder / "checkpoints" / "last.ckpt").exists()
        kept = yaml.safe_load((folder / "config.yaml").read_text())
        assert Path(kept["trainer"]["default_root_dir"]).name == folder.name
    # Evaluation with the run's own config goes into the run's folder.
    again = ["--config", folders[0] / "config.yaml"]
    assert call("test", *again, "--ckpt_path", folders[0] / "checkpoints" / "best.ckpt").code == 0
    assert (folders[0] / "logits" / "test.npz").exists()
    assert json.loads((folders[0] / "environment_test.json").read_text())["command"][1] == "test"


def test_checkpoints_hold_only_what_can_be_read_safely(trained: Run) -> None:
    for path in (trained.last, trained.best):
        state = torch.load(path, weights_only=True)
        assert state["hyper_parameters"]["labels"] == ["tone", "up_chirp", "down_chirp"]


# --- callbacks and devices ----------------------------------------------------------------------


def test_a_callback_for_a_list_of_one(write: Write, tmp_path: Path) -> None:
    one = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    one["init_args"] = {"monitor": "val/acc"}  # type: ignore[assignment]
    config = write(
        changes={"masking": None, "trainer.callbacks": one, "trainer.limit_train_batches": 1}
    )
    argv = ["fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run"]
    # Its metric is asked about before training.
    done = call(*argv)
    assert "val/acc'" in done.message
    assert "val/accuracy" in done.message
    assert "epoch 1" not in done.err
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    argv += ["--trainer.callbacks.monitor", "val/accuracy", "--trainer.max_epochs", "1"]
    assert call(*argv).code == 0


def test_metrics_of_a_run_are_known(trained: Run) -> None:
    from peas.callbacks.run_checks import GROUPS, logged

    rows = metrics(trained.folder / "logs/version_0/metrics.csv")
    names = {key for row in rows for key in row if key.partition("/")[0] not in GROUPS}
    known = logged(classification(size="mini", pretrained=None, multi_label=False))
    assert known is not None
    assert names - {"epoch", "step", "train/skipped_steps"} <= known


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("argv", [["gpu"], ["cuda"], ["gpu", "--trainer.devices", "2"]])
def test_an_absent_gpu_comes_with_a_remedy(write: Write, argv: list[str]) -> None:
    message = call("fit", "--config", write(), "--trainer.accelerator", *argv).message
    assert "--trainer.accelerator cpu" in message


def test_a_name_that_is_no_checkpoint_may_mean_last(
    trained: Run, write: Write, tmp_path: Path
) -> None:
    argv = ["--config", write(), "--trainer.default_root_dir", tmp_path / "run"]
    assert "`last`" in call("test", *argv, "--ckpt_path", "lst").message
    wrong = trained.best.with_name("bst.ckpt")
    for message in (
        call("test", *argv, "--ckpt_path", wrong).message,
        call("tag", tmp_path, "--checkpoint", wrong).message,
        call("export", "--checkpoint", wrong, "--out", tmp_path / "x.pth").message,
    ):
        assert trained.best.name in message
        assert "SSAST" not in message
