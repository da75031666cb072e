"""What unfinished downloads leave in the partial folder: found, read, removed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from .locks import try_lock, unlock
from .owners import forget, is_gone, new_owner
from .partials import names_of
from .ranges import Ranges, gaps, merged

_IDLE = 3600.0
"""Seconds without a write after which what nobody needs is taken as left: far longer
than any time-out."""

_OLD = 3 * 24 * 3600.0
"""Seconds after which unfinished files are removed: a weekend, and a day more."""


class Leftover(NamedTuple):
    """An unfinished file, perhaps of another process.

    ``is_free`` says that nobody writes to it any more, as far as one can know.
    """

    part: str
    journal: str
    header: dict[str, Any]
    done: Ranges
    is_free: bool

    def fits(self, size: int | None, etag: str | None, sha256: str | None) -> bool:
        """Return whether it holds bytes of the wanted file."""
        header = self.header
        return (
            bool(self.done)
            and header["sha256"] == sha256
            and size in (None, header["size"])
            and etag in (None, header["etag"])
            and bool(header["etag"] or sha256)
        )

    def remove(self) -> None:
        """Delete it."""
        for path in (self.journal, self.part):
            with contextlib.suppress(OSError):
                os.unlink(path)


def leftovers(folder: str) -> dict[str, list[Leftover]]:
    """Return the unfinished files in the partial folder, by stem."""
    owners = set()
    for name in os.listdir(folder):
        file_stem, _, rest = name.partition(".")
        owner, _, kind = rest.partition(".")
        if kind in ("part", "done"):
            owners.add((file_stem, owner))
    by_stem: dict[str, list[Leftover]] = {}
    for file_stem, owner in owners:
        part, journal = names_of(folder, file_stem, owner)
        header, done, is_left = _read_journal(journal)
        leftover = Leftover(part, journal, header, done, is_left or is_gone(owner))
        by_stem.setdefault(file_stem, []).append(leftover)
    return by_stem


def _read_journal(journal: str) -> tuple[dict[str, Any], Ranges, bool]:
    """Return header, finished ranges, and whether its writer is done with it."""
    try:
        with open(journal, "rb") as stream:
            first, *lines = stream.read().split(b"\n")[:-1]
        header = json.loads(first)
        ranges = [json.loads(line) for line in lines]
        done = merged((a, b) for a, b in filter(None, ranges))
        is_valid = (
            header.keys() == {"relative", "size", "etag", "sha256"}
            and isinstance(header["size"], int)
            and not gaps([(0, header["size"])], done[0][0], done[-1][1])
        )
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        is_valid = False
    return (header, done, [] in ranges) if is_valid else ({}, [], False)


def clean(folder: str, keep: Collection[str] = (), locks: bool = True) -> None:
    """Remove files that are no longer needed.

    Parameters
    ----------
    folder : str
        The partial folder.
    keep : collection of str
        Stems of files that are wanted, even where there is one of the same size.
    locks : bool, default=True
        Whether to remove also the files of locks that nobody holds.
    """
    try:
        names = os.listdir(folder)
        groups = leftovers(folder)
    except OSError:
        return
    now = _now(folder) if groups else 0.0
    for file_stem, group in groups.items():
        for leftover in group:
            age = min(_age(leftover.part, now), _age(leftover.journal, now))
            useless = file_stem not in keep and _is_useless(folder, leftover)
            if age > _OLD or (useless and (leftover.is_free or age > _IDLE)):
                leftover.remove()
    for name in names:
        if locks and name.endswith(".lock"):
            lock = try_lock(folder, name.removesuffix(".lock"))
            if lock:
                unlock(lock)


def _is_useless(folder: str, leftover: Leftover) -> bool:
    header = leftover.header
    return not header or is_whole(
        os.path.normpath(os.path.join(folder, header["relative"])), header["size"]
    )


def _now(folder: str) -> float:
    """Return the time by the clock that the folder's files have their times from.

    It may be that of a file server, hours away from the clock of this machine.
    """
    owner = new_owner()
    path, _ = names_of(folder, "clock", owner)
    try:
        with open(path, "xb") as stream:
            stream.write(b"x")
        return os.path.getmtime(path)
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        forget(owner)


def _age(path: str, now: float) -> float:
    try:
        return now - os.path.getmtime(path)
    except OSError:
        return float("inf")


def is_whole(path: str | os.PathLike, size: int | None) -> bool:
    """Tell whether a file is there with the size that it must have."""
    try:
        return os.path.isfile(path) and os.path.getsize(path) == size
    except OSError:
        return False
