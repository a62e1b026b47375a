"""Download one URL to one file: resumed by HTTP Range, checked, and renamed when complete."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from peas import __version__
from peas.errors import DataError
from peas.utils.files import checksum as checksum_of
from peas.utils.files import disk_errors, require_space

Progress = Callable[[str, int, int | None], None]
"""Called with the stage ("fetching"), the bytes done, and the bytes in all where they are known."""

_BLOCK = 1 << 20
# Client errors that a later attempt may not get.
_TRANSIENT = {408, 425, 429}


@dataclass(frozen=True)
class Patience:
    """How many failures a download tolerates.

    Attributes:
        silence: Seconds without a byte after which a connection is given up; the speed is measured
            over the same interval.
        slowest: Bytes a second below which a connection is given up.
        attempts: Failed attempts in a row, without a new byte or too slow.
        pause: Seconds before the second attempt, doubled after each further one.
        longest: Longest pause, in seconds.
    """

    silence: float = 60.0
    slowest: float = 1000.0
    attempts: int = 8
    pause: float = 1.0
    longest: float = 60.0


class _Retry(Exception):
    """An attempt failed, and another one may succeed."""


class _TooSlow(_Retry):
    """An attempt was given up because of its speed, and counts as failed whatever it brought."""


def download(
    url: str,
    file: Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    patience: Patience = Patience(),
) -> Path:
    """Download a file over HTTP.

    The bytes are collected in `FILE.part`. With a checksum an interrupted download is resumed;
    without one every call starts at the first byte, as nothing would notice that the file has
    changed in the meantime.

    Args:
        url: An http or https address. Proxies are taken from the environment.
        file: Destination. An existing file with the right checksum is not fetched again; without a
            checksum it is taken as it is, since only complete files get their name.
        checksum: `sha256:...` or `md5:...`.
        size: Bytes of the file; an answer of another length, such as a proxy's error page, is
            refused.
        progress: Called after every block.
        patience: With a bad connection.

    Returns:
        `file`.

    Raises:
        DataError: The file cannot be downloaded or written, or has another checksum.
    """
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise DataError(f"{url!r} is not an address: give one that begins with http:// or https://")
    algorithm = (checksum or "").partition(":")[0]
    check = partial(progress, "checking")
    part = file.with_name(f"{file.name}.part")
    actual = ""
    with disk_errors(file):
        if file.is_file() and checksum in (None, algorithm and checksum_of(file, algorithm, check)):
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        if checksum is None:
            part.unlink(missing_ok=True)
        # Twice: the first bytes may be left over from another file.
        for _ in range(2):
            _fetch(url, part, size, checksum is not None, progress, patience)
            if checksum is None or (actual := checksum_of(part, algorithm, check)) == checksum:
                with part.open("rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(part, file)
                return file
            part.unlink()
    raise DataError(
        f"{file}: {url} sent another file, twice: its checksum should be {checksum} and is "
        f"{actual}. The bytes were deleted; try later, or another server with --mirror"
    )


def _fetch(
    url: str, part: Path, size: int | None, resume: bool, progress: Progress, patience: Patience
) -> None:
    """Repeat attempts until the file is complete."""
    failures, longest = 0, _length(part)
    while True:
        try:
            return _attempt(url, part, size, progress, patience)
        except _Retry as error:
            if not resume:
                part.unlink(missing_ok=True)
            advanced = _length(part) > longest and not isinstance(error, _TooSlow)
            longest = max(longest, _length(part))
            failures = 0 if advanced else failures + 1
            if failures >= patience.attempts:
                raise DataError(
                    f"{url}: {error} ({failures} attempts). Try again later"
                    + (f", which resumes after {_length(part)} bytes" if resume else "")
                    + "; behind a proxy set https_proxy; give another server with --mirror"
                ) from error
        time.sleep(min(patience.pause * 2 ** max(failures - 1, 0), patience.longest))


def _attempt(
    url: str, part: Path, size: int | None, progress: Progress, patience: Patience
) -> None:
    """Read from one connection until the file is complete.

    Raises:
        _Retry: It is not.
    """
    done = _length(part)
    if size is not None and done > size:
        part.unlink()
        done = 0
    if done and done == size:
        return
    headers = {"User-Agent": f"peas/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=patience.silence)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:
            # Nothing follows the bytes that are there: the checksum decides.
            return
        if error.code in _TRANSIENT or error.code >= 500:
            raise _Retry(f"the server answers {error.code} {error.reason}") from error
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}: look at the address in a "
            "browser, and give another server with --mirror"
        ) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise DataError(f"{url}: not an address ({error}); correct it") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Retry(f"{urlsplit(url).hostname} cannot be reached ({reason})") from error
    with response:
        if response.status == 206:
            if not (response.headers["Content-Range"] or "").startswith(f"bytes {done}-"):
                part.unlink()
                raise _Retry("the server sent another range")
        else:
            done = 0
        total = size if response.length is None else done + response.length
        if size is not None and total != size:
            raise _Retry(f"the server's file has {total} bytes, and {size} are expected")
        with part.open("ab" if done else "wb") as sink:
            if total is not None:
                require_space(part, total - done)
            since, mark = time.monotonic(), done
            while block := _read(response):
                sink.write(block)
                # A killed process then loses nothing.
                sink.flush()
                done += len(block)
                progress("fetching", done, total)
                seconds = time.monotonic() - since
                if seconds >= patience.silence:
                    if done - mark < patience.slowest * seconds:
                        raise _TooSlow(f"{done - mark} bytes in {seconds:.0f} s are too slow")
                    since, mark = time.monotonic(), done
    if total is not None and done < total:
        raise _Retry(f"the connection ended after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; one system call, so that slow ones are shown and kept."""
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"the connection broke ({error or type(error).__name__})") from error


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
