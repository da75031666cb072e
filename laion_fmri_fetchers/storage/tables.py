"""The dataset's small tables: of trials and of participants.

Trial tables are checked, joined with what labels tell, and kept parsed. Parsing 150
small text files takes longer than all else of an offline call, so the tables of a
subject are kept together, as codes into distinct values. A table whose size or time of
change differs is parsed again.
"""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.layout.keys import record_of
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


class _Tables(NamedTuple):
    """Trial tables of a subject, one below the other."""

    spans: dict[str, list[int]]
    """id -> size in bytes, time of change in ns, first row, number of rows."""
    rows: np.ndarray
    """A row a trial: ``beta_index``, code into ``runs``, code into ``labels``."""
    runs: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    """For each label, a code into ``kinds``."""
    kinds: list[list]
    """Values of `LABEL_FIELDS`, of each kind of label there is."""


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
        One row a trial, in the order of ``ids`` and of volumes within a session. The
        columns are `TRIAL_FIELDS`; ``image_index`` is the position of the table in
        ``ids``.

    Raises
    ------
    CorruptImageError
        If a table cannot be read.
    """
    records = [record_of(one) for one in ids]
    of_subject: dict[str, list[str]] = {}
    for rec in records:
        of_subject.setdefault(rec["subject"], []).append(rec["id"])
    numbered = [_numbered(data_dir, *one) for one in of_subject.items()]
    parts = [
        _tables(data_dir, subject, sorted({*tables, *with_earlier}))
        for (subject, tables), with_earlier in zip(
            of_subject.items(), numbered, strict=True
        )
    ]
    spans, n_rows = {}, 0
    for part in parts:
        for one, (_, _, first, count) in part.spans.items():
            spans[one] = range(n_rows + first, n_rows + first + count)
        n_rows += len(part.rows)
    repetition = _join(
        [
            _repetitions(part, tables)
            for part, tables in zip(parts, numbered, strict=True)
        ],
        np.int64,
    )
    take = _rows_of([spans[one] for one in ids], n_rows)
    table = np.repeat(np.arange(len(ids)), [len(spans[one]) for one in ids])

    label = _stacked([(part.rows[:, 2], len(part.labels)) for part in parts])[take]
    kind = _stacked([(part.kind, len(part.kinds)) for part in parts])[label]
    kinds = [values for part in parts for values in part.kinds]
    columns: dict[str, Any] = {
        "run": _runs_of(parts)[take],
        "beta_index": _join([p.rows[:, 0] for p in parts], int)[take].astype(np.int64),
        "label": _join([p.labels for p in parts])[label],
        "image_index": table,
    }
    counts = [len(spans[one]) for one in ids]
    for name in ("subject", "session"):
        values = np.array([rec[name] for rec in records], dtype=object)
        columns[name] = np.repeat(values, counts)
    for i, name in enumerate(LABEL_FIELDS):
        columns[name] = np.array([values[i] for values in kinds], dtype=object)[kind]
    at = LABEL_FIELDS.index("n_reps")
    n_reps = np.array([values[at] or 0 for values in kinds], dtype=np.int64)[kind]
    columns["n_reps"] = pd.arrays.IntegerArray(n_reps, n_reps == 0)
    repetition = repetition[take]
    columns["repetition"] = pd.arrays.IntegerArray(repetition, repetition == 0)
    return pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype=columns[name].dtype, copy=False)
            for name in TRIAL_FIELDS
        },
        copy=False,
    )


def _rows_of(spans: list[range], n_rows: int) -> np.ndarray | slice:
    """Return the rows of some spans in their order; of all rows, a slice is quicker."""
    starts = np.cumsum([0, *map(len, spans)])[:-1].tolist()
    if [span.start for span in spans] == starts and sum(map(len, spans)) == n_rows:
        return slice(None)
    return _join([np.arange(span.start, span.stop) for span in spans], np.intp)


def _numbered(data_dir: str, subject: str, ids: list[str]) -> list[str]:
    """Return the tables from the first session on, in order, as far as on disk.

    The list ends before the first session whose table is not on disk, as in later ones
    it is not known how often an image was shown before.
    """
    last = max(_number(one) for one in ids)
    tables, on_disk = [], {*ids}
    for number in range(1, last + 1):
        session = {"subject": subject, "session": clean_session(number)}
        table = trials_id(session)
        if table not in on_disk and not os.path.exists(local_path(data_dir, table)):
            break
        tables.append(table)
    return tables


def _number(table: str) -> int:
    return int(record_of(table)["session"].removeprefix("ses-"))


def _repetitions(tables: _Tables, numbered: list[str]) -> np.ndarray:
    """Return which showing of its image each row is, from 1; 0 where not known."""
    repetitions = np.zeros(len(tables.rows), dtype=np.int64)
    spans = [tables.spans[one][2:] for one in numbered]
    rows = _join([np.arange(first, first + count) for first, count in spans], np.intp)
    labels = tables.rows[rows, 2]
    if len(tables.labels) < np.iinfo(np.int16).max:
        labels = labels.astype(np.int16)  # sorted by radix, some five times as fast
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    starts = np.flatnonzero(is_first)
    n_before = np.arange(len(ordered)) - np.repeat(
        starts, np.diff(np.append(starts, len(ordered)))
    )
    repetitions[rows[order]] = n_before + 1
    return repetitions


def _stacked(parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Return codes into several lists of values as codes into the lists joined."""
    before = np.cumsum([0, *(n_values for _, n_values in parts)])
    codes = [part + n for (part, _), n in zip(parts, before, strict=False)]
    return _join(codes, np.intp)


def _join(parts: list[np.ndarray], dtype: type = object) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


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
            file, sep="\t", dtype=object, keep_default_na=False, encoding="utf-8"
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
    """Return what a cell of a table says."""
    if none_if_null(text) is None:
        return None
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    return text


def _tables(data_dir: str, subject: str, ids: list[str]) -> _Tables:
    """Return tables of a subject, from those kept parsed where they still hold."""
    file = f"trials/{subject}.npz"
    kept = _unpack(saved_arrays(data_dir, file))
    stats = {one: os.stat(local_path(data_dir, one)) for one in ids}
    signatures = {one: [s.st_size, s.st_mtime_ns] for one, s in stats.items()}
    stale = [o for o in ids if kept.spans.get(o, [])[:2] != signatures[o]]
    if not stale:
        return kept
    known = {one: _decode(kept, one) for one in kept.spans if one not in stale}
    signatures |= {one: kept.spans[one][:2] for one in known}
    known |= dict(zip(stale, _parse(data_dir, stale), strict=True))
    tables = _encode(known, signatures)
    save_arrays(data_dir, file, _pack(tables))
    return tables


def _parse(data_dir: str, ids: list[str]) -> list[_Table]:
    """Parse tables, all in one go where they are as they should be."""
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
            raise ValueError("a beta_index is no whole number")
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
        raise ValueError("its beta_index is not one number a volume, from 0")
    return _Table(*(column[order] for column in table))


def _encode(tables: dict[str, _Table], signatures: dict[str, list[int]]) -> _Tables:
    """Return tables as codes into distinct values, with what labels tell."""
    index, run, label = map(np.concatenate, zip(*tables.values(), strict=True))
    runs, distinct_runs = pd.factorize(run, use_na_sentinel=False)
    codes, labels = pd.factorize(label)
    kinds: dict[tuple, int] = {}
    kind = [kinds.setdefault(label_values(label), len(kinds)) for label in labels]
    sizes = [len(table.label) for table in tables.values()]
    starts = np.cumsum([0, *sizes]).tolist()
    return _Tables(
        {
            one: [*signatures[one], start, size]
            for one, start, size in zip(tables, starts, sizes, strict=False)
        },
        np.column_stack([index, runs, codes]).astype(np.int32),
        distinct_runs,
        labels,
        np.array(kind, dtype=np.int16),
        [list(values) for values in kinds],
    )


def _decode(tables: _Tables, one: str) -> _Table:
    """Return a table as it was parsed."""
    first, count = tables.spans[one][2:]
    index, runs, labels = tables.rows[first : first + count].T
    return _Table(index, tables.runs[runs], tables.labels[labels])


def _runs_of(parts: list[_Tables]) -> np.ndarray:
    """Return the run of each row: int64 where all are int, else as they are."""
    distinct = [part.runs for part in parts]
    if all(type(run) is int for runs in distinct for run in runs):
        distinct = [runs.astype(np.int64) for runs in distinct]
    pairs = zip(parts, distinct, strict=True)
    return _join([runs[part.rows[:, 1]] for part, runs in pairs])


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
    return {
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        "rows": tables.rows,
        "kind": tables.kind,
    }


def _unpack(arrays: dict[str, np.ndarray]) -> _Tables:
    """Return the tables of `_pack`; none where the arrays are not as it made them."""
    try:
        about = json.loads(arrays["about"].tobytes())
        tables = _Tables(
            about["spans"],
            arrays["rows"],
            _array(about["runs"]),
            _array(about["labels"]),
            arrays["kind"],
            about["kinds"],
        )
        if _is_sound(tables):
            return tables
    except (KeyError, ValueError, TypeError, RecursionError):
        pass
    none = np.empty(0, dtype=object)
    return _Tables({}, np.empty((0, 3), dtype=np.int32), none, none, none, [])


def _is_sound(tables: _Tables) -> bool:
    """Tell whether codes and spans lead to values and rows that are there."""
    rows, kind = tables.rows, tables.kind
    if rows.ndim != 2 or rows.shape[1] != 3 or len(kind) != len(tables.labels):
        return False
    limits = (np.iinfo(np.int32).max, len(tables.runs), len(tables.labels))
    return (
        bool(((rows >= 0) & (rows < limits)).all())
        and bool(((kind >= 0) & (kind < len(tables.kinds))).all())
        and all(len(values) == len(LABEL_FIELDS) for values in tables.kinds)
        and all(
            len(span) == 4 and 0 <= span[2] <= span[2] + span[3] <= len(rows)
            for span in tables.spans.values()
        )
    )
