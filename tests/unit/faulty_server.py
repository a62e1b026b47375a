"""An HTTP server on this machine that goes wrong in the ways that real ones do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """How one request is answered. The default is what a good server does.

    Attributes:
        status: An error to answer with in place of the file.
        headers: Further headers.
        data: Bytes to serve in place of the file's.
        drop: Bytes of the body after which the connection is closed.
        ranges: Whether `Range` is obeyed.
        length: What `Content-Length` claims in place of the truth; "" leaves it out.
        start: What `Content-Range` claims as first byte in place of the truth.
        chunked: Sends the body in chunks, without a length.
        hang: Falls silent after `drop` bytes and keeps the connection open.
        trickle: Seconds before each byte of the body; 0 = all at once.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes | None = None
    drop: int | None = None
    ranges: bool = True
    length: str | None = None
    start: int | None = None
    chunked: bool = False
    hang: bool = False
    trickle: float = 0.0


@dataclass
class Served:
    """A file of the server.

    Attributes:
        data: Its bytes.
        answers: How the first requests are answered.
        then: How all further ones are.
    """

    data: bytes
    answers: list[Answer] = field(default_factory=list)
    then: Answer = field(default_factory=Answer)


class FaultyServer:
    """Serves `files` by path, and keeps the headers of every request.

    Args:
        files: Files by path, such as `/data/a.bin`; bytes alone are served well.
    """

    def __init__(self, files: dict[str, Served | bytes]) -> None:
        self.files = {
            path: file if isinstance(file, Served) else Served(file) for path, file in files.items()
        }
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.url = ""

    @property
    def ranges(self) -> list[str | None]:
        """The `Range` of every request."""
        return [headers.get("Range") for _, headers in self.requests]

    @property
    def paths(self) -> list[str]:
        """The path of every request."""
        return [path for path, _ in self.requests]


@contextmanager
def serve(files: dict[str, Served | bytes]) -> Iterator[FaultyServer]:
    """Runs a server for the length of the block."""
    faulty = FaultyServer(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            faulty.requests.append((self.path, dict(self.headers)))
            file = faulty.files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            answer = file.answers.pop(0) if file.answers else file.then
            _answer(self, answer, file.data if answer.data is None else answer.data, faulty)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    faulty.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        faulty.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(
    handler: BaseHTTPRequestHandler, answer: Answer, data: bytes, faulty: FaultyServer
) -> None:
    handler.close_connection = True
    if answer.status != 200:
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if answer.hang:
            faulty.closing.wait(20)
        return
    start = _start(handler, answer)
    if start is not None and start >= len(data):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.end_headers()
        return
    body = data[start or 0 :]
    handler.send_response(200 if start is None else 206)
    if start is not None:
        said = start if answer.start is None else answer.start
        handler.send_header("Content-Range", f"bytes {said}-{len(data) - 1}/{len(data)}")
    for name, value in {
        "Transfer-Encoding": "chunked" if answer.chunked else "",
        "Content-Length": "" if answer.chunked else answer.length,
        **answer.headers,
    }.items():
        if value is None:
            handler.send_header(name, str(len(body)))
        elif value:
            handler.send_header(name, value)
    handler.end_headers()
    sent = body if answer.drop is None else body[: answer.drop]
    if answer.chunked:
        sent = b"".join(
            f"{len(sent[i : i + 700]):x}\r\n".encode() + sent[i : i + 700] + b"\r\n"
            for i in range(0, len(sent), 700)
        )
        if answer.drop is None:
            sent += b"0\r\n\r\n"
    if answer.trickle:
        _slowly(handler, sent, answer.trickle, faulty)
        return
    handler.wfile.write(sent)
    handler.wfile.flush()
    if answer.hang:
        faulty.closing.wait(20)


def _slowly(
    handler: BaseHTTPRequestHandler, sent: bytes, pause: float, faulty: FaultyServer
) -> None:
    with suppress(OSError):
        for byte in sent:
            if faulty.closing.wait(pause):
                return
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()


def _start(handler: BaseHTTPRequestHandler, answer: Answer) -> int | None:
    """First byte that is asked for, None for the whole file."""
    asked = handler.headers.get("Range")
    if not asked or not answer.ranges:
        return None
    return int(asked.removeprefix("bytes=").split("-")[0])
