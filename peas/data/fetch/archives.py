"""Unpack .tar.gz and .zip archives safely; files are moved into the target when complete."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath

from peas.data.fetch.download import Progress
from peas.errors import DataError
from peas.utils.files import checksum as checksum_of
from peas.utils.files import disk_errors, require_space, write_text

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    # What Python's modules raise on a damaged table, an unknown compression, a password.
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


class ArchiveError(DataError):
    """An archive is damaged, or not what it should be."""

    def __init__(self, archive: Path, reason: object) -> None:
        super().__init__(
            f"{archive}: damaged, or not the archive of its name ({reason}); fetch it again, from "
            "another server if need be (--mirror)"
        )


def read_marker(marker: Path) -> str | None:
    """Checksum of the archive that `unpack` has finished; None if it has not."""
    try:
        checksum = json.loads(marker.read_text(encoding="utf-8"))["checksum"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return checksum if isinstance(checksum, str) else None


def unpack(
    archive: Path,
    target: Path,
    marker: Path,
    *,
    checksum: str | None = None,
    strip: bool = False,
    only: tuple[str, ...] = (),
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Unpack an archive, unless the marker says that this was done.

    Everything is unpacked into a temporary folder beside the marker, then moved into the target;
    the marker is written last. After a kill the next call starts again, and no file is ever
    incomplete under its name.

    Args:
        archive: A `.tar.gz`, `.tgz` or `.zip` file.
        target: Folder to unpack into, on the marker's file system.
        marker: File that holds the checksum of the unpacked archive.
        checksum: Of the archive, if known; else its SHA-256 is computed.
        strip: Leave out the single top folder.
        only: Names of the files and folders at the top that are kept; () = all.
        progress: Called after every file.

    Raises:
        ArchiveError: The archive is damaged, holds none of `only`, or a name that leads out of the
            folder.
        DataError: The disk refuses.
    """
    with disk_errors(archive):
        checksum = checksum or checksum_of(archive, progress=partial(progress, "checking"))
    if read_marker(marker) == checksum:
        return
    staging = marker.with_name(f"{archive.name}.unpacking")
    with disk_errors(target):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            _extract(archive, staging, progress)
        except _DAMAGED as error:
            shutil.rmtree(staging)
            raise ArchiveError(archive, error) from error
        folders = [path for path in staging.iterdir() if path.is_dir()] if strip else [staging]
        entries = [
            path for folder in folders for path in folder.iterdir() if not only or path.name in only
        ]
        if len(folders) != 1 or not entries:
            shutil.rmtree(staging)
            raise ArchiveError(archive, "it has other files than expected")
        target.mkdir(parents=True, exist_ok=True)
        for path in entries:
            _move(path, target / path.name)
        shutil.rmtree(staging)
        write_text(marker, json.dumps({"checksum": checksum}))


def _extract(archive: Path, folder: Path, progress: Progress) -> None:
    total = archive.stat().st_size
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            require_space(folder, sum(member.file_size for member in opened.infolist()))
            for zipped in opened.infolist():
                path = PurePosixPath(zipped.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise zipfile.BadZipFile(f"{zipped.filename!r} leads out of the folder")
                opened.extract(zipped, folder)
                progress("unpacking", zipped.header_offset, total)
        return
    with (
        archive.open("rb") as raw,
        gzip.GzipFile(fileobj=raw) as plain,
        tarfile.open(fileobj=plain, mode="r:") as tar,
    ):
        for member in tar:
            if member.issym() or member.islnk():
                raise tarfile.TarError(f"{member.name!r} is a link")
            tar.extract(member, folder, filter="data")
            progress("unpacking", raw.tell(), total)
        # Up to gzip's own checksum: tarfile stops at the last member.
        while plain.read(1 << 20):
            pass


def _move(source: Path, target: Path) -> None:
    """Rename into place; a folder that exists gets the files one by one."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            _move(path, target / path.name)
    else:
        os.replace(source, target)
