"""fetch_laion_fmri and fetch_laion_fmri_ids: from arguments to a Bunch of files.

The way through, with no step back::

    arguments -> Selection, Settings, Grid   select, make_settings, make_grid
              -> Inventory                   bucket or kept listings, and the disk
              -> subjects                    describe_subjects, by subject_filter
              -> images                      choose_images, by sessions and image_filter
              -> trials, masks, files, Bunch fetch_chosen

Filters cut metadata at each step, before bytes move: of the bucket, nothing but
listings and small tables is read until the plan stands.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any

from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.inventory import (
    SUBJECT_TREES,
    Inventory,
    take_inventory,
    take_inventory_of_subjects,
)
from laion_fmri_fetchers.cache.settings import Settings, make_settings
from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.keys import Record, clean_key, is_held_out, place_of
from laion_fmri_fetchers.layout.trees import GATED, listing_of, listings_of
from laion_fmri_fetchers.messages import counted, tell
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.selection import Selection, select
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.query.term_checks import check_fields, check_terms
from laion_fmri_fetchers.query.values import in_order
from laion_fmri_fetchers.remote.bucket import key_of

from .bunch import fetch_chosen
from .choose import choose_images, describe_subjects
from .resample import find_resampled, make_grid
from .subjects import check_names, check_subjects, leave_out_absent, participants


@documented
def fetch_laion_fmri(
    subjects: str | int | Sequence[str | int] = ("sub-01",),
    rois: str | Sequence[str] | None = "all",
    sessions: str | int | Iterable[str | int] = "all",
    *,
    subject_filter: Any = None,
    image_filter: Any = None,
    roi_filter: Any = None,
    trial_filter: Any = None,
    max_images: int | None = None,
    resolution: float | None = None,
    interpolation: str = "continuous",
    keep_original: bool = True,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **image_terms: Any,
) -> Bunch:
    """Fetch images, ROI masks and trial metadata of LAION-fMRI.

    The local cache is searched first, then the bucket. Selected files that are not on
    disk are downloaded, and stay there for later calls.

    Parameters
    ----------
    subjects : str, int, or several, default=("sub-01",)
        ``"sub-01"``, ``"01"`` or 1, several of them, or ``"all"`` that the bucket
        holds.
    rois : str, sequence of str, or None, default="all"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``),
        ``"all"``, or None for none.
    sessions : str, int, or several, default="all"
        ``"ses-01"``, ``"01"``, 1 or a name such as ``"4BarScreenfLoc"``, several of
        them (a range too), or ``"all"`` that are not held out. Chooses among files of a
        session, such as betas; those of the subject are chosen by image terms alone.
    subject_filter, image_filter, roi_filter, trial_filter : dict, `ResultFilter` or \
callable, optional
        Conditions on records of ``subjects_meta``, ``images_meta`` and ``rois_meta``,
        and on trials as dicts. A term on a field replaces the default term on it, see
        `.basic_image_terms` and `.basic_roi_terms`. With a trial filter, only files of
        sessions in which a trial passes are fetched.
    max_images : int, optional
        Maximum number of image files, in subject, session order; None or negative: all.
    resolution : float, optional
        Voxel size in mm of an isotropic grid. Images, ROI masks, brain masks and noise
        ceilings are resampled to it, and kept below
        ``derivatives/laion-fmri-fetchers/`` for later calls. Files are resampled one
        after the other, or in parallel as :func:`joblib.parallel_config` says.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        How images and noise ceilings are resampled; masks always by the nearest voxel.
    keep_original : bool, default=True
        False: delete the originals of ``images`` once they are resampled.
    %(mode)s
    %(data_dir)s
    dry_run : bool, default=False
        Plan only: nothing but listings and the tables that filters read is fetched.
    allow_missing : bool, default=False
        Warn about files that could not be downloaded, or offline are not on disk,
        instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    **image_terms
        Terms on fields of image records, as in ``image_type="rsquare"``. Raw and
        preprocessed data come only where one of their types is named, and so do
        sidecars in their folders: ``image_type=["raw_bold", "sidecar"]``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``images``: list of str, the image files in subject, session order; by
          default the single-trial betas, one 4-D image per session, float32.
        - ``images_meta``: list of dict, their records. ``outdated`` is True where the
          bucket has another version than the one on disk, which the record describes.
        - ``rois``, ``rois_meta``: list of str and of dict, ROI masks and records, of
          each subject in the order in which ``rois`` names them.
        - ``roi_files``: dict, subject -> {ROI: path of its mask}, by default on the
          grid of the images. Where ``roi_filter`` lets several files of an ROI pass,
          names go on with what tells them apart: ``"FFA1 L"`` and ``"FFA1 R"`` for
          hemispheres, ``"FFA1 1pt5"`` and ``"FFA1 1pt8"`` for grids.
        - ``brain_masks``: dict, subject -> brain mask on the functional grid.
        - ``noise_ceilings``: dict, subject -> {``"4rep"``, ``"12rep"``, ``"Allrep"``:
          path of the map, in percent}.
        - ``trials``: :class:`pandas.DataFrame`, one row per selected trial, in the
          order of ``images`` and of volumes: ``subject``, ``session``, ``run``,
          ``beta_index`` (the volume, from 0), ``label`` (the stimulus),
          ``image_index`` (position in ``images``), ``unique_or_shared``, ``n_reps``
          (Int64, as planned), ``dataset``, ``ood_type``, ``participant`` (of a unique
          image) and ``repetition`` (Int64, which showing of the image to the subject
          it was, from 1; null where a trial table of an earlier session is missing).
        - ``sample_masks``: list of int arrays, the selected volumes of each image;
          None where an image holds no trials.
        - ``subjects_meta``: list of dict, ``subject``, columns of
          ``participants.tsv``, ``sessions``, ``rois``.
        - ``failed``: list of dict, records with a ``reason``; see ``allow_missing``.
        - ``data_dir``: str; ``query``: dict, the arguments of the call;
          ``description``: str.
        - ``plan``: :class:`pandas.DataFrame` with ``id``, ``size`` in bytes and
          ``reason`` of each file that would be downloaded, and ``plan_size``, their
          sum in bytes; with ``dry_run`` only.

    Raises
    ------
    InvalidQueryError
        If an argument, a term or a field name is not valid.
    NotCachedError
        Offline, if a file of a subject, session or ROI that was named is not on disk.
    HeldOutSessionError
        If a held-out session was named and the bucket denies it.
    BucketError
        If the bucket cannot be read, and files of the selection are not on disk.
    DownloadError
        If files failed after all retries.
    DiskSpaceError
        If the disk is too small.
    LicenseNotAcceptedError
        If the CC0 terms are not accepted.
    CorruptImageError
        If a trial table is broken.

    See Also
    --------
    fetch_laion_fmri_ids : Fetch exactly the files of a list.
    get_rois : Names of ROIs.

    Notes
    -----
    Betas are single-trial estimates of GLMsingle [1]_. The dataset's authors
    advise to z-score each voxel within a session before sessions are pooled, as ridge
    shrinkage differs between voxels. Noise ceilings are percentages of variance, as
    first defined for the Natural Scenes Dataset [2]_.

    In mode ``"overwrite"``, masks, maps and tables that only go with the images are
    downloaded again where they, too, fulfil terms on ``last_modified`` and
    ``outdated``. Terms see the bucket's values, so ``mode="overwrite", outdated=True``
    updates the files of the selection of which the bucket has another version, trial
    tables too, and no others.

    References
    ----------
    .. [1] Prince et al. (2022). Improving the accuracy of single-trial fMRI response
       estimates using GLMsingle. eLife 11:e77599.
    .. [2] Allen et al. (2022). A massive 7T fMRI dataset to bridge cognitive
       neuroscience and artificial intelligence. Nature Neuroscience 25:116-126.

    Examples
    --------
    Face-selective regions and all trials of images shown 12 times::

        data = fetch_laion_fmri("sub-01", rois="face", trial_filter={"n_reps": 12})

    Maps of explained variance of two subjects: what would be downloaded, and how much::

        plan = fetch_laion_fmri([1, 3], image_type="rsquare", dry_run=True)
        print(plan.plan, plan.plan_size)

    Fetch again what changed in the bucket since::

        newest = max(m["last_modified"] for m in data.images_meta)
        fetch_laion_fmri(mode="overwrite", last_modified=GreaterThan(newest))
    """
    settings = make_settings(**locals())
    arguments = inspect.signature(fetch_laion_fmri).parameters
    selection = select(**locals())
    grid = make_grid(resolution, interpolation, keep_original, settings.data_dir)
    resampled = find_resampled(grid) if grid else {}
    names, inventory = take_inventory_of_subjects(selection, settings, resampled)
    check_subjects(selection, inventory, may_be_left_out=True)

    # Subjects, and their images by metadata; trials then cut these.
    table = participants(inventory, selection)
    described = describe_subjects(names, inventory.records, table)
    passes = selection.subject_filter
    if described:
        check_fields(passes, "subject_filter", {n for each in described for n in each})
    subjects_meta = [meta for meta in described if passes(meta)]
    check_terms("subject_filter", passes, described, len(subjects_meta))
    selected = {meta["subject"] for meta in subjects_meta}
    records = [rec for rec in inventory.records if rec["subject"] in selected]
    check_names(records, selected, inventory, selection)
    images = choose_images(records, selection)

    # Offline, subjects of whom nothing is on disk are not shown.
    on_disk = {r["subject"] for r in records if r["id"] not in inventory.absent}
    gone = {rec["subject"] for rec in records} - on_disk
    subjects_meta = [meta for meta in subjects_meta if meta["subject"] not in gone]
    bunch = fetch_chosen(
        images, records, subjects_meta, inventory, selection, grid=grid
    )
    if grid:
        bunch.query["resolution"] = grid.resolution
        bunch.query["interpolation"] = grid.interpolation
    return bunch


@only_its_arguments
@documented
def fetch_laion_fmri_ids(
    image_ids: str | Iterable[str] = (),
    *,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch exactly the named files, to reproduce a selection.

    Parameters
    ----------
    image_ids : str or iterable of str, default=()
        The ``id`` of records, or keys or addresses of the bucket
        (``s3://laion-fmri/…``); one that ends with ``/`` stands for every file below
        it, such as ``"derivatives/retinotopy/sub-01/"``, except files that are held out
        or gated. Betas bring their trial tables and, for each subject, brain mask and
        noise ceilings; other files are fetched alone.
    %(mode)s
    %(data_dir)s
    dry_run : bool, default=False
        Plan only: nothing but listings and trial tables is fetched.
    allow_missing : bool, default=False
        Warn about files that could not be fetched, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        As from `fetch_laion_fmri`; all files, ROI masks too, are in ``images``, in the
        order of ``image_ids``, files below prefixes last, and ``rois`` is empty.

    Raises
    ------
    InvalidQueryError
        If an id is not that of a file of the bucket, or nothing is below a prefix.
    UnsafeKeyError
        If an id would leave the data directory.
    NotCachedError
        Offline, if a file is not on disk, unless ``allow_missing``.

    See Also
    --------
    fetch_laion_fmri : Select by subjects, ROIs and filters, and list its errors.

    Examples
    --------
    Save the ids of a selection, and fetch the same files elsewhere::

        ids = [meta["id"] for meta in data.images_meta]
        again = fetch_laion_fmri_ids(ids)

    All files of a subject in a tree, whatever they are::

        maps = fetch_laion_fmri_ids("derivatives/retinotopy/sub-01/")
    """
    settings = make_settings(**locals())
    names = _parse_ids(image_ids)
    subjects, inventory = _take_inventory_of_named(names, settings)
    images = _choose_named(names, inventory)
    images = leave_out_absent("images", images, inventory, is_named=lambda _: True)
    everything = Selection(rois=())
    table = participants(inventory, everything)
    with_betas = {rec["subject"] for rec in images if rec["image_type"] == "betas"}
    records = [rec for rec in inventory.records if rec["subject"] in with_betas]
    shown = sorted(subjects & {rec["subject"] for rec in images})
    subjects_meta = describe_subjects(shown, inventory.records, table)
    bunch = fetch_chosen(images, records, subjects_meta, inventory, everything)
    bunch.query = {"image_ids": names}
    return bunch


def _parse_ids(image_ids: Any) -> list[str]:
    """Return ids, and behind them prefixes, that were named, each once.

    Raises
    ------
    InvalidQueryError
        If one is not text, or gated.
    UnsafeKeyError
        If one would leave the data directory.
    """
    if isinstance(image_ids, bytes) or not isinstance(image_ids, Iterable):
        raise InvalidQueryError(f"image_ids is {image_ids!r}; give ids or keys, as str")
    names: dict[str, None] = {}
    for name in [image_ids] if isinstance(image_ids, str) else in_order(image_ids):
        if not isinstance(name, str):
            raise InvalidQueryError(
                f"image_ids holds {name!r}; give ids or keys, as str"
            )
        if os.path.isabs(name) and name.strip("/"):
            raise InvalidQueryError(
                f"image_ids holds {name!r}, a path on disk; give the 'id' of its "
                "record, which begins below the data directory: "
                "[meta['id'] for meta in data.images_meta]"
            )
        path = key_of(name)
        is_prefix = path.endswith("/") and path.strip("/")
        names[f"{clean_key(path[:-1])}/" if is_prefix else clean_key(path)] = None
    for gated in GATED & names.keys():
        raise InvalidQueryError(
            f"{gated!r} is gated by a Data Use Agreement; use fetch_laion_stimuli."
        )
    return sorted(names, key=lambda name: name.endswith("/"))


def _take_inventory_of_named(
    names: list[str], settings: Settings
) -> tuple[set[str], Inventory]:
    """Return the subjects of named files, and an inventory of all their files."""
    below = tuple(name for name in names if name.endswith("/"))
    wanted = {("", "/"), *map(listing_of, names)}
    subjects = {subject for _, subject in map(place_of, names) if subject}
    while True:
        for subject in subjects:
            wanted |= {*listings_of(subject, SUBJECT_TREES)}
        inventory = take_inventory(wanted, settings)
        named = [rec for rec in inventory.records if rec["id"].startswith(below)]
        found = subjects | {rec["subject"] for rec in named if rec["subject"]}
        # A prefix may lie above what is listed whole, such as that of a tree.
        more = {listing_of(f) for f in inventory.folders if f.startswith(below)}
        if found == subjects and more <= wanted:
            return subjects, inventory
        subjects, wanted = found, wanted | more


def _choose_named(names: list[str], inventory: Inventory) -> list[Record]:
    """Return the records of named files, in the order of their names.

    A name without a file is an error.
    """
    settings, by_id = inventory.settings, inventory.by_id
    chosen: dict[str, Record] = {}
    for name in names:
        if name in by_id:
            chosen[name] = by_id[name]
            continue
        below = [rec for rec in inventory.records if rec["id"].startswith(name)]
        if not (below and name.endswith("/")):
            what, hint = "No file", did_you_mean(name, by_id)
            if name.endswith("/"):
                what, hint = "Nothing below", "inspect_bucket() shows its folders."
            inventory.refuse(
                f"There is {what.lower()} {name!r} in the bucket; {hint}",
                f"{what} {name} is on disk in {settings.data_dir}; {hint}",
            )
        public = [r for r in below if not is_held_out(r) and r["id"] not in GATED]
        if len(public) < len(below):
            tell(
                f"Below {name}, {counted(len(below) - len(public), 'file')} held out "
                "for evaluation or gated by the Data Use Agreement are left out",
                settings.verbose,
            )
        chosen |= {rec["id"]: rec for rec in public}
    return [*chosen.values()]
