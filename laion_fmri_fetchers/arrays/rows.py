"""Trials by the images they show: labels of trials, rows of labels, shared labels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.arguments import check_positive

_MOST_NAMED = 3


def labels_of(trials: Any) -> np.ndarray:
    """Return the label of each trial.

    Parameters
    ----------
    trials : pandas.DataFrame, Bunch or sequence of str
        A table with a column ``label`` (or ``image_name``), a Bunch that holds one as
        ``trials``, or labels.

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
        column = next((c for c in ("label", "image_name") if c in labels), None)
        if column is None:
            raise InvalidQueryError(
                "trials is a DataFrame without a column 'label'; give those of "
                "fetch_laion_fmri or load_betas"
            )
        labels = labels[column]
    if isinstance(labels, (str, bytes, dict)) or not isinstance(labels, Iterable):
        raise InvalidQueryError(
            f"trials is a {type(labels).__name__}; give the trials of fetch_laion_fmri "
            "or load_betas, or labels of images"
        )
    names = np.fromiter(labels, dtype=object)
    for name in names:
        if not isinstance(name, str):
            raise InvalidQueryError(f"trials has the label {name!r}; labels are str")
    return names


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
    chosen = list(dict.fromkeys(labels_of(labels)))
    if not chosen:
        raise InvalidQueryError("labels is empty; name at least one image")
    of_trials = labels_of(trials)
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


def shared_labels(data: Any, *others: Any, min_repeats: int = 1) -> list[str]:
    """Return the images that all subjects saw.

    Parameters
    ----------
    data, *others : :class:`sklearn.utils.Bunch` or :class:`pandas.DataFrame`
        What `fetch_laion_fmri` or `load_betas` returned, or ``trials`` of it; a list of
        these, or a dict as of ``load_betas(data, subjects="all")``. An image counts if
        every subject of every argument saw it: halves of a subject's sessions can be
        two arguments.
    min_repeats : int, default=1
        The least number of trials of an image in each subject and argument; of averages
        the trials that were averaged.

    Returns
    -------
    list of str
        Labels in alphabetical order, for ``labels=`` of `load_betas`.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid.

    Warns
    -----
    UserWarning
        If there is no such image.

    See Also
    --------
    load_betas : Load the trials of these images, in this order.

    Examples
    --------
    >>> import pandas as pd
    >>> trials = pd.DataFrame({
    ...     "subject": ["sub-01", "sub-01", "sub-01", "sub-03", "sub-03"],
    ...     "label": ["b.jpg", "a.jpg", "b.jpg", "b.jpg", "a.jpg"],
    ... })
    >>> shared_labels(trials)
    ['a.jpg', 'b.jpg']
    >>> shared_labels(trials.iloc[:4])
    ['b.jpg']
    >>> shared_labels(trials.iloc[:3], min_repeats=2)
    ['b.jpg']
    """
    check_positive(min_repeats, "min_repeats", whole=True)
    counts = [
        count for source in (data, *others) for count in _counts_by_subject(source)
    ]
    if not counts:
        raise InvalidQueryError("data holds no trials, so no image was seen")
    seen = [{*count.index[count >= min_repeats]} for _, count in counts]
    shared = sorted(set.intersection(*seen))
    if not shared:
        subjects = list(dict.fromkeys(subject for subject, _ in counts))
        times = f" {min_repeats} times or more" if min_repeats > 1 else ""
        warn(f"No image was seen{times} by all of {listed(subjects, len(subjects))}.")
    return shared


def _counts_by_subject(source: Any) -> Iterator[tuple[str, pd.Series]]:
    """Yield each subject of a source, and how often it saw each image."""
    if isinstance(source, (list, tuple)):
        for part in source:
            yield from _counts_by_subject(part)
        return
    if isinstance(source, dict) and "trials" not in source:
        for part in source.values():
            yield from _counts_by_subject(part)
        return
    trials = source["trials"] if isinstance(source, dict) else source
    if not isinstance(trials, pd.DataFrame) or not {"subject", "label"} <= {*trials}:
        raise InvalidQueryError(
            f"shared_labels takes what fetch_laion_fmri or load_betas returned, or "
            f"trials of it; a {type(trials).__name__} was given"
        )
    n_trials = trials.get("n_averaged", pd.Series(1, trials.index))
    counts = n_trials.groupby([trials["subject"], trials["label"]], sort=False).sum()
    subjects = list(trials["subject"].dropna().unique())
    if isinstance(source, dict):  # subjects that were asked for saw images, or none
        subjects += [meta["subject"] for meta in source.get("subjects_meta", ())]
    for subject in dict.fromkeys(subjects):
        is_subject = counts.index.get_level_values(0) == subject
        yield subject, counts[is_subject].droplevel(0)
