"""The tables of trials and of participants, read anew at each call."""

from __future__ import annotations

import os
import re
from collections.abc import Set
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


def _read_tsv(file: str) -> tuple[dict[str, list[str]], list[Flaw]]:
    """Return the columns of a table of tab-separated values, and what is wrong in it.

    Blanks and quotation marks around cells are no part of them. Of a name that several
    columns have, there is none.
    """
    text = decoded(Path(file).read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    if any(edge in text for edge in ('"', " \t", "\t ", " \n", "\n ")):
        text = re.sub('[ "]*([\t\n])[ "]*', r"\1", text)
    header, *lines = text.strip('\n "').split("\n")
    names, rows = header.split("\t"), [line.split("\t") for line in lines]
    flaws = []
    twice = frozenset(name for name in names if name and names.count(name) > 1)
    if twice:
        flaws.append(Flaw(1, twice, f"several columns are {listed(sorted(twice))}"))
    # Most tables are whole, and 150 of them are read in a call.
    is_whole = "\0" not in text and {*map(len, rows)} <= {len(names)}
    for number, row in enumerate([] if is_whole else rows, 2):
        while len(row) > len(names) and not row[-1]:
            row.pop()
        if len(row) > len(names):
            found = f"it has more cells than columns, {len(row)} cells"
            flaws.append(Flaw(number, None, found))
        elif absent := frozenset(names[len(row) :]) - {""}:
            flaws.append(Flaw(number, absent, "it ends early"))
        row[len(names) :] = [""] * (len(names) - len(row))
        damaged = {n for n, cell in zip(names, row, strict=True) if "\0" in cell}
        if damaged:
            flaws.append(Flaw(number, frozenset(damaged), "it has a NUL byte"))
    columns = {
        name: [row[place] for row in rows]
        for place, name in enumerate(names)
        if name and name not in twice
    }
    return columns, flaws


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
    # Repetitions are counted over all earlier sessions, whose tables are read, too.
    needed = {path: _tables_until(path) for path in ids}
    missing = {
        path
        for path in set().union(*needed.values())
        if not os.path.isfile(local_path(data_dir, path))
    }
    complete = {path: n for path, n in needed.items() if missing.isdisjoint(n)}
    names = "subject", "session", "run", "beta_index", "label", "image_index", "known"
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for path in sorted(asked.keys() | set().union(*complete.values())):
        rec, indices, runs, labels = read_trial_table(data_dir, path)
        columns["subject"] += [rec["subject"]] * len(labels)
        columns["session"] += [rec["session"]] * len(labels)
        columns["run"] += runs
        columns["beta_index"] += indices
        columns["label"] += labels
        columns["image_index"] += [asked.get(path, -1)] * len(labels)
        columns["known"] += [path in complete] * len(labels)
    # Of type object, as pandas else has texts of another type by its version.
    frame = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()})
    kinds = {"beta_index": np.int64, "image_index": np.int64, "known": bool}
    if {*map(type, columns["run"])} <= {int}:
        kinds["run"] = np.int64
    frame = frame.astype(kinds)
    codes, distinct = pd.factorize(frame["label"].to_numpy())
    of_labels = pd.DataFrame(
        map(label_values, distinct), columns=LABEL_FIELDS, dtype=object
    )
    of_labels = of_labels.astype({"n_reps": "Int64"}).take(codes)
    frame[[*LABEL_FIELDS]] = of_labels.set_axis(frame.index)
    shown = frame.groupby([frame["subject"], codes], sort=False).cumcount() + 1
    frame["repetition"] = shown.astype("Int64").where(frame["known"])
    frame = frame.loc[frame["image_index"] >= 0, [*TRIAL_FIELDS]]
    return frame.sort_values("image_index", kind="stable", ignore_index=True)


def _tables_until(path: str) -> list[str]:
    """Return the trial tables of a subject up to the one with an id."""
    rec = record_of(path)
    numbers = range(1, int(rec["session"].removeprefix("ses-")) + 1)
    return [trials_id(rec | {"session": clean_session(n)}) for n in numbers]


def read_trial_table(data_dir: str, path: str) -> SessionTrials:
    """Return the trial table of a session, in the order of volumes."""
    file = local_path(data_dir, path)
    columns, flaws = _read_tsv(file)
    needed = ("beta_index", "run", "label")
    flaws = [f for f in flaws if f.columns is None or not f.columns.isdisjoint(needed)]
    if absent := [name for name in needed if name not in columns]:
        flaws.append(Flaw(1, None, f"it has no column {listed(absent)}"))
    indices, runs, labels = (columns.get(name, []) for name in needed)
    if not labels:
        flaws.append(Flaw(1, None, "it has a header, but no trials"))
    lines: dict[int, int] = {}
    are_numbers = all(map(str.isdecimal, indices))
    is_right = are_numbers and len({*map(int, indices)}) == len(indices) and all(labels)
    rows = [] if is_right else zip(indices, labels, strict=False)
    for line, (index, label) in enumerate(rows, 2):
        if not index.isdecimal():
            found = "beta_index", f"{index!r} is not a whole number"
        elif lines.setdefault(int(index), line) != line:
            found = "beta_index", f"{index} is in line {lines[int(index)]}, too"
        elif not label:
            found = "label", "it is missing"
        else:
            continue
        flaws.append(Flaw(line, frozenset({found[0]}), found[1]))
    if flaws:
        line, named, text = min(flaws, key=lambda flaw: flaw.line)
        column = f", column {min(named.intersection(needed))}" if named else ""
        raise CorruptImageError(
            f"The trial table {file} is broken (line {line}{column}: {text}). Fetch it "
            "again with mode='overwrite', or delete it."
        )
    values = {run: _value(run) for run in {*runs}}
    trials = sorted(zip(map(int, indices), runs, labels, strict=True))
    return SessionTrials(
        record_of(path),
        [index for index, _, _ in trials],
        [values[run] for _, run, _ in trials],
        [label for _, _, label in trials],
    )


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
    columns, flaws = _read_tsv(file)
    if "participant_id" not in columns:
        return {}, [Flaw(1, None, "it has no single column participant_id")]
    participants: dict[str, dict[str, Any]] = {}
    first: dict[str, int] = {}
    names = columns.pop("participant_id")
    for line, (name, *cells) in enumerate(
        zip(names, *columns.values(), strict=True), 2
    ):
        if not any((name, *cells)):
            continue
        wrong = [flaw.columns or columns.keys() for flaw in flaws if flaw.line == line]
        null = set().union(*wrong)
        described = {
            f"participants_{field}" if field in OWN_FIELDS else field: (
                None if field in null else _value(cell)
            )
            for field, cell in zip(columns, cells, strict=True)
        }
        subject = clean_subject(name) or name
        if participants.setdefault(subject, described) != described:
            found = f"{subject} is in line {first[subject]}, too"
            flaws.append(Flaw(line, None, found))
            participants[subject] = dict.fromkeys(described)
        first.setdefault(subject, line)
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
