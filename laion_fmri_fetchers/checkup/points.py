"""Points of a check-up: what was found, what was expected, and what to do."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from laion_fmri_fetchers.access.service import PREFIX
from laion_fmri_fetchers.messages import counted

OK, NOTE, FAILED = "ok", "note", "failed"

ID_VARIABLE = "LAION_FMRI_REQUEST_ID"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_WIDTH = 80
_NAME_WIDTH = 22
_USER_INFO = re.compile(r"(?<=://)\S*@")
"""Passwords may hold any character, so it ends only at the last ``@``."""
_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")
_REQUEST_ID = re.compile(rf"{PREFIX}[\w.~-]+")


class Point(NamedTuple):
    """A point of a check-up; ``state`` is "ok", "note" or "failed"."""

    point: str
    state: str
    found: str
    expected: str = ""
    advice: str = ""


def ok(point: str, found: str, expected: str = "") -> Point:
    """Return a point that is as it should be."""
    return Point(point, OK, found, expected)


def note(point: str, found: str, expected: str = "", advice: str = "") -> Point:
    """Return a point that is worth knowing, or differs but stops nobody."""
    return Point(point, NOTE, found, expected, advice)


def failed(point: str, found: str, expected: str = "", advice: str = "") -> Point:
    """Return a point in which something that a user needs is not as expected."""
    return Point(point, FAILED, found, expected, advice)


def judged(
    is_right: bool,
    point: str,
    found: str,
    expected: str,
    advice: str,
    otherwise: str = FAILED,
) -> Point:
    """Return a point that is "ok" where it is right; the advice is for where not."""
    if is_right:
        return ok(point, found, expected)
    return Point(point, otherwise, found, expected, advice)


def shown_url(url: str) -> str:
    """Return an address without user name, password and query.

    Examples
    --------
    >>> shown_url("http://ada:secret@proxy.example.org:3128/a?token=1")
    'http://proxy.example.org:3128/a'
    """
    scheme, mark, rest = url.rpartition("://")
    return scheme + mark + rest.rpartition("@")[2].partition("?")[0]


def without_secrets(point: Point) -> Point:
    """Return a point in which no secret is left, whatever a server or library said."""
    return Point(*(_hidden(text) for text in point))


def _hidden(text: str) -> str:
    for secret in _secrets_of_environment():
        text = text.replace(secret, "...")
    text = _REQUEST_ID.sub(f"{PREFIX}...", text)
    text = _QUERY.sub(r"\1?...", _USER_INFO.sub("", text))
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text)


def _secrets_of_environment() -> list[str]:
    """Return the ``request_id`` and the passwords of addresses, if any are set."""
    secrets = {os.environ.get(ID_VARIABLE, "").strip()}
    for name, value in os.environ.items():
        if name.upper() in PROXY_VARIABLES or name.startswith("LAION_FMRI_"):
            user_info = value.rpartition("@")[0].rpartition("://")[2]
            password = user_info.partition(":")[2]
            secrets |= {password, unquote(password)}
    return sorted(secrets - {""}, key=len, reverse=True)


def table(points: Iterable[Point]) -> str:
    """Return points as a table of 80 columns.

    Examples
    --------
    >>> print(table([ok("range", "206"), failed("TLS", "no", "yes", "Ask.")]))
    ok      range                 206
    FAILED  TLS                   no
                                  expected: yes
                                  advice: Ask.
    """
    return "\n".join(line for point in points for line in _rows(point))


def _rows(point: Point) -> list[str]:
    texts = [point.found]
    if point.state != OK:
        texts += [f"expected: {point.expected}"] * bool(point.expected)
        texts += [f"advice: {point.advice}"] * bool(point.advice)
    state = point.state.upper() if point.state == FAILED else point.state
    first = f"{state:<8}{point.point:<{_NAME_WIDTH}}"
    width = _WIDTH - 8 - _NAME_WIDTH
    lines = [line for text in texts for line in textwrap.wrap(text, width)] or [""]
    return [
        f"{first if i == 0 else ' ' * len(first)}{line}".rstrip()
        for i, line in enumerate(lines)
    ]


def summary(points: Sequence[Point]) -> str:
    """Return one line on all points.

    Examples
    --------
    >>> summary([ok("range", "206"), failed("TLS", "no")])
    '2 points: 1 ok, 0 notes, 1 failed (TLS).'
    """
    names = {state: [p.point for p in points if p.state == state] for state in _STATES}
    which = f" ({', '.join(dict.fromkeys(names[FAILED]))})" if names[FAILED] else ""
    return (
        f"{counted(len(points), 'point')}: {len(names[OK])} ok, "
        f"{counted(len(names[NOTE]), 'note')}, {len(names[FAILED])} failed{which}."
    )


_STATES = (OK, NOTE, FAILED)
