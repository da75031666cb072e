"""fetch_laion_surfaces: a subject's cortical surfaces and the ROI masks on them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    find_subjects,
    report_versions,
    take_inventory,
)
from laion_fmri_fetchers.cache.obtain import Outcome
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.exceptions import CorruptImageError, NotCachedError
from laion_fmri_fetchers.layout import trees
from laion_fmri_fetchers.layout.keys import GIFTI_EXTENSION, HEMISPHERE_OF, Record
from laion_fmri_fetchers.messages import counted, listed, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.selection import is_one_name, select
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.surfaces.files import (
    IN_SCANNER,
    make_meshes,
    read_orientation,
    read_surface,
    read_talairach,
    read_values,
)

from .bunch import description, obtain_files, plan_files, warn_if_down, without_status
from .choose import choose_rois
from .subjects import check_names, check_subjects, leave_out_absent

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
    settings = make_settings(**given)
    selection = select(subjects, rois, roi_filter=_ON_SURFACE)
    if not is_one_name(subjects):
        each = selection.subjects or find_subjects(settings)[0]
        return Result(
            **{n: fetch_laion_surfaces(**{**given, "subjects": n}) for n in each}
        )
    (name,) = selection.subjects or ()
    wanted = [("", "/"), *trees.listings_of(name, (trees.FREESURFER, trees.ROIS))]
    inventory = take_inventory(wanted, settings)
    check_subjects(selection, inventory)
    by_id = inventory.by_id

    # The surfaces, which are all needed; where the bucket has them, the depth of sulci
    # and the transform to MNI305.
    ids = {
        surface: {h: trees.surface_id(name, h, surface) for h in trees.HEMISPHERES}
        for surface in (*trees.SURFACES, "sulc")
    }
    if not by_id.keys() >= {*ids["sulc"].values()}:
        del ids["sulc"]
    needed = [path for of_surface in ids.values() for path in of_surface.values()]
    talairach = by_id.get(f"{trees.FREESURFER}{name}/mri/transforms/talairach.xfm")
    if talairach:
        needed.append(talairach["id"])
    if missing := [p for p in needed if p not in by_id or p in inventory.absent]:
        names = listed(missing, len(missing))
        inventory.refuse(
            f"The bucket lacks surfaces of {name}: {names}.",
            f"Surfaces of {name} are not on disk in {settings.data_dir}: {names}.",
        )
    geometry = [by_id[path] for path in needed]

    # The masks of ROIs.
    on_surface = [
        rec
        for rec in inventory.records
        if rec["hemi"] in HEMISPHERE_OF and selection.roi_filter(rec)
    ]
    check_names(on_surface, [name], inventory, selection)
    chosen = choose_rois(on_surface, selection)
    masks = leave_out_absent("ROI masks", chosen, inventory, selection.is_named)
    may_fail = [rec["id"] for rec in masks] if settings.allow_missing else []
    outcome = _download([*geometry, *masks], inventory, may_fail)
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
    files = {
        surface: {h: by_id[path]["absolute_path"] for h, path in of_surface.items()}
        for surface, of_surface in ids.items()
    }
    surfaces = {
        surface: {h: read_surface(file) for h, file in files[surface].items()}
        for surface in trees.SURFACES
    }
    without = [
        surface.file
        for part in IN_SCANNER
        for surface in surfaces[part].values()
        if surface.to_scanner is None
    ]
    volume = [_find_volume(name, without, inventory)] if without else []
    outcome += _download(volume, inventory)
    orientation = read_orientation(volume[0]["absolute_path"]) if volume else None
    warn_if_down(inventory)
    records = [*geometry, *volume, *masks]
    report_versions(records, inventory, outcome.fetched)

    meshes = make_meshes(surfaces, orientation)
    pial = meshes["pial"]
    files_of: dict[str, dict[str, str]] = {}
    for rec in masks:
        of_roi = files_of.setdefault(rec["roi"], {})
        of_roi[HEMISPHERE_OF[rec["hemi"]]] = rec["absolute_path"]
    n_vertices = " + ".join(f"{len(p.coordinates):,}" for p in pial.parts.values())
    tell(
        f"Surfaces of {name}, {n_vertices} vertices, and "
        f"{counted(len(files_of), 'ROI')} in {settings.data_dir}",
        settings.verbose,
    )
    return Result(
        **{surface.replace(".", "_"): mesh for surface, mesh in meshes.items()},
        sulc=_read_image(files["sulc"], pial) if "sulc" in files else None,
        to_mni305=read_talairach(talairach["absolute_path"]) if talairach else None,
        roi_masks={n: _read_image(f, pial, is_mask=True) for n, f in files_of.items()},
        subject=name,
        files=[rec["absolute_path"] for rec in records],
        files_meta=records,
        failed=without_status(outcome.failed),
        data_dir=settings.data_dir,
        query={key: selection.as_query()[key] for key in ("subjects", "rois")},
        description=description(),
    )


def _download(
    files: list[Record], inventory: Inventory, may_fail: Iterable[str] = ()
) -> Outcome:
    """Download files that are not on disk; but for some, none may fail."""
    settings = inventory.settings._replace(allow_missing=False)
    planned = plan_files(files, inventory, again=lambda _: True)
    strict = inventory._replace(settings=settings)
    return obtain_files(planned, strict, optional=may_fail)


def _find_volume(subject: str, without: list[str], inventory: Inventory) -> Record:
    """Return the volume that says where surfaces lie that do not say it themselves.

    Raises
    ------
    NotCachedError, CorruptImageError
        If it is unavailable.
    """
    path = f"{trees.FREESURFER}{subject}/mri/orig.mgz"
    volume = inventory.by_id.get(path)
    if volume and path not in inventory.absent:
        return volume
    problem = (
        f"{listed(without, len(without))} lack c_ras, by which they lie in the scanner"
    )
    if volume or inventory.is_cut_off:
        raise NotCachedError(
            f"{problem}; it is read from {path} then, which is not on disk in "
            f"{inventory.settings.data_dir}. {inventory.settings.how_to_fetch}"
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
