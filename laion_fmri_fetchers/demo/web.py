"""A small web server on this machine, which the demo's three servers share.

The standard library's server speaks HTTP/1.1, a thread a connection; what it answers is
a WSGI application, so that a test can stand in front of it.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

Answer = tuple[int, dict[str, str], "bytes | Iterable[bytes]"]
"""Status, headers and body; without a length the connection closes behind the body."""


class LocalServer(socketserver.ThreadingTCPServer):
    """A web server on 127.0.0.1, which runs until `stop` or the end of a ``with``.

    A kind of server says what it answers in its method ``respond(environ)``.

    Parameters
    ----------
    port : int, default=0
        Its port; 0 takes a free one.
    path : str, default=""
        Path of its ``url``.

    Raises
    ------
    OSError
        When the port is taken.
    """

    allow_reuse_address = os.name == "posix"  # on Windows two servers could share it
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int = 0, path: str = "") -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Connection)
        self.url = f"http://127.0.0.1:{self.server_address[1]}{path}"
        self._thread = threading.Thread(
            target=self.serve_forever,
            kwargs={"poll_interval": 0.02},
            name=f"demo server {self.url}",
            daemon=True,
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a new connection in a thread of its own."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        raise NotImplementedError

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request: the WSGI application."""
        status, headers, body = self.respond(environ)
        if isinstance(body, bytes):
            headers = {"Content-Length": str(len(body)), **headers}
            body = [body]
        start_response(str(status), list(headers.items()))
        return body


class _Connection(http.server.BaseHTTPRequestHandler):
    """A connection: its requests one after the other, until one side closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 2**16
    server: LocalServer

    def handle(self) -> None:
        # Clients that break off are what the tests of a downloader are about.
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Write nothing."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "RAW_URI": self.path,
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(body),
        }
        for name, value in self.headers.items():
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        started: list[Any] = []
        chunks = self.server(environ, lambda *args: started.extend(args))
        status, headers = int(started[0]), started[1]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not {"content-length", "connection"} & {name.lower() for name, _ in headers}:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            for chunk in chunks:
                self.wfile.write(chunk)
                self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815
