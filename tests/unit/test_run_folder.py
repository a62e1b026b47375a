"""Which checkpoint a run resumes from, and that a folder holds one run."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from peas.callbacks.checkpoints import AtomicCheckpointIO
from peas.errors import CheckpointError, ConfigError, PeasError
from peas.training.run_checkpoints import (
    Record,
    checkpoint_files,
    is_complete,
    newest_checkpoint,
    read_record,
    run_id,
)
from peas.training.run_folder import open_run, require_new, require_outside, require_own, writing

A, B = "a" * 16, "b" * 16


def start_run(folder: Path, **settings: Any) -> None:
    """Starts a run in a folder, and ends it."""
    with open_run(folder, **settings):
        pass


def newest_path(folder: Path) -> Path | None:
    loaded = newest_checkpoint(folder)
    return loaded.path if loaded else None


def _state(run: str | None, step: int, saves: int = 1, **more: Any) -> dict[str, Any]:
    state: dict[str, Any] = {
        "global_step": step,
        "loops": {},
        "optimizer_states": [{"state": {}}],
        "state_dict": {"weight": torch.full((1000,), float(step))},
    }
    if run is not None:
        state["run"] = {"run": run, "saves": saves, "inside_window": False, **more}
    return state


def _save(path: Path, run: str | None, step: int, saves: int = 1, **more: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint(_state(run, step, saves, **more), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of run A: its best at step 4, the end at step 8 and the one before."""
    run = tmp_path / "run"
    start_run(run, start=None)
    (run / "run_id").write_text(A)
    _save(run / "checkpoints/best.ckpt", A, 4, 1)
    _save(run / "checkpoints/last.before.ckpt", A, 4, 2)
    # The first of these is what counts; the others are there to lead astray.
    last = _save(run / "checkpoints/last.ckpt", A, 8, 3)
    for age, path in enumerate(sorted(run.glob("checkpoints/*"))):
        os.utime(path, (age, age))
    os.utime(last, (0, 0))
    return run


def test_times_of_files_say_nothing(folder: Path, tmp_path: Path) -> None:
    last = folder / "checkpoints/last.ckpt"
    assert newest_path(folder) == last
    for copied in ("one", "two"):
        there = Path(shutil.copytree(folder, tmp_path / copied, copy_function=shutil.copyfile))
        assert newest_path(there) == there / "checkpoints/last.ckpt"
    # As after a start that began, and ended at once.
    os.utime(folder / "run.lock")
    assert newest_path(folder) == last
    last.unlink()
    # Of one step, the one that was saved later.
    assert newest_path(folder) == folder / "checkpoints/last.before.ckpt"


def test_the_record_is_read_without_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = folder / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    assert torch.equal(state["state_dict"]["weight"], torch.full((1000,), 8.0))
    assert torch.load(last, weights_only=True, mmap=True).keys() == state.keys()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr(torch, "load", never)
    assert read_record(last) == Record(A, 8, 3)


def test_a_record_of_another_kind_is_none(folder: Path) -> None:
    for record in (b"[]", b'{"run": 5, "step": 1, "saves": 1}', b"{", b'{"step": 1e400}'):
        path = folder / "checkpoints/odd.ckpt"
        torch.save({}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("odd/run.json", record)
        assert read_record(path) is None
    torch.save({"global_step": "many"}, path)
    assert read_record(path) is None
    path.write_bytes(b"")
    assert read_record(path) is None


def test_one_wrong_bit_is_damage(folder: Path) -> None:
    last = folder / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    place = content.find(torch.full((1000,), 8.0).numpy().tobytes())
    content[place + 2000] ^= 1
    last.write_bytes(content)
    assert not is_complete(last)
    # It says where it belongs, and is not taken.
    assert read_record(last) == Record(A, 8, 3)
    assert newest_path(folder) == folder / "checkpoints/last.before.ckpt"


@pytest.mark.parametrize("counted", [False, True])
def test_runs_of_the_last_release_resume(tmp_path: Path, counted: bool) -> None:
    for name, step in (("best", 2), ("last.before", 4), ("last", 6)):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        torch.save(_state(None, step), tmp_path / f"checkpoints/{name}.ckpt")
    last = tmp_path / "checkpoints/last.ckpt"
    if counted:
        # A second run in the folder had its own names: which is meant, only the user knows.
        torch.save(_state(None, 9), tmp_path / "checkpoints/last-v1.ckpt")
        with pytest.raises(CheckpointError, match=r"last-v1\.ckpt.*--ckpt_path FILE"):
            newest_checkpoint(tmp_path)
        return
    assert newest_path(tmp_path) == last
    require_own(tmp_path, last)
    start_run(tmp_path, start=last)
    known = run_id(tmp_path)
    assert known is not None
    assert not (tmp_path / "earlier").exists()
    _save(last, known, 7, 1)
    assert newest_path(tmp_path) == last


def test_checkpoints_that_are_not_taken_are_never_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "run_id").write_text(A)
    foreign = _save(tmp_path / "checkpoints/last.ckpt", B, 8)
    with pytest.raises(CheckpointError, match=rf"1 of other runs than {A}"):
        newest_checkpoint(tmp_path)
    (tmp_path / "run_id").unlink()
    assert newest_path(tmp_path) == foreign
    other = _save(tmp_path / "checkpoints/best.ckpt", A, 8)
    with pytest.raises(CheckpointError, match=f"{A}, {B}"):
        newest_checkpoint(tmp_path)
    foreign.unlink()
    torch.save({"state_dict": {}, "global_step": 3}, other)
    with pytest.raises(CheckpointError, match="1 without the state of training"):
        newest_checkpoint(tmp_path)
    _save(other, A, 4, inside_window=True)
    with pytest.raises(CheckpointError, match="inside an accumulation window"):
        newest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="being accumulated"):
        require_own(tmp_path, other)


def test_a_folder_holds_one_run(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "fold1").mkdir()
    (folder / "config_mine.yaml").touch()
    (folder / "config.1.yaml").touch()
    (folder / "logits").mkdir()
    for new in (False, True):
        if not new:
            with pytest.raises(ConfigError, match=r"last\.ckpt.*--ckpt_path last.*--new"):
                start_run(folder, start=None)
            with pytest.raises(ConfigError):
                require_new(folder)
            # It is free again.
        else:
            start_run(folder, start=None, new=True)
    aside = folder / "earlier" / A
    assert sorted(path.name for path in aside.iterdir()) == [
        "checkpoints",
        "config.1.yaml",
        "logits",
        "run_id",
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config_mine.yaml",
        "earlier",
        "fold1",
        "notes.txt",
        "run.lock",
        "run_id",
    ]
    second = run_id(folder)
    assert second not in (A, None)
    # One that saved nothing is put aside too, and neither overwrites the other.
    (folder / "mask_starts.csv").touch()
    start_run(folder, start=None)
    assert (folder / f"earlier/{second}/mask_starts.csv").exists()
    assert newest_path(aside) == aside / "checkpoints/last.ckpt"


def test_a_run_goes_forward_only(folder: Path, tmp_path: Path) -> None:
    last, before = (folder / f"checkpoints/{name}.ckpt" for name in ("last", "last.before"))
    require_own(folder, last)
    with pytest.raises(CheckpointError, match=r"step 4, and .*last\.ckpt"):
        require_own(folder, before)
    # Into a folder of its own it may.
    branch = tmp_path / "branch"
    require_own(branch, before)
    start_run(branch, start=before)
    assert run_id(branch) == A
    other = _save(tmp_path / "other.ckpt", B, 9)
    with pytest.raises(CheckpointError, match="another run"):
        require_own(folder, other)
    inside = _save(folder / "checkpoints/other.ckpt", B, 9)
    with pytest.raises(CheckpointError, match="another run"):
        require_own(folder, inside)


def test_a_run_below_a_folder_is_another_run(tmp_path: Path) -> None:
    """Releases before the id: nothing in the files tells the two apart."""
    _save(tmp_path / "checkpoints/last.ckpt", None, 4)
    below = _save(tmp_path / "fold1/checkpoints/last.ckpt", None, 8)
    with pytest.raises(CheckpointError, match="another run"):
        require_own(tmp_path, below)
    require_own(tmp_path / "fold1", below)


def test_what_killed_writers_left_is_cleared(folder: Path) -> None:
    left = [
        folder / "checkpoints/last.ckpt.77.partial",
        folder / "hpc_ckpt_1.ckpt.77.partial",
        folder / "logs/version_0/metrics.csv.0123abcd.partial",
        folder / "logits/val_last_classes.csv.0123abcd.partial",
        folder / "mask_starts.csv.0123abcd.partial",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with open_run(folder, start=folder / "checkpoints/last.ckpt"):
        assert not any(path.exists() for path in left)
        # Only the process that holds the lock removes them.
        left[0].touch()
        with pytest.raises(PeasError, match=f"process {os.getpid()}"):
            start_run(folder, start=folder / "checkpoints/last.ckpt")
    assert left[0].exists()


def test_what_the_config_reads_is_not_put_aside(folder: Path) -> None:
    best = folder / "checkpoints/best.ckpt"
    named = [("seed_everything", "7"), ("data.init_args.root", str(folder.parent))]
    require_outside(folder, named)
    with pytest.raises(ConfigError, match=r"`model\.init_args\.pretrained` is .*best\.ckpt"):
        require_outside(folder, [*named, ("model.init_args.pretrained", str(best))])


def test_what_is_said_of_a_failed_write_is_so(folder: Path) -> None:
    with pytest.raises(PeasError, match=r"No space.*Make room"), writing(folder):
        raise OSError(28, "No space left on device")
    with pytest.raises(PeasError, match=r"last\.ckpt"), writing(folder, folder):
        raise OSError(28, "No space left on device")
    shutil.rmtree(folder)
    with pytest.raises(PeasError, match=re.escape(str(folder))), writing(folder, folder):
        (folder / "metrics.csv").open("a")
    assert not checkpoint_files(folder)
