"""The data directory: the one in use, and the one that is remembered."""

from __future__ import annotations

import contextlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.exceptions import DataDirectoryError, InvalidQueryError
from laion_fmri_fetchers.messages import tell, warn
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.remote.disks import existing_parent

from .files import make_folder, read_file, write_atomically
from .listings import is_demo, kept_root
from .state import home_path

VARIABLE = "LAION_FMRI_DATA_DIR"
"""The environment variable that names the data directory."""


def get_data_dir(data_dir: str | os.PathLike | None = None) -> str:
    """Return the data directory in use.

    Parameters
    ----------
    data_dir : str or path, optional
        A directory named by the caller; ``~`` and ``$VAR`` are replaced.

    Returns
    -------
    str
        Absolute path of the first of: ``data_dir``, the environment variable
        ``LAION_FMRI_DATA_DIR``, the directory saved by `dataset_initialize`, and
        ``laion_fmri`` in nilearn's data directory. It need not exist.

    Raises
    ------
    InvalidQueryError
        If the directory is not a path, names a file or a variable that is not set; or
        if none is named, and there is no home directory for one.

    Warns
    -----
    UserWarning
        If the directory that was saved is relative, as its meaning then depends on
        where the program starts.

    See Also
    --------
    dataset_initialize : Save the data directory for later calls.

    Examples
    --------
    >>> get_data_dir("/data/laion_fmri")
    '/data/laion_fmri'
    """
    if data_dir is not None:
        path = user_path(data_dir, "data_dir")
    elif named := os.environ.get(VARIABLE):
        path = user_path(named, VARIABLE)
    elif saved := read_config().get("data_dir"):
        path = user_path(saved, f"data_dir in {_config_file()}")
        if not os.path.isabs(path):
            warn(
                f"The saved data directory is {saved!r}, which is relative: in this "
                f"program it is {os.path.abspath(path)}, and in one that starts in "
                "another folder it is another one. Its absolute path, saved once in "
                f"{_config_file()} by dataset_initialize, means the same everywhere."
            )
    else:
        folders = [Path(folder, "laion_fmri") for folder in nilearn_data_dirs()]
        if not folders:
            raise InvalidQueryError(
                f"There is no home directory for a data directory; set {VARIABLE}, or "
                "name one by data_dir."
            )
        # The first that is there, else the first that can be made.
        usable = chain(filter(os.path.isdir, folders), filter(is_writable, folders))
        path = str(next(usable, folders[0]))
    path = os.path.abspath(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidQueryError(f"The data directory {path} is a file; name a folder.")
    return path


def dataset_initialize(data_dir: str | os.PathLike) -> str:
    """Set the data directory once; later calls of any script remember it.

    It is saved in ``${XDG_CONFIG_HOME:-~/.config}/laion_fmri/config.json``, which the
    dataset's own package reads too.

    Parameters
    ----------
    data_dir : str or path
        The directory; it is created where it does not exist.

    Returns
    -------
    str
        Its absolute path.

    Raises
    ------
    InvalidQueryError
        If it names a file, or the saved configuration cannot be read.
    DataDirectoryError
        If it cannot be created or the configuration cannot be written.

    Warns
    -----
    UserWarning
        If ``LAION_FMRI_DATA_DIR`` names another directory, which calls keep using. If
        that is a demo's, a line says that it is used until the demo stops.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> os.environ["XDG_CONFIG_HOME"] = folder
    >>> dataset_initialize(folder + "/laion") == folder + "/laion"
    True
    """
    path = get_data_dir(user_path(data_dir, "data_dir"))
    file = _config_file()
    if file is None:
        raise DataDirectoryError(
            f"There is no home directory to remember {path} in; set {VARIABLE} to it "
            "instead, or XDG_CONFIG_HOME to a folder."
        )
    make_folder(path)
    config = {**read_config(), "data_dir": path}
    try:
        write_atomically(file, (json.dumps(config, indent=2) + "\n").encode())
    except DataDirectoryError as error:
        raise DataDirectoryError(
            f"The data directory {path} cannot be remembered; set {VARIABLE} instead "
            f"of writing {file}. {error}",
            error.errno,
            str(file),
        ) from None
    in_use = get_data_dir()
    if in_use != path and is_demo(kept_root(in_use)):
        tell(
            f"{path} is saved for later: until the demo stops, calls use its own data "
            f"directory, {in_use}",
            verbose=1,
        )
    elif in_use != path:
        warn(
            f"{VARIABLE} is set, so calls keep using {in_use}. Unset it to use "
            f"{path}, which is saved."
        )
    return path


def _config_file() -> Path | None:
    parts = ("laion_fmri", "config.json")
    if base := os.environ.get("XDG_CONFIG_HOME"):
        return Path(user_path(base, "XDG_CONFIG_HOME"), *parts)
    return home_path(".config", *parts)


def read_config() -> dict[str, Any]:
    """Return the saved configuration; empty if nothing is saved."""
    file = _config_file()
    if file is None or not os.path.lexists(file):
        return {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads(read_file(file))
        if isinstance(config.get("data_dir", ""), str):
            return config
    raise InvalidQueryError(
        f"The saved configuration {file} is broken, or cannot be read. Delete it, "
        "then call dataset_initialize again."
    )


def nilearn_data_dirs() -> list[str]:
    """Return the directories in which nilearn keeps data; none without a home."""
    from nilearn.datasets import get_data_dirs

    try:
        folders = get_data_dirs()
    except RuntimeError:  # so pathlib ends where there is no home directory
        return []
    return [user_path(folder, "NILEARN_DATA") for folder in folders if folder]


def is_writable(data_dir: str | os.PathLike) -> bool:
    """Tell whether files can be created below a directory that may not exist yet."""
    folder = existing_parent(os.fspath(data_dir))
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
