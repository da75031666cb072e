"""Families of splits: from the data directory, or once from a source, and kept.

    obtain_splits ─┬─ _saved ────▶ splits/<pool>/<family>.json in the state folder
                   └─ sources ───▶ _read ─▶ as_family, checked ─▶ _save

A family is kept in one file, so that its splits are always of one version.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DownloadError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.splits import (
    GENERATIONS,
    Pool,
    current_generation,
    members,
)
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.arguments import refuse_offline
from laion_fmri_fetchers.query.split_files import (
    MOST_BYTES,
    Family,
    as_family,
    parsed,
)

from .files import read_file, write_atomically
from .settings import Settings
from .split_sources import PLACE_VARIABLE, WAYS, Source, sources, splits_url
from .state import state_path

_MOST_SAVED = 5 * MOST_BYTES
_KEPT = ("source", "files")


def obtain_splits(
    names: Sequence[str], pool: Pool, settings: Settings
) -> dict[str, Family]:
    """Return families of splits, and keep what was not in the data directory.

    Parameters
    ----------
    names : sequence of str
        Families, and splits that have none.
    pool : Pool
        The pool of images that they are of.
    settings : Settings
        How to work; in mode ``"overwrite"``, what is kept is read again.

    Returns
    -------
    dict
        Name -> family.

    Raises
    ------
    CorruptImageError
        If a source holds something else than splits of the pool.
    NotCachedError, DownloadError
        If no source has a family: offline, and online.

    Warns
    -----
    UserWarning
        If a file kept is damaged, or the random splits are not the current ones.
    """
    families = {} if settings.overwrites else _saved(names, pool, settings)
    lacking = [name for name in names if name not in families]
    problem = ""
    for source in sources(settings) if lacking else ():
        if source.needs_network:
            _refuse_offline(lacking, pool, settings)
        try:
            read = _read(source, lacking, pool)
        except DownloadError as error:
            problem = f"{source.text}: {error}"
            continue
        _save(read, pool, settings)
        families |= read
        problem = f"{source.text} does not have them"
        lacking = [name for name in names if name not in families]
        if not lacking:
            break
    if lacking:
        _raise_for(lacking, pool, settings, problem)
    for family in families.values():
        if family.generation not in (None, current_generation(pool.name)):
            _warn_of_generation(family, pool)
    return {name: families[name] for name in names}


def _read(source: Source, names: Sequence[str], pool: Pool) -> dict[str, Family]:
    """Return the families that a source has, checked."""
    try:
        files = source.read(pool.name, [m for name in names for m in members(name)])
        contents = {name: _parsed(name, content) for name, content in files.items()}
        return {
            name: as_family(name, _part(contents, name), source.text, pool)
            for name in names
            if _part(contents, name)
        }
    except ValueError as error:
        problem = (
            f"The splits of pool {pool.name!r} from {source.text} are not valid: "
            f"{error}. Nothing of them was kept. {source.advice}"
        )
    # The package has splits of the published images; another bucket may have others.
    if source.kind != "installed" or pool.is_published:
        raise CorruptImageError(problem)
    warn(f"{problem} They are left out, as this bucket is another one.")
    return {}


def _parsed(name: str, content: bytes) -> Any:
    try:
        return parsed(content)
    except ValueError as error:
        raise ValueError(f"{name}.json: {error}") from None


def _part(contents: dict[str, Any], family: str) -> dict[str, Any]:
    """Return those of some files that are of a family."""
    return {name: contents[name] for name in members(family) if name in contents}


def _file(data_dir: str, pool: Pool, name: str) -> Path:
    return state_path(data_dir, "splits", pool.name, f"{name}.json")


def _saved(names: Sequence[str], pool: Pool, settings: Settings) -> dict[str, Family]:
    """Return the families that are kept, checked like those of others."""
    families = {}
    for name in names:
        file = _file(settings.data_dir, pool, name)
        try:
            kept = parsed(read_file(file), _MOST_SAVED)
            source, files = map((kept if type(kept) is dict else {}).get, _KEPT)
            if not isinstance(source, str) or not isinstance(files, dict):
                raise ValueError("it is not as it was written")
            families[name] = as_family(name, files, source, pool)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            warn(f"{file} cannot be used: {error}. The splits are read anew.")
    return families


def _save(families: dict[str, Family], pool: Pool, settings: Settings) -> None:
    """Keep families in the data directory, where it can be written."""
    for name, family in families.items():
        content = {
            "source": family.source,
            "files": {name: _plain(split) for name, split in family.splits.items()},
        }
        with contextlib.suppress(OSError):
            write_atomically(
                _file(settings.data_dir, pool, name), json.dumps(content).encode()
            )


def _plain(split: Any) -> dict[str, Any]:
    """Return a split as its file has it."""
    return {
        "name": split.name,
        "params": split.params,
        "variants": [{"train_ids": split.train, "test_ids": split.test}],
    }


def _warn_of_generation(family: Family, pool: Pool) -> None:
    """Warn of random splits that are not the current ones."""
    generation, current = family.generation, current_generation(pool.name)
    if generation in GENERATIONS:
        warn(
            f"The random splits of pool {pool.name!r} from {family.source} are of "
            f"generation {generation!r}, {GENERATIONS[generation]}. To get the current "
            f"ones, {current!r}, first update or remove that source, or unset "
            f"{PLACE_VARIABLE} if it names it; then use mode='overwrite'."
        )
    else:
        warn(
            f"The random splits of pool {pool.name!r} from {family.source} are "
            f"{generation}, which this version of laion_fmri_fetchers does not know; "
            "update it."
        )


def _refuse_offline(lacking: list[str], pool: Pool, settings: Settings) -> None:
    """Raise offline for families that no source on this machine has."""
    error = NotCachedError(
        f"{_words(lacking, pool, settings)}. Read them once online, with "
        f"mode='download_new', from {splits_url()}; or {WAYS}."
    )
    refuse_offline(settings.mode, error)


def _raise_for(
    lacking: list[str], pool: Pool, settings: Settings, problem: str
) -> None:
    """Raise for families that no source has."""
    raise DownloadError(
        f"{_words(lacking, pool, settings)} and could not be downloaded ({problem}). "
        f"Check the network and call again; or {WAYS}.",
        failed=[{"id": name, "reason": problem} for name in lacking],
    )


def _words(lacking: list[str], pool: Pool, settings: Settings) -> str:
    """Return which splits are missing where, as a sentence begins."""
    folder = state_path(settings.data_dir, "splits")
    return f"The splits {listed(lacking)} of pool {pool.name!r} are not in {folder}"
