"""One URL to one file: tried again, checked, and renamed only when it is complete."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peas import __version__
from peas.data.fetch.connection import Connection
from peas.errors import DataError
from peas.utils.files import disk_errors, require_space

Progress = Callable[[str, int, int | None], None]
"""Called with what is going on ("fetching"), bytes done, and bytes in all where they are known."""

_BLOCK = 1 << 20
# Answers that the same request may not get again.
_PASSING = {408, 425, 429}
# Lengths of more than 18 digits are no lengths.
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")
_SECONDS = re.compile(r"[0-9]{1,9}")
_PLAIN = {"", "identity"}


@dataclass(frozen=True)
class Patience:
    """How much of a bad connection is put up with.

    Attributes:
        silence: Seconds over which a connection's speed is measured, and in which it must be
            established.
        slowest: Bytes a second below which a connection is given up.
        first: Attempts in a row that may fail before the first byte has come.
        later: Attempts in a row that may bring nothing new, or be too slow, after that.
        pause: Seconds before the second attempt; doubled after each further one.
        longest: Longest pause, in seconds.
    """

    silence: float = 60.0
    slowest: float = 1000.0
    first: int = 3
    later: int = 10
    pause: float = 1.0
    longest: float = 60.0


class _Fault(Exception):
    """An attempt failed, and another one may not."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


class _TooSlow(_Fault):
    """An attempt was given up for its speed: whatever it brought, it counts as a failure."""


def _silent(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


def download(
    url: str,
    file: Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    most: int = 4 << 30,
    progress: Progress = _silent,
    patience: Patience = Patience(),
) -> Path:
    """Fetches a file over HTTP.

    The bytes lie in `FILE.part` until they are complete. With a checksum a stopped download is
    resumed, and the checksum settles whether the two parts belong together. Without one every
    attempt begins at the first byte, since nothing would notice a file that changed meanwhile.

    Args:
        url: An http or https address. Proxies are taken from the environment.
        file: Where it goes. A file that is there and has the right checksum is not fetched again;
            without a checksum it is taken as it is, since only complete files get their name.
        checksum: `sha256:...` or `md5:...`.
        size: Bytes of the file. An answer of another length is refused before it is read: it is a
            proxy's error page, say.
        most: Where `size` is None: bytes above which an answer is refused.
        progress: Told of every block.
        patience: With a bad connection.

    Returns:
        `file`.

    Raises:
        DataError: The file cannot be had, or not be written.
    """
    _require_address(url)
    part = file.with_name(f"{file.name}.part")
    target = _Target(url, part, size, most if size is None else size, checksum is not None)
    with disk_errors(file):
        if file.is_file() and (checksum is None or _sum(file, checksum, progress) == checksum):
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        found = ""
        for _ in range(2):
            _fetch(target, progress, patience)
            if checksum is None or (found := _sum(part, checksum, progress)) == checksum:
                _finish(part, file)
                return file
            part.unlink()
    raise DataError(
        f"{url} gave another file than expected, twice: {file} should have the checksum "
        f"{checksum} and has {found}. The bytes were deleted. The server or a proxy on the way is "
        "at fault: try later, or another server with --mirror"
    )


def _finish(part: Path, file: Path) -> None:
    with part.open("rb") as complete:
        # Else a power cut could leave the name without all of the bytes.
        os.fsync(complete.fileno())
    os.replace(part, file)


def _require_address(url: str) -> None:
    try:
        good = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        good = False
    if not good:
        raise DataError(f"{url!r} is not an address: give one that begins with http:// or https://")


def file_sum(file: Path, algorithm: str = "sha256", progress: Progress = _silent) -> str:
    """Checksum of a file, as `sha256:...`."""
    digest, done, total = hashlib.new(algorithm), 0, file.stat().st_size
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress("checking", done, total)
    return f"{algorithm}:{digest.hexdigest()}"


def _sum(file: Path, like: str, progress: Progress) -> str:
    return file_sum(file, like.partition(":")[0], progress)


@dataclass(frozen=True)
class _Target:
    """What is fetched, and where its bytes lie meanwhile.

    Attributes:
        url: Address.
        part: File of the bytes so far.
        size: Bytes of the complete file; None = not known.
        most: Bytes that are written at most.
        checked: A checksum is looked at in the end, so that a part may be resumed.
    """

    url: str
    part: Path
    size: int | None
    most: int
    checked: bool

    def __len__(self) -> int:
        """Bytes so far."""
        return self.part.stat().st_size if self.part.exists() else 0


def _fetch(target: _Target, progress: Progress, patience: Patience) -> None:
    """Brings the part to its full length, with as many connections as it takes."""
    best, failures, some = len(target), 0, False
    while True:
        try:
            return _attempt(target, progress, patience)
        except _Fault as fault:
            # Progress is what was never reached before: a server that always begins at the
            # beginning and always breaks off must not be asked for ever.
            if len(target) > best and not isinstance(fault, _TooSlow):
                best, failures, some = len(target), 0, True
            else:
                failures += 1
            progress(f"trying again ({fault})", len(target), target.size)
            if failures >= (patience.later if some else patience.first):
                if target.checked:
                    then = (
                        f"{len(target)} bytes are kept in {target.part}, and the same command "
                        "resumes there"
                    )
                else:
                    then = "try again later (without a checksum it begins at the first byte)"
                raise DataError(
                    f"{target.url}: {fault} ({failures} attempts brought nothing new); {then}. "
                    "Where this server stays out of reach, give another one with --mirror"
                ) from fault
            pause = min(patience.pause * 2 ** max(failures - 1, 0), patience.longest)
            time.sleep(max(pause, min(fault.pause, patience.longest)))


def _attempt(target: _Target, progress: Progress, patience: Patience) -> None:
    """One connection: reads until the file is complete.

    Raises:
        _Fault: It did not come to that.
    """
    have = len(target)
    if have and (not target.checked or have > target.most):
        target.part.unlink()
        have = 0
    if have and have == target.size:
        return
    headers = {"User-Agent": f"peas/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(target.url, headers=headers)
    with Connection(patience.silence, patience.slowest) as connection:
        try:
            with connection.open(request) as answer:
                _read(answer, connection, target, have, progress)
        except urllib.error.HTTPError as error:
            with closing(error):
                if error.code == 416 and have:
                    if _range(error.headers)[1] == have:
                        return
                    target.part.unlink()
                    raise _Fault("the server has no bytes after those that had come") from error
                raise _refusal(error, target.url) from error
        except (urllib.error.URLError, http.client.HTTPException, _Read) as error:
            raise _broken(error, target.url, patience, connection.slow) from error


class _Read(Exception):
    """Reading from a connection failed, and not writing to the disk."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _read(
    answer: http.client.HTTPResponse,
    connection: Connection,
    target: _Target,
    have: int,
    progress: Progress,
) -> None:
    """Appends an answer's bytes to the part."""
    have, total = _extent(answer, target, have)
    with target.part.open("ab" if have else "wb") as sink:
        if total is not None:
            require_space(target.part, total - have)
        while total is None or have < total:
            try:
                # One system call each, so that slow bytes are shown, and kept when the link dies.
                block = answer.read1(_BLOCK if total is None else min(_BLOCK, total - have))
            except (OSError, http.client.HTTPException) as error:
                raise _Read(error) from error
            if not block:
                break
            connection.received += len(block)
            have += len(block)
            if have > target.most:
                raise _too_long(target, f"more than {target.most}")
            sink.write(block)
            # A kill then loses no byte that had come.
            sink.flush()
            progress("fetching", have, total)
    if connection.slow is not None:
        raise _Read(EOFError())
    if total is not None and have < total:
        raise _Fault(f"the connection ended after {have} of {total} bytes")


def _extent(answer: http.client.HTTPResponse, target: _Target, have: int) -> tuple[int, int | None]:
    """First byte of an answer's body, and the length of the complete file if it is known.

    Raises:
        _Fault: The answer is not the file, or not all of what was asked for.
    """
    if answer.status == 206:
        start, total = _range(answer.headers)
        if start != have:
            target.part.unlink(missing_ok=True)
            raise _Fault(f"{have} bytes had come, and the server sent bytes from {start} on")
    elif answer.status == 200:
        have, total = 0, answer.length
    else:
        raise _Fault(f"the server answers {answer.status} {answer.reason}")
    lengths = set(answer.headers.get_all("Content-Length") or [])
    if len(lengths) > 1:
        raise _Fault(f"the server names {len(lengths)} lengths of one file")
    encoding = (answer.headers.get("Content-Encoding") or "").strip().lower()
    if encoding not in _PLAIN and not target.checked:
        # Some servers label a .tar.gz so; its checksum then says whether the bytes are its own.
        raise _Fault(f"the server sends the file compressed ({encoding[:40]!r}), unasked")
    if None not in (target.size, total) and target.size != total:
        raise _Fault(f"the server's file has {total} bytes, and {target.size} are expected")
    if total is not None and total > target.most:
        raise _too_long(target, str(total))
    return have, total if total is not None else target.size


def _too_long(target: _Target, found: str) -> DataError:
    return DataError(
        f"{target.url}: the server sends {found} bytes, and this file has {target.most} at most: "
        "look at the address in a browser, and give another server with --mirror"
    )


def _range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and length of the whole file in `Content-Range`, None where it does not say."""
    match = _RANGE.fullmatch((headers.get("Content-Range") or "").strip())
    start, total = match.groups() if match else (None, None)
    return (None if start is None else int(start)), (None if total in (None, "*") else int(total))


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    """What an answer of 400 and above, or a redirect that is not followed, means."""
    if error.code in _PASSING or error.code >= 500:
        wait = (error.headers.get("Retry-After") or "").strip()
        text = f"the server answers {error.code} {error.reason}"
        return _Fault(text, pause=float(wait) if _SECONDS.fullmatch(wait) else 0.0)
    if error.code in (401, 403, 407):
        advice = "it asks for rights that peas does not have; a proxy may do so as well"
    elif error.code < 400:
        advice = "it leads to no address that is followed"
    else:
        advice = "the file is not there (any more)"
    return DataError(
        f"{url}: the server answers {error.code} {error.reason}: {advice}. Look at the address in "
        "a browser, and give another server with --mirror"
    )


def _broken(error: Any, url: str, patience: Patience, slow: int | None) -> Exception:
    """What a connection's error means."""
    reason = getattr(error, "reason", error)
    host = urlsplit(url).hostname
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"{url}: the certificate of {host} cannot be verified ({reason.verify_message}). "
            "Behind a proxy that opens connections, set SSL_CERT_FILE to its certificate"
        )
    if isinstance(error, http.client.InvalidURL):
        return DataError(f"{url}: not an address ({error}); correct it")
    if isinstance(reason, socket.gaierror):
        return _Fault(
            f"the name {host} cannot be resolved. Without a network here (as on many compute "
            "nodes) run this where there is one; behind a proxy set http_proxy and https_proxy"
        )
    if slow is not None or isinstance(reason, TimeoutError):
        return _TooSlow(f"{host} sent {slow or 0} bytes in {patience.silence:g} s")
    if isinstance(reason, ConnectionRefusedError):
        return _Fault(f"{host} refuses connections")
    text = str(reason) or type(reason).__name__
    return _Fault(f"the connection to {host} broke off ({text})")
