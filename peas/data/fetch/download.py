"""One URL to one file: resumed, tried again, checked, and renamed only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from peas import __version__
from peas.data.disk import disk_errors, require_room
from peas.data.fetch.part import Part
from peas.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called with what is going on ("fetching"), bytes done, and bytes in all where they are known."""

_BLOCK = 1 << 20
# Answers that the same request may not get again.
_PASSING = {408, 425, 429}
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Patience:
    """How much of a bad link is put up with.

    Attributes:
        silence: Seconds without a byte after which a connection counts as dead.
        first: Attempts in a row that may fail before the first byte has come.
        later: Attempts in a row that may bring nothing new after that.
        pause: Seconds before the second attempt; doubled after each further one.
        longest: Longest pause, in seconds.
    """

    silence: float = 60.0
    first: int = 3
    later: int = 10
    pause: float = 1.0
    longest: float = 60.0


class _Fault(Exception):
    """An attempt failed, and another one may not."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


def _silent(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


def download(
    url: str,
    file: Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    progress: Progress = _silent,
    patience: Patience = Patience(),
) -> Path:
    """Fetches a file over HTTP, or goes on where an earlier call stopped.

    The bytes lie in `FILE.part` until they are all there and their checksum is right. A server
    that cannot continue at an offset, or whose file has changed, makes it start again.

    Args:
        url: An http or https address. Proxies are taken from the environment.
        file: Where it goes. A file that is there and has the right checksum is not fetched again;
            without a checksum it is taken as it is, since only whole files get their name.
        checksum: `sha256:...` or `md5:...`.
        size: Bytes of the file. An answer of another length is refused before it is read: it is a
            proxy's error page, say.
        progress: Told of every block.
        patience: With a bad link.

    Returns:
        `file`.

    Raises:
        DataError: The file cannot be had, or not be written.
    """
    _require_address(url)
    with disk_errors(file):
        if file.is_file() and (checksum is None or _sum(file, checksum, progress) == checksum):
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        part = Part(file, url, checked=checksum is not None)
        found = ""
        for _ in range(2):
            _fetch(part, size, progress, patience)
            if checksum is None or (found := _sum(part.path, checksum, progress)) == checksum:
                part.finish()
                return file
            part.discard()
    raise DataError(
        f"{url} gave another file than expected, twice: {file} should have the checksum "
        f"{checksum} and has {found}. The bytes were deleted. The server or a proxy on the way is "
        "at fault: try later, or another server with --mirror"
    )


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


def _fetch(part: Part, size: int | None, progress: Progress, patience: Patience) -> None:
    """Brings the part to its full length, with as many connections as it takes."""
    best, failures, some = len(part), 0, False
    while True:
        try:
            return _attempt(part, size, progress, patience)
        except _Fault as fault:
            # Progress is what was never reached before: a server that always begins at the
            # beginning and always breaks off must not be asked for ever.
            if len(part) > best:
                best, failures, some = len(part), 0, True
            else:
                failures += 1
            progress(f"trying again ({fault})", len(part), size)
            if failures >= (patience.later if some else patience.first):
                raise DataError(
                    f"{part.url}: {fault} ({failures} attempts brought nothing new); "
                    f"{len(part)} bytes are kept in {part.path}. The same command goes on from "
                    "there; where this server stays out of reach, give another one with --mirror"
                ) from fault
            pause = min(patience.pause * 2 ** max(failures - 1, 0), patience.longest)
            time.sleep(max(pause, min(fault.pause, patience.longest)))


def _attempt(part: Part, size: int | None, progress: Progress, patience: Patience) -> None:
    """One connection: reads until the file is whole.

    Raises:
        _Fault: It did not come to that.
    """
    if not part.certain or (size is not None and len(part) > size):
        part.discard()
    have = len(part)
    if have and have == size:
        return
    headers = {"User-Agent": f"peas/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if part.version:
            headers["If-Range"] = part.version
    try:
        request = urllib.request.Request(part.url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=patience.silence)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have and _range(error.headers)[1] == have:
                return
            if error.code == 416:
                part.discard()
                raise _Fault("the server has no bytes after those that had come") from error
            raise _refusal(error, part.url) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, part.url, patience) from error
    with answer:
        _read(answer, part, have, size, progress, patience)


def _read(
    answer: http.client.HTTPResponse,
    part: Part,
    have: int,
    size: int | None,
    progress: Progress,
    patience: Patience,
) -> None:
    """Appends an answer's bytes to the part."""
    headers = answer.headers
    if answer.status == 206:
        start, total = _range(headers)
        if start != have or part.another(headers, total):
            part.discard()
            what = "the file has changed" if start == have else f"it sent bytes from {start} on"
            raise _Fault(f"{have} bytes had come, and the server cannot go on there: {what}")
    elif answer.status == 200:
        have, total = 0, answer.length
    else:
        raise _Fault(f"the server answers {answer.status} {answer.reason}")
    if None not in (size, total) and size != total:
        # Said before anything is deleted: it may be an error page in place of the file.
        raise _Fault(f"the server's file has {total} bytes, and {size} are expected")
    total = total if total is not None else size
    if answer.status == 200:
        part.begin(headers, total)
    if total is not None:
        require_room(part.path, total - have)
    with part.path.open("ab") as sink:
        while total is None or have < total:
            try:
                # One system call each, so that slow bytes are shown, and kept when the link dies.
                block = answer.read1(_BLOCK if total is None else min(_BLOCK, total - have))
            except (OSError, http.client.HTTPException) as error:
                raise _broken(error, part.url, patience) from error
            if not block:
                break
            sink.write(block)
            # A kill then loses no byte that had come.
            sink.flush()
            have += len(block)
            progress("fetching", have, total)
    if total is not None and have < total:
        raise _Fault(f"the connection ended after {have} of {total} bytes")


def _range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and length of the whole file in `Content-Range`, None where it does not say."""
    match = _RANGE.fullmatch((headers.get("Content-Range") or "").strip())
    start, total = match.groups() if match else (None, None)
    return (None if start is None else int(start)), (None if total in (None, "*") else int(total))


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    """What an answer of 400 and above means."""
    if error.code in _PASSING or error.code >= 500:
        wait = error.headers.get("Retry-After") or ""
        text = f"the server answers {error.code} {error.reason}"
        return _Fault(text, pause=float(wait) if wait.isdigit() else 0.0)
    if error.code in (401, 403, 407):
        advice = "it asks for rights that peas does not have; a proxy may do so as well"
    else:
        advice = "the file is not there (any more)"
    return DataError(
        f"{url}: the server answers {error.code} {error.reason}: {advice}. Look at the address in "
        "a browser, and give another server with --mirror"
    )


def _broken(error: Exception, url: str, patience: Patience) -> Exception:
    """What a connection's error means."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
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
    if isinstance(reason, TimeoutError):
        return _Fault(f"{host} was silent for {patience.silence:g} s")
    if isinstance(reason, ConnectionRefusedError):
        return _Fault(f"{host} refuses connections")
    text = str(reason) or type(reason).__name__
    return _Fault(f"the connection to {host} broke off ({text})")
