"""load_betas: from fetched data to an array of trials x voxels."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.layout.grids import is_resampled
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import check_verbose, only_its_arguments
from laion_fmri_fetchers.query.rows import labels_of, rows_with
from laion_fmri_fetchers.query.selection import choose_subjects, is_one_name
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.volumes import Header

from .methods import version_on_disk
from .result import make_betas, read_betas
from .rows import TrialTable, average_trials, trial_tables, trials_of, warn_of_order
from .session import Holes, RowOptions, count_finite, lazy_rows, read_session
from .store import find_stored, session_folder
from .voxels import VoxelChoice, Voxels, cached_header, find_voxels, on_grid


class Workers(NamedTuple):
    """How sessions are read."""

    n_jobs: int | None
    verbose: int
    is_lazy: bool
    """Whether dask reads them, when the result is computed."""


class _Session(NamedTuple):
    """Betas of a session, and the trials chosen of it."""

    image: str
    source: str | Path
    """The image, or the folder of its version in the voxel store."""
    positions: np.ndarray
    """Positions of its trials among those of the subject."""
    volumes: np.ndarray
    """The volume of each of its trials."""


@only_its_arguments
def load_betas(
    data: Bunch | str | os.PathLike,
    subjects: str | int | Sequence[str | int] | None = None,
    rois: str | Sequence[str] = "fetched",
    *,
    mask_img: Any = None,
    nc_threshold: float | None = None,
    noise_ceiling: str = "Allrep",
    labels: Sequence[str] | None = None,
    standardize: str | None = None,
    average_repeats: bool = False,
    dtype: Any = "float32",
    as_dask: bool = False,
    n_jobs: int | None = 1,
    verbose: int = 1,
) -> Bunch:
    """Load single-trial betas as an array of trials x voxels.

    Voxels of the voxel store are taken from it. Otherwise each image is read in one
    pass, a volume at a time, and only the voxels and trials asked for are kept: memory
    is needed for the result and little else.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`, str or path
        From `fetch_laion_fmri`. Trials are those in ``data.trials``, of which rows
        may have been removed or reordered. Or a file that ``betas.save`` wrote, without
        other arguments: the betas as they were saved.
    subjects : str, int, or several, optional
        ``"sub-01"``, ``"01"`` or 1; needed where ``data`` holds betas of several, whose
        voxels do not correspond. A list or ``"all"``: each of them by itself.
    rois : str or sequence of str, default="fetched"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``),
        ``"V1"``, ``"V2"`` or ``"V3"`` for dorsal and ventral part, or several of
        them; ``"fetched"`` or ``"all"``: all ROIs in ``data``; ``"brain"``: all voxels.
    mask_img : Niimg-like, optional
        Only voxels in this mask: a path or a 3-D image on the grid of the betas, of 0
        (or NaN) and one other value. They must lie in ``rois``, too; with
        ``rois="brain"``, all of the mask is taken.
    nc_threshold : float, optional
        Only voxels whose noise ceiling is at least this, in percent (0 to 100).
    noise_ceiling : {"Allrep", "12rep", "4rep"}, default="Allrep"
        Which of the noise ceilings in ``data`` the threshold is for.
    labels : str or sequence of str, optional
        Only trials of these images, in this order; the trials of an image in theirs.
        With `shared_labels` and ``average_repeats=True``, rows of several subjects
        correspond; the number of trials of an image may differ. None: all trials.
    standardize : {None, "zscore", "zscore_sample"}, default=None
        Z-score each voxel within each session, over all of the session's trials,
        selected or not; with the deviation of the population or of a sample.
    average_repeats : bool, default=False
        Average the trials of each label, after standardizing.
    dtype : dtype, default="float32"
        Floating point type of the result.
    as_dask : bool, default=False
        Return ``data`` as a dask array with a chunk per session, which is read when it
        is computed; not with ``average_repeats``.
    n_jobs : int, default=1
        Threads, each of which reads a session; -1: as many as there are processors.
    verbose : int, default=1
        0: silent; 1: what is read, and a progress bar.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``data``: :class:`numpy.ndarray` of shape (n_trials, n_voxels). Values that
          are not finite on disk are 0, and count in no statistic.
        - ``trials``: :class:`pandas.DataFrame`, one row per row of ``data``. Where
          repeats are averaged, one per label in order of first appearance, with
          ``n_averaged``; values that differ between repeats are null.
        - ``mask_img``: :class:`nibabel.nifti1.Nifti1Image`, the voxels that are the
          columns, such that ``nilearn.masking.unmask(data, mask_img)`` puts them back.
        - ``coordinates``: float64 array of shape (n_voxels, 3), the centres of the
          voxels in mm, in the space of ``mask_img``.
        - ``roi_masks``: dict, ROI name -> bool array of shape (n_voxels,), of the ROIs
          asked for.
        - ``roi_files``, ``roi_categories``: dict, ROI name -> list of mask files, and
          its category, of all ROIs in ``data``.
        - ``noise_ceilings``: dict, ``"4rep"``, ``"12rep"``, ``"Allrep"`` -> float32
          array of shape (n_voxels,), in percent.
        - ``groups``: dict, ``"session"`` and ``"label"`` -> array of str of shape
          (n_trials,), for ``groups=`` of scikit-learn's cross-validation, also by a
          `.StimulusSplit`; ``"session"`` is left out where repeats of several are
          averaged.
        - ``query``: dict, what was asked: that of ``data``, with the arguments of this
          call.
        - ``data_dir``, ``description``: those of ``data``.
        - ``versions``: dict, id -> ETag of the files that this was taken from, or size
          and date where there is none.

        With a list of subjects or ``"all"``, a Bunch of such Bunches: subject -> its
        betas.

        It has methods:

        - ``to_img(values)``: a value per voxel, or rows of them, as a 3-D or 4-D image.
        - ``roi_mask(rois)``: bool array of shape (n_voxels,), of an ROI, a category,
          ``"V1"``, ``"V2"`` or ``"V3"``, or several of these, also of ROIs in ``data``
          that were not asked for.
        - ``noise_ceiling(n_repeats, noise_ceiling="Allrep")``: percent per voxel, for
          averages of any number of trials, or (``"averaged"``) for those in ``data``;
          derived from the published map.
        - ``to_xarray()``: an ``xarray.DataArray`` of trials x voxels, with the
          columns of ``trials``, coordinates, ROI masks and noise ceilings.
        - ``methods()``: a paragraph for a paper, on what this is and what to cite.
        - ``save(path)``: all of these keys in one file, for ``load_betas(path)``.
        - ``copy()``.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, a mask is on another grid or has more than two
        values, no voxel is left, or ``data`` holds no trial, or none of a label; if a
        later version of this package saved the file.
    NotCachedError
        If a file is not on disk.
    CorruptImageError
        If an image is damaged, or its trial table disagrees with it; if a file of saved
        betas is damaged, or something else.
    MemoryError
        If the result is larger than the free memory; nothing is read then.

    Warns
    -----
    UserWarning
        If ``mask_img`` is given, and not ``rois``, and voxels of it lie in no ROI; if
        no voxel of an ROI is left; if rows of subjects show the same images in
        different orders.

    See Also
    --------
    fetch_laion_fmri : Fetch the images.
    shared_labels : The images that all subjects saw.
    normalized_score : Explained variance as a share of the noise ceiling.
    LaionDataset : Betas and stimuli, trial by trial.

    Notes
    -----
    Where the last volume of a compressed image is not needed, reading stops early, and
    the checksum at its end is not compared.

    Values from the voxel store, if neither z-scored nor averaged, are in Fortran order:
    the trials of a voxel lie side by side, as they do in the store.

    Examples
    --------
    Face-selective regions, z-scored, one row per image::

        data = fetch_laion_fmri("sub-01", rois="face", sessions=range(1, 5))
        betas = load_betas(data, standardize="zscore", average_repeats=True)
        betas.data[:, betas.roi_masks["FFA1"]]

    The same again, from one file::

        betas.save("face.npz")
        betas = load_betas("face.npz")

    All sessions on a dask cluster, whose workers see the data directory::

        betas = load_betas(data, standardize="zscore", as_dask=True)
        means = betas.data.mean(axis=0).compute()
    """
    given = dict(locals())
    if isinstance(data, (str, os.PathLike)):
        for name, parameter in inspect.signature(load_betas).parameters.items():
            value, default = given[name], parameter.default
            is_default = type(value) is type(default) and value == default
            if name not in ("data", "verbose") and not is_default:
                raise InvalidQueryError(
                    f"{name} is for betas that are read from images; of the saved "
                    f"betas {os.fspath(data)}, choose rows and columns of data"
                )
        return read_betas(data)
    trials = trials_of(data)
    data = Bunch(**{**data, "trials": trials})
    options = check_options(standardize, average_repeats, dtype)
    choice = VoxelChoice(rois, mask_img, nc_threshold, noise_ceiling)
    workers = Workers(n_jobs, check_verbose(verbose), bool(as_dask))
    names = subjects_in(data, subjects)
    if subjects is None and len(names) > 1:
        raise InvalidQueryError(
            f"data holds betas of several subjects ({listed(names)}), whose voxels do "
            f"not correspond; choose one, as in subjects={names[0]!r}, or load each by "
            "itself with subjects='all'"
        )
    betas = {}
    for name in names:
        voxels = find_voxels(data, name, choice, grid_of(data, name))
        betas[name] = load_voxels(data, name, voxels, labels, options, workers)
    if subjects is None or is_one_name(subjects):
        return betas[names[0]]
    warn_of_order(betas)
    return Result(**betas)


def load_voxels(
    data: Bunch,
    subject: str,
    voxels: Voxels,
    labels: Any,
    options: RowOptions,
    workers: Workers,
    tables: Mapping[str, TrialTable] | None = None,
) -> Bunch:
    """Load the betas of a subject at voxels that were found; see `load_betas`.

    ``tables`` are the trial tables by session, where they were read already.
    """
    trials = data.trials[data.trials["subject"] == subject]
    if not len(trials):
        raise InvalidQueryError(
            f"No trial of {subject} is selected, so there are no betas to load; choose "
            "other sessions, or change trial_filter"
        )
    if labels is not None:
        trials = trials.iloc[rows_with(labels, trials, subject)]
    sessions = _find_sessions(data, subject, trials, voxels, tables)
    trials = trials.reset_index(drop=True)
    rows = np.arange(len(trials))
    if options.average:
        rows, _ = pd.factorize(labels_of(trials))
        shown = trials[["session", "beta_index"]]
        if repeated := int(shown.duplicated().sum()):
            raise InvalidQueryError(
                f"data.trials has {counted(repeated, 'trial')} twice, which would "
                "count as repeats; drop duplicates"
            )
    # Sums and statistics of half precision would be wrong, or overflow.
    kind = np.promote_types(options.dtype, np.float32)
    exact = options._replace(dtype=kind.name)
    positions = np.flatnonzero(voxels.mask)
    if workers.is_lazy:
        values = lazy_rows(sessions, positions, exact)
    else:
        _check_memory((rows.max() + 1) * len(positions) * kind.itemsize)
        tell(
            f"Reading {counted(len(trials), 'trial')} of {subject} at "
            f"{counted(len(positions), 'voxel')}",
            workers.verbose,
        )
        values = _read(sessions, positions, rows, exact, workers)
    if options.average:
        trials = average_trials(trials, rows)
    return make_betas(
        values.astype(options.dtype, copy=False),
        trials,
        voxels.mask,
        voxels.grid.affine,
        roi_masks=voxels.roi_masks,
        roi_files=voxels.roi_files,
        roi_categories=voxels.roi_categories,
        noise_ceilings=voxels.noise_ceilings,
        query=_query(data, subject, voxels, labels, options),
        data_dir=data.data_dir,
        description=data.get("description", ""),
        versions=_versions(data, subject, voxels, sessions),
    )


def check_options(standardize: Any, average_repeats: Any, dtype: Any) -> RowOptions:
    """Return how values become rows.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid.
    """
    if standardize not in (None, "zscore", "zscore_sample"):
        raise InvalidQueryError(
            f"standardize is {standardize!r}; it must be None, 'zscore' or "
            "'zscore_sample'"
        )
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind != "f":
        raise InvalidQueryError(
            f"dtype is {dtype!r}; it must be a floating point type such as 'float32'"
        )
    if not isinstance(average_repeats, (bool, np.bool_)):
        raise InvalidQueryError(
            f"average_repeats is {average_repeats!r}; it must be True (all repeats of "
            "an image) or False"
        )
    return RowOptions(standardize, bool(average_repeats), kind.name)


def subjects_in(data: Bunch, subjects: Any = None) -> list[str]:
    """Return the subjects whose betas are meant; None for all that ``data`` has."""
    existing = sorted(
        {meta["subject"] for meta in data.images_meta if meta["image_type"] == "betas"}
    )
    if not existing:
        raise InvalidQueryError(
            "data holds no betas. Fetch them with image_type='betas', which is the "
            "default, and a selection that is not empty."
        )
    return choose_subjects(subjects, existing)


def grid_of(data: Bunch, subject: str) -> Header:
    """Return the header of an image whose grid the betas of a subject are on.

    Where the voxel store stands for the images, it is that of a mask.
    """
    for file, meta in zip(data.images, data.images_meta, strict=True):
        if meta["image_type"] == "betas" and meta["subject"] == subject:
            store = session_folder(data.data_dir, subject, meta["session"])
            if os.path.exists(file) or is_resampled(meta) or not store.exists():
                return cached_header(file)
    return cached_header(data.brain_masks[subject])


def _find_sessions(
    data: Bunch,
    subject: str,
    trials: pd.DataFrame,
    voxels: Voxels,
    tables: Mapping[str, TrialTable] | None,
) -> list[_Session]:
    """Return where the trials of a subject are, checked against the trial tables."""
    # A merge of tables may have made them floats, and nulls.
    numbers = pd.to_numeric(trials["beta_index"], errors="coerce")
    indices = numbers.to_numpy(np.float64, na_value=np.nan)
    if not ((indices % 1 == 0) & (indices >= 0)).all():
        raise InvalidQueryError(
            "data.trials has a beta_index that is not a whole number from 0 on"
        )
    image_of_trial = trials["image_index"].to_numpy(np.intp)
    label_of_trial = trials["label"].to_numpy(object)
    needed = [(i, data.images_meta[i]) for i in np.unique(image_of_trial).tolist()]
    if tables is None:
        tables = trial_tables(data.data_dir, [meta for _, meta in needed])
    flat = np.flatnonzero(voxels.mask)
    sessions, n_others = [], 0
    for i, meta in needed:
        image, table = data.images[i], tables.get(meta["session"], TrialTable())
        positions = np.flatnonzero(image_of_trial == i)
        volumes = indices[positions].astype(np.int64)
        last, source = int(volumes.max()), None
        # What is stored is on the dataset's own grid, and of a trial table.
        if table.version and not is_resampled(meta):
            record = {**meta, "absolute_path": image}
            source = find_stored(data.data_dir, record, flat, table.version)
        if source:
            table.check(last)
        else:
            header = cached_header(image)
            table.check(last, header)
            if not on_grid(header.shape, header.affine, voxels.grid):
                raise CorruptImageError(
                    f"The image {image} is not on the grid of {voxels.grid.file}, of "
                    "the same subject."
                )
        if table.labels is not None:
            published = table.labels[volumes]
            differs = published != label_of_trial[positions]
            n_others += int((differs & (published != np.array(None))).sum())
        sessions.append(_Session(image, source or image, positions, volumes))
    if n_others:
        warn(
            f"data.trials has labels of {subject} that are not those of the trial "
            f"table of their session, in {counted(n_others, 'row')}."
        )
    return sessions


def _read(
    sessions: list[_Session],
    voxels: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    workers: Workers,
) -> np.ndarray:
    """Read sessions, several at once, into one array; trial i goes to rows[i]."""
    is_copied = not (options.standardize or options.average) and all(
        isinstance(session.source, Path) for session in sessions
    )
    # As the store has them, the trials of a voxel side by side: no copy is transposed.
    order: Any = "F" if is_copied else "C"
    out = np.zeros((rows.max() + 1, len(voxels)), options.dtype, order)
    # Threads must not add to the same row.
    is_summed = options.average and len(sessions) > 1

    def read(session: _Session) -> tuple[np.ndarray, np.ndarray, Holes]:
        own, local = np.unique(rows[session.positions], return_inverse=True)
        sums = np.zeros((len(own), len(voxels)), options.dtype) if is_summed else out
        places = local if is_summed else rows[session.positions]
        source, volumes = session.source, session.volumes
        holes = read_session(source, voxels, volumes, places, options, sums)
        if is_summed:
            holes = {own[row]: found for row, found in holes.items()}
        return own, sums, holes

    parallel = joblib.Parallel(
        workers.n_jobs, require="sharedmem", return_as="generator"
    )
    holes: Holes = {}
    with Progress(len(sessions), out.nbytes, workers.verbose, "sessions") as progress:
        results = parallel(joblib.delayed(read)(session) for session in sessions)
        # In order, whichever is read first, so that sums are the same each time.
        for n_done, (own, sums, found) in enumerate(results, 1):
            for row, values in zip(own, sums, strict=True) if is_summed else ():
                out[row] += values
            for row, voxels_of_trials in found.items() if options.average else ():
                holes.setdefault(row, []).extend(voxels_of_trials)
            progress.show(n_done, out.nbytes * n_done // len(sessions))
    if options.average:
        for row, n_trials in enumerate(np.bincount(rows)):
            n_finite = count_finite(n_trials, holes.get(row), len(voxels))
            out[row] /= np.maximum(n_finite, 1)
    return out


def _check_memory(needed: int) -> None:
    """Raise MemoryError for a result that does not fit, before anything is read."""
    import psutil  # type: ignore[import-untyped]

    free = psutil.virtual_memory().available
    # A batch job may use less than the machine has. Its control group and each of those
    # above have a limit of their own; pages of files count as used, but give way.
    try:
        with open("/proc/self/cgroup") as stream:
            group = next(line[3:].strip() for line in stream if line[:3] == "0::")
    except (OSError, StopIteration):
        group = ""
    while group:
        folder = "/sys/fs/cgroup" + group.rstrip("/")
        try:
            with open(f"{folder}/memory.max") as stream:
                limit = int(stream.read())  # or "max", where there is none
            with open(f"{folder}/memory.stat") as stream:
                used = dict(line.split() for line in stream)
            free = min(free, limit - int(used["anon"]) - int(used["shmem"]))
        except (OSError, ValueError):
            pass
        group = group.rpartition("/")[0]
    if needed > free:
        raise MemoryError(
            f"The result needs {readable_size(needed)}, and {readable_size(free)} are "
            "free. Take fewer voxels (rois, nc_threshold, mask_img) or fewer trials "
            "(sessions, trial_filter, average_repeats)."
        )


def _query(
    data: Bunch, subject: str, voxels: Voxels, labels: Any, options: RowOptions
) -> dict[str, Any]:
    """Return what was asked, in plain values."""
    rois, mask_img, nc_threshold, noise_ceiling = voxels.choice
    asked = data.get("query", {})
    if isinstance(rois, str):
        rois = asked.get("rois", "all") if rois in ("fetched", "all") else [rois]
    if mask_img is not None and not isinstance(mask_img, (str, os.PathLike)):
        mask_img = getattr(mask_img, "get_filename", str)() or "an image in memory"
    if labels is not None:
        labels = [labels] if isinstance(labels, str) else list(map(str, labels))
    return {
        **asked,
        "subjects": subject,
        "rois": rois if isinstance(rois, str) else list(rois),
        "mask_img": None if mask_img is None else os.fspath(mask_img),
        "nc_threshold": None if nc_threshold is None else float(nc_threshold),
        "noise_ceiling": str(noise_ceiling),
        "labels": labels,
        "standardize": options.standardize,
        "average_repeats": options.average,
        "dtype": options.dtype,
    }


def _versions(
    data: Bunch, subject: str, voxels: Voxels, sessions: list[_Session]
) -> dict[str, str]:
    """Return id -> version of the files that the betas were taken from."""
    paths = [*data.images, *data.rois]
    metas = [*data.images_meta, *data.rois_meta]
    records = dict(zip(paths, metas, strict=True))
    images = [session.image for session in sessions]
    tables = [local_path(data.data_dir, trials_id(records[file])) for file in images]
    masks = [file for roi in voxels.roi_masks for file in voxels.roi_files[roi]]
    maps = data.noise_ceilings.get(subject, {}).values()
    brain = [data.brain_masks[subject]] if subject in data.brain_masks else []
    versions = {}
    for file in [*images, *tables, *masks, *brain, *maps]:
        name, version = version_on_disk(file, data.data_dir, records.get(file))
        if version:
            versions[name] = version
    return versions
