"""Where results come from: versions of files, and a paragraph for a paper."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import platform
import re
from importlib.metadata import version
from typing import Any

from laion_fmri_fetchers import __version__
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.messages import counted

_SOFTWARE = ("nibabel", "numpy", "pandas")

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
    record = record or {}
    inside = os.path.relpath(file, data_dir) if file else ""
    name = file if inside.startswith("..") else inside.replace(os.sep, "/")
    name = record.get("id") or name
    if record.get("etag"):
        return name, record["etag"]
    try:
        stat = os.stat(file)
    except OSError:
        size, date = record.get("size"), record.get("last_modified")
        return name, f"{size} bytes, {date}" if size and date else None
    changed = dt.datetime.fromtimestamp(int(stat.st_mtime), dt.timezone.utc)
    return name, f"{stat.st_size} bytes, {changed.isoformat()}"


def describe_methods(data: dict[str, Any]) -> str:
    """Return a paragraph for a paper on fetched data, or betas loaded from them.

    Parameters
    ----------
    data : dict
        Of betas ``versions``, of fetched data records; and ``trials``, ``query``.
    """
    query, trials = data.get("query", {}), data["trials"]
    metas = [*data.get("images_meta", ()), *data.get("rois_meta", ())]
    versions = data.get("versions") or dict(
        version_on_disk(meta["absolute_path"], data["data_dir"], meta) for meta in metas
    )
    sessions: dict[str, set[str]] = {name: set() for name in trials["subject"].unique()}
    # Of averages, trials do not tell the sessions; the names of files do.
    pairs = re.findall(r"(sub-[0-9A-Za-z]+)[/_](ses-[0-9]+)", " ".join(versions))
    pairs += [(meta["subject"], meta["session"]) for meta in metas if meta["session"]]
    for subject, session in pairs:
        sessions.setdefault(subject, set()).add(session)
    whose = "; ".join(
        f"{subject} ({counted(len(names), 'session')}: {_join_runs(sorted(names))})"
        if names
        else subject
        for subject, names in sorted(sessions.items())
    )
    is_betas = "roi_masks" in data
    kinds = {"betas"} if is_betas else {m["image_type"] for m in data["images_meta"]}
    what = "single-trial fMRI responses (betas of GLMsingle)"
    if kinds != {"betas"}:
        what = f"files of the types {', '.join(sorted(kinds)) or 'none'}"
    text = [
        "Data are from LAION-fMRI (https://laion-fmri.hebartlab.com; 7T, CC0 1.0): "
        f"{what} of {whose or 'no subject'}."
    ]
    rois = data["roi_masks"] if is_betas else {m["roi"] for m in data["rois_meta"]}
    if query.get("resolution"):
        text.append(
            f"Images were resampled to {query['resolution']:g} mm "
            f"(interpolation: {query['interpolation']})."
        )
    if rois:
        text.append(f"Regions of interest: {', '.join(sorted(rois))}.")
    if is_betas:
        n_voxels = len(data["coordinates"])
        least, name = query.get("nc_threshold"), query.get("noise_ceiling")
        above = "" if least is None else f", of a noise ceiling ({name}) >= {least:g} %"
        mask = ", within a mask of our own" if query.get("mask_img") else ""
        text.append(f"Analyses include {counted(n_voxels, 'voxel')}{above}{mask}.")
    if len(trials):
        n_trials = int(
            trials["n_averaged"].sum() if "n_averaged" in trials else len(trials)
        )
        n_images = trials["label"].nunique()
        named = ", chosen by name" if query.get("labels") else ""
        text.append(
            f"{counted(n_trials, 'trial')} of {counted(n_images, 'image')}{named}."
        )
    done = [_STANDARDIZED.get(query.get("standardize") or "")]
    done += ["averaged over the repeats of an image"] * bool(
        query.get("average_repeats")
    )
    if any(done):
        text.append(f"Responses were {' and '.join(filter(None, done))}.")
    filters = [
        f"{name} = {json.dumps(value, default=str)}"
        for name, value in query.items()
        if name.endswith("_filter") and value
    ]
    if filters:
        text.append(f"Filters: {'; '.join(filters)}.")
    digest = hashlib.sha256(json.dumps(sorted(versions.items())).encode()).hexdigest()
    text.append(
        f"Version of the data: {counted(len(versions), 'file')} whose ids and ETags "
        f"have the SHA-256 {digest[:16]}."
    )
    software = ", ".join(f"{name} {version(name)}" for name in _SOFTWARE)
    text.append(
        f"Software: laion_fmri_fetchers {__version__} on Python "
        f"{platform.python_version()}, {software}."
    )
    uses_ceiling = is_betas and query.get("nc_threshold") is not None
    text.append(f"{_CITE}{_CITE_CEILING if uses_ceiling else ''}.")
    return " ".join(text)


def _join_runs(names: list[str]) -> str:
    """Return names in a sentence; of consecutive sessions the first and the last.

    Examples
    --------
    >>> _join_runs(["ses-01", "ses-02", "ses-03", "ses-07", "ses-4BarScreenfLoc"])
    'ses-01 to ses-03, ses-07, ses-4BarScreenfLoc'
    """
    runs: list[list[str]] = []
    for name in names:
        last = runs[-1][-1] if runs else ""
        numbers = [part.partition("-")[2] for part in (last, name)]
        is_next = (
            all(map(str.isdigit, numbers)) and int(numbers[1]) == int(numbers[0]) + 1
        )
        if is_next:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs
    )
