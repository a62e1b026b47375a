"""What lies in the folder of a run between two starts: its lock, its checkpoints, its W&B id."""

import fcntl
import logging
import os
import secrets
import socket
import zipfile
from pathlib import Path
from typing import IO

from peas.errors import CheckpointError, PeasError

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Subfolder of the checkpoints."""
LOCK = "run.lock"
"""Held by the run that writes into the folder; its age tells when the run in it began afresh."""
WANDB_ID = "wandb_id"
"""File with the id under which W&B knows the run, so that a restart goes on with its curves."""


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete, to the last checksum.

    Args:
        path: A file written by `torch.save`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of the run in a folder, the newest first, whole or not.

    Those are its own and the ones that Lightning leaves when a job is put back into a cluster's
    queue. What is older than the run's beginning was left by another one.

    Args:
        folder: Of the run.
    """
    found = [*folder.glob(f"{CHECKPOINTS}/*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    began = folder / LOCK
    since = began.stat().st_mtime_ns if began.exists() else 0
    dated = [(path.stat().st_mtime_ns, path) for path in found]
    return [path for age, path in sorted(dated, reverse=True) if age >= since]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; None where there is none yet.

    Args:
        folder: Of the run.

    Raises:
        CheckpointError: There are checkpoints, and every one is damaged.
    """
    found = checkpoints(folder)
    for path in found:
        if is_whole(path):
            return path
        log.warning("%s is damaged: the one before it is used, if there is one", path)
    if found:
        raise CheckpointError(
            f"{folder}: all of its {len(found)} checkpoints are damaged. Start again in another "
            "folder, or leave out `--ckpt_path last` to begin afresh in this one"
        )
    return None


def lock(folder: Path, *, afresh: bool) -> IO[str]:
    """Take a run's folder for this process, until the file is closed or the process ends.

    Args:
        folder: Of the run.
        afresh: Whether a run begins; False where one goes on. What lies in the folder then is of
            another run: nothing is deleted, and `checkpoints` no longer sees it.

    Raises:
        PeasError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    began = path.stat().st_mtime_ns if path.exists() else None
    left = [file.name for file in checkpoints(folder)] if afresh else []
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise PeasError(
            f"{folder}: {who} is writing its run here. Wait for it, or give another "
            "`--trainer.default_root_dir`"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): do not start the run twice", path, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    if not afresh and began is not None:
        os.utime(path, ns=(began, began))
    if left:
        log.warning(
            "%s holds %s of an earlier run: they are left alone. To go on with that run, give "
            "`--ckpt_path last`",
            folder,
            ", ".join(left),
        )
    return file


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
