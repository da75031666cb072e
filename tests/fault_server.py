"""A small S3-like server, which fails in the ways that servers and networks do.

``FaultServer.faults[key]`` is a list of faults: each answer to a request of the key
takes the next, and stays with one that is wrapped in `always`. A fault is a function of
the `Reply` that would be right; it changes the reply, or what becomes of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import re
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclasses.dataclass
class Reply:
    """An answer, and how it is sent: by default whole, and the connection stays."""

    status: int
    headers: dict[str, str]
    body: bytes
    data: bytes  # all of the object
    query: str = ""  # of the request
    stop_after: int | None = None  # bytes of the body, after which it ends by `then`
    then: str = "close"
    rate: float = 0.0  # bytes a second
    delay: float = 0.0  # seconds before the first byte


Fault = Callable[[Reply], None]


def _changing(**values: object) -> Fault:
    return lambda reply: vars(reply).update(values)


def fine(reply: Reply) -> None:
    """Let a reply be right."""


def always(fault: Fault) -> Fault:
    """Let a fault happen from now on."""
    lasting = functools.partial(fault)
    lasting.lasts = True  # type: ignore[attr-defined]
    return lasting


def status(code: int, **headers: str) -> Fault:
    """Answer with another status."""

    def fault(reply: Reply) -> None:
        reply.status, reply.body = code, b"<Error><Code>Some</Code></Error>"
        reply.headers = {"Content-Length": str(len(reply.body))}
        reply.headers |= {name.replace("_", "-"): v for name, v in headers.items()}

    return fault


def reset(after: int = 0) -> Fault:
    """Reset the connection after some bytes of the body."""
    return _changing(stop_after=after, then="reset")


def short(after: int) -> Fault:
    """Close the connection after some bytes of the body."""
    return _changing(stop_after=after)


def stall(after: int = 0) -> Fault:
    """Send some bytes of the body, then nothing."""
    return _changing(stop_after=after, then="stall")


def slow(rate: float) -> Fault:
    """Send so many bytes a second."""
    return _changing(rate=rate)


def wait(seconds: float) -> Fault:
    """Send nothing at first."""
    return _changing(delay=seconds)


def wrong_bytes(reply: Reply) -> None:
    """Send a byte that is not the object's."""
    reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])


def wrong_length(difference: int) -> Fault:
    """Announce another length than that of the body."""

    def fault(reply: Reply) -> None:
        reply.headers["Content-Length"] = str(len(reply.body) + difference)

    return fault


def ignore_range(reply: Reply) -> None:
    """Send all of the object, whatever is asked for."""
    reply.status, reply.body = 200, reply.data
    reply.headers["Content-Length"] = str(len(reply.body))


def wrong_range(reply: Reply) -> None:
    """Send another range than asked for."""
    if reply.status == 206:
        reply.headers["Content-Range"] = f"bytes 1-{len(reply.body)}/{len(reply.data)}"


def no_range(reply: Reply) -> None:
    """Send a range without saying which."""
    reply.headers.pop("Content-Range", None)


def no_length(reply: Reply) -> None:
    """Send the body without its length, and close the connection behind it."""
    del reply.headers["Content-Length"]
    reply.stop_after = len(reply.body)


def chunked(reply: Reply) -> None:
    """Send the body without its length, in chunks."""
    del reply.headers["Content-Length"]
    reply.headers["Transfer-Encoding"] = "chunked"
    reply.body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body)


def headers(**values: str) -> Fault:
    """Add headers."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return lambda reply: reply.headers.update(named)


def etag_of(data: bytes, part: int | None = None) -> str:
    """Return the ETag of an object put in one part, or in parts of a size."""
    if part is None:
        return hashlib.md5(data).hexdigest()
    starts = range(0, len(data), part)
    digests = b"".join(hashlib.md5(data[a : a + part]).digest() for a in starts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(starts)}"


def make_certificate(folder: Path) -> tuple[str, ssl.SSLContext]:
    """Make a certificate of this machine; return its file, and a server's context."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    command += f"-keyout {key} -out {certificate} -subj /CN=test -days 9 "
    command += "-addext subjectAltName=IP:127.0.0.1,DNS:localhost "
    command += "-addext keyUsage=critical,digitalSignature,keyCertSign"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return str(certificate), context


class FaultServer(socketserver.ThreadingTCPServer):
    """A running server; a context manager.

    Attributes
    ----------
    url : str
        Base of the objects.
    port : int
        The port that it listens on.
    objects : dict
        Key -> (content, ETag).
    faults : dict
        Key -> faults of the next answers.
    on_request : callable
        Called with the key before each answer.
    requests : list of tuple
        Key and headers (names in lower case) of every request so far.
    sent : int
        Bytes of bodies sent so far, the piece under way included.
    """

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 512

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.objects: dict[str, tuple[bytes, str | None]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.on_request: Callable[[str], object] = lambda key: None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent, self.lock, self.stopped = 0, threading.Lock(), threading.Event()
        self._tls, self._clients = tls, set[socket.socket]()
        super().__init__(("127.0.0.1", port), _Connection)
        self.port = self.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(client, socket.SHUT_RDWR)

    def put(self, key: str, data: bytes, part: int | None = None) -> str:
        """Store an object; return its ETag."""
        etag = etag_of(data, part)
        self.objects[key] = (data, etag)
        return etag

    def count(self, key: str) -> int:
        """Return the number of requests for a key."""
        return sum(asked == key for asked, _ in self.requests)

    def get_request(self) -> tuple[socket.socket, tuple]:
        """Accept a connection."""
        client, address = super().get_request()
        if self._tls:  # hands are shaken by the connection's own thread
            options = {"server_side": True, "do_handshake_on_connect": False}
            client = self._tls.wrap_socket(client, **options)
        self._clients.add(client)
        return client, address

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close a connection; one that is reset sends no farewell."""
        self._clients.discard(request)
        request.close()

    def handle_error(self, *_: object) -> None:
        """Pass over clients that break off."""

    def next_fault(self, key: str) -> Fault:
        """Return what is to happen to the next answer."""
        with self.lock:
            waiting = self.faults.get(key) or [fine]
            return waiting[0] if hasattr(waiting[0], "lasts") else waiting.pop(0)


class _Connection(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: FaultServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        key = unquote(address.path).lstrip("/")
        asked = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((key, asked))
        self.server.on_request(key)
        reply = self.right_reply(key, asked)
        reply.query = address.query
        self.server.next_fault(key)(reply)
        self.send(reply)

    do_CONNECT = do_GET  # noqa: N815

    def right_reply(self, key: str, asked: dict[str, str]) -> Reply:
        """Return what a server without faults would answer."""
        data, etag = self.server.objects.get(key, (b"", None))
        reply = Reply(200, {"ETag": f'"{etag}"'} if etag else {}, data, data)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.get("range", ""))
        if key not in self.server.objects:
            status(404)(reply)
        elif etag and asked.get("if-match", f'"{etag}"') != f'"{etag}"':
            status(412)(reply)
        elif span and int(span[1]) >= len(data):
            status(416)(reply)
        elif span:
            start, stop = int(span[1]), min(int(span[2]) + 1, len(data))
            reply.status, reply.body = 206, data[start:stop]
            reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        reply.headers["Content-Length"] = str(len(reply.body))
        return reply

    def send(self, reply: Reply) -> None:
        self.server.stopped.wait(reply.delay)
        lines = [f"HTTP/1.1 {reply.status} Some", "Server: fault"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        body, began = reply.body[: reply.stop_after], time.monotonic()
        step = max(1, int(reply.rate / 50)) if reply.rate else 2**16
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            with self.server.lock:
                self.server.sent += len(piece)
            self.wfile.write(piece)
            due = began + (start + len(piece)) / reply.rate if reply.rate else 0.0
            if self.server.stopped.wait(max(0.0, due - time.monotonic())):
                raise ConnectionAbortedError
        if reply.stop_after is None:
            return
        self.close_connection = True
        if reply.then == "stall":
            self.connection.recv(1)
        elif reply.then == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
