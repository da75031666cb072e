"""The dataset's small tables: of trials and of participants.

Trial tables are checked, joined with the fields of labels, and kept parsed. Parsing 150
small text files takes longer than all else of an offline call, so the tables of a
subject are kept together, column by column, as codes into distinct values. A table
whose size or time of change differs is parsed again.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.layout.labels import LABEL_FIELDS, TRIAL_FIELDS, label_values
from laion_fmri_fetchers.layout.names import clean_session, none_if_null
from laion_fmri_fetchers.layout.trees import trials_id

from .files import local_path
from .state import save_arrays, saved_arrays


class _Table(NamedTuple):
    """The columns of a trial table, in the order of volumes."""

    beta_index: np.ndarray
    run: np.ndarray
    label: np.ndarray


class _Columns(NamedTuple):
    """The columns of several trial tables, one below the other, as small integers."""

    beta_index: np.ndarray
    run: np.ndarray
    """Codes into ``runs``."""
    label: np.ndarray
    """Codes into ``labels``."""
    kind: np.ndarray
    """Codes into ``kinds``."""
    repetition: np.ndarray
    """Which showing of its image, from 1; 0 where the table of an earlier session is
    not among these."""


class _Tables(NamedTuple):
    """Trial tables of a subject."""

    spans: dict[str, list[int]]
    """id -> size in bytes, time of change in ns, first row, number of rows."""
    columns: _Columns
    runs: np.ndarray
    labels: np.ndarray
    kinds: list[list]
    """Values of `LABEL_FIELDS` for each kind of label."""


class _Part(NamedTuple):
    """Some tables of a subject, in order."""

    tables: _Tables
    rows: slice | np.ndarray
    counts: list[int]
    """Rows of each table."""
    are_counted: list[bool]
    """For each table, whether those of all earlier sessions are on disk."""


def read_trials(data_dir: str, ids: list[str]) -> pd.DataFrame:
    """Read trial tables that are on disk.

    Parameters
    ----------
    data_dir : str
        The data directory.
    ids : list of str
        The tables' ids.

    Returns
    -------
    pandas.DataFrame
        One row per trial, in the order of ``ids`` and of volumes within a session. The
        columns are `TRIAL_FIELDS`; ``image_index`` is the position of the table in
        ``ids``.

    Raises
    ------
    CorruptImageError
        If a table cannot be read.
    """
    of_subject: dict[str, list[Record]] = {}
    for one in ids:
        rec = record_of(one)
        of_subject.setdefault(rec["subject"], []).append(rec)
    records = [rec for recs in of_subject.values() for rec in recs]
    parts = [_part(data_dir, *one) for one in of_subject.items()]
    counts = [count for part in parts for count in part.counts]
    position = {one: i for i, one in enumerate(ids)}
    runs = _run_values(parts)
    columns: dict[str, Any] = {
        "image_index": np.repeat([position[rec["id"]] for rec in records], counts),
        "beta_index": _column(parts, "beta_index"),
        "run": _column(parts, "run", runs, runs[0].dtype if runs else np.int64),
        "label": _column(parts, "label", [p.tables.labels for p in parts], object),
    }
    for name in ("subject", "session"):
        columns[name] = np.repeat(_array([rec[name] for rec in records]), counts)
    for i, name in enumerate(LABEL_FIELDS):
        values = [[kind[i] for kind in part.tables.kinds] for part in parts]
        if name == "n_reps":
            numbers = [np.array([n or 0 for n in of], dtype=np.int64) for of in values]
            columns[name] = _column(parts, "kind", numbers)
        else:
            columns[name] = _column(parts, "kind", [*map(_array, values)], object)
    columns["repetition"] = _column(parts, "repetition")
    if not all(are_counted := [is_c for part in parts for is_c in part.are_counted]):
        columns["repetition"] *= np.repeat(are_counted, counts)
    for name in ("n_reps", "repetition"):
        columns[name] = pd.arrays.IntegerArray(columns[name], columns[name] == 0)
    frame = pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype=columns[name].dtype, copy=False)
            for name in TRIAL_FIELDS
        },
        copy=False,
    )
    if [rec["id"] for rec in records] != ids:
        frame = frame.sort_values("image_index", kind="stable", ignore_index=True)
    return frame


def _part(data_dir: str, subject: str, records: list[Record]) -> _Part:
    """Return tables of a subject."""
    ids = [rec["id"] for rec in records]
    last = max(int(rec["session"].removeprefix("ses-")) for rec in records)
    numbered = _numbered(data_dir, subject, ids, last)
    tables = _tables(data_dir, subject, sorted({*ids, *numbered}))
    rows = [tables.spans[one][2:] for one in ids]
    spans = [range(first, first + count) for first, count in rows]
    counted = {*numbered}
    return _Part(
        tables, _rows_of(spans), [*map(len, spans)], [one in counted for one in ids]
    )


def _rows_of(spans: list[range]) -> np.ndarray | slice:
    """Return the rows of some spans in their order; of adjacent ones, as a slice."""
    if all(a.stop == b.start for a, b in pairwise(spans)):
        return slice(spans[0].start, spans[-1].stop)
    return np.concatenate([np.arange(span.start, span.stop) for span in spans])


def _column(
    parts: list[_Part],
    name: str,
    values: list[np.ndarray] | None = None,
    dtype: Any = np.int64,
) -> np.ndarray:
    """Return a column of some tables; of codes, the values that each subject has."""
    column = np.empty(sum(sum(part.counts) for part in parts), dtype)
    stop = 0
    for number, part in enumerate(parts):
        start, stop = stop, stop + sum(part.counts)
        codes = getattr(part.tables.columns, name)[part.rows]
        column[start:stop] = values[number][codes] if values else codes
    return column


def _numbered(data_dir: str, subject: str, ids: list[str], last: int) -> list[str]:
    """Return the tables from the first session on, in order, as far as on disk.

    The list ends before the first session whose table is not on disk, as in later ones
    it is not known how often an image was shown before.
    """
    on_disk = {*ids}
    return [
        *takewhile(
            lambda one: one in on_disk or os.path.isfile(local_path(data_dir, one)),
            _in_sequence(subject, last),
        )
    ]


def _in_sequence(subject: str, last: int) -> Iterator[str]:
    """Yield the ids of the tables of a subject's sessions from 1 to the last."""
    for number in range(1, last + 1):
        yield trials_id({"subject": subject, "session": clean_session(number)})


def _repetitions(labels: np.ndarray) -> np.ndarray:
    """Return for codes of images shown one after the other which showing each is."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    starts = np.flatnonzero(is_first)
    n_before = np.arange(len(ordered)) - np.repeat(
        starts, np.diff(np.append(starts, len(ordered)))
    )
    repetitions = np.empty(len(labels), dtype=np.int64)
    repetitions[order] = n_before + 1
    return repetitions


def read_participants(file: str) -> dict[str, dict[str, Any]]:
    """Read the table of participants.

    Parameters
    ----------
    file : str
        Path of ``participants.tsv``.

    Returns
    -------
    dict
        ``"sub-01"`` -> its columns; numbers are numbers and nulls are None.

    Raises
    ------
    CorruptImageError
        If it cannot be read.
    """
    try:
        frame = pd.read_csv(
            file,
            sep="\t",
            dtype=object,
            keep_default_na=False,
            encoding="utf-8",
            index_col=False,  # else a tab too many makes the first column an index
        )
        rows = frame.set_index("participant_id").to_dict("index")
    except (KeyError, ValueError) as error:
        raise CorruptImageError(
            f"The table {file} is broken ({error}). Delete it to fetch it again."
        ) from error
    return {
        str(subject): {str(name): _value(text) for name, text in row.items()}
        for subject, row in rows.items()
    }


def _value(text: str) -> str | int | float | None:
    """Return the value of a cell of a table."""
    if none_if_null(text) is None:
        return None
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    return text


def _tables(data_dir: str, subject: str, ids: list[str]) -> _Tables:
    """Return tables of a subject, from those kept parsed where they still hold."""
    file = f"trials/{subject}.columns"
    kept = _unpack(saved_arrays(data_dir, file))
    stats = {one: os.stat(local_path(data_dir, one)) for one in ids}
    signatures = {one: [s.st_size, s.st_mtime_ns] for one, s in stats.items()}
    stale = [o for o in ids if kept.spans.get(o, [])[:2] != signatures[o]]
    if not stale:
        return kept
    known = {one: _decode(kept, one) for one in kept.spans if one not in stale}
    signatures |= {one: kept.spans[one][:2] for one in known}
    known |= dict(zip(stale, _parse(data_dir, stale), strict=True))
    tables = _encode(subject, known, signatures)
    save_arrays(data_dir, file, _pack(tables))
    return tables


def _parse(data_dir: str, ids: list[str]) -> list[_Table]:
    """Parse tables, all at once where they are valid."""
    files = [Path(local_path(data_dir, one)) for one in ids]
    try:
        texts = [file.read_bytes().strip().partition(b"\n") for file in files]
        counts = [body.count(b"\n") + 1 for _, _, body in texts]
        header = texts[0][0]
        if any(text[0] != header for text in texts):
            raise ValueError("the columns differ")
        whole = b"\n".join([header, *(body for _, _, body in texts)])
        frame = pd.read_csv(
            io.BytesIO(whole),
            sep="\t",
            usecols=["run", "beta_index", "label"],
            dtype={"run": object, "label": object},
            na_filter=False,
        )
        if len(frame) != sum(counts):
            raise ValueError(
                f"{len(frame)} trials in {sum(counts)} lines"
                if len(frame)
                else "it has a header, but no trials"
            )
        if frame["beta_index"].dtype.kind != "i":
            raise ValueError("a beta_index is not a whole number")
        frame["run"] = _runs(frame["run"])
        columns = [frame[name].to_numpy() for name in _Table._fields]
        return [
            _in_order(_Table(*(column[stop - count : stop] for column in columns)))
            for stop, count in zip(np.cumsum(counts), counts, strict=True)
        ]
    except ValueError as error:
        if len(ids) > 1:
            return [table for one in ids for table in _parse(data_dir, [one])]
        raise CorruptImageError(
            f"The trial table {files[0]} is broken ({error}). Fetch it again with "
            "mode='overwrite', or delete it."
        ) from error


def _runs(column: pd.Series) -> pd.Series:
    """Return runs as int, cell by cell: text stays text, and nulls are None."""
    values = {text: _value(text) for text in column.unique()}
    return pd.Series([values[text] for text in column], column.index, object)


def _in_order(table: _Table) -> _Table:
    """Return a table's rows in the order of volumes."""
    index = table.beta_index
    if (index == np.arange(len(index))).all():
        return table
    order = np.argsort(index, kind="stable")
    if index[order[0]] < 0 or (np.diff(index[order]) == 0).any():
        raise ValueError("its beta_index is not one number per volume, from 0")
    return _Table(*(column[order] for column in table))


def _encode(
    subject: str, tables: dict[str, _Table], signatures: dict[str, list[int]]
) -> _Tables:
    """Return tables as codes into distinct values, with the fields of labels."""
    in_sequence = _in_sequence(subject, len(tables))
    counted = [*takewhile(tables.__contains__, in_sequence)]
    tables = {one: tables[one] for one in [*counted, *sorted({*tables} - {*counted})]}
    index, run, label = map(np.concatenate, zip(*tables.values(), strict=True))
    run_codes, runs = pd.factorize(run, use_na_sentinel=False)
    label_codes, labels = pd.factorize(label)
    kinds: dict[tuple, int] = {}
    kind_of = [kinds.setdefault(label_values(label), len(kinds)) for label in labels]
    sizes = [len(table.label) for table in tables.values()]
    starts = np.cumsum([0, *sizes]).tolist()
    label_codes = _small(label_codes)
    n_counted = starts[len(counted)]
    repetition = np.zeros(len(label), dtype=np.int64)
    repetition[:n_counted] = _repetitions(label_codes[:n_counted])
    spans = {
        one: [*signatures[one], start, size]
        for one, start, size in zip(tables, starts, sizes, strict=False)
    }
    kind = np.array(kind_of, dtype=np.int64)[label_codes]
    columns = _Columns(
        _small(index), _small(run_codes), label_codes, _small(kind), _small(repetition)
    )
    return _Tables(spans, columns, runs, labels, [list(values) for values in kinds])


def _small(numbers: np.ndarray) -> np.ndarray:
    """Return numbers from 0 on in as few bytes as will do; short ones sort faster."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _decode(tables: _Tables, one: str) -> _Table:
    """Return a table as it was parsed."""
    first, count = tables.spans[one][2:]
    rows = slice(first, first + count)
    index, run, label = (column[rows] for column in tables.columns[:3])
    return _Table(index, tables.runs[run], tables.labels[label])


def _run_values(parts: list[_Part]) -> list[np.ndarray]:
    """Return the runs of each subject: int64 where all are int, else as they are."""
    distinct = [part.tables.runs for part in parts]
    if all(type(run) is int for runs in distinct for run in runs):
        return [runs.astype(np.int64) for runs in distinct]
    return distinct


def _array(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _pack(tables: _Tables) -> dict[str, np.ndarray]:
    """Return tables as arrays that can be saved."""
    about = {
        "spans": tables.spans,
        "runs": tables.runs.tolist(),
        "labels": tables.labels.tolist(),
        "kinds": tables.kinds,
    }
    about_them = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    return {"about": about_them, **tables.columns._asdict()}


def _unpack(arrays: dict[str, np.ndarray]) -> _Tables:
    """Return the tables of `_pack`; none where the arrays are not as it made them."""
    try:
        about = json.loads(arrays["about"].tobytes())
        tables = _Tables(
            about["spans"],
            _Columns(*(arrays[name] for name in _Columns._fields)),
            _array(about["runs"]),
            _array(about["labels"]),
            about["kinds"],
        )
        if _is_sound(tables):
            return tables
    except (KeyError, ValueError, TypeError, RecursionError):
        pass
    none = np.empty(0, dtype=np.uint8)
    return _Tables({}, _Columns(none, none, none, none, none), none, none, [])


def _is_sound(tables: _Tables) -> bool:
    """Tell whether codes and spans lead to values and rows that are there."""
    columns = tables.columns
    n_rows = len(columns.beta_index)
    ways = (
        (columns.run, tables.runs),
        (columns.label, tables.labels),
        (columns.kind, tables.kinds),
    )
    return (
        all(one.shape == (n_rows,) and one.dtype.kind == "u" for one in columns)
        and all(n_rows == 0 or codes.max() < len(values) for codes, values in ways)
        and all(len(values) == len(LABEL_FIELDS) for values in tables.kinds)
        and all(
            len(span) == 4 and 0 <= span[2] <= span[2] + span[3] <= n_rows
            for span in tables.spans.values()
        )
    )
