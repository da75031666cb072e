"""What a Bunch of files or of betas holds, in one form for tables and figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.betas.rows import trials_of
from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.keys import GIFTI_EXTENSION, NIFTI_EXTENSIONS, is_nifti
from laion_fmri_fetchers.layout.labels import SOURCES
from laion_fmri_fetchers.layout.trees import ANATOMICAL, listings_of
from laion_fmri_fetchers.query.rows import check_rows
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

# The values of an image, and its affine; of a surface, None for that.
Volume = tuple[np.ndarray, Any]
Reader = Callable[[], Volume]

OTHER_SOURCE = "other"


class Roi(NamedTuple):
    """A mask of an ROI."""

    subject: str
    category: str
    name: str
    unit: str  # "voxels" or "vertices"
    read: Reader | None  # None where the mask is not on disk


class Contents(NamedTuple):
    """What a Bunch holds; images are read when they are needed."""

    subjects: list[str]
    trials: pd.DataFrame
    rois: list[Roi]
    ceilings: dict[str, dict[str, Reader | None]]  # of subjects, by name
    brains: dict[str, tuple[str, Reader]]  # what ROIs are drawn on, and its name


def contents_of(data: Any) -> Contents:
    """Return what a Bunch holds: of a fetcher, or betas of one or several subjects.

    Raises
    ------
    InvalidQueryError
        If it is something else, or its files, records and trials do not correspond.
    """
    if isinstance(data, dict) and "subjects_meta" in data:
        return _contents_of_files(data)
    if isinstance(data, dict) and "roi_masks" in data:
        return _contents_of_betas(data)
    each = list(data.values()) if isinstance(data, dict) else []
    if not each or not all(hasattr(betas, "roi_masks") for betas in each):
        raise InvalidQueryError(
            f"data is a {type(data).__name__} without subjects_meta or roi_masks; it "
            "must be what fetch_laion_fmri, fetch_laion_betas or load_betas returned"
        )
    parts = [_contents_of_betas(betas) for betas in each]
    return Contents(
        [name for part in parts for name in part.subjects],
        pd.concat([part.trials for part in parts], ignore_index=True),
        [roi for part in parts for roi in part.rois],
        {name: maps for part in parts for name, maps in part.ceilings.items()},
        {name: brain for part in parts for name, brain in part.brains.items()},
    )


def _contents_of_files(data: Bunch) -> Contents:
    trials = trials_of(data)
    subjects = [meta["subject"] for meta in data.subjects_meta]
    records = {rec["id"]: rec for rec in [*data.rois_meta, *data.images_meta]}
    rois = [
        Roi(
            rec["subject"],
            rec["roi_category"],
            " ".join(filter(None, (rec["roi"], rec["hemi"]))),
            "voxels" if is_nifti(rec) else "vertices",
            _reader(rec["absolute_path"]),
        )
        for rec in records.values()
        if rec["roi"]
    ]
    ceilings = {
        subject: {name: _reader(file) for name, file in maps.items()}
        for subject, maps in data.noise_ceilings.items()
    }
    brains = {
        subject: ("brain mask", reader)
        for subject, file in data.brain_masks.items()
        if (reader := _reader(file))
    }
    brains |= _anatomies(data.data_dir, subjects)
    return Contents(
        subjects, trials, sorted(rois, key=lambda r: r[:3]), ceilings, brains
    )


def _contents_of_betas(betas: Bunch) -> Contents:
    check_rows(betas)
    subject = betas.trials["subject"].iloc[0]
    inside = np.asarray(betas.mask_img.dataobj) > 0
    affine = betas.mask_img.affine

    def on_grid(values: np.ndarray) -> Volume:
        volume = np.zeros(inside.shape, dtype=values.dtype)
        volume[inside] = values
        return volume, affine

    # ROIs that were asked for; of the whole brain, those whose masks are on disk.
    names = list(betas.roi_masks) or [
        name
        for name, files in betas.roi_files.items()
        if all(map(os.path.exists, files))
    ]
    rois = [
        Roi(subject, category, name, "voxels", partial(on_grid, betas.roi_mask(name)))
        for category, name in sorted((betas.roi_categories[n], n) for n in names)
    ]
    ceilings: dict[str, Any] = {
        name: partial(on_grid, values) for name, values in betas.noise_ceilings.items()
    }
    voxels = partial(on_grid, np.ones(int(inside.sum()), np.float32))
    brains: dict[str, Any] = {subject: ("voxels of betas", voxels)}
    if "data_dir" in betas:
        brains |= _anatomies(betas.data_dir, [subject])
    return Contents([subject], betas.trials, rois, {subject: ceilings}, brains)


def _anatomies(data_dir: str, subjects: list[str]) -> dict[str, tuple[str, Reader]]:
    """Return the anatomy on disk of each subject: T1w before T2w, and the sharpest."""
    wanted = [each for name in subjects for each in listings_of(name, [ANATOMICAL])]
    catalog = read_catalog(wanted, data_dir, mode="offline")
    files = catalog.records(catalog.on_disk, data_dir)
    files.sort(key=lambda rec: (rec["suffix"] == "T1w", rec["res"] is None))
    return {
        rec["subject"]: ("anatomy", partial(_read_image, rec["absolute_path"]))
        for rec in files
        if rec["image_type"] == "anatomical"
    }


def _reader(file: str) -> Reader | None:
    is_known = file.endswith((*NIFTI_EXTENSIONS, GIFTI_EXTENSION))
    return partial(_read_image, file) if is_known and os.path.exists(file) else None


def _read_image(file: str) -> Volume:
    """Return the values of an image and its affine; of a surface, None for that."""
    if file.endswith(GIFTI_EXTENSION):
        gifti: Any = nib.load(file)
        return gifti.darrays[0].data, None
    header = read_header(file)
    # A volume is valid until the next step, which compares the checksum.
    (values,) = [scaled(header, v, np.float32).copy() for v in iter_volumes(header)]
    return values.reshape(header.shape, order="F"), header.affine


def default_ceiling(contents: Contents) -> str:
    """Return the noise ceiling to show: of all repeats, where that is there."""
    names = {name for maps in contents.ceilings.values() for name in maps}
    return next((n for n in ("Allrep", "12rep", "4rep") if n in names), "Allrep")


def roi_table(contents: Contents, ceiling: str) -> pd.DataFrame:
    """Return one row per mask: its size, and the noise ceiling of its voxels.

    Parameters
    ----------
    contents : Contents
        What a Bunch holds.
    ceiling : str
        Name of a noise ceiling.

    Returns
    -------
    pandas.DataFrame
        ``subject``, ``category``, ``name``, ``unit`` (voxels or vertices), ``n`` (null:
        not on disk), and quartiles ``low``, ``median``, ``high`` in percent (NaN: not
        known).

    Raises
    ------
    CorruptImageError
        If a mask or map on disk is damaged.
    """
    maps = {
        subject: read()[0]
        for subject, readers in contents.ceilings.items()
        if (read := readers.get(ceiling))
    }
    rows = []
    for roi in contents.rois:
        n, values = None, np.empty(0)
        if roi.read:
            mask = roi.read()[0] > 0
            n = int(mask.sum())
            # Masks of surfaces, and of the localizers' grid, are of another shape.
            if mask.shape == getattr(maps.get(roi.subject), "shape", None):
                values = maps[roi.subject][mask]
        values = values[np.isfinite(values)]
        quartiles = (
            np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else [None] * 3
        )
        rows.append((*roi[:4], n, *quartiles))
    columns = ["subject", "category", "name", "unit", "n", "low", "median", "high"]
    return pd.DataFrame(rows, columns=columns).astype(
        {"n": "Int64", "low": float, "median": float, "high": float}
    )


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
        One row per source and number of times an image is shown, one column per value;
        averages over several are in the column ``"several"``.

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
    times = n_reps.astype("Int64").astype("string").fillna("unknown") + " times"
    values = trials[by].astype("string").fillna("several").astype(object)
    counts = pd.crosstab([source, times.astype(object)], values)
    order = [*SOURCES, OTHER_SOURCE, "12 times", "4 times", "unknown times"]
    return counts.sort_index(
        key=lambda names: names.map(lambda name: [*order, name].index(name))
    )
