"""The public tables of stimuli: read, checked cell by cell, and rows selected."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.cache.tables import Flaw, decoded, report_flaws
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.layout.labels import LABEL_FIELDS, label_values, stimulus_value
from laion_fmri_fetchers.layout.names import none_if_null
from laion_fmri_fetchers.layout.trees import stimulus_image
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, as_filter, is_empty
from laion_fmri_fetchers.query.rows import labels_of
from laion_fmri_fetchers.query.term_checks import check_fields, check_terms

# Columns of ours; those that a table has by these names get a prefix.
_RESERVED = ("label", "h5_index")


# --- What is asked for -----------------------------------------------------------


def image_labels(labels: Any) -> list[str] | None:
    """Return the argument ``labels``, each once in order of appearance; None for all.

    Examples
    --------
    >>> image_labels(["b.jpg", "a.jpg", "b.jpg"])
    ['b.jpg', 'a.jpg']
    """
    if labels is None:
        return None
    if isinstance(labels, dict):
        keys = [k for k in ("trials", "metadata", "image_names") if k in labels]
        advice = "give labels of images"
        if keys:
            advice = f"give its {keys[0]}, as in data.{keys[0]}"
        raise InvalidQueryError(
            f"labels is a {type(labels).__name__} with "
            f"{listed(list(map(str, labels)))}; {advice}"
        )
    given = [labels] if isinstance(labels, str) else labels_of(labels, "labels")
    return [str(label) for label in dict.fromkeys(given)]


def combine(given: object, name: str, terms: dict[str, Any]) -> ResultFilter:
    """Return a filter and terms as one filter."""
    result_filter, of_terms = as_filter(given, name), ResultFilter(terms)
    if not terms:
        return result_filter
    return of_terms if is_empty(result_filter) else of_terms & result_filter


def find_images(
    wanted: Sequence[str], existing: Iterable[str], source: str, allow_missing: bool
) -> np.ndarray:
    """Return the positions of images in a source; raise or warn where one is not there.

    Raises
    ------
    InvalidQueryError
        If the source lacks an image, with the nearest of its names.
    """
    index = pd.Index(existing)
    rows = index.get_indexer(pd.Index(wanted, dtype=object))
    unknown = [name for name, row in zip(wanted, rows, strict=True) if row < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(index), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "names are labels of trials."
        names = listed([repr(name) for name in unknown])
        text = f"There is no image {names} in {source}; {hint}"
        if not allow_missing:
            raise InvalidQueryError(f"{text} allow_missing=True leaves such names out.")
        warn(f"{text} Left out.")
    return rows[rows >= 0]


def select_rows(
    table: pd.DataFrame, result_filter: ResultFilter, name: str
) -> pd.DataFrame:
    """Return the rows that pass; raise for unknown fields, warn where none passes."""
    check_fields(result_filter, name, table.columns)
    selected = table[result_filter.mask(table)]
    check_terms(name, result_filter, table, len(selected))
    return selected


# --- Reading ---------------------------------------------------------------------


def read_table(
    file: str,
    result_filter: ResultFilter,
    *,
    text: Sequence[str] = ("image_name",),
    whole: Sequence[str] = (),
) -> pd.DataFrame:
    """Read a CSV table of text.

    Parameters
    ----------
    file : str
        The table.
    result_filter : ResultFilter
        What its rows are filtered by: a flaw in a column of it is an error.
    text : sequence of str
        Columns that it must have, and that stay as they are. Null strings in others,
        such as ``n/a``, become None.
    whole : sequence of str
        Columns that it must have, of whole numbers; null where they are none.

    Raises
    ------
    CorruptImageError
        If it is not a table with these columns, if an image has no name, or if a value
        that the filter needs is not valid.
    """
    advice = "Fetch it again with mode='overwrite'."
    with readable():
        content = decoded(Path(file).read_bytes())
    # A stray quotation mark would make one cell of several lines; strict tells.
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows: dict[int, list[str | None]] = {}  # by line
    flaws: list[Flaw] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        for name in {*names, *text, *whole} - {""}:
            needs_one = name in text or name in whole
            if names.count(name) > 1 or (needs_one and name not in names):
                raise ValueError(f"it has {names.count(name)} columns {name!r}")
        for cells in filter(None, reader):
            line, missing = reader.line_num, frozenset(names[len(cells) :])
            rows[line] = _check_row(cells, names)
            if missing:
                flaws.append(Flaw(line, missing, "it ends early"))
    except (ValueError, csv.Error) as error:
        raise CorruptImageError(
            f"The table {file} is broken (line {max(reader.line_num, 1)}: {error}). "
            f"{advice}"
        ) from error
    columns = [f"table_{name}" if name in _RESERVED else name for name in names]
    frame = pd.DataFrame([*rows.values()], [*rows], columns, dtype=object)
    frame = frame.drop(columns="", errors="ignore")
    for name in frame.columns.drop([*text, *whole]):
        frame[name] = map_distinct(none_if_null, frame[name])
    for name in whole:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        is_whole = numbers.notna() & (numbers % 1 == 0)
        for line in frame.index[~is_whole & frame[name].notna()]:
            found = f"{name} is {frame[name][line]!r}, not a whole number"
            flaws.append(Flaw(line, frozenset({name}), found))
        nullable = numbers.where(is_whole).astype("Int64")
        frame[name] = nullable.astype("int64") if is_whole.all() else nullable
    report_flaws(file, flaws, result_filter, advice, always={"mask_row"})
    return frame.reset_index(drop=True)


def _check_row(cells: list[str], names: list[str]) -> list[str | None]:
    """Return a cell per column, None at the end of a row that is too short."""
    if any(cells[len(names) :]):
        raise ValueError(f"it has {len(cells)} cells for {len(names)} columns")
    if "\0" in "".join(cells):
        raise ValueError("it has a NUL byte")
    row = [*cells[: len(names)], *[None] * (len(names) - len(cells))]
    if not (row[names.index("image_name")] or "").strip():
        raise ValueError("column image_name is empty")
    return row


def read_stimuli(file: str, result_filter: ResultFilter) -> pd.DataFrame:
    """Read the table of stimuli; row by row, it is that of the archive's images.

    The table and the labels say the same in different words. Users get the label's,
    which the trials have too, and the table's only for a name that is not a label.
    """
    frame = read_table(file, result_filter)
    names = frame["image_name"]
    for name in names:
        stimulus_image(name)  # a name that is no file name raises
    if not names.is_unique:
        raise CorruptImageError(
            f"The table {file} names {names[names.duplicated()].iloc[0]!r} twice. "
            "Fetch it again with mode='overwrite'."
        )
    of_labels = [label_values(name) for name in names]
    for i, field in enumerate(LABEL_FIELDS):
        if field not in frame:
            frame[field] = None
        of_table = map_distinct(partial(stimulus_value, field), frame[field])
        frame[field] = pd.Series(
            [
                of_label[i] if of_label[0] else cell
                for of_label, cell in zip(of_labels, of_table, strict=True)
            ],
            dtype=object,
        )
    frame["n_reps"] = pd.to_numeric(frame["n_reps"]).astype("Int64")
    frame["h5_index"] = np.arange(len(frame))
    return frame


def map_distinct(function: Callable[[Any], Any], column: pd.Series) -> pd.Series:
    """Return a column with a function applied, called once per distinct value."""
    values = {value: function(value) for value in column.unique()}
    return pd.Series([values[v] for v in column], column.index, dtype=object)
