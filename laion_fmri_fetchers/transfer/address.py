"""The address of an object: plain, or presigned, which is secret and expires."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Address:
    """Where an object is.

    Parameters
    ----------
    url : str or callable
        The address, or a function ``url(renew)`` that returns it, as `Download` has.
    """

    def __init__(self, url: str | Callable[[bool], str]):
        self._url = url
        self._lock = threading.Lock()
        self._is_renewed = self._has_answered = False

    @property
    def is_secret(self) -> bool:
        """Whether it is for its server alone."""
        return callable(self._url)

    def current(self) -> str:
        """Return the address as it is now."""
        if isinstance(self._url, str):
            return self._url
        with self._lock:
            return self._url(False)

    def note_answer(self) -> None:
        """Take note that the address is valid."""
        self._has_answered = True

    def renew(self, expired: str) -> bool:
        """Get a new address in place of an expired one, once for an expiry.

        Returns
        -------
        bool
            Whether it makes sense to try again: there is a new address, and the one
            before was valid at least once.
        """
        if isinstance(self._url, str):
            return False
        with self._lock:
            if self._url(False) == expired:
                if self._is_renewed and not self._has_answered:
                    return False
                self._is_renewed, self._has_answered = True, False
                self._url(True)
        return True
