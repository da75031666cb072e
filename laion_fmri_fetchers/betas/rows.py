"""Which trials: those of fetched data, some of them, and images that subjects share."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.cache.tables import read_trial_table
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.layout.keys import is_of_trials
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.arguments import check_fetched, check_positive
from laion_fmri_fetchers.query.rows import table_of
from laion_fmri_fetchers.volumes import Header

from .store import digest_trials

# Columns that together identify a trial.
_TRIAL = ["subject", "session", "beta_index"]


def trials_of(data: Bunch) -> pd.DataFrame:
    """Return the trials of a fetched Bunch, checked to be those of its images.

    Raises
    ------
    InvalidQueryError
        If files, records or trials were changed such that they do not correspond.
    """
    check_fetched(data, "images_meta")
    advice = "change only data.trials, or use select_trials(data, trials)"
    for files in ("images", "rois"):
        n_files, n_records = len(data[files]), len(data[f"{files}_meta"])
        if n_files != n_records:
            raise InvalidQueryError(
                f"data.{files} has {counted(n_files, 'file')}, but data.{files}_meta "
                f"{counted(n_records, 'record')}; {advice}"
            )
        for file, meta in zip(data[files], data[f"{files}_meta"], strict=True):
            name = os.path.basename(meta.get("absolute_path", file))
            # Files of one's own, under other names, may stand for those of the dataset.
            given = os.path.basename(file)
            if given.startswith("sub-") and given != name:
                raise InvalidQueryError(
                    f"data.{files} has {file} where data.{files}_meta has the record "
                    f"of {name}; {advice}"
                )
    trials = table_of(data.trials, [*_TRIAL, "label", "image_index"], "data.trials")
    session_of = {
        i: (meta["subject"], meta["session"])
        for i, meta in enumerate(data.images_meta)
        if meta["image_type"] == "betas"
    }
    image, *own = (
        trials[name].astype(object).where(trials[name].notna(), None).tolist()
        for name in ("image_index", "subject", "session")
    )
    if [session_of.get(i) for i in image] != [*zip(*own, strict=True)]:
        raise InvalidQueryError(
            "data.trials has rows whose image_index is not that of the beta image of "
            f"their subject and session; {advice}"
        )
    return trials


def select_trials(data: Bunch, trials: pd.DataFrame) -> Bunch:
    """Return fetched data for some of their trials.

    ``images``, ``sample_masks`` and ``trials`` correspond in what is returned, as they
    do in what was fetched: maskers of nilearn give the rows of ``trials``.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`.
    trials : :class:`pandas.DataFrame`
        Rows of ``data.trials`` in any order, found by ``subject``, ``session``,
        ``beta_index`` and, where it is there, ``label``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        With the keys of ``data``. ``trials`` has these rows of ``data.trials``, in the
        order of images and of volumes within an image, and ``image_index`` of the
        images that are left; ``sample_masks`` has their volumes. Images of sessions
        without such a trial are left out of ``images`` and ``images_meta``; all else is
        that of ``data``.

    Raises
    ------
    InvalidQueryError
        If a row is not one of ``data.trials``, or there twice; if there are none, or
        what ``data`` holds does not correspond.

    See Also
    --------
    load_betas : Takes trials as they are, in any order.

    Examples
    --------
    ::

        data = fetch_laion_fmri("sub-01", sessions=[1, 2])
        ood = select_trials(data, data.trials[data.trials["dataset"] == "OOD"])
        masker.transform(ood.images[0], sample_mask=ood.sample_masks[0])
    """
    own = trials_of(data)
    if isinstance(trials, dict):
        trials = trials.get("trials", trials)
    wanted = table_of(trials, _TRIAL)
    keys = _TRIAL + [name for name in ("label",) if name in wanted]
    index, asked = (
        pd.MultiIndex.from_frame(table[keys].astype(object)) for table in (own, wanted)
    )
    for name, rows in (("data.trials", index), ("trials", asked)):
        if len(twice := rows[rows.duplicated()]):
            raise InvalidQueryError(
                f"{name} has {counted(len(twice), 'trial')} twice, such as "
                f"{twice[0]}; drop duplicates"
            )
    found = index.get_indexer(asked)
    if not len(found):
        raise InvalidQueryError("trials has no rows; give some of data.trials")
    if unknown := [str(trial) for trial in asked[found < 0]]:
        raise InvalidQueryError(
            f"trials has {counted(len(unknown), 'row')} that data.trials lacks: "
            f"{listed(unknown, 3)}; give rows of data.trials"
        )
    chosen = own.iloc[found].sort_values(["image_index", "beta_index"])
    sessions = {*zip(chosen["subject"], chosen["session"], strict=True)}
    kept = [
        i
        for i, meta in enumerate(data.images_meta)
        if not is_of_trials(meta) or (meta["subject"], meta["session"]) in sessions
    ]
    volumes = {
        i: part.to_numpy(np.int64)
        for i, part in chosen.groupby("image_index")["beta_index"]
    }
    part = copy.copy(data)
    part.images = [data.images[i] for i in kept]
    part.images_meta = [data.images_meta[i] for i in kept]
    part.sample_masks = [volumes.get(i) for i in kept]
    part.trials = chosen.assign(
        image_index=chosen["image_index"].map({i: at for at, i in enumerate(kept)})
    ).reset_index(drop=True)
    return part


def warn_of_order(each: Mapping[str, Any]) -> None:
    """Warn where rows of subjects show the same images, but row i not the same one."""
    first: dict[tuple, tuple[str, np.ndarray]] = {}
    others: dict[tuple, list[str]] = {}
    for name, betas in each.items():
        labels = betas["trials"]["label"].to_numpy(object)
        images = len(labels), frozenset(labels)
        _, expected = first.setdefault(images, (name, labels))
        if not np.array_equal(labels, expected):
            others.setdefault(images, []).append(name)
    for images, names in others.items():
        warn(
            f"Rows of {listed([first[images][0], *names])} show the same "
            f"{counted(len(images[1]), 'image')}, but row by row they do not "
            "correspond. With labels=shared_labels(...) and average_repeats=True, they "
            "do."
        )


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
        subjects = list(dict.fromkeys(str(subject) for subject, _ in counts))
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
    trials = table_of(trials, ["subject", "label"], "data")
    n_trials = trials.get("n_averaged", pd.Series(1, trials.index))
    counts = n_trials.groupby([trials["subject"], trials["label"]], sort=False).sum()
    subjects = list(trials["subject"].dropna().unique())
    if isinstance(source, dict):  # subjects that were asked for saw images, or none
        subjects += [meta["subject"] for meta in source.get("subjects_meta", ())]
    for subject in dict.fromkeys(subjects):
        is_subject = counts.index.get_level_values(0) == subject
        yield subject, counts[is_subject].droplevel(0)


class TrialTable(NamedTuple):
    """The trial table of a session, if it is on disk."""

    n_trials: int | None = None
    version: str = ""
    """Digest of its columns ``beta_index`` and ``label``."""
    labels: np.ndarray | None = None
    """The label of each ``beta_index``; None where the table has no such row."""

    def check(self, last: int, header: Header | None = None) -> None:
        """Raise where there is no such trial, or an image disagrees with the table.

        Parameters
        ----------
        last : int
            A ``beta_index``.
        header : Header, optional
            Of the image.

        Raises
        ------
        CorruptImageError
            If the image has another number of volumes.
        InvalidQueryError
            If there are fewer trials.
        """
        n_trials = last + 1 if self.n_trials is None else self.n_trials
        n_volumes = header.n_volumes if header else n_trials
        if last >= n_volumes or self.n_trials not in (None, n_volumes):
            if header and self.n_trials != n_volumes:
                raise CorruptImageError(
                    f"The image {header.file} has {n_volumes} volumes, but its trial "
                    f"table has {n_trials} trials. `laion-fmri-fetchers verify "
                    "--repair` fetches damaged files again."
                )
            raise InvalidQueryError(
                f"data.trials has a beta_index of {last}, but the trial table of their "
                f"session has {counted(n_trials, 'trial')}"
            )


def trial_tables(data_dir: str, metas: list[dict]) -> dict[str, TrialTable]:
    """Return the trial table of each session that has one on disk."""
    tables = {}
    for meta in metas:
        path = trials_id(meta)
        file = local_path(data_dir, path)
        if os.path.isfile(file):
            table = read_trial_table(data_dir, path)
            n_trials = table.beta_index[-1] + 1
            labels = np.full(n_trials, None, dtype=object)
            labels[table.beta_index] = table.label
            digest = digest_trials(table.beta_index, table.label)
            tables[meta["session"]] = TrialTable(n_trials, digest, labels)
    return tables


def average_trials(trials: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return the table of averages: a row per row, with ``n_averaged``.

    Parameters
    ----------
    trials : pandas.DataFrame
        Single trials.
    rows : numpy.ndarray of int
        The row of the average that each trial goes to.

    Examples
    --------
    >>> trials = pd.DataFrame({"label": ["a", "b", "a"], "run": [1, 1, 2]})
    >>> average_trials(trials, np.array([0, 1, 0]))
      label   run  n_averaged
    0     a  <NA>           2
    1     b     1           1
    """
    counts = np.bincount(rows)
    _, first = np.unique(rows, return_index=True)
    averaged = {}
    for name, column in trials.items():
        codes, _ = pd.factorize(column)
        differs = np.bincount(rows, codes != codes[first][rows]) > 0
        values = column.iloc[first].reset_index(drop=True)
        if values.dtype.kind == "i":
            values = values.astype("Int64")  # which has nulls
        averaged[name] = values.where(~differs, None)
    return pd.DataFrame({**averaged, "n_averaged": counts})
