"""Unpacking of tar.gz and zip: nothing outside the folder, nothing but plain files, restartable."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from peas.data.fetch.download import Progress, file_sum
from peas.errors import DataError
from peas.utils.files import disk_errors

_BLOCK = 1 << 20
# Recorded sound does not shrink to a fiftieth. The floor is for small archives of text.
_RATIO, _FLOOR = 50, 64 << 20
# What `tarfile` keeps in memory of one member: its name, and what else is said of it.
_HEADER = 1 << 20
# Others need a dictionary of whatever size the archive names.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    # Numbers and names of a damaged table that Python's modules trust.
    ValueError,
    OverflowError,
    MemoryError,
)

_ADVICE = "fetch it again, from another server if need be (--mirror)"


class ArchiveError(DataError):
    """An archive is damaged, or not what it should be."""


class Unpacked(NamedTuple):
    """What an archive has become.

    Attributes:
        checksum: Of the archive.
        files: Number of files written.
        size: Their bytes.
    """

    checksum: str
    files: int
    size: int


class _Limit(NamedTuple):
    """Bytes that an archive may become.

    Attributes:
        archive: Its file.
        packed: Bytes of the archive.
        before: Bytes that it has become so far.
    """

    archive: Path
    packed: int
    before: int

    def check(self, more: int) -> None:
        """Raises ArchiveError when `more` further bytes are too many."""
        if self.before + more > max(_RATIO * self.packed, _FLOOR):
            raise ArchiveError(
                f"{self.archive}: {self.packed} bytes that would become more than "
                f"{self.before + more}: no archive of sound does; {_ADVICE}"
            )


class _Plain(gzip.GzipFile):
    """The tar of a `.tar.gz`.

    `tarfile` reads names and maps of holes as long as the archive says they are, at once.

    Attributes:
        left: Bytes that may still be read.
    """

    left: float = _HEADER

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes.

        Raises:
            tarfile.ReadError: So many must not be read here.
        """
        self.left -= math.inf if size is None or size < 0 else size
        if self.left < 0:
            raise tarfile.ReadError(f"what it says of a member has more than {_HEADER} bytes")
        return super().read(size)


class _Member(NamedTuple):
    """A plain file of an archive."""

    name: str
    content: IO[bytes]
    done: int
    """Bytes that measure the way through the archive."""


def read_marker(marker: Path) -> Unpacked | None:
    """What `unpack` wrote when it had finished; None when it has not."""
    with suppress(OSError, ValueError, TypeError):
        found = Unpacked(**json.loads(marker.read_text(encoding="utf-8")))
        if [type(value) for value in found] == [str, int, int]:
            return found
    return None


def unpack(
    archive: Path,
    target: Path,
    marker: Path,
    *,
    checksum: str | None = None,
    strip: bool = False,
    only: tuple[str, ...] = (),
    progress: Progress = lambda stage, done, total: None,
) -> Unpacked:
    """Unpacks an archive, unless the marker says that it was.

    Every file is written under another name first, and the marker after the last one: after a
    kill the next call does all of it again, and no file is ever half there under its name. An
    archive that would grow to more than fifty times its size (64 MiB for a small one) is refused
    before it fills the disk.

    Args:
        archive: A `.tar.gz`, `.tgz` or `.zip` file.
        target: Folder to unpack into.
        marker: File that says that the archive is unpacked, and its checksum.
        checksum: Of the archive, where it is known already; else its SHA-256 is taken.
        strip: Leave out the one folder at the top that everything lies in.
        only: Beginnings of names, without the folder at the top, that are unpacked; () = all.
        progress: Told after every file.

    Raises:
        ArchiveError: The archive is damaged, or holds what no data set needs: a link, a device, a
            name that leads out of the folder, members that share their bytes, far more bytes than
            sound can be packed into.
        DataError: The disk refuses.
    """
    with disk_errors(archive):
        checksum = checksum or file_sum(archive, progress=progress)
    before = read_marker(marker)
    if before is not None and before.checksum == checksum:
        return before
    total = archive.stat().st_size
    files = size = 0
    with disk_errors(target), _readable(archive):
        target.mkdir(parents=True, exist_ok=True)
        for member in _members(archive, target):
            place = _place(member.name, archive, strip)
            if only and not place.startswith(only):
                continue
            size += _write(member.content, target / place, _Limit(archive, total, size))
            files += 1
            progress("unpacking", member.done, total)
    if not files:
        raise ArchiveError(f"{archive}: holds none of the files that are looked for; {_ADVICE}")
    with disk_errors(marker):
        marker.parent.mkdir(parents=True, exist_ok=True)
        found = Unpacked(checksum, files, size)
        fresh = marker.with_name(f"{marker.name}.part")
        fresh.write_text(json.dumps(found._asdict()), encoding="utf-8")
        os.replace(fresh, marker)
    return found


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Turns whatever a damaged archive raises into one message."""
    try:
        yield
    except (*_DAMAGED, NotImplementedError, RuntimeError) as error:
        # The last two are zip's words for an unknown compression and for a password.
        raise ArchiveError(
            f"{archive}: damaged, or not the archive that its name says ({error}); {_ADVICE}"
        ) from error


def _members(archive: Path, target: Path) -> Iterator[_Member]:
    name = archive.name.lower()
    if name.endswith(".zip"):
        return _zip_members(archive)
    if name.endswith((".tar.gz", ".tgz")):
        return _tar_members(archive, target)
    raise ArchiveError(f"{archive}: neither .tar.gz nor .zip; unpack it by hand")


def _tar_members(archive: Path, target: Path) -> Iterator[_Member]:
    with (
        archive.open("rb") as raw,
        _Plain(fileobj=raw) as plain,
        tarfile.open(fileobj=plain, mode="r:") as tar,
    ):
        packed = archive.stat().st_size
        while (member := tar.next()) is not None:
            # Also what no file is made of: names, members that are left out.
            _Limit(archive, packed, plain.tell()).check(0)
            # An archive may have a hundred thousand members, and the list is not needed.
            tar.members.clear()  # type: ignore[attr-defined]
            if member.isdir():
                continue
            if not member.isreg():
                raise _refused(archive, member.name, "is not a plain file")
            if member.size < 0:
                # It would be followed by itself.
                raise _refused(archive, member.name, f"has {member.size} bytes")
            _check_filter(archive, member, target)
            content = tar.extractfile(member)
            if content is None:
                raise _refused(archive, member.name, "has no content")
            plain.left = math.inf
            yield _Member(member.name, content, raw.tell())
            plain.left = _HEADER
        plain.left = math.inf
        # To the end, where gzip's own checksum is: tarfile stops at the last member.
        while plain.read(_BLOCK):
            pass


def _check_filter(archive: Path, member: tarfile.TarInfo, target: Path) -> None:
    """Asks Python's own rules for data, which later versions may tighten."""
    rules = getattr(tarfile, "data_filter", None)  # Python 3.11.4
    if rules is None:
        return
    try:
        rules(member, str(target))
    except tarfile.FilterError as error:
        raise _refused(archive, member.name, f"is refused: {error}") from error


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        packed = archive.stat().st_size
        if sum(member.compress_size for member in opened.infolist()) > packed:
            raise ArchiveError(
                f"{archive}: its members have more bytes than the archive, so some share them; "
                f"{_ADVICE}"
            )
        _Limit(archive, packed, 0).check(sum(member.file_size for member in opened.infolist()))
        for member in opened.infolist():
            if member.is_dir():
                continue
            if member.compress_type not in _ZIP_METHODS:
                raise _refused(archive, member.filename, "is neither stored nor deflated")
            # The upper half holds Unix's mode, when the archive was made on Unix.
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _refused(archive, member.filename, "is not a plain file")
            with opened.open(member) as content:
                yield _Member(member.filename, content, member.header_offset)


def _refused(archive: Path, name: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"{archive}: {name!r} {why}. The archive is not what its publisher made; {_ADVICE}"
    )


def _place(name: str, archive: Path, strip: bool) -> str:
    """Where a member goes, relative to the target."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _refused(archive, name, "leads out of the folder")
    parts = path.parts[1:] if strip else path.parts
    if not parts:
        raise _refused(archive, name, "does not lie in a folder at the top")
    return "/".join(parts)


def _write(content: IO[bytes], file: Path, limit: _Limit) -> int:
    """Writes a file under another name and renames it; returns its bytes."""
    fresh, size = file.with_name(f".{file.name}.part"), 0
    try:
        sink = fresh.open("wb")
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        sink = fresh.open("wb")
    with sink:
        while block := content.read(_BLOCK):
            size += len(block)
            limit.check(size)
            sink.write(block)
    os.replace(fresh, file)
    return size
