"""Folders that several processes write into: one at a time, and errors of the disk in words."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peas.errors import DataError, say

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota is used up"}
_CLOSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
}
# What Lustre and some network file systems answer when they were mounted without locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turns what the disk refuses into a message that says what to do.

    Args:
        place: What was to be written; messages name it unless the error names another file.

    Raises:
        DataError: The disk is full, closed or broken.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or place
        code = error.errno or 0
        if code in _FULL:
            raise DataError(
                f"{where}: {_FULL[code]} ({_free(place)}). Make room and run the same command "
                "again: it goes on where it stopped"
            ) from error
        if code in _CLOSED:
            raise DataError(
                f"{where}: cannot be written ({_CLOSED[code]}). Give a folder that you may write "
                "into, or correct its permissions"
            ) from error
        raise DataError(
            f"{where}: {error.strerror or error}. Check the path and its disk, and run the same "
            "command again: it goes on where it stopped"
        ) from error


def require_room(place: Path, needed: int) -> None:
    """Checks that the disk of `place` has room, before hours of work and not after.

    Args:
        place: A file to be written, in a folder that exists.
        needed: Bytes.

    Raises:
        DataError: There is too little.
    """
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise DataError(
            f"{place}: {needed / 1e9:.2f} GB are still to come, and {_free(place)}. Make room, or "
            "choose a folder on another disk"
        )


def _free(place: Path) -> str:
    folder = next(folder for folder in place.absolute().parents if folder.is_dir())
    return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free in {folder}"


@contextmanager
def only_one(folder: Path, lock: Path) -> Iterator[None]:
    """Keeps every other process that asks here out of a folder.

    The system's own lock on an open file: it ends with the process that holds it, however that
    process ends, so the file left behind by a dead one is nobody's.

    Args:
        folder: What is kept for one process; messages name it.
        lock: File to lock; its own folder must exist. It stays, and names its last holder.

    Raises:
        DataError: Another process holds the lock.
    """
    with disk_errors(lock):
        # Not truncated: until the lock is ours, the file names its holder.
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(handle, lock):
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            raise DataError(
                f"{folder}: {holder} is at work here. Wait until it has finished, or "
                "end it; nothing has to be deleted"
            )
        with disk_errors(lock):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int, lock: Path) -> bool:
    """Whether the lock could be had."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(
            f"{lock.parent}: this file system has no locks ({error.strerror}); see to it that no "
            "other process prepares the same folder",
            sys.stderr,
        )
    return True
