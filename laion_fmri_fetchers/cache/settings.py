"""How a fetcher works, whatever it selects: mode, directory, connections."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import InvalidQueryError, NotCachedError
from laion_fmri_fetchers.messages import warn
from laion_fmri_fetchers.query.arguments import (
    check_mode,
    check_positive,
    check_timeout,
    check_verbose,
)
from laion_fmri_fetchers.remote.disks import existing_parent, folder_error

from .data_dir import get_data_dir, is_writable
from .state import partial_dir


class Settings(NamedTuple):
    """How a fetcher works."""

    mode: str
    data_dir: str
    n_connections: int
    timeout: float
    verbose: int
    # None: the call has no such argument, or it is no help, so no message names it.
    allow_missing: bool | None = None
    dry_run: bool = False
    is_read_only: bool = False

    @property
    def adds_new(self) -> bool:
        """Whether nothing but files that are not on disk is downloaded."""
        return self.mode == "download_new"

    @property
    def overwrites(self) -> bool:
        """Whether files on disk are downloaded again."""
        return self.mode == "overwrite"

    @property
    def how_to_fetch(self) -> str:
        """What to do about a file that is not on disk, to end a message with."""
        if self.is_read_only:
            return f"{self.data_dir} cannot be written; name another data_dir."
        if os.environ.get("LAION_FMRI_OFFLINE"):
            return "Download it first: mode='download_new', online."
        return "Download it first, with mode='download_new'."

    def refuse_offline(self, problem: str) -> None:
        """Raise offline, as what is missing cannot be downloaded."""
        if self.mode == "offline":
            raise NotCachedError(f"{problem} {self.how_to_fetch}")


def make_settings(
    mode: str | None,
    data_dir: str | os.PathLike | None,
    *,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    allow_missing: bool | None = None,
    dry_run: bool = False,
    **_: Any,
) -> Settings:
    """Check how to work, and whether the data directory takes files.

    Arguments of a call that say what to fetch are passed over, so that all of its
    arguments can be given, ``**locals()``.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, or the directory cannot be made.
    DataDirectoryError
        If a file is in the place of a folder that is needed.

    Warns
    -----
    UserWarning
        If the directory cannot be written, so that the call works offline.
    """
    settings = Settings(
        check_mode(mode),
        get_data_dir(data_dir),
        n_connections=check_positive(n_connections, "n_connections", whole=True),
        timeout=check_timeout(timeout),
        verbose=check_verbose(verbose),
        allow_missing=None if allow_missing is None else bool(allow_missing),
        dry_run=bool(dry_run),
    )
    folder = settings.data_dir
    if settings.mode == "offline":
        return settings
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InvalidQueryError(
            f"The data directory {folder} cannot be made ({error.strerror}). Name "
            "another data_dir."
        ) from None
    state = existing_parent(str(partial_dir(folder)))
    if not os.path.isdir(state):
        raise folder_error(OSError(errno.ENOTDIR, ""), state)
    if is_writable(folder) and is_writable(state):
        return settings
    locked = f"folder {state}" if is_writable(folder) else f"data directory {folder}"
    warn(
        f"The {locked} cannot be written: working offline with what is on disk. Name "
        "another data_dir to download; mode='offline' does without this warning."
    )
    return settings._replace(mode="offline", is_read_only=True)
