"""Ranges of objects over HTTP: asked for, found good or faulty, read in chunks.

::

    Connections.ask ─▶ Session.ask_raw ─▶ _judge ─▶ RangeReply
    Connections.chunks   its body, in pieces worth a write

Each thread has its own session, whose connection is kept open from one request to the
next, and its own buffer, into which bodies are read. No message, exception or log line
from here holds an address, because addresses may be presigned.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Generator
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import urllib3

from . import policy
from .checksums import bare
from .http import Session, dismiss, read_into
from .troubles import ERRORS, RedirectError, trouble

_BUFFER = 2**18
"""Bytes of a thread's buffer: 64 of them take 16 MiB. Larger ones are not faster."""

_CHUNK = 2**18
"""Bytes worth a write, a full buffer: each hands over Python's lock and the file's."""

_READ_FOR = 0.05
"""Seconds that a read may take. TLS hands over 16 KiB at a time, and to ask for each in
Python takes longer than to decrypt it; so where a line is fast, a read is for as much
as will arrive in that time. If the connection breaks, what a read was to bring is lost.
"""

_SLOW_READ = 2**15
"""Bytes below which a read takes those that arrived, and loses nothing."""

_SLOW = 0.25
"""Seconds after which less is written too, so that little is lost by a kill."""

_FILES_EACH = 4
"""Open files of a connection: its socket, the file it writes, that file's lock and list
of blocks."""


def affordable(n_connections: int) -> int:
    """Return how many connections the limit on open files leaves room for, at most."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows has no such limit
        return n_connections
    most = getrlimit(RLIMIT_NOFILE)[0]
    if most == RLIM_INFINITY:
        return n_connections
    n_free = most - len(os.listdir("/dev/fd"))
    return max(1, min(n_connections, n_free // _FILES_EACH))


class Fault(Exception):  # noqa: N818
    """What went wrong with a request or a file.

    Attributes
    ----------
    reason : str
        In words for the user.
    status : int or None
        HTTP status.
    tries : int
        How often to try in all; the policy's number by default.
    wait : float
        Seconds that the server asks to wait.
    remedy : str
        What helps other than trying again: ``"renew"`` the address, or start over as
        the object ``"changed"`` or has to be fetched ``"whole"``.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        tries: int | None = None,
        wait: float = 0.0,
        remedy: str = "",
    ):
        super().__init__(reason)
        self.reason, self.status = reason, status
        self.tries = policy.POLICY.tries if tries is None else tries
        self.wait, self.remedy = wait, remedy


class RangeReply(NamedTuple):
    """A good answer, whose body is not read yet: bytes ``start`` to ``stop``."""

    response: urllib3.BaseHTTPResponse
    start: int
    stop: int
    size: int
    etag: str | None

    @property
    def last_modified(self) -> str | None:
        """Date of the object's last change, ISO 8601 in UTC as listings have it."""
        try:
            date = parsedate_to_datetime(self.response.headers["Last-Modified"])
        except (KeyError, TypeError, ValueError):
            return None
        return f"{date.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}.000Z"


def misfit(reply: RangeReply, size: int | None, etag: str | None) -> Fault | None:
    """Return what speaks against an answer: it is not of the object that is meant."""
    if reply.etag and etag and reply.etag != etag:
        return Fault("it changed in the bucket", remedy="changed")
    if size is not None and reply.size != size:
        return Fault(f"the server has {reply.size} bytes of it instead of {size}")
    return None


class Connections:
    """The connections of several threads, all of which can be cut at once.

    Parameters
    ----------
    timeout : float
        Seconds without progress after which a connection is given up.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._answered = threading.Event()
        self._proxies: dict[str, dict[str, str]] = {}
        self._are_cut = False

    def ask(
        self,
        address: str,
        start: int,
        stop: int | None,
        *,
        size: int | None,
        etag: str | None,
        at_first: int,
        is_secret: bool,
    ) -> RangeReply:
        """Ask for a range of an object.

        Parameters
        ----------
        address : str
            URL of the object.
        start, stop : int
            The range; with None as stop, as much as ``at_first``, or all.
        size : int or None
            Bytes of the object, if known.
        etag : str or None
            The ETag that it must have.
        at_first : int
            Bytes to ask for where ``stop`` is None.
        is_secret : bool
            Whether the address is for its server alone.

        Returns
        -------
        RangeReply
            Its ``size`` and ``etag`` are the server's.

        Raises
        ------
        Fault
            If there is no answer, or one that is not what was asked for.
        """
        headers = {"Accept-Encoding": "identity"}
        is_whole = stop is not None and (start, stop) == (0, size)
        if not is_whole:
            headers["Range"] = f"bytes={start}-{(stop or at_first) - 1}"
        if etag:
            headers["If-Match"] = f'"{etag}"'
        response = self._get(address, headers, is_secret)
        try:
            span = _judge(response, start, stop, is_whole, size, at_first)
        except Fault:
            self._dismiss(response)
            raise
        return RangeReply(response, *span)

    def chunks(self, reply: RangeReply) -> Generator[memoryview, None, None]:
        """Yield a body in pieces worth a write; see that it makes progress.

        A piece is valid until the next one is asked for.
        """
        response, length = reply.response, reply.stop - reply.start
        buffer = self._buffer(max(length, 1))
        limits = policy.POLICY
        amount = _SLOW_READ
        n_read = held = mark = 0
        since = yielded = time.monotonic()
        session, fault = self._session(), None
        session.note_progress()
        try:
            while n_read < length and not fault:
                began = time.monotonic()
                room = min(len(buffer) - held, length - n_read, amount)
                n, fault = self._read(response, buffer[held : held + room])
                n_read, held = n_read + n, held + n
                now = time.monotonic()
                amount = max(_SLOW_READ, int(n / max(now - began, 1e-6) * _READ_FOR))
                if n_read - mark >= limits.least_progress:
                    mark, since = n_read, now
                    session.note_progress()
                elif now - since > self._timeout and n_read < length:
                    fault = fault or Fault(f"no progress for {self._timeout:g} s")
                is_due = held >= _CHUNK or now - yielded > _SLOW or n_read == length
                if held and (is_due or fault):
                    session.note_rest()  # the disk may take its time
                    yield buffer[:held]
                    session.note_progress()
                    held, yielded = 0, now
            if not fault and _length(response) != 0:
                more, _ = self._read(response, buffer[:1])
                fault = Fault("the body is longer than it should be") if more else None
        finally:
            session.note_rest()
            if fault or n_read < length:
                response.close()
            else:
                self._dismiss(response)
        if fault:
            raise fault

    def drop(self, reply: RangeReply) -> None:
        """Close the connection of an answer that is not wanted."""
        reply.response.close()

    def cut(self) -> None:
        """End all that waits for the network, now and later."""
        with self._lock:
            self._are_cut = True
            for session in self._sessions:
                session.cut()

    def cut_stuck(self) -> None:
        """End requests whose headers drip."""
        with self._lock:
            for session in self._sessions:
                session.cut_if_stuck()

    def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            session.close()

    def _session(self) -> Session:
        """Return this thread's session."""
        if not hasattr(self._mine, "session"):
            self._mine.session = Session(self._timeout, self._answered, self._proxies)
            with self._lock:
                self._sessions.append(self._mine.session)
                if self._are_cut:
                    self._mine.session.cut()
        return self._mine.session

    def _get(
        self, address: str, headers: dict[str, str], is_secret: bool
    ) -> urllib3.BaseHTTPResponse:
        session, fault = self._session(), None
        try:
            return session.ask_raw(address, headers, is_secret=is_secret)
        except RedirectError as error:
            fault = Fault(str(error), tries=1)
        except ERRORS as error:
            fault = self._network_fault(error)
        finally:
            session.note_rest()
        # Raised here, such that no context holds the address.
        raise fault

    def _buffer(self, most: int) -> memoryview:
        """Return this thread's buffer; it is small as long as that will do."""
        buffer = getattr(self._mine, "buffer", memoryview(b""))
        wanted = min(most, _BUFFER)
        if len(buffer) < wanted:
            buffer = self._mine.buffer = memoryview(bytearray(wanted))
        return buffer

    def _read(
        self, response: urllib3.BaseHTTPResponse, view: memoryview
    ) -> tuple[int, Fault | None]:
        """Fill a large view; into a small one, read the bytes that arrived."""
        fault = None
        n = 0
        try:
            if len(view) > _SLOW_READ:
                n = read_into(response, view)
            else:
                piece = response.read1(len(view), decode_content=False)
                n = len(piece)
                view[:n] = piece
        except ERRORS as error:
            fault = self._network_fault(error)
        if self._session().is_stuck:  # the cut looks like an error or the end
            return n, Fault(f"no progress for {self._timeout:g} s")
        return n, fault or (None if n else Fault("the body ended early"))

    def _dismiss(self, response: urllib3.BaseHTTPResponse) -> None:
        """Keep the connection of an answer that is short, though not wanted."""
        with contextlib.suppress(*ERRORS):
            dismiss(response)

    def _network_fault(self, error: BaseException) -> Fault:
        """Return an error in words without an address."""
        kind, reason = trouble(error, self._timeout)
        limits, tries = policy.POLICY, None
        if kind.is_final:
            tries = 1
        elif kind.is_on_the_way:
            has_answered = self._answered.is_set()
            tries = limits.tries_unreachable_at_first
            tries = limits.tries_unreachable if has_answered else tries
        return Fault(reason, tries=tries)


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return the bytes of a body that are not read yet, where that is known."""
    return getattr(response, "length_remaining", None)


def _judge(
    response: urllib3.BaseHTTPResponse,
    start: int,
    stop: int | None,
    is_whole: bool,
    size: int | None,
    at_first: int,
) -> tuple[int, int, int, str | None]:
    """Return start, stop, size and ETag of the answer that was asked for."""
    status, headers, length = response.status, response.headers, _length(response)
    etag = bare(headers.get("ETag", "")) or None
    if status == 206:
        content_range = headers.get("Content-Range", "").strip()
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        if not span:
            raise Fault("the server does not say what range it sends", status)
        first, last, total = map(int, span.groups())
        end = min(total, at_first if stop is None else stop)
        if (first, last + 1) != (start, end):
            raise Fault("the server sends another range than asked", status)
    elif status == 200:
        if not (is_whole or stop is None):
            raise Fault("the server ignores Range", status, remedy="whole")
        if size is None and length is None:
            raise Fault("the server does not say its size", status, tries=1)
        end = total = length if length is not None else size or 0
    elif status == 416 and stop is None:
        return 0, 0, 0, etag
    else:
        raise _status_fault(response)
    if length not in (None, end - start):
        raise Fault(f"Content-Length is {length} instead of {end - start}", status)
    return start, end, total, etag


def _status_fault(response: urllib3.BaseHTTPResponse) -> Fault:
    """Return an unsuccessful answer as a fault."""
    status = response.status
    reason = f"status {status} {response.reason or ''}".rstrip()
    if status == 412:
        return Fault("it changed in the bucket", status, remedy="changed")
    if status in (400, 401, 403):
        return Fault(reason, status, tries=1, remedy="renew")
    if status in policy.POLICY.retried:
        wait = policy.retry_after(response.headers.get("Retry-After", ""))
        return Fault(reason, status, wait=wait or 0.0)
    return Fault(reason, status, tries=1)
