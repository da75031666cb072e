"""A small S3-like server for benchmarks: it can delay answers and cap connections.

    python server.py FOLDER [--latency SECONDS] [--rate BYTES_A_SECOND]
                            [--md5] [--opaque] [--log FILE]

It prints its port, then serves the files of FOLDER as objects of a bucket, path style:
``GET /bucket/?list-type=2&prefix=``, and ``HEAD`` and ``GET`` of ``/bucket/{key}`` with
``Range`` and ``If-Match``. One thread waits for all sockets, and bodies go from file to
socket inside the kernel (sendfile), so that the server costs little of the machine.
Objects of 8 MiB and more have the ETag of an upload in parts of 8 MiB; with ``--md5``
all have that of an upload in one part, with ``--opaque`` one that says nothing of the
content, as that of an encrypted object. Hard links of a file are read once for it.
``--log`` names a file that gets a line for each body: key, first byte, byte after the
last.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import os
import re
import select
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PART = 8 * 2**20
BURST = 2**18
AT_ONCE = 2**21


class Object:
    """A file that is offered."""

    def __init__(self, path: Path, single_part: bool, is_opaque: bool):
        stat = path.stat()
        self.size, self.modified = stat.st_size, stat.st_mtime
        self.descriptor = os.open(path, os.O_RDONLY)
        if is_opaque:
            self.etag = f"opaque-to-clients-{self.size}"
        else:
            self.etag = self.hash(path, self.size if single_part else PART)

    def hash(self, path: Path, part_size: int) -> str:
        with open(path, "rb") as stream:
            parts = [
                hashlib.md5(stream.read(part_size))
                for _ in range(0, max(self.size, 1), max(part_size, 1))
            ]
        if part_size != PART or self.size < PART:
            return parts[0].hexdigest()
        joined = b"".join(part.digest() for part in parts)
        return f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"


class Connection:
    """A client's connection and what is still to be sent on it."""

    def __init__(self, client: socket.socket):
        self.client = client
        self.received = b""
        self.head = b""
        self.source = -1
        self.offset = self.stop = 0
        self.allowed_at = 0.0
        self.mask = select.EPOLLIN


class Server:
    """All connections, waited for in one loop."""

    def __init__(
        self,
        folder: Path,
        latency: float,
        rate: float,
        single_part: bool,
        is_opaque: bool,
        port: int,
        log: Path | None,
    ):
        self.latency, self.rate = latency, rate
        self.log = open(log, "a", buffering=1) if log else None  # noqa: SIM115
        by_inode: dict[int, Object] = {}
        self.objects: dict[str, Object] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                inode = path.stat().st_ino
                if inode not in by_inode:
                    by_inode[inode] = Object(path, single_part, is_opaque)
                self.objects[path.relative_to(folder).as_posix()] = by_inode[inode]
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.listener.setblocking(False)
        self.poll = select.epoll()
        self.poll.register(self.listener, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.timers: list[tuple[float, int]] = []

    def serve(self) -> None:
        while True:
            now = time.monotonic()
            wait = max(0.0, self.timers[0][0] - now) if self.timers else -1
            for descriptor, event in self.poll.poll(wait):
                if descriptor == self.listener.fileno():
                    self.accept()
                elif event & select.EPOLLOUT:
                    self.send(descriptor)
                else:
                    self.receive(descriptor)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                _, descriptor = heapq.heappop(self.timers)
                if descriptor in self.connections:
                    self.send(descriptor)

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[client.fileno()] = Connection(client)
            self.poll.register(client, select.EPOLLIN)

    def drop(self, descriptor: int) -> None:
        self.poll.unregister(descriptor)
        self.connections.pop(descriptor).client.close()

    def watch(self, descriptor: int, mask: int) -> None:
        connection = self.connections[descriptor]
        if connection.mask != mask:
            connection.mask = mask
            self.poll.modify(descriptor, mask)

    def receive(self, descriptor: int) -> None:
        connection = self.connections[descriptor]
        try:
            data = connection.client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(descriptor)
            return
        connection.received += data
        self.next_request(descriptor)

    def next_request(self, descriptor: int) -> None:
        connection = self.connections[descriptor]
        head, found, rest = connection.received.partition(b"\r\n\r\n")
        if not found:
            self.watch(descriptor, select.EPOLLIN)
            return
        connection.received = rest
        self.answer(connection, head.decode("latin-1"))
        connection.allowed_at = time.monotonic() + self.latency
        if self.latency:
            self.watch(descriptor, 0)
            heapq.heappush(self.timers, (connection.allowed_at, descriptor))
        else:
            self.send(descriptor)

    def send(self, descriptor: int) -> None:
        connection = self.connections[descriptor]
        try:
            if connection.head:
                n = connection.client.send(
                    connection.head,
                    socket.MSG_MORE * (connection.offset < connection.stop),
                )
                connection.head = connection.head[n:]
            while not connection.head and connection.offset < connection.stop:
                if not self.send_body(descriptor, connection):
                    return
        except BlockingIOError:
            self.watch(descriptor, select.EPOLLOUT)
            return
        except OSError:
            self.drop(descriptor)
            return
        if connection.head:
            self.watch(descriptor, select.EPOLLOUT)
        else:
            self.next_request(descriptor)

    def send_body(self, descriptor: int, connection: Connection) -> bool:
        """Send a piece; tell whether to go on at once."""
        length = min(AT_ONCE, connection.stop - connection.offset)
        if self.rate:
            now = time.monotonic()
            connection.allowed_at = max(connection.allowed_at, now - BURST / self.rate)
            length = min(length, int((now - connection.allowed_at) * self.rate) + 1)
            if length < min(2**16, connection.stop - connection.offset):
                self.watch(descriptor, 0)
                heapq.heappush(self.timers, (now + 2**16 / self.rate, descriptor))
                return False
        n = os.sendfile(descriptor, connection.source, connection.offset, length)
        connection.offset += n
        if self.rate:
            connection.allowed_at += n / self.rate
        return True

    def answer(self, connection: Connection, head: str) -> None:
        """Set what is to be sent."""
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        url = urlsplit(target)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        connection.offset = connection.stop = 0
        if not key:
            body = self.listing(parse_qs(url.query)).encode()
            connection.head = respond(200, len(body), "application/xml")
            connection.head += body if method == "GET" else b""
            return
        found = self.objects.get(key)
        if found is None:
            connection.head = respond(404, 0)
            return
        fields = (
            f'ETag: "{found.etag}"\r\nAccept-Ranges: bytes\r\n'
            f"Last-Modified: {formatdate(found.modified, usegmt=True)}\r\n"
        )
        wanted = re.search(r"\r\nif-match: *\"?([^\"\r]*)", head, re.IGNORECASE)
        if wanted and wanted[1] != found.etag:
            connection.head = respond(412, 0)
            return
        start, stop, status = 0, found.size, 200
        part = re.search(r"\r\nrange: *bytes=(\d+)-(\d*)", head, re.IGNORECASE)
        if part:
            start, status = int(part[1]), 206
            stop = min(stop, int(part[2]) + 1) if part[2] else stop
            if start >= stop:
                connection.head = respond(416, 0)
                return
            fields += f"Content-Range: bytes {start}-{stop - 1}/{found.size}\r\n"
        connection.head = respond(status, stop - start, fields=fields)
        if method == "GET":
            connection.source = found.descriptor
            connection.offset, connection.stop = start, stop
            if self.log:
                self.log.write(f"{key} {start} {stop}\n")

    def listing(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        return "".join(self.listing_lines(prefix))

    def listing_lines(self, prefix: str) -> Iterator[str]:
        yield '<?xml version="1.0" encoding="UTF-8"?>\n'
        yield '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        yield f"<Name>bucket</Name><Prefix>{escape(prefix)}</Prefix>"
        yield "<MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>"
        for key, found in self.objects.items():
            if key.startswith(prefix):
                stamp = time.strftime("%FT%T.000Z", time.gmtime(found.modified))
                yield f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}"
                yield f"</LastModified><ETag>&quot;{found.etag}&quot;</ETag><Size>"
                yield f"{found.size}</Size><StorageClass>STANDARD</StorageClass>"
                yield "</Contents>"
        yield "</ListBucketResult>"


PHRASES = {
    200: "OK",
    206: "Partial Content",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
}


def respond(
    status: int, length: int, kind: str = "binary/octet-stream", fields: str = ""
) -> bytes:
    return (
        f"HTTP/1.1 {status} {PHRASES[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n{fields}\r\n"
    ).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a request")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes/s a connection")
    parser.add_argument("--md5", action="store_true", help="ETags of one-part uploads")
    parser.add_argument("--opaque", action="store_true", help="ETags that are no MD5")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a line for each body")
    args = parser.parse_args()
    server = Server(
        args.folder,
        args.latency,
        args.rate,
        args.md5,
        args.opaque,
        args.port,
        args.log,
    )
    print(server.listener.getsockname()[1], flush=True)
    server.serve()


if __name__ == "__main__":
    main()
