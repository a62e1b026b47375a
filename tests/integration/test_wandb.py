"""Weights & Biases: one run over all starts of a folder, what it is told, and no server."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from drive import Outcome, Write, call
from forks import Call, Forks

from peas.callbacks.wandb_run import use_run_folder

OVERLAY = Path(__file__).parents[2] / "configs" / "overlays" / "wandb.yaml"
KEY = "a" * 40


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither the user's key nor a service that an earlier test has started."""
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.finish()
    wandb.teardown()
    yield
    wandb.finish()


def _call(verb: str, config: Path, folder: Path, *argv: object) -> Outcome:
    where = ("--trainer.default_root_dir", folder)
    done = call(verb, "--config", config, "--config", OVERLAY, *where, *argv)
    # What the end of a process does; its service has read the environment once.
    wandb.finish()
    wandb.teardown()
    return done


def _offline(folder: Path) -> list[Path]:
    """W&B's runs of a folder, the oldest first."""
    return sorted((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)


def test_a_run_has_one_id_over_its_starts(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "run", write()
    assert _call("fit", config, folder, "--trainer.max_epochs=1").code == 0
    on = ("--ckpt_path", "last")
    assert _call("fit", config, folder, *on, "--trainer.max_epochs=2").code == 0
    assert _call("test", config, folder, *on).code == 0
    known = (folder / "wandb_id").read_text().strip()
    starts = _offline(folder)
    assert [path.name.rsplit("-", 1)[1] for path in starts] == [known] * 3
    # A run that begins in the same folder is another one.
    assert _call("fit", config, folder, "--trainer.max_epochs=1", "--new").code == 0
    other = (folder / "wandb_id").read_text().strip()
    assert other != known
    assert [path.name.rsplit("-", 1)[1] for path in _offline(folder)] == [other]
    # An id that a sweep's agent gives goes before.
    monkeypatch.setenv("WANDB_RUN_ID", "told")
    elsewhere = tmp_path / "elsewhere"
    assert _call("fit", config, elsewhere, "--trainer.max_epochs=1").code == 0
    assert _offline(elsewhere)[0].name.endswith("-told")
    assert not (elsewhere / "wandb_id").exists()


def test_a_folder_named_from_here_is_the_same_for_a_service_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that runs already wrote the log of a run into its own working folder."""
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    use_run_folder(Path("run"), afresh=True)
    assert Path(os.environ["WANDB_DIR"]) == tmp_path / "run"


def test_what_a_run_is_told(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = _call("fit", write(), folder, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    (start,) = _offline(folder)
    written = b"".join(path.read_bytes() for path in start.glob("*.wandb"))
    # The whole config is one group; the agent of a sweep has flat keys beside it.
    assert b"config_hash" in written
    assert b"default_root_dir" in written
    for name in (b"val/accuracy", b"val/mAP", b"val/loss"):
        assert name in written
    (table,) = start.rglob("*.table.json")
    told: dict[str, Any] = json.loads(table.read_text())
    assert told["columns"][:4] == ["index", "label", "clips", "average_precision"]
    assert len(told["data"]) == 3
    assert all(0 <= row[3] <= 1 for row in told["data"])


@pytest.mark.slow
def test_a_server_out_of_reach_stops_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"W&B cannot be reached .*wandb sync .*offline-run"):
        done = _call("fit", write(), folder, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert len(_offline(folder)) == 1
    assert (folder / "checkpoints/last.ckpt").exists()


def test_online_without_a_key_is_one_message(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    message = _call("fit", write(), tmp_path / "run").message
    assert "WANDB_API_KEY" in message
    assert "WANDB_MODE=offline" in message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the service is found in /proc")
def test_a_service_that_is_killed_stops_nothing(write: Write, forks: Forks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    strike = json.dumps({"class_path": "cli_recorder.KillService"})
    argv = ["fit", "--config", str(write()), "--config", str(OVERLAY)]
    argv += ["--trainer.default_root_dir", str(folder), f"--trainer.callbacks+={strike}"]
    fit = Call(argv, tmp_path / "log", {"WANDB_MODE": "offline", "HOME": str(tmp_path)})
    assert forks.run(fit) == [0], fit.log.read_text()
    told = fit.log.read_text()
    assert told.count("wandb sync") == 1
    assert "Traceback" not in told
    assert len(_offline(folder)) == 1
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12
