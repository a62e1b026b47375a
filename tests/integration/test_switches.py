"""Defaults are switched off in the config, and a checkpoint is read once."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Run, Write, call

from peas.training import run_checkpoints


def test_a_run_without_its_defaults(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    off = ("run_files", "csv_log", "outputs", "bad_clips", "epoch_line", "monitor_check",
           "resume_check", "signals", "early_end")  # fmt: skip
    config = write(changes={"defaults": dict.fromkeys(off, False)})
    folder = tmp_path / "run"
    where = ("--config", config, "--trainer.default_root_dir", folder)
    done = call("fit", *where, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "run.lock", "run_id"]
    assert "max_epochs=1" in caplog.text
    assert "epoch 1/1" not in caplog.text
    # It resumes, and its settings are in its checkpoints.
    more = (
        "--ckpt_path",
        "last",
        "--trainer.max_epochs=2",
        "--model.init_args.recipe.init_args.lr=1e-3",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changed settings")
        done = call("fit", *where, *more)
    assert done.code == 0, done.err
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["settings"]["model.init_args.recipe.init_args.lr"] == 1e-3


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_checkpoint_is_read_once(
    write: Write, copied: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call_it(*args: Any, **keys: Any) -> Any:
            counts[name] += 1
            return function(*args, **keys)

        return call_it

    monkeypatch.setattr(torch, "load", counted("load", torch.load))
    checked = counted("checksum", run_checkpoints.is_complete)
    monkeypatch.setattr(run_checkpoints, "is_complete", checked)
    where = ("--trainer.default_root_dir", copied.folder, "--ckpt_path", "last")
    done = call(verb, "--config", copied.config, *where)
    assert done.code == 0, done.err
    assert counts == {"load": 1, "checksum": 1}
