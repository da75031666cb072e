"""Tables of trials, and the rows of them that show given images."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import counted, listed, warn

from .values import check_order

_MOST_NAMED = 3


def table_of(
    trials: Any, columns: Sequence[str], argument: str = "trials"
) -> pd.DataFrame:
    """Return a table of trials that has some columns; levels of its index count, too.

    Raises
    ------
    InvalidQueryError
        If it is something else, lacks a column, or has one twice.

    Examples
    --------
    >>> trials = pd.DataFrame({"label": ["b.jpg", "a.jpg"], "run": [1, 2]})
    >>> list(table_of(trials.set_index("label"), ["label"])["label"])
    ['b.jpg', 'a.jpg']
    """
    given = f"{argument} is a {type(trials).__name__}"
    advice = "give those of fetch_laion_fmri or load_betas"
    if not isinstance(trials, pd.DataFrame):
        raise InvalidQueryError(f"{given}, not a DataFrame; {advice}")
    if levels := [n for n in trials.index.names if n is not None and n not in trials]:
        trials = trials.reset_index(levels)
    if lacking := [name for name in columns if name not in trials]:
        names = ", ".join(map(repr, lacking))
        raise InvalidQueryError(f"{given} without a column {names}; {advice}")
    for name in columns:
        if trials[name].ndim > 1:
            raise InvalidQueryError(f"{given} with two columns {name!r}; drop one")
    return trials


def labels_of(trials: Any, argument: str = "trials") -> np.ndarray:
    """Return the label of each trial.

    Parameters
    ----------
    trials : pandas.DataFrame, Bunch or sequence of str
        A table with a column ``label`` (or ``image_name``), a Bunch that holds one as
        ``trials``, or labels.
    argument : str, default="trials"
        What it is called in messages.

    Returns
    -------
    numpy.ndarray of object, shape (n_trials,)

    Raises
    ------
    InvalidQueryError
        If it is something else, or a label is null.
    """
    labels = trials.get("trials", trials) if isinstance(trials, dict) else trials
    if isinstance(labels, pd.DataFrame):
        if labels is not trials:
            check_rows(trials)
        existing = {*labels, *labels.index.names}
        by_image = "image_name" in existing and "label" not in existing
        column = "image_name" if by_image else "label"
        labels = table_of(labels, [column], argument)[column]
    if isinstance(labels, (str, bytes, dict)) or not isinstance(labels, Iterable):
        raise InvalidQueryError(
            f"{argument} is a {type(labels).__name__}; give the trials of "
            "fetch_laion_fmri or load_betas, or labels of images"
        )
    check_order(labels, argument)
    names = np.fromiter(labels, dtype=object)
    for name in names:
        if not isinstance(name, str):
            raise InvalidQueryError(
                f"{argument} has the label {name!r}; labels are str"
            )
    return names


def check_rows(betas: Any) -> None:
    """Raise InvalidQueryError for betas that have not one row of data per trial."""
    shape: tuple[int, ...] = getattr(betas.get("data"), "shape", ())
    if "data" in betas and (len(shape) != 2 or shape[0] != len(betas["trials"])):
        raise InvalidQueryError(
            f"betas.data has the shape {shape}, and betas.trials "
            f"{counted(len(betas['trials']), 'row')}; both need one row per trial"
        )


def rows_with(labels: Any, trials: pd.DataFrame, name: str = "data") -> np.ndarray:
    """Return the positions of trials that show images, image by image.

    Parameters
    ----------
    labels : str or sequence of str
        Images, in the order that trials are wanted in. Each counts once.
    trials : pandas.DataFrame
        With a column ``label``.
    name : str, default="data"
        What holds the trials, for messages.

    Returns
    -------
    numpy.ndarray of int, shape (n_rows,)
        Positions, for ``trials.iloc``; trials of an image are in the order they have.

    Raises
    ------
    InvalidQueryError
        If labels are not str, there are none, or a label is that of no trial.

    Examples
    --------
    >>> trials = pd.DataFrame({"label": ["b.jpg", "a.jpg", "b.jpg", "c.jpg"]})
    >>> rows_with(["c.jpg", "b.jpg"], trials).tolist()
    [3, 0, 2]
    """
    if isinstance(labels, str):
        labels = [labels]
    given = labels_of(labels, "labels")
    chosen = list(dict.fromkeys(given))
    if not chosen:
        raise InvalidQueryError("labels is empty; name at least one image")
    if len(chosen) < len(given):
        warn(
            f"labels has {counted(len(given), 'name')} of "
            f"{counted(len(chosen), 'image')}. The trials of an image come together, "
            "once, whatever the order of its repeats in labels."
        )
    of_trials = labels_of(trials, f"the table of trials in {name}")
    positions_of(chosen, of_trials, f"trials of {name}")
    place = pd.Index(chosen, dtype=object).get_indexer(of_trials)
    order = np.argsort(place, kind="stable")
    return order[place[order] >= 0]


def positions_of(
    labels: Sequence[str] | np.ndarray, existing: Sequence[str] | np.ndarray, name: str
) -> np.ndarray:
    """Return where images are among those of a source; never -1.

    Parameters
    ----------
    labels : sequence of str
        Images that are wanted.
    existing : sequence of str
        Images of the source; of one that is named twice, the first counts.
    name : str
        The source, for messages: ``"embeddings"``.

    Returns
    -------
    numpy.ndarray of int, shape (n_labels,)

    Raises
    ------
    InvalidQueryError
        If the source lacks an image.

    Examples
    --------
    >>> positions_of(["b.jpg", "a.jpg", "b.jpg"], ["a.jpg", "b.jpg"], "captions")
    array([1, 0, 1])
    """
    first = {label: i for i, label in reversed(list(enumerate(existing)))}
    lacking = list(dict.fromkeys(label for label in labels if label not in first))
    if lacking:
        close = [
            near
            for label in lacking[:_MOST_NAMED]
            for near in difflib.get_close_matches(label, first, n=1, cutoff=0.6)
        ]
        hint = ""
        if close:
            names = " or ".join(map(repr, dict.fromkeys(close)))
            hint = f"; did you mean {names}?"
        raise InvalidQueryError(
            f"The {name} lack {counted(len(lacking), 'image')}: "
            f"{listed([repr(label) for label in lacking], _MOST_NAMED)}{hint}"
        )
    return np.array([first[label] for label in labels], dtype=np.intp)
