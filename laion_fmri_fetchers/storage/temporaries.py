"""Hidden files under which a file is written, and what killed processes leave of them.

Their names tell which process writes to them. Where it is certain that it is gone, or
after some days, they are removed: by the scan of the disk, which meets them anyway, and
by the next process that writes into their folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from laion_fmri_fetchers.transfer.owners import is_gone

_OWNER = r"(?P<owner>\w{1,40}-[0-9a-f]{16}-\d+-[0-9a-f]{12})"

_NAMES = (
    re.compile(rf"\.{_OWNER}\.tmp"),
    # A download on its way to another disk, see transfer.partials.
    re.compile(rf"\.[0-9a-f]{{24}}\.{_OWNER}\.part"),
    # As earlier versions named them, without the machine.
    re.compile(r"\.\d+-[0-9a-f]{16}\.tmp()"),
)

_OLD = 3 * 24 * 3600.0
"""Seconds without a write after which a file of an unknown process is removed, as with
unfinished downloads: nothing that is written here pauses for so long."""

_swept: set[str] = set()


def temporary_path(file: str, owner: str) -> str:
    """Return under which name a process writes a file.

    It is short whatever the name of the file, as names of stimuli are as long as a file
    system allows.
    """
    return os.path.join(os.path.dirname(file), f".{owner}.tmp")


def remove_if_left(path: str) -> None:
    """Remove a hidden file that a process left, if nobody writes to it any more."""
    name = os.path.basename(path)
    match = next(filter(None, (names.fullmatch(name) for names in _NAMES)), None)
    if match is None:
        return
    with contextlib.suppress(OSError):
        if is_gone(match[1]) or time.time() - os.stat(path).st_mtime > _OLD:
            os.unlink(path)


def sweep(folder: str) -> None:
    """Remove what processes left in a folder, the first time it is asked for."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith("."):
                remove_if_left(os.path.join(folder, name))
