"""What is read, and why it could not be; without an HTTP client, as offline calls are.

An HTTP client takes a fifth of a second to import.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


@dataclasses.dataclass(eq=False)
class Fault(Exception):  # noqa: N818 - not an error until all tries have failed
    """Why a request brought nothing, or not all.

    Attributes
    ----------
    reason : str
        In words for the user, without an address.
    status : int or None
        HTTP status.
    tries : int
        How often to try in all.
    wait : float
        Seconds that the server asks to wait.
    remedy : str
        What helps where trying again does not: ``"renew"`` the address, start over as
        the object ``"changed"``, or fetch it ``"whole"`` as the server ignores Range.
    has_progressed : bool
        Whether so much arrived that tries are counted from the beginning.
    is_silent : bool
        Whether a server that has never answered kept silent.
    """

    reason: str
    status: int | None = None
    tries: int = 1
    wait: float = 0.0
    remedy: str = ""
    has_progressed: bool = False
    is_silent: bool = False


class RemoteObject(NamedTuple):
    """An object of the bucket, in the version that is meant."""

    id: str
    url: str
    size: int | None
    etag: str | None
    # Given an address that was denied, returns the current one. Addresses of an object
    # that has such a function are secret: they are for their server alone.
    renew: Callable[[str], str] | None = None
