"""Notes of which version of which file was downloaded."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import UnsafeKeyError
from laion_fmri_fetchers.layout.keys import clean_key

from .files import read_file, write_atomically
from .state import state_files, state_path

_NOTES = "fetched"

_MANY_NOTES = 50


class Note(NamedTuple):
    """Which version of a file was downloaded."""

    key: str
    size: int | None
    etag: str | None
    last_modified: str | None = None
    is_removed: bool = False
    """Whether it was removed on purpose since, and is not missing."""

    def differs_from(self, size: int | None, etag: str | None) -> bool:
        """Tell whether a listing has another version, as far as both are known."""
        versions = ((self.size, size), (self.etag, etag))
        return any(None not in both and both[0] != both[1] for both in versions)

    def is_older_than(self, last_modified: str | None) -> bool:
        """Tell whether a version listed is newer, and not older; where unknown, so."""
        if self.last_modified is None or last_modified is None:
            return True
        return self.last_modified <= last_modified


def note_fetched(data_dir: str, records: Iterable[dict[str, Any]]) -> None:
    """Write down which version of which files was downloaded.

    Each call writes a file of its own, so that writers never meet; when there are
    many, they are joined to one.
    """
    _add_notes(
        data_dir,
        {r["id"]: Note(*(r[name] for name in Note._fields[:4])) for r in records},
    )


def note_removed(data_dir: str, ids: Iterable[str]) -> None:
    """Write down that files were removed on purpose, and are not missing."""
    notes = read_notes(data_dir)
    _add_notes(
        data_dir,
        {
            path: notes[path]._replace(is_removed=True) if path in notes else None
            for path in ids
        },
    )


def _add_notes(data_dir: str, notes: Mapping[str, Note | None]) -> None:
    # Of several notes of a file, the latest counts: what another process writes while
    # these are read and joined is later than they.
    name = f"{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}.json"
    before = state_files(data_dir, _NOTES)
    read: list[Path] = []
    with contextlib.suppress(OSError):
        if len(before) >= _MANY_NOTES:
            joined, read = _read(before)
            notes = {**joined, **notes}
        file = state_path(data_dir, _NOTES) / name
        write_atomically(file, json.dumps(notes).encode())
        for joined_file in read:
            joined_file.unlink(missing_ok=True)


def read_notes(data_dir: str) -> dict[str, Note]:
    """Return which version of which files was downloaded, by ``id``.

    Notes that are not of this form, or of a file outside the data directory, are
    passed over: others may write to a shared directory.
    """
    return _read(state_files(data_dir, _NOTES))[0]


def _read(files: Iterable[Path]) -> tuple[dict[str, Note], list[Path]]:
    """Return notes, and the files that could be read."""
    notes: dict[str, Note] = {}
    read = []
    for file in files:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(read_file(file))
            read.append(file)
            for path, values in content.items() if isinstance(content, dict) else ():
                note = _note(path, values)
                if note:
                    notes[path] = note
                elif values is None:
                    notes.pop(path, None)
    return notes, read


def _note(path: str, values: Any) -> Note | None:
    """Return a note as it was written; None for anything else."""
    if not isinstance(values, list) or len(values) not in (3, 4, 5):
        return None
    key, size, *texts = values[:4]
    is_size = size is None or (isinstance(size, int) and size >= 0)
    if not isinstance(key, str) or not is_size:
        return None
    if not all(text is None or isinstance(text, str) for text in texts):
        return None
    try:
        note = Note(key, size, *texts)._replace(is_removed=values[4:] == [True])
        return note if clean_key(key) == path else None
    except UnsafeKeyError:
        return None
