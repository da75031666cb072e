"""The stimulus images: one gated archive, its metadata, and single images of it.

The way through, as for the fMRI data::

    arguments -> gate         cached request_id, or an error
              -> metadata     the gated table: fetched, read, cut by names and filter
              -> archive      one file: fetched only if an image is selected
              -> images       extracted on demand, only those selected
              -> Bunch -> load_stimuli

Presigned URLs are asked for only when a file must be fetched.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from . import cache, layout
from .access import Gate, open_gate
from .calls import Call, Result, prepare
from .exceptions import (
    CorruptImageError,
    DiskSpaceError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
)
from .filters import ResultFilter, as_filter
from .messages import counted, listed, readable_size, tell, warn
from .selection import as_limit, check_fields, check_positive, is_empty
from .transfer import Download, download_files

_WRITERS = 4
_DECODERS = 8
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def fetch_laion_stimuli(
    names: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    trials: pd.DataFrame | None = None,
    stimulus_filter: Any = None,
    max_images: int | None = None,
    extract: bool = False,
    mode: str = "download_new",
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **stimulus_terms: Any,
) -> Bunch:
    """Fetch the stimulus images of LAION-fMRI and their metadata.

    All images are in one archive of 3.2 GB, fetched once, whatever is selected. A Data
    Use Agreement gates them: request access once with `request_stimulus_access`.

    Parameters
    ----------
    names : str, iterable of str, or DataFrame, optional
        Names of images, as in ``trials["label"]`` of `fetch_laion_fmri`, or its
        ``trials`` themselves. None: all images.
    trials : pandas.DataFrame, optional
        Trials whose images are wanted; the same as to pass them as ``names``.
    stimulus_filter : dict, `ResultFilter` or callable, optional
        What a row of ``metadata`` must fulfil, as a dict with ``image_name``.
    max_images : int, optional
        Most images; None or negative: all.
    extract : bool, default=False
        Write the selected images as files, byte for byte as in the archive. What is
        there is not written again, except in mode ``"overwrite"``.
    mode : {"download_new", "overwrite", "offline"}, default="download_new"
        ``"download_new"`` fetches what is not on disk; ``"overwrite"`` fetches
        metadata and archive again; ``"offline"`` opens no socket.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    dry_run : bool, default=False
        Plan only: nothing but the metadata is fetched, nothing is extracted.
    allow_missing : bool, default=False
        Warn about names that are not in the metadata, and about an archive that could
        not be fetched, instead of raising.
    n_connections : int, default=64
        HTTP connections at once.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: a line a file, 3: debug.
    **stimulus_terms
        Terms on columns of ``metadata``, as in ``unique_or_shared="shared"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``metadata``: :class:`pandas.DataFrame` indexed by ``image_name``, one row a
          selected image, in the order of ``names`` (each once) or of the archive, so
          that ``metadata.loc[trials["label"]]`` aligns with trials. Columns:
          ``dataset``, ``participant`` ("sub-05" or None), ``unique_or_shared``,
          ``n_reps``, ``ood_type`` and ``h5_index``, the row in the archive.
        - ``images``: list of str, paths of the extracted images, in the order of
          ``metadata``; empty without ``extract``.
        - ``archive``: str, the HDF5 archive; None where it is not on disk.
        - ``metadata_file``: str, the table as published.
        - ``failed``: list of dict, ``id`` and ``reason``; see ``allow_missing``.
        - ``data_dir``: str; ``query``: dict, what was asked; ``description``: str.
        - ``plan``: :class:`pandas.DataFrame` with ``id``, ``size`` in bytes and
          ``reason``, and ``plan_size``, their sum; with ``dry_run`` only.

    Raises
    ------
    AccessRequiredError
        If no ``request_id`` is cached; in every mode.
    AccessPendingError
        If it is not approved yet.
    StimulusAccessError
        What else the access service answers, such as `TermsOutdatedError`.
    InvalidQueryError
        If an argument, a name or a term is not valid.
    NotCachedError
        Offline, if the archive or its metadata are not on disk.
    DownloadError
        If a file could not be fetched, or has another sha256 than it should.
    DiskSpaceError
        If the disk is too small.
    CorruptImageError
        If archive or metadata cannot be read.
    UnsafeKeyError
        If the name of an image would leave the data directory.

    See Also
    --------
    load_stimuli : The images as an array.
    fetch_laion_captions, fetch_laion_embeddings, fetch_laion_segmentations :
        What derives from the images, without a gate.

    Examples
    --------
    The images of some trials, and what each trial showed::

        data = fetch_laion_fmri("sub-01", trial_filter={"n_reps": 12})
        stimuli = fetch_laion_stimuli(names=data.trials["label"])
        shown = stimuli.metadata.loc[data.trials["label"]]
    """
    wanted = image_names(names, trials)
    filt = with_terms(stimulus_filter, "stimulus_filter", stimulus_terms)
    limit = as_limit(max_images)
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    gate = open_gate(
        call.data_dir, offline=call.mode == "offline", timeout=call.timeout
    )
    _fetch(layout.STIMULUS_TABLE, gate, call)
    whole = _read_metadata(cache.local_path(call.data_dir, layout.STIMULUS_TABLE))
    table = whole
    if wanted is not None:
        table = whole.iloc[positions(wanted, whole["image_name"], call)]
    check_fields(filt, "stimulus_filter or a term", table.columns)
    metadata = table[filt.mask(table)].iloc[:limit].set_index("image_name")

    missing = [_missing(layout.ARCHIVE, call)] if len(metadata) else []
    plan = [(layout.ARCHIVE, why) for why in missing if why]
    failed = []
    if plan and not dry_run:
        _tell_of_archive(gate, call)
        failed = _fetch(layout.ARCHIVE, gate, call)
    archive = cache.local_path(call.data_dir, layout.ARCHIVE)
    there = os.path.exists(archive) and not failed
    images = []
    if there and not dry_run:
        if plan or extract:
            _check_archive(archive, len(whole))
        if extract or (plan and call.mode == "overwrite"):
            chosen = list(metadata.index) if extract else []
            images = _extract(archive, whole, chosen, call)
    bunch = Result(
        metadata=metadata,
        images=images,
        archive=archive if there else None,
        metadata_file=cache.local_path(call.data_dir, layout.STIMULUS_TABLE),
        failed=failed,
        data_dir=call.data_dir,
        query={**query(wanted, stimulus_filter=filt), "max_images": limit},
        description=description(),
    )
    if dry_run:
        rows = [(one, gate.file(one).size, why) for one, why in plan]
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = sum(size for _, size, _ in rows)
    what = f"{counted(len(metadata), 'stimulus image')} in {call.data_dir}"
    if dry_run:
        what += f"; {readable_size(bunch.plan_size)} would be fetched for them"
    tell(what, call.verbose)
    return bunch


def load_stimuli(
    stimuli: Bunch,
    *,
    as_displayed: bool = True,
    size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> np.ndarray | Iterator[np.ndarray]:
    """Load the images that `fetch_laion_stimuli` selected.

    Parameters
    ----------
    stimuli : :class:`sklearn.utils.Bunch`
        What `fetch_laion_stimuli` returns. Its ``metadata`` may have been cut or
        reordered; ``h5_index`` tells which images to load.
    as_displayed : bool, default=True
        Lay transparent pixels over mid-grey, as in the scanner. Otherwise colours are
        as stored, and transparency is left out.
    size : int or (int, int), optional
        Height and width in pixels to which images are resized; by default they stay
        as they are, 1000 x 1000.
    batch_size : int, optional
        Yield arrays of so many images, for selections larger than the memory: an image
        takes 3 MB.

    Returns
    -------
    numpy.ndarray of uint8, shape (n_images, height, width, 3)
        The images, RGB, in the order of ``stimuli.metadata``; with ``batch_size``, an
        iterator of such arrays.

    Raises
    ------
    InvalidQueryError
        If ``size`` or ``batch_size`` is not valid, or images differ in size and no
        ``size`` is given.
    NotCachedError
        If the archive is not on disk.
    CorruptImageError
        If the archive or an image cannot be read.

    Examples
    --------
    ::

        pictures = load_stimuli(stimuli, size=224)
        for batch in load_stimuli(stimuli, batch_size=64):
            features.append(model(batch))
    """
    shape = None if size is None else _shape(size)
    if batch_size is not None:
        check_positive(batch_size, "batch_size", whole=True)
    if not stimuli.archive or not os.path.exists(stimuli.archive):
        raise NotCachedError(
            f"The archive of stimuli, {stimuli.archive}, is not on disk. Fetch it with "
            "fetch_laion_stimuli."
        )
    names = list(stimuli.metadata.index)
    rows = stimuli.metadata["h5_index"].to_numpy()
    batches = _batches(stimuli.archive, names, rows, batch_size, shape, as_displayed)
    return next(batches) if batch_size is None else batches


# --- What is asked, shared with the public derivatives ---------------------------


def image_names(
    names: object = None, trials: pd.DataFrame | None = None
) -> list[str] | None:
    """Return names of images, each once, in order of appearance; None for all.

    Examples
    --------
    >>> image_names(["b.jpg", "a.jpg", "b.jpg"])
    ['b.jpg', 'a.jpg']
    """
    if names is not None and trials is not None:
        raise InvalidQueryError("Both names and trials are given; give one of them.")
    given: Any = names if trials is None else trials
    if given is None:
        return None
    if isinstance(given, pd.DataFrame):
        column = next((c for c in ("label", "image_name") if c in given), None)
        if column is None and given.index.name != "image_name":
            raise InvalidQueryError(
                "The DataFrame has neither a column 'label', as trials have, nor one "
                "'image_name'."
            )
        given = given.index if column is None else given[column]
    if isinstance(given, (bytes, dict)) or not isinstance(given, Iterable):
        raise InvalidQueryError(f"names is {given!r}; give names of images, or trials")
    found = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for one in found:
        if not isinstance(one, str):
            raise InvalidQueryError(f"names holds {one!r}; names are str")
    return [str(one) for one in found]


def positions(wanted: Sequence[str], known: Iterable[str], call: Call) -> np.ndarray:
    """Return where names are among those known; raise for one that is not."""
    known = pd.Index(known)
    found = known.get_indexer(pd.Index(wanted, dtype=object))
    unknown = [one for one, at in zip(wanted, found, strict=True) if at < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "names are labels of trials."
        text = f"There is no image {listed([repr(n) for n in unknown])}; {hint}"
        if not call.allow_missing:
            raise InvalidQueryError(f"{text} allow_missing=True leaves such names out.")
        warn(f"{text} Left out.")
    return found[found >= 0]


def with_terms(given: object, name: str, terms: dict[str, Any]) -> ResultFilter:
    """Return a filter and terms as one filter."""
    filt, base = as_filter(given, name), ResultFilter(terms)
    if is_empty(filt) or not terms:
        return filt if not terms else base
    return base & filt


def query(wanted: list[str] | None, **filters: ResultFilter) -> dict[str, Any]:
    """Return what is asked as plain, readable values."""
    shown = {n: None if is_empty(f) else repr(f) for n, f in filters.items()}
    return {"names": wanted, **shown}


def description() -> str:
    """Return the text on the stimuli."""
    file = resources.files(__package__).joinpath("descriptions/laion_stimuli.rst")
    return file.read_text("utf-8")


def read_table(file: str, needed: Iterable[str]) -> pd.DataFrame:
    """Read a CSV table of text; CorruptImageError where it is none."""
    try:
        frame = pd.read_csv(
            file, dtype=object, keep_default_na=False, encoding="utf-8-sig"
        )
        lacking = [name for name in needed if name not in frame]
        if lacking:
            raise ValueError(f"it has no column {listed(lacking)}")
    except ValueError as error:
        raise CorruptImageError(
            f"The table {file} is broken ({error}). Fetch it again with "
            "mode='overwrite'."
        ) from error
    return frame


def mapped(column: pd.Series, function: Callable[[Any], Any]) -> pd.Series:
    """Return a column with a function applied, once a distinct value."""
    values = {value: function(value) for value in column.unique()}
    return pd.Series([values[v] for v in column], column.index, object, column.name)


# --- Metadata --------------------------------------------------------------------


def _read_metadata(file: str) -> pd.DataFrame:
    """Read the table of stimuli; a row of it is a row of the archive."""
    frame = read_table(file, ["image_name"])
    names = frame["image_name"]
    for name in names:
        layout.stimulus_image(name)
    if not names.is_unique:
        twice = names[names.duplicated()].iloc[0]
        raise CorruptImageError(
            f"The table {file} names {twice!r} twice. Fetch it again with "
            "mode='overwrite'."
        )
    for at, field in enumerate(layout.LABEL_FIELDS):
        if field not in frame:
            # Parsing 25,000 labels takes longer than all else; few have a type.
            mark = "_OOD_" if field == "ood_type" else ""
            told = [layout.label_values(n)[at] if mark in n else None for n in names]
            frame[field] = pd.Series(told, frame.index, object)
    for field in frame.columns.drop("image_name"):
        clean = layout.none_if_null
        if field == "participant":
            clean = layout.none_if_null
        frame[field] = mapped(frame[field], clean)
    try:
        frame["n_reps"] = pd.to_numeric(frame["n_reps"]).astype("Int64")
    except (TypeError, ValueError) as error:
        raise CorruptImageError(
            f"The table {file} is broken (n_reps: {error}). Fetch it again with "
            "mode='overwrite'."
        ) from error
    frame["h5_index"] = np.arange(len(frame))
    return frame


# --- Gated files -----------------------------------------------------------------


def _missing(one: str, call: Call) -> str:
    """Return why a file must be fetched, "" if it need not."""
    there = os.path.exists(cache.local_path(call.data_dir, one))
    if call.mode == "offline" and not there:
        raise NotCachedError(
            f"{one} is not on disk in {call.data_dir}. {call.how_to_fetch}"
        )
    if call.mode == "overwrite":
        return "overwrite" if there else "missing"
    return "" if there else "missing"


def _tell_of_archive(gate: Gate, call: Call) -> None:
    size = readable_size(gate.file(layout.ARCHIVE).size)
    tell(
        f"The stimulus images are one archive (3.2 GB as published, here {size}), "
        f"fetched once whatever is selected: {layout.ARCHIVE} to {call.data_dir}",
        call.verbose,
    )


def _fetch(one: str, gate: Gate, call: Call) -> list[dict[str, Any]]:
    """Fetch a gated file if need be; return it if it failed and may be missing."""
    if not _missing(one, call):
        return []
    about, quiet = gate.file(one), one == layout.STIMULUS_TABLE
    path = Path(cache.local_path(call.data_dir, one))
    failures = download_files(
        [Download(one, gate.url(one), path, about.size, sha256=about.sha256)],
        partial_dir=cache.partial_dir(call.data_dir),
        overwrite=call.mode == "overwrite",
        n_connections=call.n_connections,
        timeout=call.timeout,
        verbose=0 if quiet and call.verbose < 2 else call.verbose,
    )
    if not failures:
        return []
    reason = failures[0]["reason"].replace("SHA-256", "sha256")
    failed = [{"id": one, "reason": reason}]
    if not call.allow_missing or one == layout.STIMULUS_TABLE:
        raise DownloadError(
            f"{one} could not be fetched: {reason}. What arrived and is right stays, "
            "and the same call goes on from there.",
            failed=failed,
        )
    warn(f"{one} could not be fetched: {reason}.")
    return failed


# --- The archive -----------------------------------------------------------------


@contextlib.contextmanager
def _images(archive: str) -> Iterator[Any]:
    """Open the images of an archive."""
    import h5py

    try:
        file = h5py.File(archive, "r")
    except OSError as error:
        _raise_corrupt(archive, error)
    with file:
        images = file.get("images")
        if not isinstance(images, h5py.Dataset) or images.ndim != 1:
            _raise_corrupt(archive, "it has no 1-D dataset 'images'")
        yield images


def _raise_corrupt(archive: str, why: object) -> None:
    raise CorruptImageError(
        f"The archive {archive} cannot be read ({why}). Fetch it again with "
        "mode='overwrite'."
    )


def _check_archive(archive: str, n_rows: int) -> None:
    with _images(archive) as images:
        if len(images) != n_rows:
            _raise_corrupt(
                archive, f"it holds {len(images)} images, its metadata {n_rows}"
            )


def _read_row(images: Any, row: int, name: str) -> bytes:
    """Return an encoded image."""
    try:
        return bytes(images[row])
    except (OSError, ValueError, IndexError) as error:
        raise CorruptImageError(
            f"The image {name!r} (row {row}) cannot be read from "
            f"{images.file.filename}: {error}. Fetch it again with mode='overwrite'."
        ) from error


def _extract(
    archive: str, table: pd.DataFrame, names: Sequence[str], call: Call
) -> list[str]:
    """Write images as files; return their paths.

    When the archive was fetched again, so is all that was extracted before.
    """
    paths = [
        cache.local_path(call.data_dir, layout.stimulus_image(name)) for name in names
    ]
    folder = Path(cache.local_path(call.data_dir, layout.STIMULUS_IMAGES))
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    rows = dict(zip(table["image_name"], table["h5_index"], strict=True))
    todo = set(names) - there
    if call.mode == "overwrite":
        todo = set(names) | (there & set(rows))

    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {name: rows[name] for name in sorted(todo, key=rows.__getitem__)}
        try:
            _write_images(archive, chosen, folder)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskSpaceError(
                error.errno,
                f"The disk of {folder} is full. What was extracted stays; make space "
                "and call again to go on.",
            ) from error
    return paths


def _write_images(archive: str, rows: dict[str, int], folder: Path) -> None:
    """Write images as files; one thread reads, as HDF5 lets only one, some write."""
    owner = f"{os.getpid()}-{secrets.token_hex(4)}"
    with _images(archive) as images, ThreadPoolExecutor(_WRITERS) as pool:
        tasks: deque[Future] = deque()
        try:
            for name, row in rows.items():
                data = _read_row(images, int(row), name)
                tasks.append(
                    pool.submit(_write, f"{folder}{os.sep}", name, data, owner)
                )
                if len(tasks) > 4 * _WRITERS:
                    tasks.popleft().result()
            _finish(tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(folder: str, name: str, data: bytes, owner: str) -> None:
    """Write a file such that it appears whole or not at all."""
    temporary = f"{folder}.{name}.{owner}"
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
        os.replace(temporary, folder + name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _finish(tasks: Iterable[Future]) -> None:
    """Wait for tasks; the first error ends them."""
    tasks = list(tasks)
    try:
        for task in tasks:
            task.result()
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


# --- Pictures --------------------------------------------------------------------


def _shape(size: Any) -> tuple[int, int]:
    """Return (height, width)."""
    both = (size, size) if not isinstance(size, (tuple, list)) else tuple(size)
    if len(both) != 2:
        raise InvalidQueryError(f"size is {size!r}; give pixels, or (height, width)")
    for one in both:
        check_positive(one, "size", whole=True)
    return int(both[0]), int(both[1])


def _batches(
    archive: str,
    names: list[str],
    rows: np.ndarray,
    batch_size: int | None,
    shape: tuple[int, int] | None,
    as_displayed: bool,
) -> Iterator[np.ndarray]:
    """Yield images as arrays; all at once without a batch size."""
    step = batch_size or max(len(names), 1)
    starts = range(0, len(names), step) if batch_size else [0]
    with _images(archive) as images, ThreadPoolExecutor(_DECODERS) as pool:

        def decode(at: int) -> np.ndarray:
            data = _read_row(images, int(rows[at]), names[at])
            return _decode(data, names[at], shape, as_displayed)

        for start in starts:
            chosen = range(start, min(start + step, len(names)))
            if not chosen:
                yield np.empty((0, *(shape or (0, 0)), 3), np.uint8)
                continue
            first = decode(chosen[0])
            batch = np.empty((len(chosen), *first.shape), np.uint8)
            batch[0] = first

            def place(at: int, batch: np.ndarray = batch, start: int = start) -> None:
                picture = decode(at)
                if picture.shape != batch.shape[1:]:
                    raise InvalidQueryError(
                        f"The image {names[at]!r} has {picture.shape[:2]} pixels, "
                        f"others {batch.shape[1:3]}; give a size to resize them to."
                    )
                batch[at - start] = picture

            tasks = [pool.submit(place, at) for at in chosen[1:]]
            _finish(tasks)
            yield batch


def _decode(
    data: bytes, name: str, shape: tuple[int, int] | None, as_displayed: bool
) -> np.ndarray:
    """Return an encoded image as RGB, (height, width, 3) uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if as_displayed and image.has_transparency_data:
                over_grey = _over_grey(np.asarray(image.convert("RGBA")))
                picture = Image.fromarray(over_grey)
            else:
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(
            f"The image {name!r} cannot be decoded: {error}. Fetch the archive again "
            "with mode='overwrite'."
        ) from error
    if shape and shape != (picture.height, picture.width):
        picture = picture.resize(shape[::-1], Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _over_grey(rgba: np.ndarray) -> np.ndarray:
    """Return an RGBA picture over mid-grey, 0.5 in each channel, rounded.

    >>> _over_grey(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8))[0].tolist()
    [[128, 128, 128], [9, 9, 9]]
    """
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    return ((2 * colour * alpha + 255 * (255 - alpha) + 255) // 510).astype(np.uint8)
