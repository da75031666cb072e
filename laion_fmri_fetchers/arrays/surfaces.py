"""Volumes projected to a subject's cortex, and from there to fsaverage.

project_to_surface ─┬─ templates.load_template ─▶ _nearest_vertices
                    ├─ _open ─▶ _blocks              a few volumes at a time
                    └─ _project ─▶ nilearn.surface.vol_to_surf, between white and pial
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.grids import interpolation_for
from laion_fmri_fetchers.layout.keys import (
    is_nifti_name,
    record_of_path,
    subject_of_name,
)
from laion_fmri_fetchers.layout.trees import HEMISPHERES
from laion_fmri_fetchers.messages import can_draw, progress_bar, warn
from laion_fmri_fetchers.query.arguments import check_mode, check_verbose, user_path
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .geometry import moved
from .templates import TEMPLATES, load_template

if TYPE_CHECKING:
    from nilearn.surface import SurfaceImage

_TARGETS = ("fsnative", *TEMPLATES)

_INTERPOLATIONS = ("linear", "nearest_most_frequent")

_BLOCK = 4
"""Volumes projected at once. Where the vertices lie among the voxels is computed for
each block; nilearn takes some 40 MB of memory per volume and 150,000 vertices."""


_N_DEPTHS = 10
"""As vol_to_surf of nilearn has by default."""


class _Volumes(NamedTuple):
    """An image of which a volume is read at a time."""

    shape: tuple[int, ...]
    affine: np.ndarray
    volumes: Iterator[np.ndarray]
    """Each valid until the next."""
    are_labels: bool
    """Whether values are names of something, so that their mean means nothing."""


def project_to_surface(
    img: Any,
    surfaces: Bunch,
    *,
    target: str = "fsnative",
    interpolation: str = "linear",
    mode: str | None = None,
    verbose: int = 1,
) -> SurfaceImage:
    """Project an image of a subject to its cortex, or from there to fsaverage.

    At each vertex, the image is sampled at ten depths from the white to the pial
    surface, and averaged, by :func:`nilearn.surface.vol_to_surf`. For fsaverage, each
    of its vertices then takes the value of the subject's vertex nearest to it on the
    sphere that FreeSurfer registered the subject by.

    Parameters
    ----------
    img : str, path or image
        A 3-D or 4-D NIfTI image in the subject's T1w space, such as a noise ceiling or
        a map made from betas: ``betas.to_img(values)``, of which only the voxels of
        ``betas`` count. Zeros beside a region in any other image would be averaged with
        its values: use NaN. A file is read a few volumes at a time.
    surfaces : :class:`sklearn.utils.Bunch`
        From `fetch_laion_surfaces`, of the same subject.
    target : {"fsnative", "fsaverage5", "fsaverage6", "fsaverage"}, default="fsnative"
        The mesh of the result: the subject's, where its ROI masks are, or fsaverage,
        on which subjects correspond, with 10,242, 40,962 or 163,842 vertices per
        hemisphere. fsaverage5 is part of nilearn; the others are looked for in
        ``$SUBJECTS_DIR`` and in nilearn's data directories, and last downloaded by
        nilearn.
    interpolation : {"linear", "nearest_most_frequent"}, default="linear"
        Between voxels. The second is for masks, labels and indices such as those of
        ``hrf_index``: of the nearest voxels at the ten depths, the most frequent value.
    mode : {"download_new", "offline"}, optional
        ``"offline"`` lets nilearn download nothing. None: ``"offline"`` where
        ``LAION_FMRI_OFFLINE=1`` is set.
    verbose : int, default=1
        0: silent, 1: a progress bar on a terminal, for images of many volumes.

    Returns
    -------
    :class:`nilearn.surface.SurfaceImage`
        On the pial mesh of the target, float32, shape (n_vertices,), or (n_vertices,
        n_volumes) for a 4-D image. Voxels that are NaN do not count, and vertices
        without any other, or outside of the image, are NaN.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, or the image is of another subject.
    NotCachedError
        Offline, if a template is not on this machine.
    DownloadError
        If nilearn cannot download a template.
    CorruptImageError
        If a file is damaged.

    Warns
    -----
    UserWarning
        If ``"linear"`` would average labels: those of a file whose name ends with
        ``_mask`` or ``_dseg``, or whole numbers in an image without a name of BIDS.

    See Also
    --------
    fetch_laion_surfaces : Fetch the surfaces of a subject.

    Examples
    --------
    A noise ceiling on the inflated surface, with nilearn::

        from nilearn.plotting import plot_surf

        surfaces = fetch_laion_surfaces("sub-01", rois="face")
        ceiling = data.noise_ceilings["sub-01"]["Allrep"]
        on_cortex = project_to_surface(ceiling, surfaces)
        plot_surf(surfaces.inflated, surf_map=on_cortex, hemi="right", view="ventral")

    Mean over subjects, on fsaverage::

        maps = []
        for subject in ("sub-01", "sub-03"):
            ceiling = data.noise_ceilings[subject]["Allrep"]
            surfaces = fetch_laion_surfaces(subject, rois=None)
            maps.append(project_to_surface(ceiling, surfaces, target="fsaverage5"))
    """
    _check_arguments(surfaces, target, interpolation)
    mode = check_mode(mode)
    verbose = check_verbose(verbose)
    volumes = _open(img, surfaces.subject)
    if interpolation == "linear" and volumes.are_labels:
        warn(
            "img holds labels, a mask or other whole numbers, which "
            "interpolation='linear' averages; 'nearest_most_frequent' keeps them."
        )
    _check_overlap(volumes, surfaces)
    if target == "fsnative":
        mesh, nearest = surfaces.pial, None
    else:
        template = load_template(target, mode)
        mesh, nearest = template.mesh, _nearest_vertices(surfaces, template.spheres)
    values = _project(volumes, surfaces, interpolation, nearest, verbose)

    from nilearn.surface import SurfaceImage

    return SurfaceImage(mesh, values)


def _check_arguments(surfaces: object, target: object, interpolation: object) -> None:
    if not (hasattr(surfaces, "sphere_reg") and hasattr(surfaces, "subject")):
        raise InvalidQueryError(
            f"surfaces is a {type(surfaces).__name__}; it must be the Bunch that "
            "fetch_laion_surfaces returned"
        )
    for name, value, valid in (
        ("target", target, _TARGETS),
        ("interpolation", interpolation, _INTERPOLATIONS),
    ):
        if value not in valid:
            raise InvalidQueryError(
                f"{name} is {value!r}; {did_you_mean(value, valid).rstrip('.')}"
            )


# --- The image -------------------------------------------------------------------


def _open(img: Any, subject: str) -> _Volumes:
    """Return the volumes of an image, in memory or on disk."""
    is_path = isinstance(img, (str, os.PathLike))
    file = user_path(img, "img") if is_path else _file_of(img)
    extra = {} if is_path else img.extra  # of to_img
    name = os.path.basename(file)
    of_subject = subject_of_name(name) if file else extra.get("subject")
    if of_subject not in (None, subject):
        raise InvalidQueryError(
            f"img is {name or 'made of betas'}, an image of {of_subject}, and surfaces "
            f"are of {subject}; fetch_laion_surfaces({of_subject!r}) fits it"
        )
    if is_path and not os.path.exists(file):
        raise InvalidQueryError(f"img is {file!r}, which does not exist")
    suffix = record_of_path(name)["suffix"]
    if is_path or (nib.is_proxy(img.dataobj) and is_nifti_name(file)):
        header = read_header(file)
        is_scaled = (header.slope, header.inter) != (1, 0)
        dtype = np.dtype(float) if is_scaled else header.dtype
        shape = header.nifti.get_data_shape()
        volumes = (
            scaled(header, volume, "float32").reshape(header.shape, order="F")
            for volume in iter_volumes(header)
        )
        affine = header.affine if is_path else img.affine
        return _Volumes(shape, affine, volumes, _are_labels(suffix, dtype))
    data = np.asanyarray(img.dataobj)
    if data.ndim not in (3, 4) or data.dtype.kind not in "biuf":
        raise InvalidQueryError(
            f"img is {data.dtype} of shape {data.shape}; it must hold real numbers in "
            "3 or 4 dimensions"
        )
    frames = data[..., None] if data.ndim == 3 else data
    inside = extra.get("inside", True)  # elsewhere, betas have no values
    each = (
        np.where(inside, frames[..., i], np.nan).astype(np.float32)
        for i in range(frames.shape[3])
    )
    dtype = extra.get("dtype", data.dtype)
    return _Volumes(data.shape, img.affine, each, _are_labels(suffix, dtype))


def _are_labels(suffix: str | None, dtype: np.dtype) -> bool:
    """Return whether values are labels, by a file's suffix or else by their type."""
    if suffix is None:
        return dtype.kind in "biu"
    return interpolation_for({"suffix": suffix}, "linear") == "nearest"


def _file_of(img: Any) -> str:
    """Return the file of an image, "" for one that was made in memory."""
    if not isinstance(img, nib.spatialimages.SpatialImage):
        raise InvalidQueryError(
            f"img is a {type(img).__name__}; give the path of a NIfTI file or an image "
            "of nibabel, such as nilearn's functions return"
        )
    return img.get_filename() or ""


def _check_overlap(volumes: _Volumes, surfaces: Bunch) -> None:
    """Raise for an image that holds no part of the cortex."""
    to_voxel = np.linalg.inv(volumes.affine)
    for hemisphere in HEMISPHERES:
        voxels = moved(surfaces.white.parts[hemisphere].coordinates, to_voxel)
        if np.any(np.all((voxels >= 0) & (voxels < volumes.shape[:3]), axis=1)):
            return
    raise InvalidQueryError(
        f"img holds no part of the cortex of {surfaces.subject}; it must be in the T1w "
        "space of the subject"
    )


# --- Projection ------------------------------------------------------------------


def _project(
    volumes: _Volumes,
    surfaces: Bunch,
    interpolation: str,
    nearest: dict[str, np.ndarray] | None,
    verbose: int,
) -> dict[str, np.ndarray]:
    """Return values by hemisphere: per vertex, or vertices x volumes."""
    is_3d = len(volumes.shape) == 3
    n_volumes = 1 if is_3d else volumes.shape[3]
    values = {
        h: np.empty((_n_targets(surfaces, nearest, h), n_volumes), np.float32)
        for h in HEMISPHERES
    }
    bar = progress_bar(
        total=n_volumes,
        desc="Projecting",
        unit="volume",
        disable=not (verbose and n_volumes > _BLOCK and can_draw()),
    )
    with bar:
        for start, block in _blocks(volumes):
            n_block = block.shape[3]
            for h, of_hemisphere in values.items():
                sampled = _sample(block, volumes.affine, surfaces, h, interpolation)
                of_hemisphere[:, start : start + n_block] = (
                    sampled if nearest is None else sampled[nearest[h]]
                )
            bar.update(n_block)
    return {h: v[:, 0] if is_3d else v for h, v in values.items()}


def _n_targets(
    surfaces: Bunch, nearest: dict[str, np.ndarray] | None, hemisphere: str
) -> int:
    if nearest is not None:
        return len(nearest[hemisphere])
    return len(surfaces.pial.parts[hemisphere].coordinates)


def _blocks(volumes: _Volumes) -> Iterator[tuple[int, np.ndarray]]:
    """Yield where a block of volumes begins, and the block."""
    start = 0
    # Volumes are copied one by one, as the next may overwrite the one before.
    while copies := [np.array(volume) for volume in islice(volumes.volumes, _BLOCK)]:
        yield start, np.stack(copies, axis=3)
        start += len(copies)


def _sample(
    block: np.ndarray,
    affine: np.ndarray,
    surfaces: Bunch,
    hemisphere: str,
    interpolation: str,
) -> np.ndarray:
    """Return volumes sampled at the vertices of a hemisphere: vertices x volumes."""
    if interpolation == "nearest_most_frequent":
        return _most_frequent(block, affine, surfaces, hemisphere)

    from nilearn.surface import vol_to_surf

    def sample(values: np.ndarray) -> np.ndarray:
        return vol_to_surf(
            nib.Nifti1Image(values, affine),
            surfaces.pial.parts[hemisphere],
            inner_mesh=surfaces.white.parts[hemisphere],
            interpolation="linear",
        )

    has_value = np.isfinite(block)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        # Of vertices outside of the image, which are NaN.
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        if has_value.all():
            return sample(block)
        # The mean of voxels that have a value, each by its share in the interpolation.
        weights = sample(has_value.astype(np.float32))
        return sample(np.where(has_value, block, 0)) / np.where(
            weights, weights, np.nan
        )


def _most_frequent(
    block: np.ndarray, affine: np.ndarray, surfaces: Bunch, hemisphere: str
) -> np.ndarray:
    """Return the most frequent value between white and pial: vertices x volumes.

    As vol_to_surf of nilearn has it, of equally frequent ones the lowest. That counts
    NaN as a value, though, and fails at vertices outside of the image.
    """
    outer = surfaces.pial.parts[hemisphere].coordinates
    inner = surfaces.white.parts[hemisphere].coordinates
    depths = np.linspace(0, 1, _N_DEPTHS)[:, None, None]
    points = moved(outer + depths * (inner - outer), np.linalg.inv(affine))
    voxels = np.rint(points).astype(int)
    is_inside = np.all((voxels >= 0) & (voxels < block.shape[:3]), axis=-1)
    values = np.full((*is_inside.shape, block.shape[3]), np.nan, block.dtype)
    values[is_inside] = block[tuple(voxels[is_inside].T)]
    values.sort(axis=0)
    counts = np.zeros(values.shape, np.uint8)
    for value in values:
        counts += values == value  # NaN equals nothing
    return np.take_along_axis(values, counts.argmax(axis=0)[None], axis=0)[0]


def _nearest_vertices(
    surfaces: Bunch, spheres: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return, for each vertex of a template, the subject's vertex nearest to it."""
    from sklearn.neighbors import KDTree

    nearest = {}
    for hemisphere, sphere in spheres.items():
        vertices = surfaces.sphere_reg.parts[hemisphere].coordinates
        tree = KDTree(_unit(vertices))
        nearest[hemisphere] = tree.query(_unit(sphere), return_distance=False)[:, 0]
    return nearest


def _unit(points: np.ndarray) -> np.ndarray:
    """Return points of a sphere around the origin with the radius 1."""
    return points / np.linalg.norm(points, axis=1, keepdims=True)
