"""load_betas: from fetched images to an array of trials × voxels.

The way through::

    data, subject   -> sessions    _sessions: image files and the trials wanted of each
    rois, masks     -> _Columns    _columns: voxels, ROIs and noise ceilings of columns
    sessions        -> array       _read: each session in one pass, see `_read_session`
    repeats         -> array       _average
    array, columns  -> Bunch       load_betas

A session passes once through a buffer of one volume; only voxels and trials wanted are
kept. Statistics over its trials are gathered on the way, in float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from . import layout
from .exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from .messages import listed, readable_size, tell
from .tables import read_trials
from .volumes import Header, iter_volumes, read_header, read_volume, scaled

STANDARDIZE = (None, "zscore", "zscore_sample")

_TOLERANCE = 0.1
"""Voxels by which a mask's corners may be off the grid of the betas."""

Signature = tuple[str, int, int]
"""A file as it is now: path, size in bytes, time of change in ns."""


class _Session(NamedTuple):
    """A beta image, and what is wanted of it."""

    header: Header
    positions: np.ndarray
    """Rows of the trials of the subject."""
    volumes: np.ndarray
    """The volume of each of them."""


class _Columns(NamedTuple):
    """The voxels that become columns."""

    mask: np.ndarray
    """Boolean, of the grid's shape."""
    roi_masks: dict[str, np.ndarray]
    noise_ceilings: dict[str, np.ndarray]


class _How(NamedTuple):
    """What is done with values on the way into the array."""

    standardize: str | None
    average: bool
    dtype: str


class _Part(NamedTuple):
    """What was read of a session."""

    rows: np.ndarray | None
    """None where they were written to their place."""
    holes: dict[int, list[np.ndarray]]
    """Of averages, row -> columns that were not finite, an array a trial."""


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
    """Load single-trial betas of a subject as an array of trials × voxels.

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
    dtype = _check_arguments(standardize, nc_threshold, dtype)
    subject = _subject(data, subject)
    trials = data.trials[data.trials["subject"] == subject]
    sessions = _sessions(data, subject, trials)
    trials = trials.reset_index(drop=True)

    cached = _cache(memory)
    columns = _columns(
        data, subject, rois, mask_img, nc_threshold, noise_ceiling, sessions[0], cached
    )
    n_voxels = int(columns.mask.sum())
    rows, labels = np.arange(len(trials)), None
    if average_repeats:
        rows, labels = pd.factorize(trials["label"])
    n_rows = len(trials) if labels is None else len(labels)
    _check_memory(n_rows * n_voxels * dtype.itemsize)
    tell(
        f"Reading {len(trials)} trials × {n_voxels} voxels from {len(sessions)} images "
        f"of {subject}",
        verbose,
    )
    betas = _read(
        sessions,
        columns.mask,
        rows,
        n_rows,
        (standardize, average_repeats, dtype),
        n_jobs,
        cached,
        verbose,
    )
    if average_repeats:
        trials = _averaged_trials(trials, rows)
    return Bunch(
        data=betas,
        trials=trials,
        mask_img=nib.Nifti1Image(
            columns.mask.astype(np.uint8), sessions[0].header.affine
        ),
        roi_masks=columns.roi_masks,
        noise_ceilings=columns.noise_ceilings,
        groups={
            name: pd.factorize(trials[name])[0]
            for name in ("session", "label")
            if trials[name].notna().all()
        },
    )


# What is asked


def _check_arguments(standardize: object, threshold: object, dtype: Any) -> np.dtype:
    if standardize not in STANDARDIZE:
        raise InvalidQueryError(
            f"standardize is {standardize!r}; it must be None, 'zscore' or "
            "'zscore_sample'"
        )
    if threshold is not None and not np.isscalar(threshold):
        raise InvalidQueryError(
            f"nc_threshold is {threshold!r}; it must be a number, in percent"
        )
    try:
        checked = np.dtype(dtype)
    except TypeError:
        checked = np.dtype(object)
    if checked.kind != "f":
        raise InvalidQueryError(
            f"dtype is {dtype!r}; it must be a floating point type such as 'float32'"
        )
    return checked


def _subject(data: Bunch, subject: str | int | None) -> str:
    """Return the subject to load."""
    there = sorted(
        {m["subject"] for m in data.images_meta if m["image_type"] == "betas"}
    )
    if not there:
        raise InvalidQueryError(
            "data holds no betas: fetch them with image_type='betas', the default, and "
            "a selection that is not empty."
        )
    if subject is None:
        if len(there) > 1:
            raise InvalidQueryError(
                f"data holds betas of several subjects ({listed(there)}), whose voxels "
                f"do not correspond: choose one, as in subject={there[0]!r}."
            )
        return there[0]
    name = layout.clean_subject(subject)
    if name not in there:
        hint = did_you_mean(name or subject, there)
        raise InvalidQueryError(f"data holds no betas of subject {subject!r}; {hint}")
    return name


def _sessions(data: Bunch, subject: str, trials: pd.DataFrame) -> list[_Session]:
    """Return the images of a subject, checked against their trial tables."""
    image_of_trial = trials["image_index"].to_numpy()
    volume_of_trial = trials["beta_index"].to_numpy()
    found = []
    for i, (file, meta) in enumerate(zip(data.images, data.images_meta, strict=True)):
        if meta["image_type"] == "betas" and meta["subject"] == subject:
            header = read_header(_on_disk(file))
            positions = np.flatnonzero(image_of_trial == i)
            found.append((meta, _Session(header, positions, volume_of_trial[positions])))
    n_trials = _table_lengths(data.data_dir, [meta for meta, _ in found])
    for meta, (header, _, volumes) in found:
        n = n_trials.get(meta["session"], header.n_volumes)
        last = volumes.max(initial=-1)
        if n != header.n_volumes or last >= header.n_volumes:
            raise CorruptImageError(
                f"The image {header.file} has {header.n_volumes} volumes, but its trial "
                f"table has {max(n, last + 1)} trials. `laion-fmri-fetchers verify "
                "--repair` fetches again what is damaged."
            )
    sessions = [session for _, session in found]
    for session in sessions:
        if not _same_grid(session.header, sessions[0].header):
            raise CorruptImageError(
                f"The image {session.header.file} is not on the grid of "
                f"{sessions[0].header.file}, of the same subject."
            )
    if sum(len(session.positions) for session in sessions) != len(trials):
        raise InvalidQueryError(
            "data.trials has rows whose image_index is not that of a beta image of "
            f"{subject}. Keep data.trials and data.images as they were fetched together."
        )
    return sessions


def _table_lengths(data_dir: str, records: list[dict]) -> dict[str, int]:
    """Return the number of trials of sessions, of those whose table is on disk."""
    ids = [layout.trials_id(rec) for rec in records]
    ids = [one for one in ids if os.path.exists(os.path.join(data_dir, one))]
    tables = read_trials(data_dir, ids)
    last = tables.groupby("session")["beta_index"].max() + 1
    return np.maximum(tables["session"].value_counts(), last).astype(int).to_dict()


def _on_disk(file: str) -> str:
    if not os.path.exists(file):
        raise NotCachedError(
            f"{file} is not on disk. Fetch it first: the call that made data, without "
            "dry_run and with a mode other than 'offline'."
        )
    return file


def _check_memory(needed: int) -> None:
    free = _free_memory()
    if needed > free:
        raise MemoryError(
            f"The result needs {readable_size(needed)}, and {readable_size(free)} are "
            "free. Take fewer voxels (rois, nc_threshold, mask_img), or fewer trials "
            "(trial_filter, sessions, average_repeats)."
        )


def _free_memory() -> int:
    """Return the bytes that this process can still take, also in a job's limits."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        with open("/proc/self/cgroup") as stream:
            group = next(line[3:].strip() for line in stream if line[:3] == "0::")
        while group:
            folder = f"/sys/fs/cgroup{group.rstrip('/')}"
            free = min(free, _below_limit(folder))
            group = group.rpartition("/")[0]
    except (OSError, StopIteration):
        pass
    return free


def _below_limit(folder: str) -> int:
    """Return the bytes left to a control group; what can be dropped counts as free."""
    values = {}
    try:
        with open(f"{folder}/memory.max") as stream:
            limit = int(stream.read())
        with open(f"{folder}/memory.stat") as stream:
            values = dict(line.split() for line in stream)
        return limit - int(values["anon"]) - int(values.get("shmem", 0))
    except (OSError, ValueError, KeyError):
        return 2**63


# Which voxels


def _columns(
    data: Bunch,
    subject: str,
    rois: str | Sequence[str],
    mask_img: Any,
    threshold: float | None,
    ceiling: str,
    session: _Session,
    cached: Callable,
) -> _Columns:
    """Find the voxels asked for."""
    grid = session.header
    roi_files, whole = _roi_files(data, subject, rois)
    ceilings = dict(data.noise_ceilings.get(subject, {}))
    if threshold is not None and ceiling not in ceilings:
        hint = did_you_mean(ceiling, ceilings)
        raise InvalidQueryError(
            f"noise_ceiling is {ceiling!r}, of which data holds no map of {subject}; "
            f"{hint}"
        )
    within = []
    if subject in data.brain_masks:
        within.append(data.brain_masks[subject])
    elif mask_img is None:
        raise InvalidQueryError(
            f"data holds no brain mask of {subject}: pass one as mask_img."
        )
    given = None
    if mask_img is not None and not isinstance(mask_img, (str, os.PathLike)):
        given = _given_mask(mask_img, grid)
    elif mask_img is not None:
        within.append(os.fspath(mask_img))
    columns = cached(_find_voxels)(
        [_signature(file) for file in within],
        given,
        {name: [_signature(f) for f in files] for name, files in roi_files.items()},
        whole,
        {name: _signature(file) for name, file in ceilings.items()},
        (ceiling, threshold),
        (grid.shape, grid.affine),
    )
    if not columns.mask.any():
        raise InvalidQueryError(
            "No voxel is in the brain mask and all that was asked for: rois, mask_img, "
            "nc_threshold."
        )
    return columns


def _roi_files(
    data: Bunch, subject: str, rois: str | Sequence[str]
) -> tuple[dict[str, list[str]], bool]:
    """Return the masks of the ROIs asked for, and whether the whole brain is."""
    there: dict[str, list[str]] = {}
    categories: dict[str, list[str]] = {}
    files = [*data.rois, *data.images]
    for file, meta in zip(files, [*data.rois_meta, *data.images_meta], strict=True):
        is_mask = meta["image_type"] == "roi" and meta["extension"] in ("nii", "nii.gz")
        if is_mask and meta["subject"] == subject:
            there.setdefault(meta["roi"], []).append(file)
            categories.setdefault(meta["roi_category"], []).append(meta["roi"])
    wanted: dict[str, list[str]] = {}
    whole = False
    for asked in [rois] if isinstance(rois, str) else list(rois):
        if asked == "brain":
            whole = True
        elif asked == "fetched":
            wanted |= there
        elif asked in categories:
            wanted |= {name: there[name] for name in categories[asked]}
        elif isinstance(asked, str) and layout.clean_roi(asked) in there:
            wanted[layout.clean_roi(asked)] = there[layout.clean_roi(asked)]
        else:
            hint = did_you_mean(asked, [*there, *categories, "brain", "fetched"])
            raise InvalidQueryError(f"data holds no ROI {asked!r} of {subject}; {hint}")
    if not wanted and not whole:
        raise InvalidQueryError(
            f"data holds no ROI masks of {subject}: fetch some with rois=, or load all "
            "voxels with rois='brain'."
        )
    return wanted, whole


def _find_voxels(
    within: list[Signature],
    given: np.ndarray | None,
    rois: dict[str, list[Signature]],
    whole: bool,
    ceilings: dict[str, Signature],
    threshold: tuple[str, float | None],
    grid: tuple[tuple[int, int, int], np.ndarray],
) -> _Columns:
    """Read masks and maps, and combine them; flat, in the order of the files."""
    shape = grid[0]
    mask = np.ones(int(np.prod(shape)), dtype=bool) if given is None else given.copy()
    for file, *_ in within:
        mask &= _read_mask(file, grid)
    voxels = {
        name: np.concatenate([np.flatnonzero(_read_mask(f, grid)) for f, *_ in files])
        for name, files in rois.items()
    }
    if not whole:
        asked = np.zeros_like(mask)
        for inside in voxels.values():
            asked[inside] = True
        mask &= asked
    name, least = threshold
    if least is not None:
        mask &= _read_map(ceilings[name][0], grid) >= least
    volume = mask.reshape(shape, order="F")
    offsets = _offsets(volume)
    column = np.full(mask.size, -1, dtype=np.int32)
    column[offsets] = np.arange(len(offsets), dtype=np.int32)
    roi_masks = {}
    for name, inside in voxels.items():
        columns = column[inside]
        roi_masks[name] = np.zeros(len(offsets), dtype=bool)
        roi_masks[name][columns[columns >= 0]] = True
    maps = {name: _read_map(file, grid)[offsets] for name, (file, *_) in ceilings.items()}
    return _Columns(np.ascontiguousarray(volume), roi_masks, maps)


def _offsets(mask: np.ndarray) -> np.ndarray:
    """Return where the voxels of a mask, in nilearn's order, are in a volume on disk."""
    return np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")


def _read_map(file: str, grid: tuple, dtype: Any = "float32") -> np.ndarray:
    """Read a 3-D image on a grid, flat, in the order of the file."""
    header = read_header(file)
    _check_grid(header.shape, header.affine, grid, file)
    (volume,) = iter_volumes(header, [0])
    return scaled(header, volume, dtype)


def _read_mask(file: str, grid: tuple) -> np.ndarray:
    return _inside(_read_map(file, grid, dtype=None))


def _inside(values: np.ndarray) -> np.ndarray:
    return (values != 0) & np.isfinite(values)


def _given_mask(image: Any, grid: Header) -> np.ndarray:
    """Return a mask given as an image, flat."""
    values = np.asanyarray(image.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    _check_grid(values.shape, image.affine, (grid.shape, grid.affine), "mask_img")
    return _inside(values.ravel(order="F"))


def _check_grid(shape: tuple, affine: np.ndarray, grid: tuple, name: str) -> None:
    if shape != grid[0] or _displacement(affine, *grid) > _TOLERANCE:
        raise InvalidQueryError(
            f"The mask or map {name} is not on the grid of the betas. Its shape is "
            f"{shape}, theirs {grid[0]}; its affine is\n{affine}\ntheirs\n{grid[1]}\n"
            "nilearn.image.resample_to_img brings it there."
        )


def _displacement(affine: np.ndarray, shape: tuple, expected: np.ndarray) -> float:
    """Return by how many voxels the corners of a grid are off, at most."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    there = affine @ np.vstack([corners, np.ones(8)])
    return float(np.abs((np.linalg.inv(expected) @ there)[:3] - corners).max())


# Reading


def _read(
    sessions: list[_Session],
    mask: np.ndarray,
    rows: np.ndarray,
    how: _How,
    n_jobs: int | None,
    cached: Callable,
    verbose: int,
) -> np.ndarray:
    """Read sessions, ``n_jobs`` at once, into one array; trial i goes into rows[i]."""
    sessions = [session for session in sessions if len(session.positions)]
    shape = rows.max(initial=-1) + 1, int(mask.sum())
    backend, _ = joblib.parallel.get_active_backend(prefer="threads")
    in_place = cached is _uncached and backend.supports_sharedmem and not how.average
    whole = len(sessions) == 1 and not in_place
    out = None if whole else np.zeros(shape, dtype=how.dtype)
    packed = zlib.compress(np.packbits(mask), 1)
    targets = [np.unique(rows[session.positions]) for session in sessions]
    read = joblib.delayed(cached(_read_session))
    tasks = [
        read(
            _signature(session.header.file),
            packed,
            session.volumes,
            np.searchsorted(target, rows[session.positions]),
            how,
            **({"place": (out, target)} if in_place else {}),
        )
        for session, target in zip(sessions, targets, strict=True)
    ]
    parts = joblib.Parallel(
        n_jobs=n_jobs,
        prefer="threads",
        return_as="generator" if backend.supports_return_generator else "list",
        verbose=max(verbose - 1, 0),
    )(tasks)
    holes: dict[int, list[np.ndarray]] = {}
    for part, target in zip(parts, targets, strict=True):
        if whole:
            out = np.asarray(part.rows)
        elif not in_place:
            for row, values in zip(target, part.rows, strict=True):
                out[row] += values
        for row, columns in part.holes.items():
            holes.setdefault(target[row], []).extend(columns)
    if how.average:
        _divide(out, np.bincount(rows), holes)
    return out


def _divide(
    sums: np.ndarray, n_trials: np.ndarray, holes: dict[int, list[np.ndarray]]
) -> None:
    """Turn sums into averages over what is finite."""
    for row, n in enumerate(n_trials):
        sums[row] /= np.maximum(_n_finite(n, holes.get(row), sums.shape[1]), 1)


def _n_finite(
    n_trials: int, holes: list[np.ndarray] | None, n_columns: int
) -> int | np.ndarray:
    if not holes:
        return n_trials
    return n_trials - np.bincount(np.concatenate(holes), minlength=n_columns)


def _read_session(
    signature: Signature,
    packed: bytes,
    volumes: np.ndarray,
    rows: np.ndarray,
    how: _How,
    place: tuple[np.ndarray, np.ndarray] | None = None,
) -> _Part:
    """Read volumes of an image in one pass; trial i is added to row rows[i].

    Parameters
    ----------
    signature : tuple
        The file as it was when asked for: what is kept of it holds for that only.
    packed : bytes
        The voxels, packed.
    volumes, rows : int arrays of shape (n_trials,)
        The volume of each trial, and its row.
    how : _How
        What to do with values.
    place : (array, int array), optional
        An array that takes the rows, and where in it.
    """
    header = read_header(signature[0])
    bits = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    mask = np.unpackbits(bits, count=int(np.prod(header.shape))).astype(bool)
    offsets = _offsets(mask.reshape(header.shape))
    n_rows = rows.max() + 1
    if place is None:
        place = np.zeros((n_rows, len(offsets)), dtype=how.dtype), np.arange(n_rows)
        part = place[0]
    else:
        part = None
    out, at = place
    order = np.argsort(volumes, kind="stable")
    wanted = np.unique(volumes)
    ...
