"""The fetchers of stimuli: images, of which the archive is gated, and public files.

All go one way: files of the folder ``stimuli/``, then rows of them, by labels of images
and a filter, in the order of ``labels``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.gate import open_gate, published_archive
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.inventory import Inventory, take_inventory_of_stimuli
from laion_fmri_fetchers.cache.obtain import fetch_public
from laion_fmri_fetchers.cache.settings import Settings, make_settings
from laion_fmri_fetchers.layout import trees
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.labels import stimulus_fields
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import as_limit, only_its_arguments
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.stimuli import features
from laion_fmri_fetchers.stimuli.align import warn_of_invalid
from laion_fmri_fetchers.stimuli.archive import (
    archive_record,
    check_archive,
    describe_archive,
    download_archive,
    extract_images,
)
from laion_fmri_fetchers.stimuli.table import (
    combine,
    find_images,
    image_labels,
    read_stimuli,
    select_rows,
)

from .bunch import as_plan, description


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
    wanted = image_labels(labels)
    filt = combine(stimulus_filter, "stimulus_filter", stimulus_terms)
    settings = make_settings(**locals())
    folder = settings.data_dir
    gate = None if dry_run else open_gate(folder, settings.mode, settings.timeout)
    inventory = take_inventory_of_stimuli(settings)
    table_record, table, metadata = _fetch_table(wanted, filt, inventory)
    metadata = metadata.iloc[:limit]

    # The archive is downloaded whole, but only if an image is selected.
    reason, failed = "", []
    if len(metadata) and trees.ARCHIVE not in inventory.on_disk:
        settings.refuse_offline(f"{trees.ARCHIVE} is not on disk in {folder}.")
        reason = "missing"
    elif len(metadata) and settings.overwrites:
        reason = "overwrite"
    if reason and gate:
        failed = download_archive(gate, inventory, reason, table)
    record = archive_record(inventory)
    is_on_disk = os.path.exists(record["absolute_path"]) and not failed
    archive = record["absolute_path"] if is_on_disk else None

    images: list[str] = []
    if archive and gate and len(metadata):
        check_archive(archive, table, folder)
        if extract or settings.overwrites:  # of a new archive, all that was extracted
            names = list(metadata.index) if extract else []
            images = extract_images(archive, table, names, folder, settings.overwrites)

    bunch = Result(
        metadata=metadata,
        images=images,
        archive=archive,
        metadata_file=table_record["absolute_path"],
        files_meta=[table_record],
        failed=failed,
        **_in_common(settings, wanted, stimulus_filter=filt),
    )
    bunch.query["max_images"] = limit
    if archive:
        is_fresh = bool(reason and gate)
        bunch.files_meta.append(describe_archive(inventory, is_fresh))
    line = f"{counted(len(metadata), 'stimulus image')} in {folder}"
    if dry_run:
        size = record["size"] if reason else 0
        if size is None:
            size = published_archive(settings.timeout).size
        bunch.update(as_plan([(trees.ARCHIVE, size, reason)] if reason else []))
        line += f"; {readable_size(size)} would be downloaded"
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
    wanted = image_labels(labels)
    filt = combine(stimulus_filter, "stimulus_filter", stimulus_terms)
    settings = make_settings(**locals())
    inventory = take_inventory_of_stimuli(settings)
    record, _, metadata = _fetch_table(wanted, filt, inventory)
    images = counted(len(metadata), "stimulus image")
    tell(f"Metadata of {images} in {settings.data_dir}", settings.verbose)
    return Result(
        metadata=metadata,
        metadata_file=record["absolute_path"],
        files_meta=[record],
        failed=[],
        **_in_common(settings, wanted, stimulus_filter=filt),
    )


@documented
def fetch_laion_captions(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    caption_filter: Any = None,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **caption_terms: Any,
) -> Bunch:
    """Fetch captions of the stimulus images, written by people and by models.

    Parameters
    ----------
    %(labels)s
    caption_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``captions`` to keep.
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about names without captions, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    **caption_terms
        Terms on columns of ``captions``, as in ``source="human"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``captions``: :class:`pandas.DataFrame`, one row per caption, in the order of
          ``image_names`` and of ``caption_idx``: ``image_name``, ``caption_idx`` (0
          for the model's), ``source`` ("human" or "ai"), ``caption``,
          ``origin_collection``, ``participant_id``, ``ai_model``.
        - ``image_names``: list of str, the images.
        - ``captions_file``: str, the table as published.
        %(files_meta)s
        - ``failed``: list; ``data_dir``: str; ``query``: dict, the arguments of the
          call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument, a name or a term is not valid.
    NotCachedError
        Offline, if the table is not on disk.
    BucketError
        If the bucket cannot be read and the table is not on disk.
    DownloadError
        If it could not be fetched.
    CorruptImageError
        If it cannot be read.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if no
        caption passes the filter.

    Examples
    --------
    What people wrote about the images of some trials::

        written = fetch_laion_captions(data.trials, source="human")
        written.captions.groupby("image_name")["caption"].first()
    """
    wanted = image_labels(labels)
    filt = combine(caption_filter, "caption_filter", caption_terms)
    settings = make_settings(**locals())
    inventory = take_inventory_of_stimuli(settings)
    (record,), _ = fetch_public([trees.CAPTIONS], inventory, required=True)
    table = features.read_captions(record["absolute_path"], filt)
    if wanted is not None:
        known = table["image_name"].unique()
        rows = find_images(wanted, known, "the table of captions", allow_missing)
        wanted = list(known[rows])
    captions, names = features.select_by_image(
        table, wanted, filt, "caption_filter", "caption_idx"
    )
    images = counted(len(names), "stimulus image")
    tell(f"{counted(len(captions), 'caption')} of {images}", settings.verbose)
    return Result(
        captions=captions,
        image_names=names,
        captions_file=record["absolute_path"],
        files_meta=[record],
        failed=[],
        **_in_common(settings, wanted, caption_filter=filt),
    )


@only_its_arguments
@documented
def fetch_laion_embeddings(
    models: str | Sequence[str] = "all",
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch embeddings of the stimulus images by vision models.

    Parameters
    ----------
    models : str or sequence of str, default="all"
        ``"CLIP"``, ``"DINOv2"``, ``"PEcore"``, ``"SigLIP2"``, several, or ``"all"``;
        in any case. A file is about 51 MB.
    %(labels)s
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about images and models that are missing, instead of raising. Images that
        one of the models lacks are left out of all.
    %(n_connections)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``embeddings``: dict, model -> array of float16, shape (n_images, D), rows in
          the order of ``image_names``. D is 1024, for SigLIP2 1152.
        - ``valid``: dict, model -> array of bool, shape (n_images,), whether the model
          gave an embedding of the image.
        - ``image_names``: list of str, in the order of ``labels`` (each once) or of the
          files.
        - ``files``: dict, model -> path.
        %(files_meta)s
        - ``failed``: list of dict, ``id`` and ``reason``; ``data_dir``: str;
          ``query``: dict, the arguments of the call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument, a model or a name is not valid.
    NotCachedError
        Offline, if a file is not on disk.
    BucketError
        If the bucket cannot be read and a file is not on disk.
    DownloadError
        If a file could not be fetched.
    CorruptImageError
        If a file cannot be read, or names an image twice.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if a model gave no
        embedding of some of the images.

    Examples
    --------
    One row per trial::

        clip = fetch_laion_embeddings("CLIP", data.trials)
        row = pd.Index(clip.image_names).get_indexer(data.trials["label"])
        X = clip.embeddings["CLIP"][row]
    """
    chosen = features.model_names(models)
    wanted = image_labels(labels)
    settings = make_settings(**locals())
    inventory = take_inventory_of_stimuli(settings)
    models_by_id = {trees.embeddings_id(model): model for model in chosen}
    records, failed = fetch_public(models_by_id, inventory)
    files = {models_by_id[rec["id"]]: rec["absolute_path"] for rec in records}
    # Only images that all of the models have, as rows of the models correspond.
    names_of = {model: features.embedded_images(file) for model, file in files.items()}
    names = wanted
    if names is None:
        names = list(dict.fromkeys(name for each in names_of.values() for name in each))
    for model, known in names_of.items():
        source = f"the embeddings of {model}"
        names = list(known[find_images(names, known, source, allow_missing)])
    embeddings, valid = {}, {}
    for model, file in files.items():
        rows = names_of[model].get_indexer(pd.Index(names, dtype=object))
        embeddings[model], valid[model] = features.read_embeddings(file, rows)
    images = counted(len(names), "stimulus image")
    tell(f"{listed(list(files))} of {images}", settings.verbose)
    bunch = Result(
        embeddings=embeddings,
        valid=valid,
        image_names=names,
        files=files,
        files_meta=records,
        failed=failed,
        **_in_common(settings, wanted),
    )
    bunch.query["models"] = chosen
    for model in embeddings:
        warn_of_invalid(bunch, model, np.arange(len(names)))
    return bunch


@documented
def fetch_laion_segmentations(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    segmentation_filter: Any = None,
    vectorize_nouns: bool = False,
    masks: bool = True,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **segmentation_terms: Any,
) -> Bunch:
    """Fetch masks of the objects in the shared stimulus images, with their nouns.

    Parameters
    ----------
    %(labels)s
        Only shared images have masks.
    segmentation_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``segmentations`` to keep.
    vectorize_nouns : bool, default=False
        Count the masks of each noun in each image.
    masks : bool, default=True
        Fetch the masks too, not only the table.
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn if the masks could not be fetched, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    **segmentation_terms
        Terms on columns of ``segmentations``, as in ``noun="dog"`` or ``localized=1``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``segmentations``: :class:`pandas.DataFrame`, one row per mask, in the order
          of ``image_names`` and of ``mask_row``: ``mask_row``, ``image_name``,
          ``noun``, ``instance_id``, score, bounding box, ``localized`` (0 where the
          noun was found but could not be bounded).
        - ``image_names``: list of str, in the order of ``labels`` (each once, also
          those without masks) or of the table.
        - ``masks_file``: str, HDF5 file whose dataset ``masks`` has one mask per row,
          (1000, 1000) uint8, at ``mask_row``; None without ``masks``.
        - ``segmentations_file``: str, the table as published.
        - ``noun_counts``: array of int32, shape (n_images, n_nouns), and
          ``vocabulary``: array of str, shape (n_nouns,), the nouns of its columns;
          with ``vectorize_nouns`` only.
        %(files_meta)s
        - ``failed``: list of dict, ``id`` and ``reason``; ``data_dir``: str;
          ``query``: dict, the arguments of the call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument or a term is not valid.
    NotCachedError
        Offline, if a file is not on disk.
    BucketError
        If the bucket cannot be read and a file is not on disk.
    DownloadError
        If a file could not be fetched.
    CorruptImageError
        If the table cannot be read.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if no mask
        passes the filter.

    Examples
    --------
    ::

        import h5py

        dogs = fetch_laion_segmentations(noun="dog", localized=1)
        with h5py.File(dogs.masks_file, locking=False) as file:
            mask = file["masks"][dogs.segmentations["mask_row"].iloc[0]]
    """
    wanted = image_labels(labels)
    filt = combine(segmentation_filter, "segmentation_filter", segmentation_terms)
    settings = make_settings(**locals())
    inventory = take_inventory_of_stimuli(settings)
    records, failed = fetch_public(
        [trees.SEGMENTATIONS_TABLE], inventory, required=True
    )
    file = records[0]["absolute_path"]
    table = features.read_segmentations(file, filt)
    without = [
        repr(name)
        for name in {*(wanted or ())} - {*table["image_name"]}
        if stimulus_fields(name)["unique_or_shared"] != "unique"
    ]
    if without:
        warn(f"The table of segmentations has no masks of {listed(sorted(without))}.")
    segmentations, names = features.select_by_image(
        table, wanted, filt, "segmentation_filter", "mask_row"
    )
    of_masks: list[Record] = []
    if masks and len(segmentations):
        of_masks, failed = fetch_public([trees.SEGMENTATIONS], inventory)
    bunch = Result(
        segmentations=segmentations,
        image_names=names,
        masks_file=of_masks[0]["absolute_path"] if of_masks else None,
        segmentations_file=file,
        files_meta=records + of_masks,
        failed=failed,
        **_in_common(settings, wanted, segmentation_filter=filt),
    )
    if vectorize_nouns:
        bunch.noun_counts, bunch.vocabulary = features.count_nouns(segmentations, names)
    images = counted(len(names), "stimulus image")
    tell(f"{counted(len(segmentations), 'mask')} of {images}", settings.verbose)
    return bunch


def _fetch_table(
    wanted: list[str] | None, filt: ResultFilter, inventory: Inventory
) -> tuple[Record, pd.DataFrame, pd.DataFrame]:
    """Fetch the table of images; return its record, the table, and rows selected."""
    (record,), _ = fetch_public([trees.STIMULUS_TABLE], inventory, required=True)
    table = read_stimuli(record["absolute_path"], filt)
    named = table
    if wanted is not None:
        may_miss = bool(inventory.settings.allow_missing)
        known, source = table["image_name"], "the table of stimuli"
        named = table.iloc[find_images(wanted, known, source, may_miss)]
    selected = select_rows(named, filt, "stimulus_filter")
    return record, table, selected.set_index("image_name")


def _in_common(
    settings: Settings, labels: list[str] | None, **filters: ResultFilter
) -> dict[str, Any]:
    """Return what Bunches of stimuli have in common."""
    query = {"labels": labels, **{n: f.to_dict() or None for n, f in filters.items()}}
    text = description()
    return {"data_dir": settings.data_dir, "query": query, "description": text}
