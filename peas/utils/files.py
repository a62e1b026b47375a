"""Atomic writes, locks, checksums and disk errors."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import filelock

from peas.errors import DataError, PeasError

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of a file that is still being written."""

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota is used up"}
_READ_ONLY = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
}
# What Lustre and some network file systems return when they are mounted without locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_BLOCK = 1 << 20


@contextmanager
def atomic_write(path: str | Path, *, fsync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary stream whose content replaces `path` when the context ends without an error.

    The data go to `NAME.<random>.partial` beside it, which is renamed at the end and removed on an
    error; only a killed process leaves one behind.

    Args:
        path: The file; its folder must exist.
        fsync: Wait until the data are on the disk, so that a power cut cannot leave an empty file.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            if fsync:
                os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str, *, fsync: bool = True) -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: The file; its folder must exist.
        text: Its content.
        fsync: As for `atomic_write`.
    """
    with atomic_write(path, fsync=fsync) as stream:
        stream.write(text.encode())


class Locked(PeasError):
    """Another process holds a lock."""


@contextmanager
def lock(path: str | Path, what: object, *, wait: float = 1.0) -> Iterator[None]:
    """Hold an exclusive lock (`filelock`), which the system releases when the process dies.

    The lock file stays and names its last holder. On a file system without locks there is a
    warning and no lock.

    Args:
        path: The lock file; its folder must exist.
        what: What only one process may work on, for the message.
        wait: Seconds to wait, as the workers of a killed process take a moment to end.

    Raises:
        Locked: Another process holds it.
        DataError: The lock file cannot be opened.
    """
    path = Path(path)
    held = filelock.FileLock(path, fallback_to_soft=False)
    with disk_errors(path):
        try:
            held.acquire(timeout=wait, poll_interval=0.1)
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except filelock.Timeout:
            holder = path.read_text(errors="replace")[:200] or "another process"
            raise Locked(
                f"{what}: {holder} is working here. Wait until it has finished, or end it; "
                "nothing has to be deleted"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s: this file system has no locks (%s): do not start a second process there",
                path.parent,
                error.strerror,
            )
    try:
        yield
    finally:
        held.release()


def checksum(
    path: str | Path, algorithm: str = "sha256", progress: Callable[[int, int], None] | None = None
) -> str:
    """Checksum of a file, such as `sha256:1f3a…`.

    Args:
        path: The file.
        algorithm: Of `hashlib`.
        progress: Called with the bytes read and the bytes in all.
    """
    path = Path(path)
    digest, done, total = hashlib.new(algorithm), 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return f"{algorithm}:{digest.hexdigest()}"


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` into a `DataError` with advice.

    Args:
        path: What is written; the message names it unless the error names another file.

    Raises:
        DataError: The disk is full, read-only or broken.
    """
    try:
        yield
    except OSError as error:
        name = error.filename or path
        code = error.errno or 0
        if code in _FULL:
            what = f"{_FULL[code]} ({_free(Path(path))}). Make room and run it again to resume"
        elif code in _READ_ONLY:
            what = f"cannot be written ({_READ_ONLY[code]}). Choose a folder with write permission"
        else:
            what = f"{error.strerror or error}. Check the path and its disk, then run it again"
        raise DataError(f"{name}: {what}") from error


def require_space(path: str | Path, size: int) -> None:
    """Check free disk space before hours of work.

    Args:
        path: A file to be written, in a folder that exists.
        size: Bytes that will be written.

    Raises:
        DataError: There is too little.
    """
    path = Path(path)
    if size > shutil.disk_usage(path.parent).free:
        raise DataError(
            f"{path}: {size / 1e9:.2f} GB will be written, and {_free(path)}. Make room, or choose "
            "a folder on another disk"
        )


def _free(path: Path) -> str:
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free in {folder}"
