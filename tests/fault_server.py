"""A small S3-like server on a raw socket, which fails in the ways that networks do.

``FaultServer.faults[key]`` is a list of faults: each answer to a GET of the key takes
the next, and the last one stays if it is wrapped in `always`. A fault is a function of
the `Reply` that would be right; it changes the reply, or what becomes of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

PART = 8 * 2**20


@dataclasses.dataclass
class Reply:
    """An answer, and how it is sent: by default all of it, then the next."""

    status: int
    headers: dict[str, str]
    body: bytes
    data: bytes
    stop_after: int | None = None
    then: str = "close"
    rate: float = 0.0
    piece: int = 2**16
    delay: float = 0.0


Fault = Callable[[Reply], None]


def status(code: int, **headers: str) -> Fault:
    """Answer with another status."""

    def fault(reply: Reply) -> None:
        reply.status, reply.body = code, b"<Error><Code>Some</Code></Error>"
        reply.headers.clear()
        reply.headers["Content-Length"] = str(len(reply.body))
        reply.headers |= {name.replace("_", "-"): v for name, v in headers.items()}

    return fault


def reset(after: int = 0) -> Fault:
    """Reset the connection after some bytes of the body."""
    return lambda reply: _change(reply, stop_after=after, then="reset")


def short(after: int) -> Fault:
    """Close the connection after some bytes of the body."""
    return lambda reply: _change(reply, stop_after=after)


def stall(after: int = 0) -> Fault:
    """Send some bytes of the body, then nothing."""
    return lambda reply: _change(reply, stop_after=after, then="stall")


def drip(rate: float) -> Fault:
    """Send the body a byte at a time."""
    return lambda reply: _change(reply, rate=rate, piece=1)


def slow(rate: float) -> Fault:
    """Send so many bytes a second."""
    return lambda reply: _change(reply, rate=rate, piece=max(1, int(rate / 50)))


def wait(seconds: float) -> Fault:
    """Send nothing at first."""
    return lambda reply: _change(reply, delay=seconds)


def wrong_bytes(reply: Reply) -> None:
    """Send a byte that is not the object's."""
    if reply.body:
        reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])


def wrong_length(difference: int) -> Fault:
    """Announce another length than that of the body."""

    def fault(reply: Reply) -> None:
        reply.headers["Content-Length"] = str(len(reply.body) + difference)

    return fault


def ignore_range(reply: Reply) -> None:
    """Send all of the object."""
    reply.status, reply.body = 200, reply.data
    reply.headers.pop("Content-Range", None)
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
    reply.headers.pop("Content-Length", None)
    reply.stop_after = len(reply.body)


def chunked(reply: Reply) -> None:
    """Send the body without its length, in chunks."""
    del reply.headers["Content-Length"]
    reply.headers["Transfer-Encoding"] = "chunked"
    pieces = [f"{len(reply.body):x}\r\n".encode(), reply.body, b"\r\n"]
    reply.body = b"".join([*(pieces if reply.body else []), b"0\r\n\r\n"])


def headers(**values: str) -> Fault:
    """Add headers."""
    return lambda reply: reply.headers.update(
        {name.replace("_", "-"): value for name, value in values.items()}
    )


def always(fault: Fault) -> Fault:
    """Let a fault happen from now on."""

    def lasting(reply: Reply) -> None:
        fault(reply)

    lasting.lasts = True  # type: ignore[attr-defined]
    return lasting


def fine(reply: Reply) -> None:
    """Let a reply be right."""


def _change(reply: Reply, **values: object) -> None:
    for name, value in values.items():
        setattr(reply, name, value)


def etag_of(data: bytes, part: int | None = None) -> str:
    """Return the ETag of an object put in one part, or in parts of a size."""
    if part is None:
        return hashlib.md5(data).hexdigest()
    digests = [
        hashlib.md5(data[a : a + part]).digest() for a in range(0, len(data), part)
    ]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


class FaultServer:
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
    on_request : callable or None
        Called with the key before each answer.
    requests : list of tuple
        Key and headers (names in lower case) of every request so far.
    sent : int
        Bytes of bodies sent so far, the piece under way included.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._tls = tls
        self.objects: dict[str, tuple[bytes, str | None]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.on_request: Callable[[str], object] | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        scheme = "https" if tls else "http"
        self.port = self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(client, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def put(self, key: str, data: bytes, part: int | None = None) -> str:
        """Store an object; return its ETag."""
        etag = etag_of(data, part)
        self.objects[key] = (data, etag)
        return etag

    def count(self, key: str) -> int:
        """Return the number of requests for a key."""
        return sum(asked == key for asked, _ in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        received = b""
        if self._tls:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
        with self._lock:
            self._clients.add(client)
        with contextlib.suppress(OSError), client:
            while not self._stopped.is_set():
                head, found, rest = received.partition(b"\r\n\r\n")
                if found:
                    received = rest
                    if not self._answer(client, head.decode("latin-1")):
                        break
                    continue
                data = client.recv(65536)
                if not data:
                    break
                received += data
        with self._lock:
            self._clients.discard(client)

    def _answer(self, client: socket.socket, head: str) -> bool:
        """Answer a request; tell whether the connection stays."""
        first, *lines = head.split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        asked = {name.lower(): value for name, value in fields.items()}
        key = unquote(urlsplit(first.split(" ")[1]).path).lstrip("/")
        with self._lock:
            self.requests.append((key, asked))
        if self.on_request:
            self.on_request(key)
        reply = self._right(key, asked)
        self._next_fault(key)(reply)
        return self._send(client, reply)

    def _right(self, key: str, asked: dict[str, str]) -> Reply:
        """Return what a server without faults would answer."""
        if key not in self.objects:
            reply = Reply(404, {}, b"", b"")
            status(404)(reply)
            return reply
        data, etag = self.objects[key]
        if etag and asked.get("if-match", f'"{etag}"') != f'"{etag}"':
            reply = Reply(412, {}, b"", data)
            status(412)(reply)
            return reply
        reply = Reply(200, {"ETag": f'"{etag}"'} if etag else {}, data, data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.get("range", ""))
        if wanted:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            if start >= len(data):
                status(416)(reply)
                return reply
            reply.status, reply.body = 206, data[start:stop]
            reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        reply.headers["Content-Length"] = str(len(reply.body))
        return reply

    def _next_fault(self, key: str) -> Fault:
        with self._lock:
            waiting = self.faults.get(key)
            if not waiting:
                return fine
            if getattr(waiting[0], "lasts", False):
                return waiting[0]
            return waiting.pop(0)

    def _send(self, client: socket.socket, reply: Reply) -> bool:
        self._stopped.wait(reply.delay)
        lines = [f"HTTP/1.1 {reply.status} Some", "Server: fault"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        client.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        stop = len(reply.body) if reply.stop_after is None else reply.stop_after
        began = time.monotonic()
        for at in range(0, min(stop, len(reply.body)), reply.piece):
            piece = reply.body[at : min(at + reply.piece, stop)]
            with self._lock:
                self.sent += len(piece)
            client.sendall(piece)
            if reply.rate:
                due = began + (at + len(piece)) / reply.rate
                if self._stopped.wait(max(0.0, due - time.monotonic())):
                    return False
        if reply.stop_after is None:
            return True
        if reply.then == "stall":
            client.recv(1)
        if reply.then == "reset":
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        return False
