"""The data directory: the one in use, and the one that is remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.exceptions import DataDirectoryError, InvalidQueryError
from laion_fmri_fetchers.messages import tell, warn
from laion_fmri_fetchers.transfer.disks import nearest

from .files import make_folder, read_file, write_atomically
from .listings import is_demo, kept_root

VARIABLE = "LAION_FMRI_DATA_DIR"
"""The environment variable that names the data directory."""


def get_data_dir(data_dir: str | os.PathLike | None = None) -> str:
    """Return the data directory in use.

    Parameters
    ----------
    data_dir : str or path, optional
        A directory named by the caller.

    Returns
    -------
    str
        Absolute path of the first of: ``data_dir``, the environment variable
        ``LAION_FMRI_DATA_DIR``, the directory saved by `dataset_initialize`, and
        ``laion_fmri`` in nilearn's data directory. It need not exist.

    Raises
    ------
    InvalidQueryError
        If the directory is not a path, or names a file.

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
    if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
        raise InvalidQueryError(
            f"data_dir is {data_dir!r}; it must be a path, or None for the saved one"
        )
    chosen = (
        data_dir
        or os.environ.get(VARIABLE)
        or read_config().get("data_dir")
        or _nilearn_data_dir()
    )
    path = _absolute(chosen)
    is_saved = not (data_dir or os.environ.get(VARIABLE))
    if is_saved and not os.path.isabs(os.path.expanduser(chosen)):
        warn(
            f"The saved data directory is {chosen!r}, which is relative: in this "
            f"program it is {path}, and in one that starts in another folder it is "
            f"another one. Its absolute path, saved once in {_config_file()} by "
            "dataset_initialize, means the same everywhere."
        )
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidQueryError(f"The data directory {path} is a file; name a folder.")
    return path


def _absolute(data_dir: str | os.PathLike) -> str:
    """Return the absolute path of a directory; ``~`` is the user's folder."""
    name = os.fspath(data_dir)
    expanded = os.path.expanduser(name)
    if "\0" in expanded or expanded.startswith("~"):
        raise InvalidQueryError(
            f"data_dir is {name!r}, which cannot be the name of a folder: "
            + (
                f"there is no user {name.partition('/')[0][1:]!r}."
                if expanded.startswith("~")
                else "it has a null character."
            )
        )
    return os.path.abspath(expanded)


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
    if not data_dir:
        raise InvalidQueryError("data_dir is empty; name a folder.")
    path = get_data_dir(data_dir)
    make_folder(path)
    config = {**read_config(), "data_dir": path}
    content = (json.dumps(config, indent=2) + "\n").encode()
    try:
        write_atomically(_config_file(), content)
    except DataDirectoryError as error:
        raise DataDirectoryError(
            "The data directory cannot be remembered; set LAION_FMRI_DATA_DIR instead "
            f"of writing {_config_file()}. {error}",
            error.errno,
            str(_config_file()),
        ) from None
    if (in_force := get_data_dir()) == path:
        return path
    if is_demo(kept_root(in_force)):
        tell(
            f"{path} is saved for later: until the demo stops, calls use its own data "
            f"directory, {in_force}",
            verbose=1,
        )
    else:
        warn(
            f"{VARIABLE} is set, so calls keep using {in_force}. Unset it to use "
            f"{path}, which is saved."
        )
    return path


def make_data_dir(folder: str) -> None:
    """Make the data directory where it does not exist.

    Raises
    ------
    InvalidQueryError
        If it cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InvalidQueryError(
            f"The data directory {folder} cannot be made ({error.strerror}). Name "
            "another data_dir."
        ) from None


def _config_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "laion_fmri" / "config.json"


def read_config() -> dict[str, Any]:
    """Return the saved configuration; empty if nothing is saved."""
    file = _config_file()
    try:
        config = json.loads(read_file(file))
    except (OSError, ValueError) as error:
        if not os.path.lexists(file):
            return {}
        config = error
    if not isinstance(config, dict) or not isinstance(config.get("data_dir", ""), str):
        raise InvalidQueryError(
            f"The saved configuration {file} is broken, or cannot be read. Delete it, "
            "then call dataset_initialize again."
        )
    return config


def _nilearn_data_dir() -> str:
    from nilearn.datasets import get_data_dirs

    candidates = [Path(d) / "laion_fmri" for d in get_data_dirs()]
    for candidate in candidates:
        if candidate.is_dir():
            return str(candidate)
    for candidate in candidates:
        if is_writable(candidate):
            return str(candidate)
    return str(candidates[0])


def is_writable(data_dir: str | os.PathLike) -> bool:
    """Tell whether files can be created below a directory that may not exist yet."""
    folder = nearest(os.fspath(data_dir))
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
