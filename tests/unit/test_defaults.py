"""What every run does without being asked, and that each of it can be switched off by name."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from peas.callbacks.defaults import Defaults, RunSettings, default_callbacks

CALLBACKS = {
    "wandb": {"WandbRun"},
    "outputs": {"ClipOutputs"},
    "bad_clips": {"BadClipCount"},
    "epoch_line": {"EpochLine"},
    "monitor_check": {"MonitorCheck"},
    "signals": {"StopOnSignal", "SaveOnSignal"},
    "early_end": {"SaveBeforeEarlyEnd"},
}
"""Callbacks that a switch leaves out."""
ELSEWHERE = {"run_files", "csv_log", "resume_check"}
"""Switches that change no list of callbacks."""
CHECKPOINTS = {"WriteAfterLog", "BestCheckpoint", "LastCheckpoint"}


def settings(folder: Path, verb: str = "fit", **trainer: Any) -> RunSettings:
    config = {
        "checkpoints": {"every_n_train_steps": None},
        "trainer": {
            "enable_checkpointing": None,
            "enable_model_summary": None,
            "enable_progress_bar": None,
            "check_val_every_n_epoch": 1,
            **trainer,
        },
    }
    return RunSettings(folder, verb, config, ("val/loss", "min"), [], wandb=True)


def names(on: Defaults, run: RunSettings) -> list[str]:
    return [type(callback).__name__ for callback in default_callbacks(on, run)]


def test_every_switch_is_tested() -> None:
    assert {field.name for field in fields(Defaults)} == {*CALLBACKS, *ELSEWHERE}


@pytest.mark.parametrize("name", CALLBACKS)
def test_each_is_switched_off_by_name(name: str, tmp_path: Path) -> None:
    everything = names(Defaults(), settings(tmp_path))
    rest = names(Defaults(**{name: False}), settings(tmp_path))
    assert set(everything) - set(rest) == CALLBACKS[name]


def test_lightnings_switches_stay(tmp_path: Path) -> None:
    everything = set(names(Defaults(), settings(tmp_path)))
    run = settings(tmp_path, enable_checkpointing=False)
    without = everything - set(names(Defaults(), run))
    assert without == CHECKPOINTS | CALLBACKS["signals"] | CALLBACKS["early_end"]
    run = settings(tmp_path, enable_model_summary=False)
    assert everything - set(names(Defaults(), run)) == {"SizeSummary"}


def test_the_order_that_saving_needs(tmp_path: Path) -> None:
    mine = Callback()
    run = replace(settings(tmp_path), own=[mine])
    callbacks = default_callbacks(Defaults(), run)
    order = [type(callback).__name__ for callback in callbacks]
    assert order[:2] == ["WriteAfterLog", "StopOnSignal"]
    assert callbacks[2] is mine
    last = ["BestCheckpoint", "LastCheckpoint", "SaveOnSignal", "SaveBeforeEarlyEnd"]
    assert [name for name in order if name in last] == last


def test_predictions_are_always_written(tmp_path: Path) -> None:
    off = Defaults(outputs=False)
    assert "ClipOutputs" in names(off, settings(tmp_path, "predict"))
    assert "ClipOutputs" not in names(off, settings(tmp_path, "test"))
