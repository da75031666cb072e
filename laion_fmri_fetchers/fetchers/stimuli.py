"""The stimulus images: their public table, one gated archive, and single images of it.

The way through, as for the fMRI data::

    arguments -> gate         cached request_id, or an error; not for the table alone
              -> table        public: fetched, read, cut by names and filter
              -> archive      one file: fetched only if an image is selected
              -> images       extracted on demand, only those selected
              -> Bunch -> load_stimuli

Presigned URLs are asked for only when the archive must be fetched.
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
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.stimulus_access import (
    Gate,
    GatedFile,
    fetch_manifest,
    open_gate,
    save_manifest,
    saved_manifest,
)
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DiskSpaceError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
    StimulusAccessError,
)
from laion_fmri_fetchers.layout.keys import record_of
from laion_fmri_fetchers.layout.labels import LABEL_FIELDS, label_values, stimulus_value
from laion_fmri_fetchers.layout.names import none_if_null
from laion_fmri_fetchers.layout.trees import (
    ARCHIVE,
    STIMULUS_IMAGES,
    STIMULUS_TABLE,
    stimulus_image,
)
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import (
    as_limit,
    check_fields,
    check_positive,
    warn_of_nothing,
)
from laion_fmri_fetchers.query.filters import ResultFilter, as_filter, is_empty
from laion_fmri_fetchers.storage.files import local_path
from laion_fmri_fetchers.storage.known import Known
from laion_fmri_fetchers.storage.settings import Call, Result, prepare
from laion_fmri_fetchers.storage.state import partial_dir
from laion_fmri_fetchers.transfer.transfer import Download, download_files

from .public_files import fetch_public, know_stimuli

_WRITERS = 4
_DECODERS = 8
_LONGEST_LOOK = 10.0
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def fetch_laion_stimuli(
    names: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    trials: pd.DataFrame | None = None,
    stimulus_filter: Any = None,
    max_images: int | None = None,
    extract: bool = False,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **stimulus_terms: Any,
) -> Bunch:
    """Fetch the stimulus images of LAION-fMRI and their metadata.

    All images are in one archive of 3.2 GB, downloaded once, whatever is selected. A
    Data Use Agreement gates it: request access once with `request_stimulus_access`. The
    metadata alone are public, see `fetch_laion_stimulus_metadata`; so is a dry run.

    Parameters
    ----------
    names : str, iterable of str, or DataFrame, optional
        Names of images, as in ``trials["label"]`` of `fetch_laion_fmri`, or its
        ``trials`` themselves. None: all images.
    trials : pandas.DataFrame, optional
        Trials whose images are wanted; the same as passing them as ``names``.
    stimulus_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``metadata`` to keep, each as a dict with ``image_name``.
    max_images : int, optional
        Maximum number of images; None or negative: all.
    extract : bool, default=False
        Write the selected images as files, byte for byte as in the archive. Files
        already on disk are not written again, except in mode ``"overwrite"``.
    mode : {"download_new", "overwrite", "offline"}, optional
        ``"download_new"`` downloads files that are not on disk; ``"overwrite"``
        downloads table and archive again; ``"offline"`` opens no socket. None:
        ``"offline"`` where ``LAION_FMRI_OFFLINE=1`` is set, else ``"download_new"``.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    dry_run : bool, default=False
        Plan only: nothing but the table is downloaded, nothing is extracted, and no
        ``request_id`` is needed.
    allow_missing : bool, default=False
        Warn about names that are not in the metadata, and about an archive that could
        not be downloaded, instead of raising.
    n_connections : int, default=64
        HTTP connections at once.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: one line per file, 3: debug.
    **stimulus_terms
        Terms on columns of ``metadata``, as in ``unique_or_shared="shared"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``metadata``: :class:`pandas.DataFrame`, see `fetch_laion_stimulus_metadata`.
        - ``images``: list of str, paths of the extracted images, in the order of
          ``metadata``; empty without ``extract``.
        - ``archive``: str, the HDF5 archive; None where it is not on disk.
        - ``metadata_file``: str, the table as published.
        - ``files_meta``: list of dict, the records of the table and the archive on
          disk: ``size`` in bytes, ``etag``, ``last_modified``, ``outdated`` (whether
          there is a newer version) and others.
        - ``failed``: list of dict, ``id`` and ``reason``; see ``allow_missing``.
        - ``data_dir``: str; ``query``: dict, the arguments of the call;
          ``description``: str.
        - ``plan``: :class:`pandas.DataFrame` with ``id``, ``size`` in bytes and
          ``reason``, and ``plan_size``, their sum; with ``dry_run`` only.

    Raises
    ------
    AccessRequiredError
        If no ``request_id`` is cached; in every mode, but not for a dry run.
    AccessPendingError
        If it is not approved yet.
    StimulusAccessError
        If the access service refuses in another way, as by `TermsOutdatedError`.
    InvalidQueryError
        If an argument, a name or a term is not valid.
    NotCachedError
        Offline, if the archive or its table is not on disk.
    BucketError
        If the bucket cannot be read and the table is not on disk.
    DownloadError
        If a file could not be downloaded, or its SHA-256 is wrong.
    DiskSpaceError
        If the disk is too small.
    CorruptImageError
        If archive or metadata cannot be read.
    UnsafeKeyError
        If the name of an image would leave the data directory.

    Warns
    -----
    UserWarning
        If there is a newer version of the archive or the table than on disk, or if
        no image passes the filter.

    See Also
    --------
    load_stimuli : The images as an array.
    fetch_laion_stimulus_metadata : The metadata alone, without a gate.
    fetch_laion_captions, fetch_laion_embeddings, fetch_laion_segmentations :
        Public data derived from the images.

    Examples
    --------
    The images of some trials, and what each trial showed::

        data = fetch_laion_fmri("sub-01", trial_filter={"n_reps": 12})
        stimuli = fetch_laion_stimuli(names=data.trials["label"])
        shown = stimuli.metadata.loc[data.trials["label"]]
    """
    limit = as_limit(max_images)
    query = _StimulusQuery(
        image_names(names, trials),
        with_terms(stimulus_filter, "stimulus_filter", stimulus_terms),
    )
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    is_offline = call.mode == "offline"
    gate = None
    if not dry_run:
        gate = open_gate(call.data_dir, offline=is_offline, timeout=call.timeout)
    known = know_stimuli(call)
    table = _fetch_table(query, known, call)
    metadata = table.selected.iloc[:limit]

    archive = local_path(call.data_dir, ARCHIVE)
    reason = _reason_to_fetch(ARCHIVE, call) if len(metadata) else ""
    failed = _fetch_archive(gate, call) if reason and gate else []
    is_there = os.path.exists(archive) and not failed
    images = []
    if is_there and gate:
        if reason or extract:
            _check_archive(archive, len(table.whole))
        if extract or (reason and call.mode == "overwrite"):
            chosen = list(metadata.index) if extract else []
            images = _extract(archive, table.whole, chosen, call)
    bunch = Result(
        metadata=metadata,
        images=images,
        archive=archive if is_there else None,
        metadata_file=table.record["absolute_path"],
        files_meta=[table.record],
        failed=failed,
        data_dir=call.data_dir,
        query={**query.as_dict(), "max_images": limit},
        description=description(),
    )
    if is_there:
        # Only a file that this call did not just fetch may be of an earlier version.
        is_fresh = bool(reason and gate)
        bunch.files_meta.append(_archive_record(known, call, is_fresh))
    if dry_run:
        rows = [(ARCHIVE, _archive_size(known, call), reason)] * bool(reason)
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = sum(size for _, size, _ in rows)
    line = f"{counted(len(metadata), 'stimulus image')} in {call.data_dir}"
    if dry_run:
        line += f"; {readable_size(bunch.plan_size)} would be downloaded"
    tell(line, call.verbose)
    return bunch


def fetch_laion_stimulus_metadata(
    names: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    trials: pd.DataFrame | None = None,
    stimulus_filter: Any = None,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **stimulus_terms: Any,
) -> Bunch:
    """Fetch the table of the stimulus images, which is public; no image is fetched.

    Parameters
    ----------
    names : str, iterable of str, or DataFrame, optional
        Names of images, as in ``trials["label"]`` of `fetch_laion_fmri`, or its
        ``trials`` themselves. None: all images.
    trials : pandas.DataFrame, optional
        Trials whose images are wanted; the same as passing them as ``names``.
    stimulus_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``metadata`` to keep, each as a dict with ``image_name``.
    mode : {"download_new", "overwrite", "offline"}, optional
        ``"download_new"`` downloads the table (1.6 MB) if it is not on disk;
        ``"overwrite"`` downloads it again; ``"offline"`` opens no socket. None:
        ``"offline"`` where ``LAION_FMRI_OFFLINE=1`` is set, else ``"download_new"``.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    allow_missing : bool, default=False
        Warn about names that are not in the table, instead of raising.
    n_connections : int, default=64
        HTTP connections at once.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: one line per file, 3: debug.
    **stimulus_terms
        Terms on columns of ``metadata``, as in ``unique_or_shared="shared"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``metadata``: :class:`pandas.DataFrame` indexed by ``image_name``, one row per
          selected image, in the order of ``names`` (each once) or of the table, so
          that ``metadata.loc[trials["label"]]`` aligns with trials. Columns, spelled as
          in ``trials``: ``dataset`` ("LAION", "NSD", "OOD", "THINGS", "THINGS+"),
          ``participant`` ("sub-05" of an image unique to a participant, else None),
          ``unique_or_shared``, ``n_reps`` (Int64, as planned), ``ood_type`` and
          ``h5_index`` (int64), the row in the archive of images.
        - ``metadata_file``: str, the table as published.
        - ``files_meta``: list of one dict, the record of the table on disk: ``size`` in
          bytes, ``etag``, ``last_modified``, ``outdated`` (whether the bucket has a
          newer version) and others.
        - ``failed``: list, empty, as without the table the call fails.
        - ``data_dir``: str; ``query``: dict, the arguments of the call;
          ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument, a name or a term is not valid.
    NotCachedError
        Offline, if the table is not on disk.
    BucketError
        If the bucket cannot be read and the table is not on disk.
    DownloadError
        If it could not be downloaded.
    CorruptImageError
        If it cannot be read.
    UnsafeKeyError
        If the name of an image would leave the data directory.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of the table than on disk, or if no image
        passes the filter.

    See Also
    --------
    fetch_laion_stimuli : The images too.

    Examples
    --------
    The images that all participants saw twelve times::

        shared = fetch_laion_stimulus_metadata(n_reps=12).metadata
    """
    query = _StimulusQuery(
        image_names(names, trials),
        with_terms(stimulus_filter, "stimulus_filter", stimulus_terms),
    )
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    table = _fetch_table(query, know_stimuli(call), call)
    tell(
        f"Metadata of {counted(len(table.selected), 'stimulus image')} in "
        f"{call.data_dir}",
        call.verbose,
    )
    return Result(
        metadata=table.selected,
        metadata_file=table.record["absolute_path"],
        files_meta=[table.record],
        failed=[],
        data_dir=call.data_dir,
        query=query.as_dict(),
        description=description(),
    )


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
        The Bunch of `fetch_laion_stimuli`. Its ``metadata`` may have been cut or
        reordered; ``h5_index`` says which images to load.
    as_displayed : bool, default=True
        Lay transparent pixels over mid-grey, as in the scanner. Otherwise colours are
        as stored, and transparency is left out.
    size : int or (int, int), optional
        Height and width in pixels to which images are resized; by default they stay
        as they are, 1000 x 1000.
    batch_size : int, optional
        Yield arrays of this many images, for selections larger than the memory: an
        image takes 3 MB.

    Returns
    -------
    numpy.ndarray of uint8, shape (n_images, height, width, 3)
        The images, RGB, in the order of ``stimuli.metadata``; with ``batch_size``, an
        iterator of such arrays.

    Raises
    ------
    InvalidQueryError
        If ``stimuli`` is something else, ``size`` or ``batch_size`` is not valid, or
        images differ in size and no ``size`` is given.
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
    _check_stimuli(stimuli)
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
    argument = "names" if trials is None else "trials"
    given: Any = names if trials is None else trials
    if given is None:
        return None
    if isinstance(given, dict):
        _raise_for_bunch(given, argument)
    if isinstance(given, pd.DataFrame):
        column = next((c for c in ("label", "image_name") if c in given), None)
        if column is None and given.index.name != "image_name":
            raise InvalidQueryError(
                "The DataFrame has neither a column 'label', as trials have, nor one "
                "'image_name'."
            )
        given = given.index if column is None else given[column]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidQueryError(
            f"{argument} is {given!r}; give names of images, or trials"
        )
    found = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for name in found:
        if not isinstance(name, str):
            raise InvalidQueryError(f"{argument} holds {name!r}; names are str")
    return [str(name) for name in found]


def _raise_for_bunch(given: dict, argument: str) -> NoReturn:
    """Raise for a Bunch, or another dict, in the place of names of images."""
    key = next((k for k in ("trials", "metadata", "image_names") if k in given), None)
    advice = f"give its {key}, as in data.{key}" if key else "give names of images"
    raise InvalidQueryError(
        f"{argument} is a {type(given).__name__} with {listed(list(map(str, given)))}; "
        f"{advice}"
    )


def positions(
    wanted: Sequence[str], known: Iterable[str], source: str, call: Call
) -> np.ndarray:
    """Return where names are among those of a source; raise for one that is not."""
    known = pd.Index(known)
    found = known.get_indexer(pd.Index(wanted, dtype=object))
    unknown = [name for name, at in zip(wanted, found, strict=True) if at < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "names are labels of trials."
        names = listed([repr(name) for name in unknown])
        text = f"There is no image {names} in {source}; {hint}"
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
    shown = {n: None if is_empty(f) else f.to_dict() for n, f in filters.items()}
    return {"names": wanted, **shown}


def description() -> str:
    """Return the text on the stimuli."""
    file = resources.files(__package__).joinpath("laion_stimuli.rst")
    return file.read_text("utf-8")


def read_table(file: str, needed: Iterable[str]) -> pd.DataFrame:
    """Read a CSV table of text; CorruptImageError if it is not one."""
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


# --- The table -------------------------------------------------------------------


class _StimulusQuery(NamedTuple):
    """Which rows of the table are asked for."""

    names: list[str] | None
    filter: ResultFilter

    def as_dict(self) -> dict[str, Any]:
        return query(self.names, stimulus_filter=self.filter)


class _Table(NamedTuple):
    """The table of images: the record of its file, its rows, those selected."""

    record: dict[str, Any]
    whole: pd.DataFrame
    selected: pd.DataFrame


def _fetch_table(asked: _StimulusQuery, known: Known, call: Call) -> _Table:
    """Fetch the table and select rows of it."""
    (record,), _ = fetch_public([STIMULUS_TABLE], known, call, required=True)
    whole = _read_metadata(record["absolute_path"])
    named = whole
    if asked.names is not None:
        source = "the table of stimuli"
        rows = positions(asked.names, whole["image_name"], source, call)
        named = whole.iloc[rows]
    check_fields(asked.filter, "stimulus_filter or a term", whole.columns)
    selected = named[asked.filter.mask(named)]
    if len(named) and not len(selected):
        warn_of_nothing("stimulus_filter or a term", asked.filter, named)
    return _Table(record, whole, selected.set_index("image_name"))


def _read_metadata(file: str) -> pd.DataFrame:
    """Read the table of stimuli; a row of it is a row of the archive.

    The table and the labels say the same in different words. Users get the label's,
    which the trials have too, and the table's only for a name that is not a label.
    """
    frame = read_table(file, ["image_name"])
    names = frame["image_name"]
    for name in names:
        stimulus_image(name)
    if not names.is_unique:
        twice = names[names.duplicated()].iloc[0]
        raise CorruptImageError(
            f"The table {file} names {twice!r} twice. Fetch it again with "
            "mode='overwrite'."
        )
    labels = [label_values(name) for name in names]
    for at, field in enumerate(LABEL_FIELDS):
        cells = frame.get(field, pd.Series([None] * len(frame), dtype=object))
        cells = mapped(cells, partial(stimulus_value, field))
        frame[field] = pd.Series(
            [
                values[at] if values[0] else cell
                for values, cell in zip(labels, cells, strict=True)
            ],
            frame.index,
            object,
        )
    for field in frame.columns.drop(["image_name", *LABEL_FIELDS]):
        frame[field] = mapped(frame[field], none_if_null)
    frame["n_reps"] = pd.to_numeric(frame["n_reps"]).astype("Int64")
    frame["h5_index"] = np.arange(len(frame))
    return frame


# --- The archive and its versions ------------------------------------------------


def _reason_to_fetch(file_id: str, call: Call) -> str:
    """Return why a file must be fetched, "" if it need not."""
    is_there = os.path.exists(local_path(call.data_dir, file_id))
    if call.mode == "offline" and not is_there:
        raise NotCachedError(
            f"{file_id} is not on disk in {call.data_dir}. {call.how_to_fetch}"
        )
    if not is_there:
        return "missing"
    return "overwrite" if call.mode == "overwrite" else ""


def _fetch_archive(gate: Gate, call: Call) -> list[dict[str, Any]]:
    """Fetch the archive; return it if it failed and may be missing."""
    about = gate.file(ARCHIVE)
    tell(
        "The stimulus images are one archive (3.2 GB as published, here "
        f"{readable_size(about.size)}), downloaded once whatever is selected: "
        f"{ARCHIVE} to {call.data_dir}",
        call.verbose,
    )
    download = Download(
        ARCHIVE,
        gate.url(ARCHIVE),
        Path(local_path(call.data_dir, ARCHIVE)),
        about.size,
        sha256=about.sha256,
    )
    failures = download_files(
        [download],
        partial_dir=partial_dir(call.data_dir),
        overwrite=call.mode == "overwrite",
        n_connections=call.n_connections,
        timeout=call.timeout,
        verbose=call.verbose,
    )
    if not failures:
        save_manifest(call.data_dir, {ARCHIVE: about})
        return []
    reason = failures[0]["reason"].replace("SHA-256", "sha256")
    failed = [{"id": ARCHIVE, "reason": reason}]
    if not call.allow_missing:
        raise DownloadError(
            f"{ARCHIVE} could not be downloaded: {reason}. Verified parts stay, "
            "and the same call goes on from there.",
            failed=failed,
        )
    warn(f"{ARCHIVE} could not be downloaded: {reason}.")
    return failed


def _archive_record(known: Known, call: Call, is_fresh: bool) -> dict[str, Any]:
    """Return the record of the archive on disk; warn where there is a newer one.

    The manifest says which version there is now. Where it cannot be had, the size in
    the bucket's listing has to do.
    """
    record = _known_archive(known, call)
    size = os.path.getsize(record["absolute_path"])
    if is_fresh:
        return {**record, "size": size}
    is_cut_off = call.mode == "offline" or known.error
    now = None if is_cut_off else _archive_now(call)
    new_size = now.size if now else record["size"]
    saved = saved_manifest(call.data_dir).get(ARCHIVE)
    is_other = new_size not in (None, size)
    if now and saved and saved.size == size:
        is_other = saved != now
    if not is_other:
        return {**record, "size": size}
    if call.mode == "download_new":
        warn(
            f"There is a new version of {ARCHIVE}, of {new_size:,} bytes; the "
            f"version on disk has {size:,} bytes and was used. mode='overwrite' "
            "downloads the new one."
        )
    unknown = {"etag": None, "last_modified": None}
    return {**record, **unknown, "size": size, "outdated": True}


def _archive_now(call: Call) -> GatedFile | None:
    """Return what the manifest says of the archive; None if it cannot be had."""
    with contextlib.suppress(StimulusAccessError):
        manifest = fetch_manifest(min(call.timeout, _LONGEST_LOOK), tries=1)
        return manifest.files[ARCHIVE]
    return None


def _archive_size(known: Known, call: Call) -> int:
    """Return the size of the archive in the bucket, else by the manifest."""
    size = _known_archive(known, call)["size"]
    return int(size or fetch_manifest(call.timeout).files[ARCHIVE].size)


def _known_archive(known: Known, call: Call) -> dict[str, Any]:
    """Return the record of the archive as the bucket lists it."""
    record = record_of(*known.objects.get(ARCHIVE, (ARCHIVE,)))
    return {**record, "absolute_path": local_path(call.data_dir, record["id"])}


# --- Reading the archive ---------------------------------------------------------


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
    paths = [local_path(call.data_dir, stimulus_image(name)) for name in names]
    folder = Path(local_path(call.data_dir, STIMULUS_IMAGES))
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


def _check_stimuli(stimuli: Any) -> None:
    """Raise InvalidQueryError unless a Bunch is that of `fetch_laion_stimuli`."""
    columns = getattr(getattr(stimuli, "metadata", None), "columns", ())
    if isinstance(stimuli, dict) and "archive" in stimuli and "h5_index" in columns:
        return
    given = f"a {type(stimuli).__name__}"
    if isinstance(stimuli, dict):
        given += f" with {listed(list(map(str, stimuli)))}"
    raise InvalidQueryError(
        "load_stimuli takes the Bunch of fetch_laion_stimuli, whose 'archive' and "
        f"'metadata' it reads; {given} was given. The images of trials: "
        "fetch_laion_stimuli(data.trials)"
    )


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
