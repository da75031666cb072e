"""Where files of splits are read: another package, a folder or archive, the web.

    sources ─┬─ local_sources ─┬─ _installed   folder of the dataset's own package
             │                 └─ _named       folder or zip of LAION_FMRI_SPLITS
             └─ _web                           files of the publishers' repository

Each gives the files that it has, as bytes, by name; nothing is unpacked, and nothing of
another package is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.splits import REPOSITORY_URL, file_of
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.query.split_files import MOST_BYTES

from .settings import Settings

PLACE_VARIABLE = "LAION_FMRI_SPLITS"
URL_VARIABLE = "LAION_FMRI_SPLITS_URL"
PACKAGE = "laion_fmri"
"""The dataset's own package."""

WAYS = (
    f"install the dataset's own package, {PACKAGE}; or name a folder or zip archive of "
    f"its splits by {PLACE_VARIABLE}, or an address that has them by {URL_VARIABLE}"
)
"""What to do where no source has a split, to end a message with."""

_ROOTS = ("", "data/", "splits/data/", "laion_fmri/splits/data/")
"""Where folders of pools lie in the package, its repository, or a part of it."""


class Source(NamedTuple):
    """Where files of splits are read.

    ``read(pool, names)`` returns the files that it has, by name. It raises ValueError
    where one cannot be read; the web, a DownloadError.
    """

    kind: str
    text: str
    advice: str
    read: Callable[[str, Sequence[str]], dict[str, bytes]]

    @property
    def needs_network(self) -> bool:
        """Whether it is not on this machine."""
        return self.kind == "web"


def sources(settings: Settings) -> Iterator[Source]:
    """Yield the sources that may be asked, in order.

    Raises
    ------
    InvalidQueryError
        If a variable of the environment names nothing that can be one.
    """
    yield from local_sources()
    yield _web(splits_url(), settings)


def local_sources() -> Iterator[Source]:
    """Yield the sources that need no network; errors as `sources`."""
    if folder := _installed_folder():
        yield _installed(folder)
    if named := os.environ.get(PLACE_VARIABLE):
        yield _named(named)


def _installed_folder() -> Path | None:
    """Return the folder of splits of an installed package; nothing is imported."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError, AttributeError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        splits = Path(folder, "splits", "data")
        if splits.is_dir():
            return splits
    return None


def splits_url() -> str:
    """Return the base of the addresses of splits, without a slash at the end.

    Returns
    -------
    str
        ``LAION_FMRI_SPLITS_URL``, or that of the publishers' repository.

    Raises
    ------
    InvalidQueryError
        If the variable holds no http(s) address, or one with a login or a query.
    """
    url = (os.environ.get(URL_VARIABLE) or REPOSITORY_URL).rstrip("/")
    try:
        scheme, host, _, query, fragment = urlsplit(url)
    except ValueError:
        scheme = host = query = fragment = ""
    if scheme not in ("http", "https") or not host or "@" in host or query or fragment:
        raise InvalidQueryError(
            f"{URL_VARIABLE} must be an http(s) address without a login and a query, "
            "such that tau.json of the pool shared is at shared/tau.json below it"
        )
    return url


def _installed(folder: Path) -> Source:
    try:
        version = f" {importlib.metadata.version(PACKAGE)}"
    except Exception:  # none, or one whose metadata are broken
        version = ""
    return Source(
        "installed",
        f"the installed {PACKAGE}{version} in {folder}",
        f"Update or remove {PACKAGE}.",
        partial(_from_folder, folder),
    )


def _named(value: str) -> Source:
    path = Path(user_path(value, PLACE_VARIABLE))
    advice = f"{PLACE_VARIABLE} names it: correct or unset it."
    if path.is_dir():
        return Source(
            "named", f"the folder {path}", advice, partial(_from_folder, path)
        )
    if path.is_file() and zipfile.is_zipfile(path):
        return Source(
            "named", f"the archive {path}", advice, partial(_from_archive, path)
        )
    problem = "which is not a zip archive" if path.exists() else "which does not exist"
    raise InvalidQueryError(
        f"{PLACE_VARIABLE} is {value!r}, {problem}; name a folder or zip archive that "
        "holds shared/tau.json and others"
    )


def _web(url: str, settings: Settings) -> Source:
    return Source(
        "web",
        url,
        f"Check {URL_VARIABLE} if you set it; else the published files have changed: "
        "update this package.",
        partial(_from_web, url, settings),
    )


def _from_folder(folder: Path, pool: str, names: Sequence[str]) -> dict[str, bytes]:
    files = {}
    for name in names:
        paths = [folder / root / file_of(pool, name) for root in _ROOTS]
        path = next((path for path in paths if path.is_file()), None)
        if path:
            try:
                with open(path, "rb") as stream:
                    files[name] = stream.read(MOST_BYTES + 1)
            except OSError as error:
                raise ValueError(f"{name}.json: {error.strerror or error}") from None
    return files


def _from_archive(file: Path, pool: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read members of an archive, of each no more than a file may have."""
    files = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            for name in names:
                member = _member(members, file_of(pool, name))
                if member:
                    with archive.open(member) as stream:
                        files[name] = stream.read(MOST_BYTES + 1)
    except ValueError:
        raise
    except Exception as error:  # damaged, with a password, packed in an unknown way
        raise ValueError(f"it cannot be unpacked ({error})") from None
    return files


def _member(members: list[str], file: str) -> str | None:
    """Return the member that is a file of splits; None where there is none."""
    found = [m for m in members if m == file or m.endswith(f"/{file}")]
    best = [m for m in found if m.endswith(f"laion_fmri/splits/data/{file}")] or found
    if not best:
        return None
    if len(best) > 1:
        raise ValueError(f"it holds {file} {len(best)} times")
    parts = best[0].split("/")
    if {"", ".", ".."} & set(parts) or "\\" in best[0] or ":" in parts[0]:
        raise ValueError(f"it holds a file of an unsafe name, {best[0]!r}")
    return best[0]


def _from_web(
    url: str, settings: Settings, pool: str, names: Sequence[str]
) -> dict[str, bytes]:
    from laion_fmri_fetchers.remote.bucket import read_documents

    documents = read_documents(
        [f"{url}/{file_of(pool, name)}" for name in names],
        most_bytes=MOST_BYTES,
        timeout=settings.timeout,
        verbose=settings.verbose,
    )
    pairs = zip(names, documents, strict=True)
    return {name: content for name, content in pairs if content is not None}
