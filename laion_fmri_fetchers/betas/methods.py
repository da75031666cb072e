"""Where results come from: versions of files, and a paragraph for a paper."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from itertools import groupby

import pandas as pd

from laion_fmri_fetchers import __version__
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.messages import counted
from laion_fmri_fetchers.remote.bucket import iso_date

_STANDARDIZED = {
    "zscore": "z-scored within each session, over all of its trials (standard "
    "deviation of the population)",
    "zscore_sample": "z-scored within each session, over all of its trials (standard "
    "deviation of a sample)",
}

_CITE = (
    "To cite: the dataset as its page, https://laion-fmri.hebartlab.com, asks for; "
    "GLMsingle, of which the betas are: Prince et al. (2022), eLife 11:e77599, "
    "https://doi.org/10.7554/eLife.77599"
)
_CITE_CEILING = (
    "; noise ceilings: Allen et al. (2022), Nature Neuroscience 25:116-126, "
    "https://doi.org/10.1038/s41593-021-00962-x"
)


class FetchedData(Result):
    """The Bunch of `fetch_laion_fmri`, or of what was loaded from it."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), "copy", "methods"})

    def methods(self) -> str:
        """Return a paragraph for a paper on what these data are, and what to cite.

        Returns
        -------
        str
            Subjects, sessions, regions, trials, filters, and the versions of data and
            software.
        """
        is_betas, query, trials = "roi_masks" in self, self["query"], self["trials"]
        if is_betas:
            versions, kinds, rois = self["versions"], {"betas"}, {*self["roi_masks"]}
        else:
            records = [*self["images_meta"], *self["rois_meta"]]
            versions = dict(version_on_disk("", "", record) for record in records)
            kinds = {record["image_type"] for record in self["images_meta"]}
            rois = {record["roi"] for record in self["rois_meta"]}
        what = "single-trial fMRI responses (betas of GLMsingle)"
        if kinds != {"betas"}:
            what = f"files of the types {', '.join(sorted(kinds)) or 'none'}"
        text = [
            "Data are from LAION-fMRI (https://laion-fmri.hebartlab.com; 7T, CC0 1.0): "
            f"{what} of {_describe_sessions(versions)}."
        ]
        if query.get("resolution"):
            text.append(
                f"Images were resampled to {query['resolution']:g} mm "
                f"(interpolation: {query['interpolation']})."
            )
        if rois:
            text.append(f"Regions of interest: {', '.join(sorted(rois))}.")
        least = query.get("nc_threshold")
        if is_betas:
            name, n_voxels = query.get("noise_ceiling"), len(self["coordinates"])
            above = (
                "" if least is None else f", of a noise ceiling ({name}) >= {least:g} %"
            )
            mask = ", within a mask of our own" if query.get("mask_img") else ""
            text.append(f"Analyses include {counted(n_voxels, 'voxel')}{above}{mask}.")
        if len(trials):
            n_averaged = trials.get("n_averaged", pd.Series(1, trials.index))
            n_trials = int(n_averaged.sum())
            n_images = counted(trials["label"].nunique(), "image")
            named = ", chosen by name" if query.get("labels") else ""
            text.append(f"{counted(n_trials, 'trial')} of {n_images}{named}.")
        done = [_STANDARDIZED[query["standardize"]]] if query.get("standardize") else []
        if query.get("average_repeats"):
            done.append("averaged over the repeats of an image")
        if done:
            text.append(f"Responses were {' and '.join(done)}.")
        filters = [
            f"{name} = {json.dumps(value, default=str)}"
            for name, value in query.items()
            if name.endswith("_filter") and value
        ]
        if filters:
            text.append(f"Filters: {'; '.join(filters)}.")
        digest = hashlib.sha256(json.dumps(sorted(versions.items())).encode())
        packages = ("nibabel", "numpy", "pandas")
        text += [
            f"Version of the data: {counted(len(versions), 'file')} whose ids and "
            f"ETags have the SHA-256 {digest.hexdigest()[:16]}.",
            f"Software: laion_fmri_fetchers {__version__} on Python "
            f"{platform.python_version()}, "
            f"{', '.join(f'{name} {version(name)}' for name in packages)}.",
            f"{_CITE}{_CITE_CEILING if is_betas and least is not None else ''}.",
        ]
        return " ".join(text)


def version_on_disk(
    file: str, data_dir: str, record: Record | None = None
) -> tuple[str, str | None]:
    """Return the id of a file, and its version: the ETag, or else size and date.

    Parameters
    ----------
    file : str
        The path; it need not exist if there is a record.
    data_dir : str
        The data directory; a file elsewhere has its path as an id.
    record : dict, optional
        The file's record.

    Examples
    --------
    >>> version_on_disk("", "", {"id": "a.tsv", "etag": "d41d8cd9"})
    ('a.tsv', 'd41d8cd9')
    """
    about: Record = record or {}
    path = os.path.relpath(file, data_dir).replace(os.sep, "/") if file else ""
    name = about.get("id") or (file if path.startswith("..") else path)
    if about.get("etag"):
        return name, about["etag"]
    if os.path.exists(file):
        stat = os.stat(file)
        return name, f"{stat.st_size} bytes, {iso_date(stat.st_mtime)}"
    if about.get("size") and about.get("last_modified"):
        return name, f"{about['size']} bytes, {about['last_modified']}"
    return name, None


def _describe_sessions(ids: Iterable[str]) -> str:
    """Return the subjects and sessions of files, as part of a sentence.

    Examples
    --------
    >>> _describe_sessions(f"sub-01/ses-0{n}/func/bold.nii.gz" for n in (1, 2, 3, 7))
    'sub-01 (4 sessions: ses-01 to ses-03, ses-07)'
    """
    sessions: dict[str, set[int]] = {}
    for subject, number in re.findall(r"(sub-\w+?)/ses-(\d+)/", "\n".join(ids)):
        sessions.setdefault(subject, set()).add(int(number))
    texts = []
    for subject, numbers in sorted(sessions.items()):
        # Of consecutive numbers, the difference from their place is the same.
        runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
        ends = [[f"ses-{n:02}" for _, n in run] for _, run in runs]
        names = [" to ".join(dict.fromkeys((run[0], run[-1]))) for run in ends]
        number = counted(len(numbers), "session")
        texts.append(f"{subject} ({number}: {', '.join(names)})")
    return "; ".join(texts) or "no session"
