"""Helpers that the fetchers of stimuli share: names, terms, reading tables."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.cache.settings import Settings
from laion_fmri_fetchers.cache.tables import Flaw, decoded, report_flaws
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
)
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, as_filter, is_empty
from laion_fmri_fetchers.query.rows import labels_of


def images_labelled(labels: Any = None) -> list[str] | None:
    """Return labels of images, each once, in order of appearance; None for all.

    Examples
    --------
    >>> images_labelled(["b.jpg", "a.jpg", "b.jpg"])
    ['b.jpg', 'a.jpg']
    """
    if labels is None:
        return None
    if isinstance(labels, dict):
        _raise_for_bunch(labels)
    given = [labels] if isinstance(labels, str) else labels_of(labels, "labels")
    return [str(label) for label in dict.fromkeys(given)]


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


def read_table(
    file: str, needed: Sequence[str], given: ResultFilter, whole: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a CSV table of text, in which columns ``whole`` are whole numbers.

    Columns named as fields of ours become ``table_label`` and ``table_h5_index``.

    Raises
    ------
    CorruptImageError
        If it is not a table with the columns needed, if an image has no name, or if a
        value that a filter needs is not valid. Other such values are null.
    """
    with readable():
        text = decoded(Path(file).read_bytes())
    # A stray quotation mark would make one cell of several lines; strict tells.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    advice = "Fetch it again with mode='overwrite'."
    try:
        names = [name.strip() for name in next(reader, [])]
        lacking = [name for name in (*needed, *whole) if names.count(name) != 1]
        if lacking:
            raise ValueError(f"it has no single column {listed(lacking)}")
        if twice := {name for name in names if name and names.count(name) > 1}:
            raise ValueError(f"several columns are {listed(sorted(twice))}")
        rows = [(reader.line_num, _checked(cells, names)) for cells in reader if cells]
    except (ValueError, csv.Error) as error:
        raise CorruptImageError(
            f"The table {file} is broken (line {max(reader.line_num, 1)}: {error}). "
            f"{advice}"
        ) from error
    flaws = [
        Flaw(line, frozenset(names[len(cells) :]), "it ends early")
        for line, cells in rows
        if len(cells) < len(names)
    ]
    frame = pd.DataFrame(
        [[*cells, *[None] * (len(names) - len(cells))] for _, cells in rows],
        index=[line for line, _ in rows],
        columns=[f"table_{n}" if n in ("label", "h5_index") else n for n in names],
        dtype=object,
    )
    frame = frame.drop(columns="", errors="ignore")
    for name in whole:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        is_whole = numbers.notna() & (numbers % 1 == 0)
        for line in frame.index[~is_whole & frame[name].notna()]:
            found = f"{name} is {frame[name][line]!r}, not a whole number"
            flaws.append(Flaw(line, frozenset({name}), found))
        nullable = numbers.where(is_whole).astype("Int64")
        frame[name] = nullable.astype("int64") if is_whole.all() else nullable
    report_flaws(file, flaws, given, advice, always={"mask_row"})
    return frame.reset_index(drop=True)


def _checked(cells: list[str], names: list[str]) -> list[str]:
    """Return a row of a table; ValueError if it has too many cells, or no image."""
    while len(cells) > len(names) and not cells[-1]:
        cells.pop()
    if len(cells) > len(names):
        raise ValueError(f"it has {len(cells)} cells for {len(names)} columns")
    if any("\0" in cell for cell in cells):
        raise ValueError("it has a NUL byte")
    if not "".join(cells[names.index("image_name") :][:1]).strip():
        raise ValueError("column image_name is empty")
    return cells


def mapped(column: pd.Series, function: Callable[[Any], Any]) -> pd.Series:
    """Return a column with a function applied, once per distinct value."""
    values = {value: function(value) for value in column.unique()}
    return pd.Series([values[v] for v in column], column.index, object, column.name)
