"""A run's folder, as the command line leaves and takes it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_recorder import recorded
from drive import Run, Write, call, fit, prepare

from peas.cli.main import _new_run_dir
from peas.training.run_checkpoints import read_record

VERBS = ("fit", "validate", "test", "predict")


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def same(left: Any, right: Any) -> None:
    """Bit for bit, however deep."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict | list):
        assert len(left) == len(right)
        keys = left if isinstance(left, dict) else range(len(left))
        for key in keys:
            same(left[key], right[key])
    else:
        assert left == right


def _breaking(hook: str, at: tuple[int, int]) -> str:
    args = {"hook": hook, "at": list(at)}
    return json.dumps({"class_path": "cli_recorder.Breaker", "init_args": args})


# --- steps that are made of several batches -----------------------------------------------------

WINDOWS = {
    "every step is saved": ("--checkpoints.every_n_train_steps=1",),
    "validations between two steps of an epoch": (
        "--checkpoints.every_n_train_steps=1",
        "--trainer.val_check_interval=4",
    ),
    "validations alone": ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=1"),
}


@pytest.mark.parametrize("keys", WINDOWS.values(), ids=WINDOWS.keys())
def test_a_run_stopped_inside_its_windows_equals_the_unbroken_one(
    sounds: Path, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    """Twelve batches an epoch, four a step; broken off three times, each time inside a window."""
    argv = (
        *("--data.init_args.batch_size=2", "--trainer.accumulate_grad_batches=4"),
        *("--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", *keys),
    )
    whole, done = fit(tmp_path / "whole", sounds, *argv)
    assert done.code == 0, done.err
    run = prepare(tmp_path / "run", sounds)
    where = ("--trainer.default_root_dir", run.folder, "--ckpt_path", "last")
    command = ("fit", "--config", run.config, *where, *argv)
    # The second one in the window after that from which it resumed.
    for at in ((0, 5), (0, 6), (1, 6)):
        done = call(*command, f"--trainer.callbacks+={_breaking('on_train_batch_end', at)}")
        assert done.code == 1
        for path in run.folder.glob("checkpoints/*.ckpt"):
            record = read_record(path)
            assert record is not None
            assert not record.inside_window
            progress = _state(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            assert progress["ready"] % 4 == 0
    assert call(*command).code == 0
    ours, theirs = _state(run.last), _state(whole.last)
    for part in ("state_dict", "optimizer_states"):
        same(ours[part], theirs[part])
    assert _state(run.best)["global_step"] == _state(whole.best)["global_step"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("--trainer.val_check_interval=3",), ("is 3 batches", "4")),
        (("--trainer.val_check_interval=0.5",), ("is 6 batches", "4")),
        (
            ("--trainer.val_check_interval=8", "--trainer.check_val_every_n_epoch=null"),
            ("10 batches",),
        ),
    ],
)
def test_validations_inside_a_window_are_refused(
    write: Write, tmp_path: Path, keys: tuple[str, ...], words: tuple[str, ...]
) -> None:
    batches = 10 if "null" in keys[-1] else 12
    done = call(
        *("fit", "--config", write(), "--trainer.default_root_dir", tmp_path / "run", *keys),
        *("--data.init_args.batch_size=2", "--trainer.accumulate_grad_batches=4"),
        f"--trainer.limit_train_batches={batches}",
    )
    for word in ("accumulate_grad_batches", *words):
        assert word in done.message


def test_no_checkpoint_comes_between_a_step_and_its_validation(
    sounds: Path, tmp_path: Path
) -> None:
    """Lightning would take it for one of after the validation, which is then lost."""
    keys = ("--checkpoints.every_n_train_steps=1", "--trainer.val_check_interval=2")
    run = prepare(tmp_path / "run", sounds)
    where = ("--trainer.default_root_dir", run.folder, "--ckpt_path", "last")
    command = ("fit", "--config", run.config, *where, *keys, "--trainer.max_epochs=1")
    done = call(*command, f"--trainer.callbacks+={_breaking('on_validation_start', (0, 1))}")
    assert done.code == 1
    assert _state(run.last)["global_step"] == 1
    assert call(*command).code == 0
    # The step before the validation was made again.
    assert [line["step"] for line in recorded(run.masks)] == [0, 1, 1, 2, 3]
    logits = np.load(run.folder / "logits" / "val_best.npz")
    assert logits["ids"].size


# --- what a run has beside the checkpoints of the user ------------------------------------------


def test_checkpoints_of_the_users_own_take_nothing_away(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    # The monitor of our own best.ckpt too.
    own = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "val/accuracy", "mode": "max", "save_top_k": -1},
    }
    argv = ("fit", "--config", write(), "--trainer.default_root_dir", folder, "--ckpt_path=last")
    more = f"--trainer.callbacks+={json.dumps(own)}"
    for epochs in (1, 2):
        done = call(*argv, more, f"--trainer.max_epochs={epochs}")
        assert done.code == 0, done.err
    last = folder / "checkpoints/last.ckpt"
    assert f"resuming from {last}" in caplog.text
    assert _state(last)["epoch"] == 1
    assert (folder / "checkpoints/best.ckpt").exists()
    assert len(list(folder.glob("logs/*/checkpoints/*.ckpt"))) == 2


def test_the_best_checkpoint_of_a_copied_run_is_kept(
    copied: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Lightning forgets the best score in another folder, and any epoch is better then."""
    state = _state(copied.last)
    best = state["callbacks"]["BestCheckpoint"]
    best["best_model_score"] = best["kth_value"] = torch.tensor(2.0)
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(2.0))
    torch.save(state, copied.last)
    content = copied.best.read_bytes()
    argv = ("--config", copied.config, "--trainer.default_root_dir", copied.folder)
    done = call("fit", *argv, "--ckpt_path=last", "--trainer.max_epochs=4")
    assert done.code == 0, done.err
    assert f"resuming from {copied.last}" in caplog.text
    assert copied.best.read_bytes() == content
    assert float(_state(copied.last)["callbacks"]["BestCheckpoint"]["best_model_score"]) == 2


def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    from peas.callbacks.checkpoints import BestCheckpoint

    class Strategy:
        @staticmethod
        def reduce_boolean_decision(decision: bool, all: bool = True) -> bool:
            return decision

    trainer: Any = type("Trainer", (), {"strategy": Strategy(), "callback_metrics": {}})
    trainer.callback_metrics = {"val/mAP": torch.tensor(float("nan"))}
    best = BestCheckpoint(tmp_path, "val/mAP", "max")
    for value in (float("nan"), float("inf"), float("-inf")):
        assert not best.check_monitor_top_k(trainer, torch.tensor(value))
    with pytest.warns(UserWarning, match=r"val/mAP.*best\.ckpt"):
        best.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert best.check_monitor_top_k(trainer, torch.tensor(0.0))
    best.best_k_models = {"best.ckpt": torch.tensor(0.5)}
    best.kth_best_model_path = "best.ckpt"
    assert not best.check_monitor_top_k(trainer, torch.tensor(float("nan")))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.6))


def test_three_starts_in_one_second_have_three_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")
    config = type("Config", (), {"config": ["a/row.yaml"]})
    # None of them has written anything yet.
    names = [_new_run_dir(config, make=True).name for _ in range(3)]
    assert names == ["now", "now.1", "now.2"]


# --- every value of --ckpt_path -----------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_value_of_ckpt_path(
    verb: str, trained: Run, copied: Run, write: Write, tmp_path: Path
) -> None:
    config = write(changes={"masking": None})
    quick = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}[verb]
    limit = f"--trainer.limit_{quick}_batches=1"

    def asked(value: object, folder: Path | None) -> Any:
        where = () if folder is None else ("--trainer.default_root_dir", folder)
        return call(verb, "--config", config, limit, *where, "--ckpt_path", value)

    empty = tmp_path / "empty"
    empty.mkdir()
    for value in ("best", "last", "hpc"):
        assert "--trainer.default_root_dir" in asked(value, None).message
    for value in ("best", "hpc", *(() if verb == "fit" else ("last",))):
        assert value in asked(value, empty).message
    assert "registry" in asked("registry", copied.folder).message
    for inside in (copied.folder, copied.folder / "checkpoints"):
        message = asked(inside, copied.folder).message
        assert str(inside) in message
        assert "--ckpt_path last" in message
    assert not list(empty.iterdir())
    if verb == "fit":
        message = asked("best", copied.folder).message
        assert "--ckpt_path last" in message
        assert "model.init_args.pretrained" in message
        assert str(copied.best) in message
        message = call(
            *("fit", "--config", config, "--new", "--ckpt_path=last"),
            *("--trainer.default_root_dir", copied.folder),
        ).message
        assert "--new" in message
        return
    assert "--new" in call(verb, "--config", config, "--new").message
    shutil.copy(copied.last, copied.folder / "hpc_ckpt_1.ckpt")
    for value in ("best", "last", "hpc", copied.best):
        done = asked(value, copied.folder)
        assert done.code == 0, done.err


def test_a_disk_that_is_full_from_the_start_is_one_message(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    folder = tmp_path / "run"
    message = call("fit", "--config", write(), "--trainer.default_root_dir", folder).message
    assert str(folder) in message
    assert "No space left on device" in message
