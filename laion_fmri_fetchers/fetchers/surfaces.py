"""fetch_laion_surfaces: a subject's cortical surfaces and the ROI masks on them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
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
from laion_fmri_fetchers.surfaces.files import (
    IN_SCANNER,
    Surface,
    make_meshes,
    read_orientation,
    read_surface,
    read_talairach,
    read_values,
)

from .bunch import with_root_files
from .choose import choose_rois, leave_out_absent
from .subjects import check_names, check_subjects

_ON_SURFACE = {"space": "fsnative", "extension": GIFTI_EXTENSION}


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

    Of FreeSurfer's reconstruction, eleven files are downloaded, some 50 MB; the volume
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
        - ``sulc``: :class:`nilearn.surface.SurfaceImage` of float32, on the pial mesh:
          the depth of sulci as FreeSurfer has it, as ``bg_map`` of nilearn's plots;
          None where the bucket lacks it.
        - ``to_mni305``: float64 (4, 4), the affine transform from scanner to MNI305
          coordinates, of ``mri/transforms/talairach.xfm``, for `project_to_mni`; None
          where the bucket lacks it.
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
    settings = make_settings(**locals())
    if not is_one_name(subjects):
        each = selection.subjects or find_subjects(settings)[0]
        return Result(
            **{n: fetch_laion_surfaces(**{**given, "subjects": n}) for n in each}
        )
    (name,) = selection.subjects or ()
    wanted = [("", "/"), *listings_of(name, (FREESURFER, ROIS))]
    inventory = take_inventory(wanted, settings)
    check_subjects([name], inventory, named=True)
    by_id = inventory.by_id

    # The surfaces, which are all needed; where the bucket has them, the depth of sulci
    # and the transform to MNI305.
    ids = [surface_id(name, h, surface) for surface in SURFACES for h in HEMISPHERES]
    sulc_ids = {h: surface_id(name, h, "sulc") for h in HEMISPHERES}
    has_sulc = all(path in by_id for path in sulc_ids.values())
    if has_sulc:
        ids += sulc_ids.values()
    talairach = f"{FREESURFER}{name}/mri/transforms/talairach.xfm"
    if talairach in by_id:
        ids.append(talairach)
    missing = [path for path in ids if path not in by_id or path in inventory.absent]
    if missing:
        inventory.refuse(
            f"The bucket lacks surfaces of {name}: {listed(missing, len(ids))}.",
            f"Surfaces of {name} are not on disk in {settings.data_dir}: "
            f"{listed(missing, len(ids))}.",
        )
    geometry = [by_id[path] for path in ids]

    # The masks of ROIs.
    on_surface = [
        rec
        for rec in inventory.records
        if rec["hemi"] in HEMISPHERE_OF and selection.roi_filter(rec)
    ]
    check_names(on_surface, [name], inventory, selection)
    chosen = choose_rois(on_surface, selection)
    masks = leave_out_absent(
        "ROI masks",
        chosen,
        inventory.absent,
        is_named=lambda rec: selection.is_named(rec) and not settings.allow_missing,
        advice=settings.how_to_fetch,
    )
    outcome = _download([*geometry, *masks], geometry, inventory)
    failed = {rec["roi"] for rec in outcome.failed}
    if failed:
        warn(
            f"Left out, as masks could not be downloaded: {listed(sorted(failed))}. "
            "The reasons are in the Bunch under 'failed'."
        )
    # Of an ROI, all masks or none: a hemisphere whose mask is missing would look empty.
    failed |= {rec["roi"] for rec in chosen if rec["id"] in inventory.absent}
    masks = [rec for rec in masks if rec["roi"] not in failed]

    # Where they lie, by the surfaces themselves or by a volume.
    surfaces = {
        surface: {
            h: read_surface(by_id[surface_id(name, h, surface)]["absolute_path"])
            for h in HEMISPHERES
        }
        for surface in SURFACES
    }
    volume = _find_volume(name, surfaces, inventory)
    outcome += _download(volume, volume, inventory)
    if inventory.error:
        warn(f"{inventory.error} Everything selected is on disk; continuing offline.")
    files = [*geometry, *volume, *masks]
    report_versions(files, inventory, outcome.fetched)
    orientation = read_orientation(volume[0]["absolute_path"]) if volume else None
    meshes = make_meshes(surfaces, orientation)
    pial = meshes["pial"]
    sulc = None
    if has_sulc:
        depth = {h: by_id[path]["absolute_path"] for h, path in sulc_ids.items()}
        sulc = _read_image(depth, pial)
    to_mni305 = None
    if talairach in by_id:
        to_mni305 = read_talairach(by_id[talairach]["absolute_path"])
    files_of: dict[str, dict[str, str]] = {}
    for rec in masks:
        of_roi = files_of.setdefault(rec["roi"], {})
        of_roi[HEMISPHERE_OF[rec["hemi"]]] = rec["absolute_path"]
    roi_masks = {
        roi: _read_image(of_roi, pial, is_mask=True) for roi, of_roi in files_of.items()
    }
    n_vertices = " + ".join(f"{len(p.coordinates):,}" for p in pial.parts.values())
    tell(
        f"Surfaces of {name}, {n_vertices} vertices, and "
        f"{counted(len(roi_masks), 'ROI')} in {settings.data_dir}",
        settings.verbose,
    )
    return Result(
        **{surface.replace(".", "_"): mesh for surface, mesh in meshes.items()},
        sulc=sulc,
        to_mni305=to_mni305,
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


def _download(
    files: list[Record], needed: list[Record], inventory: Inventory
) -> Outcome:
    """Download files that are not on disk; raise where one that is needed failed."""
    outcome = obtain(
        with_root_files(plan(files, inventory, again=lambda _: True), inventory),
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


def _find_volume(
    subject: str, surfaces: dict[str, dict[str, Surface]], inventory: Inventory
) -> list[Record]:
    """Return the volume that says where surfaces lie, if one of them does not.

    Raises
    ------
    NotCachedError, CorruptImageError
        If it is needed and unavailable.
    """
    without = [
        surface.file
        for name in IN_SCANNER
        for surface in surfaces[name].values()
        if surface.to_scanner is None
    ]
    if not without:
        return []
    path = f"{FREESURFER}{subject}/mri/orig.mgz"
    volume = inventory.by_id.get(path)
    if volume and path not in inventory.absent:
        return [volume]
    settings, names = inventory.settings, listed(without, len(without))
    problem = f"{names} lack c_ras, by which they lie in the scanner"
    if volume or inventory.is_cut_off:
        raise NotCachedError(
            f"{problem}; it is read from {path} then, which is not on disk in "
            f"{settings.data_dir}. {settings.how_to_fetch}"
        )
    raise CorruptImageError(
        f"{problem}, and the bucket has no {path} to read it from. If the files are "
        "damaged, mode='overwrite' downloads them again; else ask the dataset's "
        "authors."
    )


def _read_image(files: dict[str, str], mesh: Any, is_mask: bool = False) -> Any:
    """Return an image on a mesh of files by hemisphere; zeros where there is none."""
    from nilearn.surface import SurfaceImage

    parts = {}
    for hemisphere, part in mesh.parts.items():
        values = np.zeros(len(part.coordinates), np.float32)
        if hemisphere in files:
            values = read_values(files[hemisphere], len(values))
        parts[hemisphere] = values > 0 if is_mask else values
    return SurfaceImage(mesh, parts)
