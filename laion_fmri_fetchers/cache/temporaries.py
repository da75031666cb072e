"""Hidden files under which a file is written, and what killed processes leave of them.

What nobody wrote to for days is removed: by the scan of the disk, which meets it
anyway, and by the next process that writes into its folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid

_NAME = re.compile(r"\.[0-9a-f]{32}\.(tmp|part)")
"""Ours; and that of a download on its way to another disk, see remote.partial."""

_OLD = 3 * 24 * 3600.0
"""Seconds without a write after which a file is taken as left, as with unfinished
downloads: nothing that is written here pauses for so long."""

_swept: set[str] = set()


def temporary_path(file: str) -> str:
    """Return under which name a file is written.

    It is short whatever the name of the file, as names of stimuli are as long as a file
    system allows.
    """
    return os.path.join(os.path.dirname(file), f".{uuid.uuid4().hex}.tmp")


def remove_if_left(path: str) -> None:
    """Remove a hidden file that a process left, if nobody writes to it any more."""
    if _NAME.fullmatch(os.path.basename(path)):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > _OLD:
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
