"""The dataset's small tables: of trials and of participants.

Trial tables are checked, joined with the fields of labels, and kept parsed. Parsing 150
small text files takes longer than all else of an offline call, so the tables of a
subject are kept together, column by column, as codes into distinct values. A table
whose size or time of change differs is parsed again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Set
from itertools import chain, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.layout.labels import LABEL_FIELDS, TRIAL_FIELDS, label_values
from laion_fmri_fetchers.layout.names import clean_session, clean_subject, none_if_null
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, fields, has_functions

from .files import local_path
from .state import save_arrays, saved_arrays

OWN_FIELDS = frozenset({"subject", "sessions", "rois"})
"""Fields of subjects that no column of a table replaces."""


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


class Flaw(NamedTuple):
    """What is wrong in a table."""

    line: int
    columns: frozenset[str] | None
    """Columns that it makes null; None for all."""
    text: str


def decoded(content: bytes) -> str:
    """Return the text of a table: UTF-8, with or without a mark, else Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_participants(file: str) -> tuple[dict[str, dict[str, Any]], list[Flaw]]:
    """Read the table of participants, as far as it can be read.

    Columns named as fields of ours become ``participants_subject`` and the like.

    Parameters
    ----------
    file : str
        Path of ``participants.tsv``.

    Returns
    -------
    participants : dict
        ``"sub-01"`` -> its columns; numbers are numbers and nulls are None.
    flaws : list of Flaw
        What is wrong; the values that it concerns are None.
    """
    header, *lines = _lines(Path(file).read_bytes())
    names = [_cell(name) for name in header.split("\t")]
    if names.count("participant_id") != 1:
        return {}, [Flaw(1, None, "it has no single column participant_id")]
    flaws = []
    twice = frozenset(name for name in names if name and names.count(name) > 1)
    if twice:
        flaws.append(Flaw(1, twice, f"several columns are {listed(sorted(twice))}"))
    participants: dict[str, dict[str, Any]] = {}
    first: dict[str, tuple[int, list[str]]] = {}
    for number, line in enumerate(lines, 2):
        cells = [_cell(cell) for cell in line.rstrip("\t").split("\t")]
        lacking = frozenset(names[len(cells) :])
        damaged = frozenset(n for n, c in zip(names, cells, strict=False) if "\0" in c)
        cells += [""] * len(lacking)
        subject = cells[names.index("participant_id")]
        subject = clean_subject(subject) or subject
        if not any(cells) or first.get(subject, (0, None))[1] == cells:
            continue
        null: frozenset[str] = twice | damaged
        if damaged:
            flaws.append(Flaw(number, damaged, "it has a NUL byte"))
        if len(cells) > len(names) or subject in first:
            text = f"it has {len(cells)} cells for {len(names)} columns"
            if subject in first:
                text = f"{subject} is in line {first[subject][0]}, too"
            flaws.append(Flaw(number, None, text))
            null = frozenset(names)
        elif any(lacking) and line.count("\t") + 1 < len(names):
            flaws.append(Flaw(number, lacking, "it ends early"))
        first.setdefault(subject, (number, cells))
        participants[subject] = {
            f"participants_{name}" if name in OWN_FIELDS else name: (
                None if name in null else _value(cell)
            )
            for name, cell in zip(names, cells, strict=False)
            if name not in ("", "participant_id")
        }
    return participants, flaws


def report_flaws(
    file: str,
    flaws: list[Flaw],
    given: ResultFilter,
    advice: str,
    always: Set[str] = frozenset(),
) -> None:
    """Raise for a flaw in a column that is needed; warn of the others at once.

    Parameters
    ----------
    file : str
        The table.
    flaws : list of Flaw
        What is wrong in it.
    given : ResultFilter
        The filter; functions may need any column.
    advice : str
        What to do where a filter needs it.
    always : set of str
        Columns that are needed without a filter, too.

    Raises
    ------
    CorruptImageError
        For the first flaw in such a column.
    """
    asked = (fields(given) | always) - OWN_FIELDS
    for line, columns, text in flaws:
        needed = asked if columns is None else asked & columns
        if needed or has_functions(given):
            column = f", column {min(needed)}" if needed else ""
            raise CorruptImageError(
                f"The table {file} is broken (line {line}{column}: {text}), and it "
                f"is needed. {advice}"
            )
    if flaws:
        texts = [f"line {line}: {text}" for line, _, text in flaws]
        warn(f"The table {file} is flawed ({listed(texts)}); such values are null.")


def _lines(content: bytes) -> list[str]:
    return re.split("\r\n|\r|\n", decoded(content))


def _cell(text: str) -> str:
    """Return a cell without blanks and quotation marks around it."""
    return text.strip().strip('"')


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
        texts = [_lines(file.read_bytes().rstrip()) for file in files]
        counts = [len(lines) - 1 for lines in texts]
        header = "\t".join(map(_cell, texts[0][0].split("\t")))
        if any(lines[0] != texts[0][0] for lines in texts):
            raise ValueError("the columns differ")
        whole = "\n".join([header, *chain.from_iterable(text[1:] for text in texts)])
        if len(ids) == 1 and (fault := _fault(header, texts[0][1:])):
            raise ValueError(fault)
        n_tabs = header.count("\t")
        for lines in texts:
            if any(line.rstrip("\t").count("\t") > n_tabs for line in lines):
                raise ValueError("a line has more cells than columns")
        frame = pd.read_csv(
            io.StringIO(whole),
            sep="\t",
            usecols=["run", "beta_index", "label"],
            dtype={"run": object, "label": object},
            na_filter=False,
            quoting=csv.QUOTE_NONE,
        )
        labels = frame["label"].str.strip(' "')
        is_whole = len(frame) == sum(counts) and frame["beta_index"].dtype.kind == "i"
        if not is_whole or "\0" in whole or not labels.all():
            raise ValueError("a line is not that of a trial")
        frame["label"] = frame["label"].str.strip('"')
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


def _fault(header: str, rows: list[str]) -> str:
    """Return what is wrong in a trial table, with line and column; "" for nothing."""
    names = header.split("\t")
    for name in ("run", "beta_index", "label"):
        if names.count(name) != 1:
            return f"line 1: it has no single column {name}"
    if not rows:
        return "it has a header, but no trials"
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        if row.rstrip("\t").count("\t") >= len(names):
            return f"line {number}: it has more cells than columns"
        cells = dict(zip(names, row.split("\t"), strict=False))
        if not re.fullmatch(r"\s*\d+\s*", cells.get("beta_index", "")):
            found = repr(cells.get("beta_index", ""))
            return f"line {number}, column beta_index: {found} is not a whole number"
        index = cells["beta_index"].strip()
        if first.setdefault(index, number) != number:
            text = f"{index} is in line {first[index]}, too"
            return f"line {number}, column beta_index: {text}"
        if "\0" in row or not _cell(cells.get("label", "")):
            return f"line {number}, column label: it is missing or damaged"
    return ""


def _runs(column: pd.Series) -> pd.Series:
    """Return runs as int, cell by cell: text stays text, and nulls are None."""
    values = {text: _value(_cell(text)) for text in column.unique()}
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
