"""Tables of a Bunch's content, for reports and figures; no socket is opened."""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.keys import (
    GIFTI_EXTENSION,
    Record,
    is_nifti,
    is_of_trials,
)
from laion_fmri_fetchers.layout.labels import SOURCES
from laion_fmri_fetchers.layout.trees import (
    ANATOMICAL,
    GLM,
    HELD_OUT,
    IMAGE_TYPES,
    ROIS,
    listings_of,
)
from laion_fmri_fetchers.query.arguments import check_fetched
from laion_fmri_fetchers.query.selection import choose_subjects
from laion_fmri_fetchers.volumes import Header, iter_volumes, read_header, scaled

CEILINGS = ("Allrep", "12rep", "4rep")
OTHER_SOURCE = "other"
STATES = (
    *("selected, on disk", "selected, not on disk"),
    *("on disk", "partly on disk", "in the bucket", "held out"),
)
"""States of a session."""

_SESSION_COLUMNS = ["subject", "session", "number", "state", "on_disk", "size"]
_ROI_COLUMNS = [
    *("subject", "category", "name", "n", "unit"),
    *("low", "median", "high"),
]


def subjects_of(data: Bunch, subjects: Any = None) -> list[str]:
    """Return the subjects of a Bunch that an argument names; None for all of them.

    Examples
    --------
    >>> data = Bunch(subjects_meta=[{"subject": "sub-01"}, {"subject": "sub-03"}])
    >>> subjects_of(data), subjects_of(data, 3)
    (['sub-01', 'sub-03'], ['sub-03'])
    """
    check_fetched(data, "subjects_meta")
    return choose_subjects(subjects, [meta["subject"] for meta in data.subjects_meta])


def sessions(data: Bunch) -> pd.DataFrame:
    """Return one row per session: on disk, and in the bucket by saved listings.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From a fetcher.

    Returns
    -------
    pandas.DataFrame
        ``subject``, ``session``, its ``number``, ``state`` (one of `STATES`),
        ``on_disk`` and ``size``: bytes on disk and in all (0 if held out). These are
        of the image types of sessions in ``images_meta``, or of betas. Resampled
        images do not count.
    """
    selected: dict[tuple[str, str], set[str]] = {}
    for rec in data.images_meta:
        if is_of_trials(rec):
            ids = selected.setdefault((rec["subject"], rec["session"]), set())
            ids.add(rec["id"])
    types = session_types(data)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    catalog = read_catalog(_listings(data), data.data_dir, mode="offline")
    for meta in data.subjects_meta:
        for session in meta["sessions"]:
            rows[meta["subject"], session] = _no_files()
    ids = {*catalog.objects, *catalog.on_disk}
    for rec in catalog.records(ids, data.data_dir):
        if is_of_trials(rec) and rec["subject"] in subjects_of(data):
            row = rows.setdefault((rec["subject"], rec["session"]), _no_files())
            if rec["image_type"] in types:
                on_disk = rec["id"] in catalog.on_disk
                size = rec["size"] or (_size_on_disk(rec) if on_disk else 0)
                row["size"] += size
                row["on_disk"] += size if on_disk else 0
                row["disk" if on_disk else "bucket"].add(rec["id"])
    table = []
    for (subject, session), row in sorted(rows.items()):
        state = _state(session, selected.get((subject, session)), row)
        size = 0 if state == "held out" else row["size"]
        number = int(session.removeprefix("ses-"))
        table.append((subject, session, number, state, row["on_disk"], size))
    return pd.DataFrame(table, columns=_SESSION_COLUMNS)


def session_types(data: Bunch) -> list[str]:
    """Return the image types of sessions in ``images_meta``; if none, betas."""
    types = {r["image_type"] for r in data.images_meta if is_of_trials(r)}
    return sorted(types) or ["betas"]


def listed_at(data: Bunch) -> float | None:
    """Return the time of the last listing, in seconds since 1970; None for never."""
    catalog = read_catalog(_listings(data), data.data_dir, mode="offline")
    return catalog.listed_at


def _listings(data: Bunch) -> list[tuple[str, str]]:
    """Return the ``(prefix, delimiter)`` listed for files of the types in a Bunch."""
    trees = {IMAGE_TYPES[name] for name in session_types(data)}
    trees |= {GLM, ROIS, ANATOMICAL}
    known_trees = sorted(tree for tree in trees if tree is not None)
    return [
        listing
        for subject in subjects_of(data)
        for listing in listings_of(subject, known_trees)
    ]


def _no_files() -> dict[str, Any]:
    return {"size": 0, "on_disk": 0, "disk": set(), "bucket": set()}


def _size_on_disk(rec: Record) -> int:
    return os.path.getsize(rec["absolute_path"])


def _state(session: str, selected: set[str] | None, row: dict[str, Any]) -> str:
    """Return the state of a session, one of `STATES`."""
    if selected:
        return STATES[0] if selected <= row["disk"] else STATES[1]
    if row["disk"]:
        return "partly on disk" if row["bucket"] else "on disk"
    return "held out" if session in HELD_OUT else "in the bucket"


def trial_counts(trials: pd.DataFrame, by: str) -> pd.DataFrame:
    """Count trials by source and repetition, and by a column.

    Parameters
    ----------
    trials : pandas.DataFrame
        ``trials`` of a Bunch.
    by : str
        Such as ``"session"``.

    Returns
    -------
    pandas.DataFrame
        One row per source and number of times an image is shown, one column per value.

    Examples
    --------
    >>> trials = {"session": ["ses-01", "ses-01"], "dataset": ["NSD", None]}
    >>> trials = pd.DataFrame({**trials, "n_reps": [4, None]})
    >>> trial_counts(trials, "session")["ses-01"].to_dict()
    {('NSD', '4 times'): 1, ('other', 'unknown times'): 1}
    """
    source = trials["dataset"].astype(object)
    source = source.where(source.isin(SOURCES), OTHER_SOURCE)
    n_reps = trials.get("n_reps", pd.Series(pd.NA, trials.index))
    times = n_reps.astype("Int64").astype("string").fillna("unknown")
    times = (times + " times").astype(object)
    counts = pd.crosstab([source, times], trials[by].astype(str))
    return counts.sort_index(key=_order, kind="stable")


def _order(level: pd.Index) -> pd.Index:
    order = [*SOURCES, OTHER_SOURCE, "12 times", "4 times"]
    return level.map(lambda name: order.index(name) if name in order else len(order))


def default_ceiling(data: Bunch) -> str:
    """Return the first of `CEILINGS` that a Bunch has."""
    names = {name for maps in data.noise_ceilings.values() for name in maps}
    return next((name for name in CEILINGS if name in names), CEILINGS[0])


def rois(data: Bunch, ceiling: str) -> pd.DataFrame:
    """Return one row per mask: its size, and the noise ceiling of its voxels.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From a fetcher; masks in ``images`` count too.
    ceiling : str
        Key of the subjects' ``noise_ceilings``.

    Returns
    -------
    pandas.DataFrame
        ``subject``, ``category``, ``name``, ``n`` (None: not on disk), ``unit``
        (voxels or vertices), and quartiles ``low``, ``median``, ``high`` in percent
        (NaN: not known).

    Raises
    ------
    CorruptImageError
        If a mask or map on disk is damaged.
    """
    maps: dict[str, tuple[Header, np.ndarray]] = {}
    for subject, files in data.noise_ceilings.items():
        if os.path.exists(files.get(ceiling, "")):
            maps[subject] = read_volume(files[ceiling])
    table = []
    for rec in roi_records(data):
        n, unit, inside = _mask(rec)
        quartiles = (np.nan,) * 3
        if inside is not None and rec["subject"] in maps:
            values = maps[rec["subject"]][1]
            if len(values) == len(inside):
                values = values[inside]
                values = values[np.isfinite(values)]
                if len(values):
                    quartiles = tuple(np.quantile(values, (0.25, 0.5, 0.75)))
        name = " ".join(filter(None, (rec["roi"], rec["hemi"])))
        table.append((rec["subject"], rec["roi_category"], name, n, unit, *quartiles))
    return pd.DataFrame(table, columns=_ROI_COLUMNS).astype({"n": "Int64"})


def roi_records(data: Bunch) -> list[Record]:
    """Return the records of all ROI masks of a Bunch."""
    for name in ("images", "rois"):
        metadata = data.get(f"{name}_meta", [])
        files = data.get(name, metadata)
        if len(files) != len(metadata):
            raise InvalidQueryError(
                f"data has {len(files)} {name} and {len(metadata)} {name}_meta; choose "
                "from both alike"
            )
    masks = {r["id"]: r for r in [*data.rois_meta, *data.images_meta] if r["roi"]}
    order = ("subject", "roi_category", "roi", "hemi", "extension")
    return sorted(masks.values(), key=lambda r: [r[name] or "" for name in order])


def is_volume(rec: Record) -> bool:
    """Return whether a file is a volume image that is on disk."""
    return is_nifti(rec) and os.path.exists(rec["absolute_path"])


def _mask(rec: Record) -> tuple[int | None, str, np.ndarray | None]:
    """Return the size of a mask, its unit, and of a volume its voxels."""
    if is_volume(rec):
        inside = read_volume(rec["absolute_path"])[1] > 0
        return int(inside.sum()), "voxels", inside
    unit = "voxels" if is_nifti(rec) else "vertices"
    if rec["extension"] == GIFTI_EXTENSION and os.path.exists(rec["absolute_path"]):
        gifti: Any = nib.load(rec["absolute_path"])
        return int((gifti.darrays[0].data > 0).sum()), unit, None
    return None, unit, None


def read_volume(file: str) -> tuple[Header, np.ndarray]:
    """Read a 3-D image: its header and values, the first axis varying fastest."""
    header = read_header(file)
    values = np.empty(0, dtype=np.float32)
    for volume in iter_volumes(header):
        values = np.array(scaled(header, volume, np.float32))
    return header, values
