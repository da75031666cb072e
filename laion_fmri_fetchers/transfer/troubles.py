"""The meaning of errors of requests and urllib3, in words without an address.

An error of these wraps others, several deep, and its text may show a presigned URL. So
the text is left alone: kind and cause are found along the chain.
"""

from __future__ import annotations

import enum
import os
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import requests
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
)

ERRORS = (requests.RequestException, HTTPError, OSError, ValueError)
"""Errors of requests and urllib3 without an answer, or without a whole one."""


class Kind(enum.Enum):
    """Kinds of trouble; what to do about it depends on the kind."""

    ADDRESS = enum.auto()
    SETUP = enum.auto()
    CONNECTING = enum.auto()
    PROXY = enum.auto()
    TLS = enum.auto()
    SILENCE = enum.auto()
    BREAK = enum.auto()

    @property
    def is_final(self) -> bool:
        """Tell whether it makes no sense to try again."""
        return self in (Kind.ADDRESS, Kind.SETUP)

    @property
    def is_on_the_way(self) -> bool:
        """Tell whether the server was not reached."""
        return self in (Kind.CONNECTING, Kind.PROXY, Kind.TLS)


class Trouble(NamedTuple):
    """The meaning of an error, in words without an address, which may be secret."""

    kind: Kind
    reason: str


class SetupError(OSError):
    """The certificates named by the environment cannot be used."""


class RedirectError(Exception):
    """A redirect that is not followed."""


def trouble(error: BaseException, timeout: float) -> Trouble:
    """Return the meaning of an error of requests or urllib3."""
    errors = list(_chain(error))
    return (
        _trouble_of_setup(errors)
        or _trouble_on_the_way(errors)
        or _trouble_of_answer(errors, timeout)
    )


def _trouble_of_setup(errors: list[BaseException]) -> Trouble | None:
    if _has(errors, SetupError):
        return Trouble(Kind.SETUP, str(errors[-1]))
    if any("SOCKS support" in str(error) for error in errors):
        needs = "a SOCKS proxy needs PySocks: pip install 'requests[socks]'"
        return Trouble(Kind.SETUP, needs)
    if _has(errors, requests.exceptions.InvalidProxyURL):
        return Trouble(Kind.SETUP, "the address of the proxy is not valid")
    return None


def _trouble_on_the_way(errors: list[BaseException]) -> Trouble | None:
    words = _words(errors)
    is_of_socks = any(type(error).__module__ == "socks" for error in errors)
    if is_of_socks or _has(errors, ProxyError, requests.exceptions.ProxyError):
        return Trouble(Kind.PROXY, f"the proxy fails: {words}")
    if _has(errors, ssl.SSLError):
        return Trouble(Kind.TLS, words)
    if _is_late(errors) or _has(errors, NameResolutionError):
        return Trouble(Kind.CONNECTING, words)
    if _has(errors, NewConnectionError):
        return Trouble(Kind.CONNECTING, f"cannot connect: {words}")
    return None


def _trouble_of_answer(errors: list[BaseException], timeout: float) -> Trouble:
    if _has(errors, TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout):
        return Trouble(Kind.SILENCE, f"no byte for {timeout:g} s")
    if _has(errors, IncompleteRead):
        return Trouble(Kind.BREAK, "the body ended early")
    if _has(errors, OSError, urllib3.exceptions.ProtocolError) and not _has(
        errors, ValueError
    ):
        return Trouble(Kind.BREAK, f"the connection broke: {_words(errors)}")
    return Trouble(Kind.ADDRESS, "its address is not valid")


def _has(errors: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(error, kinds) for error in errors)


def _is_late(errors: list[BaseException]) -> bool:
    """Tell whether connecting took too long; a refusal may be of that class too."""
    return _has(errors, ConnectTimeoutError) and not _has(errors, NewConnectionError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it wraps, in any of the ways of the libraries."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        names = ("original_error", "reason")
        inner = [*(getattr(error, name, None) for name in names), *error.args]
        inner.append(error.__cause__)
        # Errors of PySocks that wrap another are not named as the cause.
        if type(error.__context__).__module__ == "socks":
            inner.append(error.__context__)
        error = next((e for e in inner if isinstance(e, BaseException)), None)


def _words(errors: list[BaseException]) -> str:
    """Return the cause in the words of the operating system, of TLS, or of a proxy."""
    inner = errors[-1]
    if isinstance(inner, socket.gaierror):
        return "the server's name cannot be resolved"
    if _is_late(errors):
        return "the server does not accept connections"
    if isinstance(inner, ssl.SSLError):
        return f"TLS fails: {inner.reason or type(inner).__name__}"
    if str(inner).startswith("Tunnel connection failed"):
        return str(inner)
    number = getattr(inner, "errno", None)
    if isinstance(number, int):
        return os.strerror(number).lower()
    is_of_socks = type(inner).__module__ == "socks"
    return str(inner) if is_of_socks else type(inner).__name__
