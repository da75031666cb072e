"""Helpers that the fetchers of stimuli share: names, terms, reading tables."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
)
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, as_filter, is_empty
from laion_fmri_fetchers.storage.files import readable
from laion_fmri_fetchers.storage.settings import Settings


def images_labelled(labels: Any = None) -> list[str] | None:
    """Return labels of images, each once, in order of appearance; None for all.

    Examples
    --------
    >>> images_labelled(["b.jpg", "a.jpg", "b.jpg"])
    ['b.jpg', 'a.jpg']
    """
    given = labels
    if given is None:
        return None
    if isinstance(given, dict):
        _raise_for_bunch(given)
    if isinstance(given, pd.DataFrame):
        column = next((c for c in ("label", "image_name") if c in given), None)
        if column is None and given.index.name != "image_name":
            raise InvalidQueryError(
                "labels is a DataFrame with neither a column 'label', as trials have, "
                "nor one 'image_name'."
            )
        given = given.index if column is None else given[column]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidQueryError(
            f"labels is {given!r}; give labels of images, or trials"
        )
    found = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for name in found:
        if not isinstance(name, str):
            raise InvalidQueryError(f"labels holds {name!r}; labels are str")
    return [str(name) for name in found]


def _raise_for_bunch(given: dict) -> NoReturn:
    """Raise for a Bunch, or another dict, in the place of labels of images."""
    key = next((k for k in ("trials", "metadata", "image_names") if k in given), None)
    advice = f"give its {key}, as in data.{key}" if key else "give labels of images"
    raise InvalidQueryError(
        f"labels is a {type(given).__name__} with {listed(list(map(str, given)))}; "
        f"{advice}"
    )


def positions(
    wanted: Sequence[str], existing: Iterable[str], source: str, settings: Settings
) -> np.ndarray:
    """Return where names are among those of a source; raise for one that is not."""
    index = pd.Index(existing)
    rows = index.get_indexer(pd.Index(wanted, dtype=object))
    unknown = [name for name, row in zip(wanted, rows, strict=True) if row < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(index), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "names are labels of trials."
        names = listed([repr(name) for name in unknown])
        text = f"There is no image {names} in {source}; {hint}"
        if not settings.allow_missing:
            raise InvalidQueryError(f"{text} allow_missing=True leaves such names out.")
        warn(f"{text} Left out.")
    return rows[rows >= 0]


def with_terms(given: object, name: str, terms: dict[str, Any]) -> ResultFilter:
    """Return a filter and terms as one filter."""
    filt, base = as_filter(given, name), ResultFilter(terms)
    if is_empty(filt) or not terms:
        return filt if not terms else base
    return base & filt


def query(wanted: list[str] | None, **filters: ResultFilter) -> dict[str, Any]:
    """Return a query as plain, readable values."""
    shown = {n: None if is_empty(f) else f.to_dict() for n, f in filters.items()}
    return {"labels": wanted, **shown}


def description() -> str:
    """Return the text on the stimuli."""
    file = resources.files(__package__).joinpath("laion_stimuli.rst")
    return file.read_text("utf-8")


def read_table(file: str, needed: Iterable[str]) -> pd.DataFrame:
    """Read a CSV table of text; CorruptImageError if it is not one."""
    try:
        with readable():
            frame = pd.read_csv(
                file, dtype=object, keep_default_na=False, encoding="utf-8-sig"
            )
        lacking = [name for name in needed if name not in frame]
        if lacking:
            raise ValueError(f"it has no column {listed(lacking)}")
    except ValueError as error:
        raise CorruptImageError(
            f"The table {file} is broken ({error}). Fetch it again with "
            "mode='overwrite'."
        ) from error
    return frame


def mapped(column: pd.Series, function: Callable[[Any], Any]) -> pd.Series:
    """Return a column with a function applied, once per distinct value."""
    values = {value: function(value) for value in column.unique()}
    return pd.Series([values[v] for v in column], column.index, object, column.name)
