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

import os
from collections.abc import Iterable
from typing import Any

import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.gate import open_gate
from laion_fmri_fetchers.arrays.pictures import check_archive
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.layout.trees import ARCHIVE
from laion_fmri_fetchers.messages import counted, readable_size, tell
from laion_fmri_fetchers.query.arguments import as_limit
from laion_fmri_fetchers.query.shared_docs import documented

from .public_files import take_inventory_of_stimuli
from .stimulus_archive import (
    archive_size,
    check_order,
    describe_archive,
    extract_images,
    fetch_archive,
    reason_to_fetch,
)
from .stimulus_query import description, images_labelled, with_terms
from .stimulus_table import StimulusQuery, fetch_table


@documented
def fetch_laion_stimuli(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
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
    %(labels)s
    %(stimulus_filter)s
    max_images : int, optional
        Maximum number of images; None or negative: all.
    extract : bool, default=False
        Write the selected images as files, byte for byte as in the archive. Files
        already on disk are not written again, except in mode ``"overwrite"``.
    %(mode)s
    %(data_dir)s
    dry_run : bool, default=False
        Plan only: nothing but the table is downloaded, nothing is extracted, and no
        ``request_id`` is needed.
    allow_missing : bool, default=False
        Warn about names that are not in the metadata, and about an archive that could
        not be downloaded, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    %(stimulus_terms)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``metadata``: :class:`pandas.DataFrame`, see `fetch_laion_stimulus_metadata`.
        - ``images``: list of str, paths of the extracted images, in the order of
          ``metadata``; empty without ``extract``.
        - ``archive``: str, the HDF5 archive; None where it is not on disk.
        - ``metadata_file``: str, the table as published.
        %(files_meta)s
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
        If the access service refuses in another way, as by `.TermsOutdatedError`.
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
        stimuli = fetch_laion_stimuli(data.trials)
        shown = stimuli.metadata.loc[data.trials["label"]]
    """
    limit = as_limit(max_images)
    query = StimulusQuery(
        images_labelled(labels),
        with_terms(stimulus_filter, "stimulus_filter", stimulus_terms),
    )
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    gate = None
    if not dry_run:
        gate = open_gate(settings.data_dir, settings.mode, settings.timeout)
    inventory = take_inventory_of_stimuli(settings)
    table = fetch_table(query, inventory)
    metadata = table.selected.iloc[:limit]
    reason = reason_to_fetch(inventory) if len(metadata) else ""
    failed = []
    if reason and gate:
        failed = fetch_archive(gate, inventory, reason, table.whole)
    archive = local_path(settings.data_dir, ARCHIVE)
    is_on_disk = os.path.exists(archive) and not failed
    images = []
    if is_on_disk and gate:
        if len(metadata):
            check_order(table.whole, table.record["absolute_path"], settings.data_dir)
        if reason or extract:
            check_archive(archive, len(table.whole))
        if extract or (reason and settings.overwrites):
            chosen = list(metadata.index) if extract else []
            images = extract_images(archive, table.whole, chosen, settings)
    bunch = Result(
        metadata=metadata,
        images=images,
        archive=archive if is_on_disk else None,
        metadata_file=table.record["absolute_path"],
        files_meta=[table.record],
        failed=failed,
        data_dir=settings.data_dir,
        query={**query.as_dict(), "max_images": limit},
        description=description(),
    )
    if is_on_disk:
        # Only a file that this call did not just fetch may be of an earlier version.
        is_fresh = bool(reason and gate)
        bunch.files_meta.append(describe_archive(inventory, is_fresh))
    if dry_run:
        rows = [(ARCHIVE, archive_size(inventory), reason)] * bool(reason)
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = sum(size for _, size, _ in rows)
    line = f"{counted(len(metadata), 'stimulus image')} in {settings.data_dir}"
    if dry_run:
        line += f"; {readable_size(bunch.plan_size)} would be downloaded"
    tell(line, settings.verbose)
    return bunch


@documented
def fetch_laion_stimulus_metadata(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
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
    %(labels)s
    %(stimulus_filter)s
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about names that are not in the table, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    %(stimulus_terms)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``metadata``: :class:`pandas.DataFrame` indexed by ``image_name``, one row per
          selected image, in the order of ``labels`` (each once) or of the table, so
          that ``metadata.loc[trials["label"]]`` aligns with trials. Columns, spelled as
          in ``trials``: ``dataset`` ("LAION", "NSD", "OOD", "THINGS", "THINGS+"),
          ``participant`` ("sub-05" of an image unique to a participant, else None),
          ``unique_or_shared``, ``n_reps`` (Int64, as planned), ``ood_type`` and
          ``h5_index`` (int64), the row in the archive of images.
        - ``metadata_file``: str, the table as published.
        %(files_meta)s
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
    query = StimulusQuery(
        images_labelled(labels),
        with_terms(stimulus_filter, "stimulus_filter", stimulus_terms),
    )
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    table = fetch_table(query, take_inventory_of_stimuli(settings))
    tell(
        f"Metadata of {counted(len(table.selected), 'stimulus image')} in "
        f"{settings.data_dir}",
        settings.verbose,
    )
    return Result(
        metadata=table.selected,
        metadata_file=table.record["absolute_path"],
        files_meta=[table.record],
        failed=[],
        data_dir=settings.data_dir,
        query=query.as_dict(),
        description=description(),
    )
