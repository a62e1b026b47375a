"""The one boundary of every verb: known errors are one message, others keep their traceback."""

import errno
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary
from made import classification

import peas.__main__ as entry
from peas.callbacks.progress import SizeSummary
from peas.callbacks.run_checks import MonitorCheck
from peas.cli.errors import expected
from peas.data.cache import ResampledCache, default_folder
from peas.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("clips.csv: no column"), ["clips.csv: no column"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left", "free some space"]),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), ["runs/x", "Permission"]),
        (OSError(errno.EMFILE, "Too many open files"), ["ulimit"]),
        (MemoryError(), ["out of memory", "batch size"]),
        (torch.OutOfMemoryError("CUDA out of memory"), ["batch_size"]),
        (RuntimeError("Could not determine home directory."), ["home"]),
        (RuntimeError("No CUDA GPUs are available"), ["--trainer.accelerator cpu"]),
        (AssertionError("Torch not compiled with CUDA enabled"), ["--device cpu"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_known_error_is_one_message(
    error: Exception,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: Any) -> int:
        raise error

    monkeypatch.setattr(entry, "dispatch", fail)
    assert entry.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("peas doctor: error: ")
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("y"), OSError(errno.EBADF, "bad")])
def test_an_unexpected_error_keeps_its_traceback_and_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: Any) -> int:
        raise error

    monkeypatch.setattr(entry, "dispatch", fail)
    with pytest.raises(type(error)) as caught:
        entry.main(["doctor"])
    *lines, last = "".join(traceback.format_exception(caught.value)).strip().splitlines()
    assert any("in fail" in line for line in lines)
    assert "peas doctor" in last
    assert expected(error) is None


def test_streams_in_ascii_and_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
    monkeypatch.setattr(entry, "dispatch", lambda argv: print("Hähne \udcff"))
    entry.main(["doctor"])
    assert b"H\\xe4hne \\udcff" in raw.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_a_full_stdout_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(entry, "dispatch", lambda argv: print("a line"))
        assert entry.main(["doctor"]) == 1
    assert "No space left" in err.getvalue()
    assert len(err.getvalue().splitlines()) == 1


def test_a_user_without_a_home_has_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PEAS_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    with caplog.at_level(logging.WARNING):
        cache = ResampledCache(default_folder(), rate=16_000, channels="mean")
    assert cache.folder is None
    assert "PEAS_CACHE" in caplog.text


class Fit:
    def __init__(self, *callbacks: Any, enable_validation: bool = True) -> None:
        self.enable_validation = enable_validation
        self.callbacks = [*callbacks, MonitorCheck()]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_monitor_is_a_metric_of_the_run(multi_label: bool) -> None:
    task = classification(size="mini", pretrained=None, multi_label=multi_label)
    ask: Any = MonitorCheck().on_fit_start
    for good in ("val/mAP", "val/loss", "train/loss", "loss", "mask/fraction", "knn/accuracy"):
        ask(Fit(EarlyStopping(good), ModelCheckpoint(monitor=good), ModelCheckpoint()), task)
    for bad in ("val/acc", "val_loss", "valid/loss", *(["val/accuracy"] if multi_label else [])):
        for callback in (EarlyStopping(bad), ModelCheckpoint(monitor=bad)):
            with pytest.raises(ConfigError, match=bad) as caught:
                ask(Fit(callback), task)
            assert "val/mAP" in str(caught.value)
    # Asked for leniently, or a callback of the user's own may log it.
    ask(Fit(EarlyStopping("val/acc", strict=False)), task)
    own = type("Own", (ModelSummary,), {"__module__": "mine"})()
    ask(Fit(EarlyStopping("my/metric"), own), task)


def test_what_lightning_counts_and_what_is_skipped_can_be_monitored() -> None:
    task = classification(size="mini", pretrained=None, multi_label=False, on_nonfinite="skip")
    ask: Any = MonitorCheck().on_fit_start
    for good in ("step", "epoch", "train/skipped_steps"):
        ask(Fit(ModelCheckpoint(monitor=good, mode="max", save_top_k=2)), task)
    for bad in ("step", "train/aux_loss"):
        with pytest.raises(ConfigError, match=bad):
            ask(Fit(EarlyStopping(bad)), task)
    task = classification(size="mini", pretrained=None, multi_label=False, aux_loss_weight=0.5)
    ask(Fit(EarlyStopping("train/aux_loss")), task)


def test_without_validation_no_stop_waits_for_one() -> None:
    task = classification(size="mini", pretrained=None, multi_label=False)
    ask: Any = MonitorCheck().on_fit_start
    with pytest.raises(ConfigError, match="limit_val_batches"):
        ask(Fit(EarlyStopping("val/loss"), enable_validation=False), task)
    ask(Fit(EarlyStopping("train/loss"), enable_validation=False), task)
    ask(Fit(ModelCheckpoint(monitor="val/loss"), enable_validation=False), task)


def test_the_summary_has_no_flops(caplog: pytest.LogCaptureFixture) -> None:
    data = [("", ["0", "1"]), ("Name", ["model", "head"]), ("FLOPs", ["0", "0"])]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        SizeSummary.summarize(data, 12, 10, 0.0, {"train": 2, "eval": 0}, 0)
    assert "FLOPs" not in caplog.text
    assert "head" in caplog.text
    assert "10 parameters" in caplog.text
