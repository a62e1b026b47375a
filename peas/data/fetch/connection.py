"""One connection over http or https, which is ended when its bytes come too slowly."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from email.message import Message
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit


class Connection:
    """Opens an address, and ends the connection when its bytes come too slowly.

    A timeout of the socket is started anew by every byte, so a server that sends one now and then,
    be it of a header, would keep it waiting for ever.

    Args:
        seconds: Over which the speed is measured, and in which a connection must be made.
        slowest: Bytes a second below which it is given up.

    Attributes:
        received: Bytes of the body that came.
        slow: Bytes of the interval that were too few; None = none was.
    """

    def __init__(self, seconds: float, slowest: float) -> None:
        self.received = 0
        self.slow: int | None = None
        self._seconds, self._slowest = seconds, slowest
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._clock.join()
        for each in self._sockets:
            each.close()

    def open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Sends a request and returns the answer, whose body is still to be read."""
        # Not `build_opener`: it also follows a redirect to ftp, which nothing here watches.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
            _Watched(self._connect),
        ):
            opener.add_handler(handler)
        answer = opener.open(request, timeout=self._seconds)
        assert isinstance(answer, http.client.HTTPResponse)
        return answer

    def _connect(self, *address: Any) -> socket.socket:
        made = socket.create_connection(*address)
        # A second handle of the same connection: encryption takes the first one away, and what a
        # proxy or the handshake takes its time for is to be watched as well.
        self._sockets.append(made.dup())
        return made

    def _watch(self) -> None:
        before = 0
        while not self._over.wait(self._seconds):
            came = self.received - before
            if came < self._slowest * self._seconds:
                self.slow = came
                for each in self._sockets:
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
            before = self.received


class _Watched(urllib.request.AbstractHTTPHandler):
    """Makes connections by a function of ours."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, connect: Any) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._made(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._made(http.client.HTTPSConnection), req)

    def _made(self, kind: type[http.client.HTTPConnection]) -> Any:
        def make(host: str, **settings: Any) -> http.client.HTTPConnection:
            connection = kind(host, **settings)
            # `connect` also asks a proxy for a tunnel and encrypts: too late to learn the socket.
            connection._create_connection = self._connect  # type: ignore[attr-defined]
            return connection

        return make


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http and https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        # The caller reads its body to the end, which may be far away.
        fp.close()
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(req.full_url, code, f"{msg}, to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
