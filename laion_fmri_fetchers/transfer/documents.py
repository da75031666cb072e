"""Small files from any web server, whole and in memory.

read_documents ─▶ in_sessions ─▶ _document ─▶ Session.ask, read
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from laion_fmri_fetchers.exceptions import DownloadError
from laion_fmri_fetchers.messages import counted, tell

from . import policy

if TYPE_CHECKING:
    from .http import Session

N_AT_ONCE = 8
"""Connections; more than a server of files gives to one client does no good."""


class _Refusal(NamedTuple):
    """Why there is no document, whether it may be there later, and in how long."""

    reason: str
    may_pass: bool = False
    retry_after: float | None = None


def read_documents(
    urls: Sequence[str], *, most_bytes: int, timeout: float, verbose: int
) -> list[bytes | None]:
    """Return what small files hold, in order; None for those that are not there.

    Of one that is too long, a byte more than allowed is returned.

    Parameters
    ----------
    urls : sequence of str
        Their addresses, on one server.
    most_bytes : int
        Bytes of a file at most.
    timeout : float
        Seconds without progress after which a request is given up.
    verbose : int
        Whether to say so where it takes long.

    Raises
    ------
    DownloadError
        If the server cannot be reached, or refuses a file other than by 404. The
        text, which holds no address, says why.
    """
    from .http import in_sessions

    tasks = [functools.partial(_document, url, most_bytes) for url in urls]
    waiting = f"Waiting for {counted(len(urls), 'file')} of the splits ..."
    results = in_sessions(
        tasks,
        n_threads=N_AT_ONCE,
        timeout=timeout,
        on_quiet=lambda: tell(waiting, verbose),
    )
    documents = dict(results)
    return [documents[number] for number in range(len(tasks))]


def _document(url: str, most_bytes: int, session: Session) -> bytes | None:
    """Return a file, asked for again after a while where that may help."""
    limits = policy.POLICY
    n_tried, began = 0, time.monotonic()
    while True:
        n_tried += 1
        answer = _answer(session, url, most_bytes)
        if not isinstance(answer, _Refusal):
            return answer
        most = limits.tries
        if not session.answered.is_set():
            # Where connecting took all of its time, another try takes as long.
            is_late = time.monotonic() - began >= session.connect_timeout
            most = 1 if is_late else limits.tries_unreachable_at_first
        if not answer.may_pass or n_tried >= most:
            raise DownloadError(answer.reason)
        if not session.pause(limits.wait(n_tried, answer.retry_after)):
            raise DownloadError("interrupted")


def _answer(session: Session, url: str, most_bytes: int) -> bytes | _Refusal | None:
    """Ask for a file once."""
    from .troubles import ERRORS, RedirectError, trouble

    try:
        with session.ask(
            "GET", url, headers={"Accept-Encoding": "identity"}
        ) as response:
            status = response.status_code
            if status == 404:
                return None
            if status != 200:
                asked = policy.retry_after(response.headers.get("Retry-After", ""))
                may_pass = status in policy.POLICY.retried
                return _Refusal(f"status {status}", may_pass, asked)
            # A compressed file of a few kB may be one of many GB.
            if response.headers.get("Content-Encoding", "identity") != "identity":
                return _Refusal("the server compresses, though it was asked not to")
            return session.read(response, most_bytes)
    except RedirectError as error:
        return _Refusal(str(error))
    except ERRORS as error:
        kind, reason = trouble(error, session.timeout)
        return _Refusal(reason, not kind.is_final)
