"""The tables of trials and of participants, read anew at each call."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Set
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

# Fields of subjects that no column of a table replaces.
OWN_FIELDS = frozenset({"subject", "sessions", "rois"})


class Flaw(NamedTuple):
    """What is wrong in a line of a table, and in which columns; None for all."""

    line: int
    columns: frozenset[str] | None
    text: str


class _Table(NamedTuple):
    """A table of tab-separated values: names and cells of its columns, as text."""

    names: list[str]
    columns: list[list[str]]
    flaws: list[Flaw]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        return self.columns[self.names.index(name)]


class SessionTrials(NamedTuple):
    """The columns of a trial table, in the order of volumes."""

    record: Record
    beta_index: list[int]
    run: list[Any]
    label: list[str]


def decoded(content: bytes) -> str:
    """Return the text of a table: UTF-8, with or without a mark, else Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _read_tsv(file: str) -> _Table:
    """Read a table; blanks and quotation marks around cells are no part of them."""
    text = decoded(Path(file).read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    if any(edge in text for edge in ('"', " \t", "\t ", " \n", "\n ")):
        text = re.sub('[ "]*([\t\n])[ "]*', r"\1", text)
    header, *lines = text.strip('\n "').split("\n")
    names = header.split("\t")
    flaws = []
    twice = frozenset(name for name in names if name and names.count(name) > 1)
    if twice:
        flaws.append(Flaw(1, twice, f"several columns are {listed(sorted(twice))}"))
    # Most tables are whole, and 150 of them are read in a call.
    n_tabs = set(map(operator.methodcaller("count", "\t"), lines))
    if "\0" in text or n_tabs - {len(names) - 1}:
        for number, line in enumerate(lines, 2):
            row = line.split("\t")
            absent = frozenset(names[len(row) :]) - {""}
            while len(row) > len(names) and not row[-1]:
                row.pop()
            if len(row) > len(names):
                words = f"it has more cells than columns, {len(row)} cells"
                flaws.append(Flaw(number, None, words))
                del row[len(names) :]
            elif absent:
                flaws.append(Flaw(number, absent, "it ends early"))
            row += [""] * (len(names) - len(row))
            damaged = {n for n, cell in zip(names, row, strict=True) if "\0" in cell}
            if damaged:
                flaws.append(Flaw(number, frozenset(damaged), "it has a NUL byte"))
            lines[number - 2] = "\t".join(row)
    cells = "\t".join(lines).split("\t") if lines else []
    columns = [cells[start :: len(names)] for start in range(len(names))]
    return _Table(names, columns, flaws)


def _value(text: str) -> str | int | float | None:
    """Return the value of a cell."""
    if none_if_null(text) is None:
        return None
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    return text


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
        ``ids``. ``repetition`` is null where the table of an earlier session is not on
        disk.

    Raises
    ------
    CorruptImageError
        If a table cannot be read.
    """
    asked = {path: number for number, path in enumerate(ids)}
    counted = {*_tables_to_count(data_dir, ids)}
    # Tables of earlier sessions are read, too, as repetitions are counted over them.
    sessions = [
        read_trial_table(data_dir, path) for path in sorted(counted | asked.keys())
    ]
    own = [name for name in TRIAL_FIELDS if name not in (*LABEL_FIELDS, "repetition")]
    columns: dict[str, list[Any]] = {name: [] for name in (*own, "counted")}
    for session in sessions:
        rec, n = session.record, len(session.label)
        columns["subject"] += [rec["subject"]] * n
        columns["session"] += [rec["session"]] * n
        columns["run"] += session.run
        columns["beta_index"] += session.beta_index
        columns["label"] += session.label
        columns["image_index"] += [asked.get(rec["id"], -1)] * n
        columns["counted"] += [rec["id"] in counted] * n
    codes, labels = pd.factorize(np.array(columns["label"], dtype=object))
    fields = [label_values(label) for label in labels]
    # Of type object, as pandas else has texts of another type by its version.
    frame = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()})
    for number, name in enumerate(LABEL_FIELDS):
        kind = "Int64" if name == "n_reps" else object
        values = pd.Series([of_label[number] for of_label in fields], dtype=kind)
        frame[name] = values.take(codes).array
    whole = ["beta_index", "image_index"]
    if all(type(run) is int for session in sessions for run in {*session.run}):
        whole.append("run")
    frame = frame.astype(dict.fromkeys(whole, np.int64))
    shown = frame.groupby([frame["subject"], codes], sort=False).cumcount() + 1
    frame["repetition"] = shown.astype("Int64").where(frame["counted"].astype(bool))
    frame = frame.loc[frame["image_index"] >= 0, [*TRIAL_FIELDS]]
    return frame.sort_values("image_index", kind="stable", ignore_index=True)


def _tables_to_count(data_dir: str, ids: Iterable[str]) -> Iterable[str]:
    """Yield the tables of each subject from the first session on, as far as on disk."""
    last: dict[str, int] = {}
    for rec in map(record_of, ids):
        number = int(rec["session"].removeprefix("ses-"))
        last[rec["subject"]] = max(number, last.get(rec["subject"], 0))
    for subject, n_sessions in last.items():
        for number in range(1, n_sessions + 1):
            session = clean_session(number)
            path = trials_id({"subject": subject, "session": session})
            if not os.path.isfile(local_path(data_dir, path)):
                break
            yield path


def read_trial_table(data_dir: str, path: str) -> SessionTrials:
    """Return the trial table of a session, in the order of volumes."""
    file = local_path(data_dir, path)
    table = _read_tsv(file)
    needed = {"run", "beta_index", "label"}
    flaws = [f for f in table.flaws if f.columns is None or f.columns & needed]
    if absent := sorted(needed - {*table.names}):
        flaws.insert(0, Flaw(1, None, f"it has no column {listed(absent)}"))
    elif not table.columns[0]:
        flaws.append(Flaw(1, None, "it has a header, but no trials"))
    if not flaws:
        indices, labels = table.column("beta_index"), table.column("label")
        # Most tables have a row per volume in order, which is seen at once.
        is_in_order = indices == [*map(str, range(len(indices)))]
        if not (is_in_order and all(labels)):
            flaws = _flaws_of_trials(indices, labels)
    if flaws:
        line, named, text = flaws[0]
        column = f", column {min(named & needed)}" if named else ""
        raise CorruptImageError(
            f"The trial table {file} is broken (line {line}{column}: {text}). Fetch it "
            "again with mode='overwrite', or delete it."
        )
    runs = table.column("run")
    values = {run: _value(run) for run in {*runs}}
    columns: list[list[Any]] = [
        [*map(int, indices)],
        [values[run] for run in runs],
        labels,
    ]
    if not is_in_order:
        order = np.argsort(columns[0], kind="stable")
        columns = [[column[row] for row in order] for column in columns]
    return SessionTrials(record_of(path), *columns)


def _flaws_of_trials(indices: list[str], labels: list[str]) -> list[Flaw]:
    """Return the first row that is not that of a trial, if there is one."""
    lines: dict[str, int] = {}
    for line, (index, label) in enumerate(zip(indices, labels, strict=True), 2):
        column = "beta_index"
        if not (index.isascii() and index.isdigit()):
            text = f"{index!r} is not a whole number"
        elif lines.setdefault(index, line) != line:
            text = f"{index} is in line {lines[index]}, too"
        elif not label:
            column, text = "label", "it is missing"
        else:
            continue
        return [Flaw(line, frozenset({column}), text)]
    return []


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
    names, columns, flaws = _read_tsv(file)
    if names.count("participant_id") != 1:
        return {}, [Flaw(1, None, "it has no single column participant_id")]
    null = {(flaw.line, name) for flaw in flaws for name in flaw.columns or names}
    twice = {name for line, name in null if line == 1}
    participants: dict[str, dict[str, Any]] = {}
    first: dict[str, tuple[int, tuple[str, ...]]] = {}
    for line, row in enumerate(zip(*columns, strict=True), 2):
        cells = dict(zip(names, row, strict=True))
        subject = cells["participant_id"]
        subject = clean_subject(subject) or subject
        number, same = first.setdefault(subject, (line, row))
        if not any(row) or (number < line and same == row):
            continue
        if number < line:
            flaws.append(Flaw(line, None, f"{subject} is in line {number}, too"))
            null |= {(line, name) for name in names}
        participants[subject] = {
            f"participants_{name}" if name in OWN_FIELDS else name: (
                None if name in twice or (line, name) in null else _value(cell)
            )
            for name, cell in cells.items()
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
