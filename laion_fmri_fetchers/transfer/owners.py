"""Who writes to an unfinished file: names of processes, and whether they are gone.

A name is ``{host}-{machine}-{process}-{random}``. Containers may share the name of a
host and have process numbers of their own, and so may machines in a cloud: ``machine``
is a hash of the whole host name, of the time since boot that the machine knows itself
by, and of the space that process numbers belong to. Only within one such is it certain
that a process is gone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import socket
import sys

_active: set[str] = set()


def _machine() -> str:
    parts = [socket.gethostname(), *_numbers()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _numbers() -> tuple[str, ...]:
    """Return where the numbers of processes are from: their space, and the boot."""
    if not sys.platform.startswith("linux"):
        return ()
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return os.readlink("/proc/self/ns/pid"), stream.read()
    except OSError:
        # Nothing says it: then the names are of no other process.
        return (secrets.token_hex(8),)


def _host() -> str:
    """Return the host's name, for people who look at the folder."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40] or "host"


def new_owner() -> str:
    """Return a name under which this process writes to one file."""
    owner = f"{_host()}-{_machine()}-{os.getpid()}-{secrets.token_hex(6)}"
    _active.add(owner)
    return owner


def forget(owner: str) -> None:
    """Take note that this process does not write under a name any more."""
    _active.discard(owner)


def is_gone(owner: str) -> bool:
    """Tell whether it is certain that nobody writes under a name any more.

    Names of earlier versions, which lack the machine, are never certain.
    """
    _, machine, process, _ = [*owner.rsplit("-", 3), "", "", ""][:4]
    if machine != _machine() or not process.isdecimal():
        return False
    if int(process) == os.getpid():
        return owner not in _active
    if os.name == "nt":  # where to signal a process may end it
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
