"""fetch_laion_surfaces: a subject's cortical surfaces and the ROI masks on them.

fetch_laion_surfaces ─┬─ _geometry, _masks ─▶ records
                      ├─ _download ─▶ obtain
                      ├─ _read ─▶ read_surface
                      ├─ _volume ─▶ _download       mri/orig.mgz, where needed
                      ├─ _make_meshes ─▶ read_orientation, moved
                      └─ _roi_masks ─▶ read_mask
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.arrays.geometry import (
    Surface,
    check_same_vertices,
    moved,
    read_mask,
    read_orientation,
    read_surface,
)
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    find_subjects,
    report_versions,
    take_inventory,
)
from laion_fmri_fetchers.cache.obtain import Outcome, obtain, plan
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DownloadError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.keys import GIFTI_EXTENSION, HEMISPHERE_OF, Record
from laion_fmri_fetchers.layout.trees import (
    FREESURFER,
    HEMISPHERES,
    ROIS,
    ROOT_FILES,
    SURFACES,
    listings_of,
    surface_id,
)
from laion_fmri_fetchers.messages import counted, listed, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.selection import is_one_name, select
from laion_fmri_fetchers.query.shared_docs import documented

from .choose import choose_rois, leave_out_absent
from .chosen import with_root_files
from .subjects import check_names, check_subjects

_ON_SURFACE = {"space": "fsnative", "extension": GIFTI_EXTENSION}

_IN_SCANNER = ("white", "pial")
"""Surfaces whose vertices lie in the head; inflated ones and spheres lie nowhere."""


@documented
@only_its_arguments
def fetch_laion_surfaces(
    subjects: str | int | Iterable[str | int],
    *,
    rois: str | Sequence[str] | None = "all",
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch the cortical surfaces of a subject, and ROI masks on them.

    Of FreeSurfer's reconstruction, eight files are downloaded, some 50 MB; the volume
    ``mri/orig.mgz`` only if the surfaces do not say where they lie in the scanner.

    Parameters
    ----------
    subjects : str, int, or several
        ``"sub-01"``, ``"01"`` or 1. A list or ``"all"``: each of them by itself, since
        surfaces of two do not correspond; see `project_to_surface` for fsaverage, on
        which they do.
    rois : str, sequence of str, or None, default="all"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``),
        ``"all"``, or None for none.
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about ROIs whose masks could not be downloaded, or offline are not on disk,
        instead of raising. The surfaces are always needed.
    %(n_connections)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``white``, ``pial``, ``inflated``, ``sphere_reg``:
          :class:`nilearn.surface.PolyMesh`, with ``parts`` ``"left"`` and ``"right"``:
          ``coordinates`` (n_vertices, 3), float64, and ``faces`` (n_faces, 3), int32.
          Vertices of a hemisphere correspond. White and pial are in scanner
          coordinates, in mm, as the images of the subject in T1w space are:
          FreeSurfer's c_ras is added. The others are as FreeSurfer has them.
        - ``roi_masks``: dict, ROI -> :class:`nilearn.surface.SurfaceImage` of bool, on
          the pial mesh; all False in a hemisphere for which the bucket has no mask.
        - ``subject``: str.
        - ``files``: list of str, and ``files_meta``: list of dict, the files and their
          records.
        - ``failed``: list of dict, records with a ``reason``; see ``allow_missing``.
        - ``data_dir``: str; ``query``: dict, the arguments of the call;
          ``description``: str.

        With a list of subjects or ``"all"``, a Bunch of such Bunches: subject -> its
        surfaces.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, or the bucket has no surfaces of the subject.
    NotCachedError
        Offline, if a surface, or the mask of an ROI that was named, is not on disk.
    BucketError
        If the bucket cannot be read, and files are not on disk.
    DownloadError
        If files failed after all retries.
    LicenseNotAcceptedError
        If the CC0 terms are not accepted.
    CorruptImageError
        If a file is damaged, or nothing says where the surfaces lie in the scanner.

    Warns
    -----
    UserWarning
        If the bucket has another version of a file than on disk, or offline, if ROI
        masks are missing.

    See Also
    --------
    project_to_surface : Project an image to the surface.
    fetch_laion_fmri : Fetch the files of ``image_type="freesurfer"``, all of them.

    Examples
    --------
    Vertices of an ROI, and their coordinates::

        surfaces = fetch_laion_surfaces("sub-01", rois="face")
        inside = surfaces.roi_masks["FFA1"].data.parts["right"]
        surfaces.pial.parts["right"].coordinates[inside]
    """
    given = dict(locals())
    selection = select(
        subjects, rois, "all", None, None, _ON_SURFACE, None, None, {}, ()
    )
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    if not is_one_name(subjects):
        each = selection.subjects or find_subjects(settings)[0]
        return Result(
            **{n: fetch_laion_surfaces(**{**given, "subjects": n}) for n in each}
        )
    (name,) = selection.subjects or ()
    wanted = [("", "/"), *listings_of(name, (FREESURFER, ROIS))]
    inventory = take_inventory(wanted, settings)
    check_subjects([name], inventory, named=True)
    geometry = _geometry(name, inventory)
    on_surface = [
        rec
        for rec in inventory.records
        if rec["hemi"] in HEMISPHERE_OF and selection.roi_filter(rec)
    ]
    check_names(on_surface, [name], inventory, selection)
    chosen = choose_rois(on_surface, selection)
    masks = _masks(chosen, inventory, selection.is_named)
    outcome = _download([*geometry, *masks], geometry, inventory)
    masks = _without_failed(masks, outcome)
    surfaces = _read(name, inventory)
    volume = _volume(name, surfaces, inventory)
    of_volume = _download(volume, volume, inventory)
    if inventory.error:
        warn(f"{inventory.error} Everything selected is on disk; continuing offline.")
    meshes = _make_meshes(surfaces, volume)
    roi_masks = _roi_masks(masks, meshes["pial"])
    files = [*geometry, *volume, *masks]
    report_versions(files, inventory, outcome.fetched | of_volume.fetched)
    n_vertices = [len(part.coordinates) for part in meshes["pial"].parts.values()]
    tell(
        f"Surfaces of {name}, {' + '.join(f'{n:,}' for n in n_vertices)} vertices, and "
        f"{counted(len(roi_masks), 'ROI')} in {settings.data_dir}",
        settings.verbose,
    )
    return Result(
        **{surface.replace(".", "_"): mesh for surface, mesh in meshes.items()},
        roi_masks=roi_masks,
        subject=name,
        files=[rec["absolute_path"] for rec in files],
        files_meta=files,
        failed=[{k: v for k, v in r.items() if k != "status"} for r in outcome.failed],
        data_dir=settings.data_dir,
        query={key: selection.as_query()[key] for key in ("subjects", "rois")},
        description=resources.files(__package__)
        .joinpath("laion_fmri.rst")
        .read_text("utf-8"),
    )


# --- Files -----------------------------------------------------------------------


def _geometry(subject: str, inventory: Inventory) -> list[Record]:
    """Return the records of a subject's surfaces; raise where one cannot be had."""
    by_id = inventory.by_id
    ids = [surface_id(subject, h, surface) for surface in SURFACES for h in HEMISPHERES]
    lacking = [path for path in ids if path not in by_id or path in inventory.absent]
    if lacking:
        inventory.refuse(
            f"The bucket lacks surfaces of {subject}: {listed(lacking, len(ids))}.",
            f"Surfaces of {subject} are not on disk in {inventory.settings.data_dir}: "
            f"{listed(lacking, len(ids))}.",
        )
    return [by_id[path] for path in ids]


def _masks(
    masks: list[Record], inventory: Inventory, is_named: Callable[[Record], bool]
) -> list[Record]:
    """Return the records of masks of whole ROIs, in both hemispheres."""
    settings = inventory.settings
    present = leave_out_absent(
        "ROI masks",
        masks,
        inventory.absent,
        is_named=lambda rec: is_named(rec) and not settings.allow_missing,
        advice=settings.how_to_fetch,
    )
    cut = {rec["roi"] for rec in masks if rec["id"] in inventory.absent}
    return _of_whole_rois(present, cut)


def _without_failed(masks: list[Record], outcome: Outcome) -> list[Record]:
    """Return the masks of the ROIs of which nothing failed to download."""
    failed = {rec["roi"]: rec["reason"] for rec in outcome.failed if rec["roi"]}
    if failed:
        warn(
            f"Left out, as masks could not be downloaded: {listed(sorted(failed))}. "
            "The reasons are in the Bunch under 'failed'."
        )
    return _of_whole_rois(masks, failed)


def _of_whole_rois(masks: list[Record], cut: Container[str]) -> list[Record]:
    """Leave out ROIs of which a hemisphere is not on disk: it would look empty."""
    return [rec for rec in masks if rec["roi"] not in cut]


def _download(
    files: list[Record], needed: list[Record], inventory: Inventory
) -> Outcome:
    """Download files that are not on disk; raise where one that is needed failed."""
    planned = plan(files, inventory, again=lambda _: True)
    outcome = obtain(
        with_root_files(planned, inventory),
        inventory,
        accept=accept_license,
        optional=ROOT_FILES,
    )
    ids = {rec["id"] for rec in needed}
    lost = [rec for rec in outcome.failed if rec["id"] in ids]
    if lost:
        reasons = "; ".join(f"{rec['id']}: {rec['reason']}" for rec in lost)
        raise DownloadError(f"Could not be downloaded: {reasons}.", failed=lost)
    failed = tuple(rec for rec in outcome.failed if rec["id"] not in ROOT_FILES)
    return outcome._replace(failed=failed)


# --- Meshes and masks ------------------------------------------------------------


def _read(subject: str, inventory: Inventory) -> dict[str, dict[str, Surface]]:
    """Return the surfaces of both hemispheres, by name."""
    by_id = inventory.by_id
    surfaces = {
        surface: {
            h: read_surface(by_id[surface_id(subject, h, surface)]["absolute_path"])
            for h in HEMISPHERES
        }
        for surface in SURFACES
    }
    for h in HEMISPHERES:
        check_same_vertices([surfaces[surface][h] for surface in SURFACES])
    return surfaces


def _volume(
    subject: str, surfaces: dict[str, dict[str, Surface]], inventory: Inventory
) -> list[Record]:
    """Return the volume that says where surfaces lie, if one of them does not.

    Raises
    ------
    NotCachedError, CorruptImageError
        If it is needed, and cannot be had.
    """
    silent = [
        surface.file
        for name in _IN_SCANNER
        for surface in surfaces[name].values()
        if surface.to_scanner is None
    ]
    if not silent:
        return []
    path = f"{FREESURFER}{subject}/mri/orig.mgz"
    volume = inventory.by_id.get(path)
    if volume and path not in inventory.absent:
        return [volume]
    lacks = (
        f"{listed(silent, len(silent))} lack c_ras, by which they lie in the scanner"
    )
    settings = inventory.settings
    if volume or inventory.is_cut_off:
        raise NotCachedError(
            f"{lacks}; it is read from {path} then, which is not on disk in "
            f"{settings.data_dir}. {settings.how_to_fetch}"
        )
    raise CorruptImageError(
        f"{lacks}, and the bucket has no {path} to read it from. If the files are "
        "damaged, mode='overwrite' downloads them again; else ask the publishers."
    )


def _make_meshes(
    surfaces: dict[str, dict[str, Surface]], volume: list[Record]
) -> dict[str, Any]:
    """Return a PolyMesh of each surface; those of the head in scanner coordinates."""
    from nilearn.surface import InMemoryMesh, PolyMesh

    of_volume = [read_orientation(rec["absolute_path"]) for rec in volume]

    def mesh(name: str, surface: Surface) -> Any:
        if name not in _IN_SCANNER:
            return InMemoryMesh(surface.coordinates, surface.faces)
        to_scanner = surface.to_scanner
        if to_scanner is None:
            (to_scanner,) = of_volume
        return InMemoryMesh(moved(surface.coordinates, to_scanner), surface.faces)

    return {
        name: PolyMesh(**{h: mesh(name, surface) for h, surface in parts.items()})
        for name, parts in surfaces.items()
    }


def _roi_masks(masks: list[Record], mesh: Any) -> dict[str, Any]:
    """Return the ROIs as images on a mesh, empty where a hemisphere has no mask."""
    from nilearn.surface import SurfaceImage

    n_vertices = {h: len(part.coordinates) for h, part in mesh.parts.items()}
    parts: dict[str, dict[str, np.ndarray]] = {
        rec["roi"]: {h: np.zeros(n, dtype=bool) for h, n in n_vertices.items()}
        for rec in masks
    }
    for rec in masks:
        h = HEMISPHERE_OF[rec["hemi"]]
        parts[rec["roi"]][h] = read_mask(rec["absolute_path"], n_vertices[h])
    return {roi: SurfaceImage(mesh, of_roi) for roi, of_roi in parts.items()}
