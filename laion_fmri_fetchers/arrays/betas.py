"""load_betas: from fetched images to an array of trials x voxels.

The way through::

    data, subject   -> sessions    _sessions: image files and the trials wanted of each
    rois, masks     -> Columns     columns.find_columns: the voxels
    sessions        -> array       _read: each in one pass, see `one_pass`
    array, columns  -> Bunch       load_betas

One volume at a time is in memory; statistics are gathered on the way, in float64.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.names import clean_subject
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import listed, readable_size, tell
from laion_fmri_fetchers.storage.bunch import Result
from laion_fmri_fetchers.storage.tables import read_trials

from .one_pass import How, count_finite, read_session
from .volumes import Header, read_header
from .voxels import find_columns, on_grid, signature


class _Session(NamedTuple):
    """A beta image, and what is wanted of it."""

    header: Header
    positions: np.ndarray
    """Where its trials are among those of the subject."""
    volumes: np.ndarray
    """The volume of each of them."""


def load_betas(
    data: Bunch,
    subject: str | int | None = None,
    rois: str | Sequence[str] = "fetched",
    *,
    mask_img: Any = None,
    nc_threshold: float | None = None,
    noise_ceiling: str = "Allrep",
    standardize: str | None = None,
    average_repeats: bool = False,
    dtype: Any = "float32",
    n_jobs: int | None = 1,
    memory: Any = None,
    verbose: int = 0,
) -> Bunch:
    """Load single-trial betas of a subject as an array of trials x voxels.

    Each image is read in one pass, a volume at a time, and only the voxels and trials
    asked for are kept: memory is needed for the result and little else.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        What `fetch_laion_fmri` returned. Trials are those in ``data.trials``, of which
        rows may have been removed or reordered.
    subject : str or int, optional
        ``"sub-01"``, ``"01"`` or 1; needed where ``data`` holds betas of several.
    rois : str or sequence of str, default="fetched"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``), or
        several of them; ``"fetched"``: all ROIs in ``data``; ``"brain"``: all voxels.
    mask_img : Niimg-like, optional
        Only voxels in this mask, too: a path or an image on the grid of the betas.
    nc_threshold : float, optional
        Only voxels whose noise ceiling is this or more, in percent (0 to 100).
    noise_ceiling : {"Allrep", "12rep", "4rep"}, default="Allrep"
        Which of the noise ceilings in ``data`` the threshold is for.
    standardize : {None, "zscore", "zscore_sample"}, default=None
        Z-score each voxel within each session, over all of the session's trials,
        selected or not; with the deviation of the population or of a sample.
    average_repeats : bool, default=False
        Average the trials of each label, after standardizing.
    dtype : dtype, default="float32"
        Floating point type of the result.
    n_jobs : int, default=1
        Images read at once, through joblib: threads, or what
        :func:`joblib.parallel_config` says. -1: as many as there are processors.
    memory : :class:`joblib.Memory`, str or path, optional
        Where to keep what is read: the same call does not read the images again, unless
        they changed.
    verbose : int, default=0
        1: tell what is read; more: joblib's progress.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``data``: :class:`numpy.ndarray` of shape (n_trials, n_voxels). Values that
          are not finite on disk are 0, and count in no statistic.
        - ``trials``: :class:`pandas.DataFrame`, a row a row of ``data``. Of averaged
          repeats, a row a label in order of first appearance, with ``n_averaged``; what
          differs between them is null.
        - ``mask_img``: :class:`nibabel.nifti1.Nifti1Image`, the voxels that are the
          columns, such that ``nilearn.masking.unmask(data, mask_img)`` puts them back.
        - ``roi_masks``: dict, ROI name -> bool array of shape (n_voxels,), of the ROIs
          asked for.
        - ``noise_ceilings``: dict, ``"4rep"``, ``"12rep"``, ``"Allrep"`` -> float32
          array of shape (n_voxels,), in percent.
        - ``groups``: dict, ``"session"`` and ``"label"`` -> int array of shape
          (n_trials,), for ``groups=`` of scikit-learn's cross-validation;
          ``"session"`` is left out where repeats of several are averaged.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, a mask is on another grid, or no voxel is left.
    NotCachedError
        If a file is not on disk.
    CorruptImageError
        If an image is damaged, or its trial table disagrees with it.
    MemoryError
        If the result is larger than the free memory; nothing is read then.

    See Also
    --------
    fetch_laion_fmri : Fetch the images.

    Notes
    -----
    Where the last volume of a compressed image is not needed, reading stops early, and
    the checksum at its end is not compared.

    Examples
    --------
    Face-selective regions, z-scored, one row an image::

        data = fetch_laion_fmri("sub-01", rois="face", sessions=range(1, 5))
        betas = load_betas(data, standardize="zscore", average_repeats=True)
        betas.data[:, betas.roi_masks["FFA1"]]

    All sessions on a dask cluster, whose workers see the data directory::

        with joblib.parallel_config("dask"):
            betas = load_betas(data, nc_threshold=10, n_jobs=-1)
    """
    how = _check_how(standardize, average_repeats, dtype)
    subject = _subject(data, subject)
    trials = data.trials[data.trials["subject"] == subject]
    sessions = _sessions(data, subject, trials)
    trials = trials.reset_index(drop=True)
    cached = _cache(memory)
    columns = find_columns(
        data,
        subject,
        rois,
        mask_img,
        nc_threshold,
        noise_ceiling,
        sessions[0].header,
        cached,
    )
    rows = np.arange(len(trials))
    if average_repeats:
        rows, _ = pd.factorize(trials["label"])
    shape = rows.max(initial=-1) + 1, int(columns.mask.sum())
    _check_memory(shape[0] * shape[1] * np.dtype(how.dtype).itemsize)
    tell(
        f"Reading {len(trials)} trials of {subject} at {shape[1]} voxels from "
        f"{len(sessions)} images",
        verbose,
    )
    betas = _read(sessions, columns.mask, rows, shape, how, n_jobs, cached, verbose)
    if average_repeats:
        trials = _averaged_trials(trials, rows)
    affine = sessions[0].header.affine
    return Result(
        data=betas,
        trials=trials,
        mask_img=nib.Nifti1Image(columns.mask.astype(np.uint8), affine),
        roi_masks=columns.roi_masks,
        noise_ceilings=columns.noise_ceilings,
        groups={
            name: pd.factorize(trials[name])[0]
            for name in ("session", "label")
            if trials[name].notna().all()
        },
    )


def _check_how(standardize: Any, average_repeats: bool, dtype: Any) -> How:
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
    return How(standardize, bool(average_repeats), kind.name)


def _subject(data: Bunch, subject: str | int | None) -> str:
    """Return the subject to load."""
    there = sorted(
        {meta["subject"] for meta in data.images_meta if meta["image_type"] == "betas"}
    )
    if not there:
        raise InvalidQueryError(
            "data holds no betas. Fetch them with image_type='betas', which is the "
            "default, and a selection that is not empty."
        )
    if subject is None:
        if len(there) > 1:
            raise InvalidQueryError(
                f"data holds betas of several subjects ({listed(there)}), whose voxels "
                f"do not correspond; choose one, as in subject={there[0]!r}"
            )
        return there[0]
    name = clean_subject(subject)
    if name is None or name not in there:
        hint = did_you_mean(name or subject, there)
        raise InvalidQueryError(f"data holds no betas of subject {subject!r}; {hint}")
    return name


def _sessions(data: Bunch, subject: str, trials: pd.DataFrame) -> list[_Session]:
    """Return the images of a subject, checked against their trial tables."""
    image_of_trial = trials["image_index"].to_numpy()
    volume_of_trial = trials["beta_index"].to_numpy()
    metas, sessions = [], []
    for i, (file, meta) in enumerate(zip(data.images, data.images_meta, strict=True)):
        if meta["image_type"] == "betas" and meta["subject"] == subject:
            at = np.flatnonzero(image_of_trial == i)
            session = _Session(_header(file), at, volume_of_trial[at])
            metas.append(meta)
            sessions.append(session)
    first = sessions[0].header
    n_trials = _table_lengths(data.data_dir, metas)
    for meta, (header, _, volumes) in zip(metas, sessions, strict=True):
        n = n_trials.get(meta["session"], header.n_volumes)
        last = volumes.max(initial=-1)
        if n != header.n_volumes or last >= header.n_volumes:
            raise CorruptImageError(
                f"The image {header.file} has {header.n_volumes} volumes, but its "
                f"trial table has {max(n, last + 1)} trials. "
                "`laion-fmri-fetchers verify --repair` fetches again what is damaged."
            )
        if not on_grid(header.shape, header.affine, first):
            raise CorruptImageError(
                f"The image {header.file} is not on the grid of {first.file}, of the "
                "same subject."
            )
    if sum(len(session.positions) for session in sessions) != len(trials):
        raise InvalidQueryError(
            "data.trials has rows whose image_index is not that of a beta image of "
            f"{subject}; keep data.images as they were fetched"
        )
    return sessions


def _header(file: str) -> Header:
    try:
        return read_header(file)
    except FileNotFoundError as error:
        raise NotCachedError(
            f"{file} is not on disk. Fetch it by the call that made data, without "
            "dry_run."
        ) from error


def _table_lengths(data_dir: str, metas: list[dict]) -> dict[str, int]:
    """Return the number of trials of sessions, of those whose table is on disk."""
    ids = [trials_id(meta) for meta in metas]
    ids = [one for one in ids if os.path.exists(os.path.join(data_dir, one))]
    tables = read_trials(data_dir, ids)
    found = tables.groupby("session")["beta_index"].agg(["size", "max"])
    return {session: max(n, last + 1) for session, n, last in found.itertuples()}


def _check_memory(needed: int) -> None:
    free = _free_memory()
    if needed > free:
        raise MemoryError(
            f"The result needs {readable_size(needed)}, and {readable_size(free)} are "
            "free. Take fewer voxels (rois, nc_threshold, mask_img) or fewer trials "
            "(sessions, trial_filter, average_repeats)."
        )


def _free_memory() -> int:
    """Return the bytes this process can still take, within the limits of its job."""
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
    """Return the bytes left to a control group, where it has a limit."""
    try:
        with open(f"{folder}/memory.max") as stream:
            limit = int(stream.read())
        with open(f"{folder}/memory.stat") as stream:
            used = {name: int(value) for name, value in map(str.split, stream)}
    except (OSError, ValueError):
        return 2**63
    return limit - used["anon"] - used["shmem"]


def _cache(memory: Any) -> Callable:
    """Return what makes a function keep its results, and map them into memory."""
    if memory is None:
        return _uncached
    if isinstance(memory, (str, os.PathLike)):
        memory = joblib.Memory(os.fspath(memory), verbose=0)
    if isinstance(memory, joblib.Memory) and memory.location and not memory.compress:
        where, loud = (memory.location, memory.backend), memory._verbose
        memory = joblib.Memory(*where, mmap_mode="c", verbose=loud)
    return memory.cache


def _uncached(function: Callable) -> Callable:
    return function


def _read(
    sessions: list[_Session],
    mask: np.ndarray,
    rows: np.ndarray,
    shape: tuple[int, int],
    how: How,
    n_jobs: int | None,
    cached: Callable,
    verbose: int,
) -> np.ndarray:
    """Read sessions, ``n_jobs`` at once, into one array; trial i goes to rows[i].

    Threads write into it, and processes of this machine. Workers elsewhere, and a
    cache, hand over rows, and so do all where rows are added up.
    """
    sessions = [session for session in sessions if len(session.positions)]
    backend, _ = joblib.parallel.get_active_backend(prefer="threads")
    parallel = joblib.Parallel(
        n_jobs=n_jobs,
        prefer="threads",
        return_as="generator" if backend.supports_return_generator else "list",
        verbose=max(verbose - 1, 0),
    )
    read = joblib.delayed(cached(read_session))
    packed = zlib.compress(np.packbits(mask).tobytes(), 1)
    targets = [np.unique(rows[session.positions]) for session in sessions]
    hands_over = how.average or cached is not _uncached or not sessions
    holes: dict[int, list[np.ndarray]] = {}
    with _shared(shape, how.dtype, None if hands_over else backend) as (out, place):
        parts = parallel(
            read(
                signature(session.header.file),
                packed,
                session.volumes,
                np.searchsorted(target, rows[session.positions]),
                how,
                **({} if place is None else {"place": (place, target)}),
            )
            for session, target in zip(sessions, targets, strict=True)
        )
        for part, target in zip(parts, targets, strict=True):
            if place is None:
                out = _put(part.rows, out, target, alone=len(sessions) == 1)
            for row, columns in part.holes.items():
                holes.setdefault(target[row], []).extend(columns)
    if how.average:
        for row, n_trials in enumerate(np.bincount(rows)):
            out[row] /= np.maximum(count_finite(n_trials, holes.get(row), shape[1]), 1)
    return out


def _put(
    rows: np.ndarray, out: np.ndarray, target: np.ndarray, alone: bool
) -> np.ndarray:
    """Add rows to those of an array; where it has no others, they may be the array."""
    if alone and not isinstance(rows, np.memmap):
        return rows
    if alone and getattr(rows, "mode", None) == "c":
        # Without its name: of a memmap, joblib would send workers what is on disk.
        return np.asarray(rows.data)
    for row, values in zip(target, rows, strict=True):
        out[row] += values
    return out


@contextlib.contextmanager
def _shared(
    shape: tuple[int, int], dtype: str, backend: Any
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Give zeros, and what to send of them to workers that can write to them.

    Threads can, and on Linux processes: the file of a memmap is sent by its name. For
    other workers, and without a backend, the second is None.
    """
    out, sent = np.zeros(shape, dtype=dtype), None  # takes memory where it is written
    processes = joblib.parallel.LokyBackend, joblib.parallel.MultiprocessingBackend
    with contextlib.ExitStack() as stack:
        if getattr(backend, "supports_sharedmem", False):
            sent = out
        elif isinstance(backend, processes) and hasattr(os, "memfd_create"):
            file = stack.enter_context(open(os.memfd_create("betas"), "r+b"))
            os.truncate(file.fileno(), out.nbytes)
            name = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            sent = np.memmap(name, dtype, "r+", shape=shape)
            # Without this name, which is gone when the file is closed.
            memory = mmap.mmap(file.fileno(), out.nbytes)
            out = np.frombuffer(memory, dtype).reshape(shape)
        yield out, sent


def _averaged_trials(trials: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return a row a label; what differs between its trials is null."""
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
