"""Stopped at any step and by any means, a run goes on as if nothing had happened."""

import fcntl
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_recorder import recorded
from drive import Outcome, Run, Write, call, fit, metrics, prepare
from forks import Call, Forks

from peas.training.run_checkpoints import newest_checkpoint


def _checkpoint(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _same(left: Any, right: Any) -> None:
    """Bit for bit, however deep."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            _same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for ours, theirs in zip(left, right, strict=True):
            _same(ours, theirs)
    else:
        assert left == right


def _signaller(name: str, at: tuple[int, int], validation: bool = False) -> dict[str, Any]:
    args = {"name": name, "at": list(at), "validation": validation}
    return {"class_path": "cli_recorder.Signaller", "init_args": args}


def _go_on(run: Run, sounds: Path, *argv: object) -> Outcome:
    """The same command, without what broke it, and `--ckpt_path last`."""
    prepare(run.folder, sounds)
    where = ("--trainer.default_root_dir", run.folder, "--ckpt_path", "last")
    return call("fit", "--config", run.config, *where, *argv)


def _union(folder: Path) -> list[dict[str, str]]:
    """Rows of all starts of a run; where two starts logged the same step, they must agree."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for log in sorted(folder.glob("logs/version_*/metrics.csv")):
        for row in metrics(log):
            place = (row["epoch"], row["step"], *sorted(key for key in row))
            assert rows.setdefault(place, row) == row
    return sorted(rows.values(), key=lambda row: (int(row["step"]), sorted(row)))


def _equals_unbroken(run: Run, trained: Run) -> None:
    """Order, masks, inputs, logs, weights and optimiser."""
    whole = {(line["epoch"], line["step"]): line for line in recorded(trained.masks)}
    seen = recorded(run.masks)
    assert {(line["epoch"], line["step"]) for line in seen} == set(whole)
    for line in seen:
        assert line == whole[line["epoch"], line["step"]]
    assert _union(run.folder) == _union(trained.folder)
    ours, theirs = _checkpoint(run.last), _checkpoint(trained.last)
    _same(ours["state_dict"], theirs["state_dict"])
    _same(ours["optimizer_states"], theirs["optimizer_states"])


@pytest.fixture(scope="session")
def every_step(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unbroken run that logs every step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run, done = fit(folder, sounds, "--trainer.log_every_n_steps", "1")
    assert done.code == 0, done.err
    return run


STEPS = ("--trainer.log_every_n_steps", "1", "--checkpoints.every_n_train_steps", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "validation"),
    [((0, 3), False), ((1, 2), False), ((0, 3), True)],
    ids=["last_batch", "inside_an_epoch", "while_it_is_validated"],
)
def test_killed_and_gone_on(
    every_step: Run,
    forks: Forks,
    sounds: Path,
    tmp_path: Path,
    at: tuple[int, int],
    validation: bool,
) -> None:
    run = prepare(tmp_path / "run", sounds, _signaller("SIGKILL", at, validation))
    where = ("--trainer.default_root_dir", str(run.folder))
    killed = Call(["fit", "--config", str(run.config), *where, *STEPS], tmp_path / "log")
    assert forks.run(killed) == [-signal.SIGKILL], killed.log.read_text()
    lost = recorded(run.masks)[-1]
    assert (lost["epoch"], lost["step"]) == at
    again = _go_on(run, sounds, *STEPS)
    assert again.code == 0, again.err
    # The step that the kill took away was made again.
    assert recorded(run.masks).count(lost) == 2
    _equals_unbroken(run, every_step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "key"), [(5, "loss"), (7, "train/loss")], ids=["of_a_step", "of_an_epoch"]
)
def test_killed_before_a_line_is_in_the_log(
    every_step: Run, forks: Forks, sounds: Path, tmp_path: Path, step: int, key: str
) -> None:
    """Lightning's own order would have the step in a checkpoint, and its line nowhere."""
    run = prepare(tmp_path / "run", sounds)
    fatal = {"class_path": "cli_recorder.Killer", "init_args": {"step": step, "key": key}}
    where = ("--trainer.default_root_dir", str(run.folder), f"--trainer.logger={json.dumps(fatal)}")
    killed = Call(["fit", "--config", str(run.config), *where, *STEPS], tmp_path / "log")
    assert forks.run(killed) == [-signal.SIGKILL], killed.log.read_text()
    again = _go_on(run, sounds, *STEPS)
    assert again.code == 0, again.err
    _equals_unbroken(run, every_step)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A shell that starts the tests in the background has it ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "at", "validation"),
    [
        ("SIGTERM", (1, 1), False),
        ("SIGUSR1", (1, 1), False),
        ("SIGINT", (1, 1), False),
        ("SIGTERM", (0, 3), False),
        ("SIGTERM", (1, 0), True),
    ],
)
def test_asked_to_stop_and_gone_on(
    every_step: Run,
    sounds: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ctrl_c: None,
    name: str,
    at: tuple[int, int],
    validation: bool,
) -> None:
    run = prepare(tmp_path / "run", sounds, _signaller(name, at, validation))
    log = ("--trainer.log_every_n_steps", "1")
    argv = ("--config", run.config, "--trainer.default_root_dir", run.folder, *log)
    done = call("fit", *argv)
    assert done.code == 128 + signal.Signals[name]
    # Where a validation follows or goes on, there is one more step to make.
    step = 4 * (at[0] + 1) + 1 if validation or at[1] == 3 else 4 * at[0] + at[1] + 1
    assert f"stopped by {name} after step {step}" in caplog.text
    assert "--ckpt_path last" in caplog.text
    assert _checkpoint(run.last)["global_step"] == step
    again = _go_on(run, sounds, *log)
    assert again.code == 0, again.err
    assert f"resuming from {run.last}" in caplog.text
    # Nothing was made twice.
    seen = [(line["epoch"], line["step"]) for line in recorded(run.masks)]
    assert len(seen) == len(set(seen))
    _equals_unbroken(run, every_step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_workers_too_loses_nothing(
    every_step: Run, forks: Forks, sounds: Path, tmp_path: Path, name: str
) -> None:
    """`timeout`, systemd, a terminal: workers would die first, and the run with them."""
    struck = _signaller(name, (1, 1))
    struck["init_args"]["group"] = True
    run = prepare(tmp_path / "run", sounds, struck)
    where = ("--trainer.default_root_dir", str(run.folder), "--data.init_args.num_workers=2")
    argv = ["fit", "--config", str(run.config), *where, "--trainer.log_every_n_steps=1"]
    stopped = Call(argv, tmp_path / "log")
    assert forks.run(stopped) == [128 + signal.Signals[name]], stopped.log.read_text()
    told = stopped.log.read_text()
    assert "memory" not in told
    assert "Traceback" not in told
    assert _checkpoint(run.last)["global_step"] == 6
    again = _go_on(run, sounds, "--trainer.log_every_n_steps", "1")
    assert again.code == 0, again.err
    _equals_unbroken(run, every_step)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_signal_outside_of_training_ends_the_command(
    trained: Run, sounds: Path, tmp_path: Path, ctrl_c: None, verb: str, name: str
) -> None:
    run = prepare(tmp_path / "run", sounds, _signaller(name, (0, 0), True))
    argv = ["--config", run.config, "--trainer.default_root_dir", run.folder]
    argv += ["--ckpt_path", trained.last] if verb == "validate" else []
    argv += ["--trainer.num_sanity_val_steps", "2"]
    done = call(verb, *argv)
    assert done.code == 128 + signal.Signals[name]
    assert name in done.err
    assert not run.last.exists()
    # The handlers are those of before.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_gradients_that_are_being_accumulated_are_not_lost(sounds: Path, tmp_path: Path) -> None:
    argv = ("--trainer.accumulate_grad_batches", "2")
    whole, done = fit(tmp_path / "whole", sounds, *argv)
    assert done.code == 0, done.err
    run = prepare(tmp_path / "run", sounds, _signaller("SIGTERM", (1, 0)))
    where = ("--trainer.default_root_dir", run.folder)
    assert call("fit", "--config", run.config, *where, *argv).code == 143
    assert [line["step"] for line in recorded(run.masks)][-2:] == [0, 1]
    assert _go_on(run, sounds, *argv).code == 0
    _same(_checkpoint(run.last)["state_dict"], _checkpoint(whole.last)["state_dict"])


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    trained: Run, copied: Run, sounds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = copied.folder / "checkpoints" / "last.before.ckpt"
    assert _checkpoint(before)["epoch"] == 1
    # Whole in its length, wrong in one bit of a tensor.
    damaged = bytearray(copied.last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copied.last.write_bytes(damaged)
    copied.best.unlink()
    copied = Run(copied.folder, copied.config, copied.folder.parent / "masks.jsonl")
    prepare(copied.folder, sounds)
    again = _go_on(Run(copied.folder, copied.folder.with_suffix(".yaml"), copied.masks), sounds)
    assert again.code == 0, again.err
    assert f"{copied.last} is damaged" in caplog.text
    assert f"resuming from {before}" in caplog.text
    _same(_checkpoint(copied.last)["state_dict"], _checkpoint(trained.last)["state_dict"])
    # The damaged file did not take the place of the whole one.
    assert _checkpoint(before)["epoch"] == 1

    for path in (copied.folder / "checkpoints").iterdir():
        path.write_bytes(b"PK" + bytes(100))
    count = len(list((copied.folder / "checkpoints").iterdir()))
    message = call(
        *("fit", "--config", copied.folder.with_suffix(".yaml"), "--ckpt_path", "last"),
        *("--trainer.default_root_dir", copied.folder),
    ).message
    assert f"{count} damaged" in message
    assert "--new" in message


def test_last_begins_where_there_is_nothing_and_says_so(
    write: Write, copied: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ("--config", write(), "--ckpt_path", "last")
    message = call("fit", *argv).message
    assert "--trainer.default_root_dir" in message
    where = ("--trainer.default_root_dir", tmp_path / "new")
    done = call("fit", *argv, *where, "--trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert f"{tmp_path / 'new'}: a new run" in caplog.text
    assert str(tmp_path) in call("test", *argv[:3], "last", *where[:1], tmp_path).message
    done = call("test", *argv, "--trainer.default_root_dir", copied.folder)
    assert done.code == 0, done.err


def _in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLURM would start one task."""
    for key, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "here",
    }.items():
        monkeypatch.setenv(key, value)


def test_what_a_requeue_left_is_for_the_run_that_left_it(
    write: Write,
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _in_a_job(monkeypatch)
    folder = tmp_path / "run"
    folder.mkdir()
    left = folder / "hpc_ckpt_3.ckpt"
    shutil.copy(trained.last, left)
    assert newest_checkpoint(folder).path == left
    where = ("--trainer.default_root_dir", folder)
    fit = ("fit", "--config", write(), *where, "--trainer.max_epochs=1")
    assert "hpc_ckpt_3.ckpt" in call(*fit).message
    # `test` without a checkpoint asks for one.
    message = call("test", "--config", write(), *where).message
    assert "needs the weights of a run" in message
    done = call(*fit, "--new")
    assert done.code == 0, done.err
    assert _checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 4
    assert newest_checkpoint(folder).path == folder / "checkpoints/last.ckpt"
    (kept,) = (folder / "earlier").iterdir()
    assert newest_checkpoint(kept).path == kept / "hpc_ckpt_3.ckpt"


def test_one_run_a_folder_at_a_time(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = ("fit", "--config", write(), "--trainer.max_epochs=1")
    where = ("--trainer.default_root_dir", folder)
    folder.mkdir()
    with (folder / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 1 on elsewhere\n")
        held.flush()
        message = call(*argv, *where).message
        assert f"{folder}: process 1 on elsewhere" in message
        assert not (folder / "config.yaml").exists()
    done = call(*argv, *where)
    assert done.code == 0, done.err
    # It is let go at the end, and after a failure.
    stopping = json.dumps(_signaller("SIGTERM", (0, 0)))
    assert call(*argv, *where, "--new", f"--trainer.callbacks+={stopping}").code == 143
    assert call(*argv, *where, "--new").code == 0
