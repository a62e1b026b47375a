"""A run's folder between two starts: its lock, its id, and what an earlier run left in it."""

import fcntl
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from peas.errors import CheckpointError, ConfigError, PeasError
from peas.training.run_checkpoints import (
    CHECKPOINTS,
    HPC,
    RUN_ID,
    checkpoint_files,
    is_whole,
    read_record,
    run_id,
)

log = logging.getLogger(__name__)

LOCK = "run.lock"
"""Held by the run that writes into the folder."""
WANDB_ID = "wandb_id"
"""File with the id under which W&B knows the run, so that a restart goes on with its curves."""
EARLIER = "earlier"
"""Subfolder of the runs that were in the folder before, a folder each, named by its id."""
WRITTEN = re.compile(
    r"(?:config|environment|labels)(?:_(?:validate|test|predict))?(?:\.\d+)?\.(?:yaml|json|csv)"
    r"|logs|logits|pictures|wandb|wandb_id|mask_starts\.csv|predictions(?:\.\d+)?\.csv"
    r"|hpc_ckpt_\d+\.ckpt"
)
"""What a run and its evaluations write into its folder, beside its checkpoints and id."""
PARTIAL = (
    *(f"{CHECKPOINTS}/*.partial", f"{HPC}.*.partial", "logs/*/*.partial"),
    *("logits/.*", ".mask_starts.csv", ".predictions.csv"),
)
"""Files that a killed process left half written."""


@contextmanager
def writing(path: Path, folder: Path | None = None) -> Iterator[None]:
    """A full disk, or a folder that is gone, is one message.

    Args:
        path: What is written.
        folder: Of the run that has begun, whose checkpoints the message then names.

    Raises:
        PeasError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        then = "Make room, or give another `--trainer.default_root_dir`"
        if folder is not None:
            then = remedy(folder, checkpoint_files(folder))
        raise PeasError(f"{path}: cannot be written ({error.strerror or error}). {then}") from error


def remedy(folder: Path, files: Iterable[Path]) -> str:
    """How a run that could not write is resumed, from what lies there.

    Args:
        folder: Of the run, or of its checkpoints.
        files: Its checkpoints.
    """
    found = [(record.step, path) for path in files if (record := read_record(path)) is not None]
    whole = next((path for _, path in sorted(found, reverse=True) if is_whole(path)), None)
    if whole is None:
        return f"No whole checkpoint lies in {folder} (was it removed?): make room, and begin again"
    return f"{whole} is whole: make room, then go on with `--ckpt_path last`"


def written(folder: Path) -> list[Path]:
    """What a run wrote into its folder; its checkpoints and id come last.

    Args:
        folder: Of the run.
    """
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if WRITTEN.fullmatch(path.name))
    last = (folder / CHECKPOINTS, folder / RUN_ID)
    return [*found, *(path for path in last if path.exists())]


def put_aside(folder: Path) -> None:
    """Move what an earlier run wrote into `earlier/<its id>/`, which is a run's folder again.

    Args:
        folder: Of the run, which this process has locked.
    """
    found = written(folder)
    if found in ([], [folder / RUN_ID]):
        return
    # A kill in between leaves checkpoints and id for the next try, which goes on with the rest.
    name = run_id(folder) or secrets.token_hex(4)
    place, count = folder / EARLIER / name, 0
    while any((place / path.name).exists() for path in found):
        count += 1
        place = folder / EARLIER / f"{name}.{count}"
    place.mkdir(parents=True, exist_ok=True)
    for path in found:
        path.rename(place / path.name)
    log.warning("what an earlier run wrote into %s lies in %s now", folder, place)


def require_new(folder: Path) -> None:
    """Refuse to begin a run where checkpoints lie.

    Args:
        folder: Of the run.

    Raises:
        ConfigError: They do.
    """
    if found := checkpoint_files(folder):
        names = ", ".join(path.name for path in found[:4]) + (", …" if len(found) > 4 else "")
        raise ConfigError(
            f"{folder} holds checkpoints ({names}), and neither `--ckpt_path` nor `--new` is "
            "given. `--ckpt_path last` resumes that run; `--new` begins another one, and puts "
            f"what it wrote into {folder / EARLIER}"
        )


def require_outside(folder: Path, named: Iterable[tuple[str, str]]) -> None:
    """Refuse to begin a run that reads what `put_aside` would move.

    Args:
        folder: Of the run.
        named: Keys of the configuration, and their values.

    Raises:
        ConfigError: A value names such a file.
    """
    moved = {path.resolve() for path in written(folder)}
    for key, value in named:
        path = Path(value)
        with suppress(OSError, ValueError, RuntimeError):
            if path.exists() and moved & {path.resolve(), *path.resolve().parents}:
                raise ConfigError(
                    f"`{key}` is {value}, which `--new` would move into {folder / EARLIER}: copy "
                    "it elsewhere first, or give another `--trainer.default_root_dir`"
                )


def require_own(folder: Path, start: Path) -> None:
    """Refuse a checkpoint from which the folder's run cannot go on.

    Args:
        folder: Of the run.
        start: The checkpoint.

    Raises:
        CheckpointError: It is inside an accumulation window; or of another run than the folder's;
            or the folder's run is further.
    """
    record = read_record(start)
    if record is None:
        return
    if record.inside_window:
        raise CheckpointError(
            f"{start}: was written while gradients were being accumulated, which it does not "
            "hold: going on from it would train other weights. Give `--ckpt_path last`"
        )
    others = [path for path in checkpoint_files(folder) if path.resolve() != start.resolve()]
    found = [(path, other) for path in others if (other := read_record(path)) is not None]
    inside = len(others) < len(checkpoint_files(folder))
    elsewhere = "give another `--trainer.default_root_dir` to go on from it there"
    # A file without an id, of an earlier release, is of the folder's run where it lies in it.
    ids = {run_id(folder), *(other.run for _, other in found)} if found else set()
    if ids and (ids - {record.run, None} if inside else ids != {record.run} or None in ids):
        raise CheckpointError(
            f"{start}: is of another run than the checkpoints in {folder}, which would be "
            f"overwritten: {elsewhere}"
        )
    further = [
        path
        for path, other in found
        if other.run == record.run and other.step > record.step and other.resumable
    ]
    if further:
        raise CheckpointError(
            f"{start}: is of step {record.step}, and {further[0]} of the same run is further: a "
            f"run goes forward only. `--ckpt_path last` takes the furthest; {elsewhere}"
        )


def take(folder: Path, *, start: Path | None, new: bool = False) -> IO[str]:
    """Take a run's folder for this process, until the file is closed or the process ends.

    Args:
        folder: Of the run.
        start: Checkpoint from which the run goes on; None where one begins. What an earlier one
            left is then put aside.
        new: Whether it may begin beside checkpoints.

    Raises:
        PeasError: Another process has it, it cannot be written, or holds checkpoints.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        began = any((folder / name).exists() for name in (LOCK, RUN_ID))
        file = _lock(folder / LOCK)
    try:
        with writing(folder):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            os.fsync(file.fileno())
            for pattern in PARTIAL:
                for path in folder.glob(pattern):
                    path.unlink(missing_ok=True)
            if start is None:
                if not new:
                    require_new(folder)
                if began or new:
                    put_aside(folder)
                _write_id(folder, secrets.token_hex(8))
            else:
                record, known = read_record(start), run_id(folder)
                run = record.run if record else None
                if run not in (known, None) or known is None:
                    if began and not checkpoint_files(folder):
                        put_aside(folder)
                    _write_id(folder, run or secrets.token_hex(8))
    except BaseException:
        file.close()
        raise
    return file


def _lock(path: Path) -> IO[str]:
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise PeasError(
            f"{path.parent}: {who} is writing its run here. Wait for it, or give another "
            "`--trainer.default_root_dir`"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): do not start the run twice", path, error)
    return file


def _write_id(folder: Path, text: str) -> None:
    partial = folder / f".{RUN_ID}"
    partial.write_text(text + "\n")
    partial.replace(folder / RUN_ID)


def wandb_id(folder: Path, *, afresh: bool) -> str:
    """The id under which W&B knows the run of a folder.

    Args:
        folder: Of the run.
        afresh: Whether a run begins, which gets a new one.
    """
    path = folder / WANDB_ID
    if not afresh and path.is_file() and (known := path.read_text().strip()):
        return known
    folder.mkdir(parents=True, exist_ok=True)
    made = secrets.token_hex(4)
    path.write_text(made + "\n")
    return made
