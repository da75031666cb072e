"""How the demo's servers speak HTTP; imported only when one is started."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler


class HttpServer(ThreadedWSGIServer):
    """A WSGI server on 127.0.0.1 that runs in threads until it is stopped.

    Parameters
    ----------
    app : callable
        The WSGI application.
    port : int
        Port; 0 takes a free one.

    Raises
    ------
    OSError
        When the port is taken.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], port: int) -> None:
        self._connections: set[Any] = set()
        with socket.create_server(("127.0.0.1", port)) as listening:
            port = listening.getsockname()[1]
            fd = listening.fileno()
            super().__init__("127.0.0.1", port, app, handler=Handler, fd=fd)
        self._thread = threading.Thread(
            target=self.serve_forever,
            kwargs={"poll_interval": 0.02},
            name=f"demo server {port}",
            daemon=True,
        )
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a new connection in a thread of its own."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    @property
    def running(self) -> bool:
        """Whether it has not been stopped."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Close the port and every connection."""
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(WSGIRequestHandler):
    """Werkzeug's request handler, but quiet, and with connections kept alive.

    A connection is closed when the answer says so, when the answer does not tell
    its length, and when the server stops.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024

    def finish(self) -> None:
        """Send what is left; the client may be gone."""
        with contextlib.suppress(OSError):
            super().finish()

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Write nothing."""

    def run_wsgi(self) -> None:
        """Answer one request."""
        environ = self.make_environ()
        if environ.get("wsgi.input_terminated"):
            self.close_connection = True
        else:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"] = io.BytesIO(self.rfile.read(length))
        sent: list[Any] = []

        def start_response(*args: Any) -> Callable[[bytes], object]:
            sent[:] = args[:2]
            return self.wfile.write

        body = self.server.app(environ, start_response)
        status, headers = sent
        try:
            self._send_head(int(status.split()[0]), headers)
            if self.command != "HEAD" and not status.startswith(("204", "304")):
                for chunk in body:
                    self.wfile.write(chunk)
                    self.wfile.flush()
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        finally:
            if hasattr(body, "close"):
                body.close()

    def _send_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        names = {name.lower() for name, _ in headers}
        if not names & {"content-length", "connection"}:
            self.send_header("Connection", "close")
        self.end_headers()
