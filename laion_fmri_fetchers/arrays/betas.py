"""load_betas: from fetched images to an array of trials x voxels.

The steps::

    load_betas ──▶ _load, of each subject
    _load ─┬─ rows.rows_with ────▶ the trials of images asked for, in their order
           ├─ _sessions ─────────▶ beta images, and the trials chosen of each
           ├─ voxels.find_voxels ▶ Voxels: the columns of the array
           ├─ _read ─────────────▶ the array: session.read_session for each image,
           │                       by joblib's workers, into shared memory
           ├─ _averaged_trials ──▶ the table of the array's rows
           └─ result.make_betas ─▶ the Bunch, with its methods

One volume at a time is in memory; statistics are gathered on the way, in float64.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import joblib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.cache.tables import read_trial_table
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.grids import is_resampled
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import check_verbose, only_its_arguments
from laion_fmri_fetchers.query.selection import choose_subjects, is_one_name
from laion_fmri_fetchers.volumes import Header, read_header

from .kept import keeper, kept_nowhere
from .progress import Progress, WatchedParallel
from .result import Rows, make_betas, read_betas
from .rows import labels_of, rows_with, trials_of, warn_of_order
from .session import (
    RowOptions,
    SessionRows,
    Target,
    count_finite,
    pack_mask,
    read_session,
)
from .voxel_store import StoredSession, find_stored, session_folder
from .voxels import Signature, VoxelChoice, Voxels, find_voxels, on_grid, signature


class _Session(NamedTuple):
    """Betas of a session, and the trials chosen of it."""

    source: Signature | StoredSession
    """The image, or its voxels in the store."""
    positions: np.ndarray
    """Positions of its trials among those of the subject."""
    volumes: np.ndarray
    """The volume of each of its trials."""


class Workers(NamedTuple):
    """How sessions are read at once."""

    n_jobs: int | None
    cached: Callable
    """Makes a function keep its results; `kept_nowhere` where they are not kept."""
    verbose: int
    is_lazy: bool
    """Whether dask reads them, when the result is computed."""


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
    memory: Any = None,
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
        Images read at once, through joblib: threads, or what
        :func:`joblib.parallel_config` says. -1: as many as there are processors.
    memory : :class:`joblib.Memory`, str or path, optional
        Where to keep results: the same call does not read the images again, unless
        they changed.
    verbose : int, default=1
        0: silent, 1: what is read, and a progress bar over sessions; more: joblib's
        messages, too.

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

        With a list of subjects or ``"all"``, a Bunch of such Bunches: subject -> its
        betas.

        It has methods:

        - ``to_img(values)``: a value per voxel, or rows of them, as a 3-D or 4-D image.
        - ``roi_mask(name)``: bool array of shape (n_voxels,), of an ROI, a category or
          ``"V1"``, ``"V2"``, ``"V3"``, also of ROIs in ``data`` that were not asked
          for.
        - ``noise_ceiling(n_repeats, noise_ceiling="Allrep")``: percent per voxel, for
          averages of any number of trials, or (``"averaged"``) for those in ``data``;
          derived from the published map.
        - ``save(path)``: everything in one file, for ``load_betas(path)``.
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

        with joblib.parallel_config("dask"):
            betas = load_betas(data, nc_threshold=10, n_jobs=-1)
    """
    given = dict(locals())
    if isinstance(data, (str, os.PathLike)):
        _refuse_choices(given)
        return read_betas(data)
    trials = trials_of(data)
    data = Bunch(**{**data, "trials": trials})
    options = check_options(standardize, average_repeats, dtype)
    choice = VoxelChoice(rois, mask_img, nc_threshold, noise_ceiling)
    workers = Workers(n_jobs, keeper(memory), check_verbose(verbose), bool(as_dask))
    names = subjects_in(data, subjects)
    if subjects is None and len(names) > 1:
        raise InvalidQueryError(
            f"data holds betas of several subjects ({listed(names)}), whose voxels do "
            f"not correspond; choose one, as in subjects={names[0]!r}, or load each by "
            "itself with subjects='all'"
        )
    betas = {
        name: _load(data, name, choice, labels, options, workers) for name in names
    }
    if subjects is None or is_one_name(subjects):
        return betas[names[0]]
    warn_of_order(betas)
    return Result(**betas)


def _refuse_choices(given: dict[str, Any]) -> None:
    """Raise for an argument that saved betas cannot follow."""
    for name, parameter in inspect.signature(load_betas).parameters.items():
        value, default = given[name], parameter.default
        is_default = type(value) is type(default) and value == default
        if name not in ("data", "verbose") and not is_default:
            raise InvalidQueryError(
                f"{name} is for betas that are read from images; of the saved betas "
                f"{os.fspath(given['data'])}, choose rows and columns of data"
            )


def _load(
    data: Bunch,
    subject: str,
    choice: VoxelChoice,
    labels: Any,
    options: RowOptions,
    workers: Workers,
) -> Bunch:
    """Load the betas of a subject."""
    grid = grid_of(data, subject)
    voxels = find_voxels(data, subject, choice, grid, workers.cached)
    return load_voxels(data, subject, (voxels, grid), labels, options, workers)


def load_voxels(
    data: Bunch,
    subject: str,
    where: tuple[Voxels, Header],
    labels: Any,
    options: RowOptions,
    workers: Workers,
) -> Bunch:
    """Load the betas of a subject at voxels that were found, on their grid."""
    voxels, grid = where
    trials = data.trials[data.trials["subject"] == subject]
    if not len(trials):
        raise InvalidQueryError(
            f"No trial of {subject} is selected, so there are no betas to load; choose "
            "other sessions, or change trial_filter"
        )
    if labels is not None:
        trials = trials.iloc[rows_with(labels, trials, subject)]
    sessions = _sessions(data, subject, trials, voxels, grid)
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
    n_rows, n_voxels = rows.max(initial=-1) + 1, int(np.count_nonzero(voxels.mask))
    # Sums and statistics of half precision would be wrong, or overflow.
    kind = np.promote_types(options.dtype, np.float32)
    options, dtype = options._replace(dtype=kind.name), options.dtype
    if workers.is_lazy:
        lazy = _lazy(sessions, voxels.mask, options).astype(dtype)
        return make_betas(Rows(lazy, trials), voxels, grid.affine)
    _check_memory(n_rows * n_voxels * kind.itemsize)
    tell(
        f"Reading {counted(len(trials), 'trial')} of {subject} at "
        f"{counted(n_voxels, 'voxel')}",
        workers.verbose,
    )
    betas = _read(sessions, voxels.mask, rows, options, workers)
    if options.average:
        trials = _averaged_trials(trials, rows)
    betas = betas.astype(dtype, copy=False)
    return make_betas(Rows(betas, trials), voxels, grid.affine)


def check_options(standardize: Any, average_repeats: bool, dtype: Any) -> RowOptions:
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


def _sessions(
    data: Bunch, subject: str, trials: pd.DataFrame, voxels: Voxels, grid: Header
) -> list[_Session]:
    """Return the sessions of a subject, checked against their trial tables."""
    image_of_trial = trials["image_index"].to_numpy(np.intp)
    volume_of_trial = _whole_numbers(trials["beta_index"])
    metas = [
        (i, meta)
        for i, meta in enumerate(data.images_meta)
        if meta["image_type"] == "betas" and meta["subject"] == subject
    ]
    tables = trial_tables(data.data_dir, [meta for _, meta in metas])
    flat = np.flatnonzero(voxels.mask)
    sessions = []
    n_others = 0
    for i, meta in metas:
        positions = np.flatnonzero(image_of_trial == i)
        volumes = volume_of_trial[positions]
        table = tables.get(meta["session"], TrialTable(None, None))
        last = volumes.max(initial=-1)
        if table.labels is not None:
            published = table.labels.reindex(volumes)
            others = published.to_numpy() != trials["label"].iloc[positions].to_numpy()
            n_others += int((others & published.notna().to_numpy()).sum())
        source: Signature | StoredSession | None
        source = None
        if not is_resampled(meta):  # the store has the grid of the dataset
            source = find_stored(
                data.data_dir,
                {**meta, "absolute_path": data.images[i]},
                flat,
                table.version,
            )
        if source is not None and (
            table.n_trials not in (None, source.origin.n_trials)
            or last >= source.origin.n_trials
        ):
            source = None
        if source is None:
            header = _header(data.images[i])
            _check_image(header, grid, table.n_trials, last)
            source = signature(data.images[i])
        sessions.append(_Session(source, positions, volumes))
    if n_others:
        warn(
            f"data.trials has labels of {subject} that are not those of the trial "
            f"table of their session, in {counted(n_others, 'row')}."
        )
    return sessions


def _whole_numbers(indices: pd.Series) -> np.ndarray:
    """Return indices of volumes, which a merge of tables may have made floats."""
    try:
        floats = np.asarray(indices, np.float64)
    except (TypeError, ValueError):
        floats = np.full(len(indices), np.nan)
    if not (np.isfinite(floats) & (floats == np.rint(floats)) & (floats >= 0)).all():
        raise InvalidQueryError(
            "data.trials has a beta_index that is not a whole number from 0 on"
        )
    return floats.astype(np.int64)


def _check_image(header: Header, grid: Header, n_trials: int | None, last: int) -> None:
    """Raise where an image disagrees with its trial table, or with other files."""
    n = header.n_volumes if n_trials is None else n_trials
    if n_trials == header.n_volumes <= last:
        raise InvalidQueryError(
            f"data.trials has a beta_index of {last}, but the trial table has "
            f"{counted(n_trials, 'trial')}, as has the image {header.file}"
        )
    if n != header.n_volumes or last >= header.n_volumes:
        raise CorruptImageError(
            f"The image {header.file} has {header.n_volumes} volumes, but its "
            f"trial table has {max(n, last + 1)} trials. "
            "`laion-fmri-fetchers verify --repair` fetches damaged files again."
        )
    if not on_grid(header.shape, header.affine, grid):
        raise CorruptImageError(
            f"The image {header.file} is not on the grid of {grid.file}, of the "
            "same subject."
        )


def grid_of(data: Bunch, subject: str) -> Header:
    """Return the header of an image whose grid the betas of a subject are on.

    Where the voxel store stands for the images, it is that of a mask.
    """
    grid = None
    for file, meta in zip(data.images, data.images_meta, strict=True):
        if meta["image_type"] != "betas" or meta["subject"] != subject:
            continue
        store = session_folder(data.data_dir, subject, meta["session"])
        if os.path.exists(file) or is_resampled(meta) or not store.exists():
            grid = grid or _header(file)
    return grid or _header(data.brain_masks[subject])


def _header(file: str) -> Header:
    try:
        return read_header(file)
    except FileNotFoundError as error:
        raise NotCachedError(
            f"{file} is not on disk. Fetch it by the call that made data, without "
            "dry_run."
        ) from error


class TrialTable(NamedTuple):
    """The trial table of a session, as it is on disk."""

    n_trials: int | None
    version: str | None
    """Its MD5."""
    labels: pd.Series | None = None
    """The label of each ``beta_index``."""


def trial_tables(data_dir: str, metas: list[dict]) -> dict[str, TrialTable]:
    """Return the trial table of each session that has one on disk."""
    tables = {}
    for meta in metas:
        path = trials_id(meta)
        if os.path.isfile(local_path(data_dir, path)):
            _, volumes, _, labels = read_trial_table(data_dir, path)
            tables[meta["session"]] = TrialTable(
                max(len(labels), volumes[-1] + 1),
                _version(data_dir, path),
                pd.Series(labels, index=volumes, dtype=object),
            )
    return tables


def _version(data_dir: str, path: str) -> str | None:
    """Return the MD5 of a trial table; None where it is not on disk."""
    try:
        with open(local_path(data_dir, path), "rb") as stream:
            content = stream.read()
    except OSError:
        return None
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _check_memory(needed: int) -> None:
    free = _free_memory()
    if needed > free:
        raise MemoryError(
            f"The result needs {readable_size(needed)}, and {readable_size(free)} are "
            "free. Take fewer voxels (rois, nc_threshold, mask_img) or fewer trials "
            "(sessions, trial_filter, average_repeats)."
        )


def _free_memory() -> int:
    """Return the bytes that this process can still use, within its job's limits."""
    import psutil  # type: ignore[import-untyped]

    free = psutil.virtual_memory().available
    try:
        with open("/proc/self/cgroup") as stream:
            group = next(line[3:].strip() for line in stream if line[:3] == "0::")
    except (OSError, StopIteration):
        return free
    while group:
        free = min(free, _left_in("/sys/fs/cgroup" + group.rstrip("/")))
        group = group.rpartition("/")[0]
    return free


def _left_in(folder: str) -> int:
    """Return the bytes left to a control group; 2**63 where it has no limit."""
    try:
        with open(f"{folder}/memory.max") as stream:
            limit = int(stream.read())
        with open(f"{folder}/memory.stat") as stream:
            used = {name: int(value) for name, value in map(str.split, stream)}
    except (OSError, ValueError):
        return 2**63
    return limit - used["anon"] - used["shmem"]


def _read(
    sessions: list[_Session],
    mask: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    workers: Workers,
) -> np.ndarray:
    """Read sessions, several at once, into one array; trial i goes to rows[i].

    Threads and processes of this machine write into it. Workers elsewhere, and a
    cache, return rows, and so do all where rows are averages, over sessions too.
    """
    shape = rows.max(initial=-1) + 1, int(np.count_nonzero(mask))
    sessions = [session for session in sessions if len(session.positions)]
    backend, _ = joblib.parallel.get_active_backend(prefer="threads")
    progress = Progress(len(sessions), "session", workers.verbose)
    parallel = WatchedParallel(
        progress,
        n_jobs=workers.n_jobs,
        prefer="threads",
        return_as="generator" if backend.supports_return_generator else "list",
        verbose=max(workers.verbose - 2, 0),
    )
    read = joblib.delayed(workers.cached(read_session))
    packed_mask = pack_mask(mask)
    rows_of = [np.unique(rows[session.positions]) for session in sessions]
    returns_rows = options.average or workers.cached is not kept_nowhere or not sessions
    holes: dict[int, list[np.ndarray]] = {}
    # As the store has them: the trials of a voxel side by side.
    is_copied = not options.standardize and all(
        isinstance(session.source, StoredSession) for session in sessions
    )
    memory = _memory(shape, options.dtype, is_copied, None if returns_rows else backend)
    with memory as (out, shared), progress:
        parts = parallel(
            read(
                session.source,
                packed_mask,
                mask.shape,
                session.volumes,
                np.searchsorted(own_rows, rows[session.positions]),
                options,
                None if shared is None else Target(shared, own_rows),
            )
            for session, own_rows in zip(sessions, rows_of, strict=True)
        )
        for part, own_rows in zip(parts, rows_of, strict=True):
            if shared is None:
                out = _with_rows(out, part, own_rows, is_all=len(sessions) == 1)
            for row, voxels in part.holes.items():
                holes.setdefault(own_rows[row], []).extend(voxels)
    if options.average:
        for row, n_trials in enumerate(np.bincount(rows)):
            out[row] /= np.maximum(count_finite(n_trials, holes.get(row), shape[1]), 1)
    return out


def _lazy(sessions: list[_Session], mask: np.ndarray, options: RowOptions) -> Any:
    """Return a dask array of sessions, whose chunks read what they need."""
    from .lazy import lazy_rows

    return lazy_rows(
        [session.source for session in sessions],
        [session.volumes for session in sessions],
        [session.positions for session in sessions],
        mask,
        options,
    )


def _with_rows(
    out: np.ndarray, part: SessionRows, own_rows: np.ndarray, is_all: bool
) -> np.ndarray:
    """Return an array with the rows of a session added.

    The rows of the only session are returned themselves: added to zeros, the result
    would be in memory twice.
    """
    rows = part.rows
    if is_all and not isinstance(rows, np.memmap):
        return rows
    if is_all and getattr(rows, "mode", None) == "c":
        # A plain array over the same memory. joblib sends a memmap to its workers by
        # the name of its file, which lacks what was changed in memory since.
        return np.asarray(rows.data)
    for row, values in zip(own_rows, rows, strict=True):
        out[row] += values
    return out


@contextlib.contextmanager
def _memory(
    shape: tuple[int, int], dtype: str, is_by_column: bool, backend: Any
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Give zeros, and the array to send to workers that write into them.

    Rows returned by a process are pickled, sent and copied. Of two sessions with a
    result of 132 MB, two processes took 271 MB more than that and 1.6 s, and 36 MB more
    and 0.5 s where they write into shared memory (tests/benchmarks/betas/load.py).
    Threads share memory anyway. Processes do on Linux: joblib sends a memmap as the
    name of its file, and the file may be one that is in memory alone. For other
    workers, and without a backend, the second is None.
    """
    order: Literal["C", "F"] = "F" if is_by_column and backend is not None else "C"
    out = np.zeros(shape, dtype, order)  # the system gives memory where it is written
    shared = None
    processes = joblib.parallel.LokyBackend, joblib.parallel.MultiprocessingBackend
    with contextlib.ExitStack() as stack:
        if getattr(backend, "supports_sharedmem", False):
            shared = out
        elif isinstance(backend, processes) and hasattr(os, "memfd_create"):
            file = stack.enter_context(open(os.memfd_create("betas"), "r+b"))
            os.truncate(file.fileno(), out.nbytes)
            # A memfd has no name of its own, but workers can open it by this one.
            name = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            shared = np.memmap(name, dtype, "r+", shape=shape, order=order)
            # The result is not this memmap: the name is gone once the file is closed,
            # and joblib would send it to the user's own workers.
            mapped = mmap.mmap(file.fileno(), out.nbytes)
            out = np.frombuffer(mapped, dtype).reshape(shape, order=order)
        yield out, shared


def _averaged_trials(trials: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return one row per label; values that differ between its trials are null."""
    counts = np.bincount(rows)
    _, first = np.unique(rows, return_index=True)
    averaged = {}
    for name, column in trials.items():
        codes, _ = pd.factorize(column)
        differs = np.bincount(rows, codes != codes[first][rows]) > 0
        values = column.iloc[first].reset_index(drop=True)
        if values.dtype.kind == "i":
            values = values.astype("Int64")
        averaged[name] = values.mask(differs)
    return pd.DataFrame({**averaged, "n_averaged": counts})
