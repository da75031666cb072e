"""What a Bunch of files or of betas holds, in one form for tables and figures."""

from __future__ import annotations

import dataclasses
import os
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

# Values are read when they are needed: from a file, or per voxel of a mask image.
Source = str | tuple[np.ndarray, Any]
# The values of an image and its affine; of a surface, None for that.
Volume = tuple[np.ndarray, Any]

OTHER_SOURCE = "other"


class Roi(NamedTuple):
    """A mask of an ROI."""

    subject: str
    category: str
    name: str
    unit: str  # "voxels" or "vertices"
    source: Source


@dataclasses.dataclass
class Contents:
    """What a Bunch holds."""

    subjects: list[str]
    trials: pd.DataFrame
    rois: list[Roi]
    ceilings: dict[str, dict[str, Source]]  # of subjects, by name
    brains: dict[str, tuple[str, Source]]  # what ROIs are drawn on, and its name


def contents_of(data: Any) -> Contents:
    """Return what a Bunch holds: of a fetcher, or betas of one or several subjects.

    Raises
    ------
    InvalidQueryError
        If it is something else, or its files, records and trials do not correspond.
    """
    if isinstance(data, dict) and "subjects_meta" in data:
        return _contents_of_files(data)
    parts = parts_of(data)
    if not all(isinstance(betas, dict) and "roi_masks" in betas for betas in parts):
        raise InvalidQueryError(
            f"data is a {type(data).__name__} without subjects_meta or roi_masks; it "
            "must be what fetch_laion_fmri, fetch_laion_betas or load_betas returned"
        )
    contents = Contents([], parts[0].trials, [], {}, {})
    contents.trials = pd.concat([betas.trials for betas in parts], ignore_index=True)
    for betas in parts:
        check_rows(betas)
        subject, image = betas.trials["subject"].iloc[0], betas.mask_img
        contents.subjects.append(subject)
        # ROIs that were asked for; of the whole brain, those whose masks are on disk.
        names = list(betas.roi_masks) or [
            name
            for name, files in betas.roi_files.items()
            if all(map(os.path.exists, files))
        ]
        contents.rois += [
            Roi(subject, category, name, "voxels", (betas.roi_mask(name), image))
            for category, name in sorted((betas.roi_categories[n], n) for n in names)
        ]
        ceilings = betas.noise_ceilings.items()
        contents.ceilings[subject] = {name: (map_, image) for name, map_ in ceilings}
        ones = np.ones(betas.data.shape[1], np.float32)
        contents.brains[subject] = "voxels of betas", (ones, image)
        if "data_dir" in betas:
            contents.brains |= _anatomies(betas.data_dir, [subject])
    return contents


def parts_of(data: Any) -> list[Any]:
    """Return the Bunches of subjects in betas of several, else only what is given."""
    is_of_several = isinstance(data, dict) and data and "trials" not in data
    return list(data.values()) if is_of_several else [data]


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
            rec["absolute_path"],
        )
        for rec in records.values()
        if rec["roi"]
    ]
    brains = {
        subject: ("brain mask", file)
        for subject, file in data.brain_masks.items()
        if os.path.exists(file)
    }
    brains |= _anatomies(data.data_dir, subjects)
    rois.sort(key=lambda roi: roi[:3])
    return Contents(subjects, trials, rois, data.noise_ceilings, brains)


def _anatomies(data_dir: str, subjects: list[str]) -> dict[str, tuple[str, Source]]:
    """Return the anatomy on disk of each subject: T1w before T2w, and the sharpest."""
    wanted = [each for name in subjects for each in listings_of(name, [ANATOMICAL])]
    catalog = read_catalog(wanted, data_dir, mode="offline")
    files = catalog.records(catalog.on_disk, data_dir)
    files.sort(key=lambda rec: (rec["suffix"] == "T1w", rec["res"] is None))
    return {
        rec["subject"]: ("anatomy", rec["absolute_path"])
        for rec in files
        if rec["image_type"] == "anatomical"
    }


def read(source: Source) -> Volume | None:
    """Return the values of a source and their affine, None where it is not on disk."""
    if not isinstance(source, str):
        values, image = source
        inside = np.asarray(image.dataobj) > 0
        volume = np.zeros(inside.shape, values.dtype)
        volume[inside] = values
        return volume, image.affine
    is_known = source.endswith((*NIFTI_EXTENSIONS, GIFTI_EXTENSION))
    if not (is_known and os.path.exists(source)):
        return None
    if source.endswith(GIFTI_EXTENSION):
        gifti: Any = nib.load(source)
        return gifti.darrays[0].data, None
    header = read_header(source)
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
        subject: volume[0]
        for subject, sources in contents.ceilings.items()
        if ceiling in sources and (volume := read(sources[ceiling]))
    }
    rows = []
    for roi in contents.rois:
        n, values, mask = None, np.empty(0), read(roi.source)
        if mask:
            inside = mask[0] > 0
            n = int(inside.sum())
            # Masks of surfaces, and of the localizers' grid, are of another shape.
            if inside.shape == getattr(maps.get(roi.subject), "shape", None):
                values = maps[roi.subject][inside]
        values = values[np.isfinite(values)]
        quartiles = (
            np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else [None] * 3
        )
        rows.append((*roi[:4], n, *quartiles))
    columns = ["subject", "category", "name", "unit", "n", "low", "median", "high"]
    types: Any = {"n": "Int64", "low": float, "median": float, "high": float}
    return pd.DataFrame(rows, columns=columns).astype(types)


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
