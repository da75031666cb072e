"""Points of a check-up: finding, expectation and advice."""

from __future__ import annotations

import configparser
import functools
import os
import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple
from urllib.parse import unquote

from laion_fmri_fetchers.access.gate import ID_VARIABLE
from laion_fmri_fetchers.access.service import hide_secrets
from laion_fmri_fetchers.messages import counted, listed

OK, NOTE, FAILED = "ok", "note", "failed"

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_WIDTH = 80
_NAME_WIDTH = 22


class Point(NamedTuple):
    """A point of a check-up; ``state`` is "ok", "note" or "failed"."""

    point: str
    state: str
    found: str
    expected: str = ""
    advice: str = ""


def ok(point: str, found: str) -> Point:
    """Return a point that is as it should be."""
    return Point(point, OK, found)


def note(point: str, found: str, advice: str = "") -> Point:
    """Return a point that is worth knowing, or differs but stops nobody."""
    return Point(point, NOTE, found, "", advice)


def failed(point: str, found: str, expected: str = "", advice: str = "") -> Point:
    """Return a point in which something that a user needs is not as expected."""
    return Point(point, FAILED, found, expected, advice)


def judged(
    is_right: bool,
    point: str,
    found: str,
    expected: str = "",
    advice: str = "",
    otherwise: str = "",
) -> Point:
    """Return a point, "ok" where it is right.

    What is not given comes from ``expectations.ini``.
    """
    usual = _expectations().get(point, {})
    expected = expected or usual.get("expected", "")
    if is_right:
        return Point(point, OK, found, expected)
    state = otherwise or usual.get("otherwise", FAILED)
    return Point(point, state, found, expected, advice or usual.get("advice", ""))


def advice_on(point: str) -> str:
    """Return what to do where a point is not as expected."""
    return _expectations()[point]["advice"]


def none_of(
    names: Iterable[str], point: str, label: str, right: str, **how: str
) -> Point:
    """Return a point that is "ok" where there are no names; else they are listed."""
    wrong = list(names)
    found = f"{label}: {listed(wrong, 9)}" if wrong else right
    return judged(not wrong, point, found, **how)


@functools.cache
def _expectations() -> dict[str, dict[str, str]]:
    """Return texts by point, each on one line."""
    parser = configparser.ConfigParser()
    file = resources.files(__package__).joinpath("expectations.ini")
    parser.read_string(file.read_text("utf-8"))
    return {
        point: {name: " ".join(text.split()) for name, text in parser[point].items()}
        for point in parser.sections()
    }


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
    """Return a point without secrets, whatever a server or library put into it."""
    secrets = _secrets_of_environment()
    return Point(*(hide_secrets(text, *secrets) for text in point))


def _secrets_of_environment() -> list[str]:
    """Return the ``request_id`` and the passwords of addresses, if any are set."""
    secrets = {os.environ.get(ID_VARIABLE, "").strip().strip("'\"")}
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
