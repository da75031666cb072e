"""Volumes projected to a subject's cortex, and from there to fsaverage."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
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

from .files import TEMPLATES, load_template

if TYPE_CHECKING:
    from nilearn.surface import SurfaceImage

# Volumes projected at once. Where the vertices lie among the voxels is computed for
# each block; nilearn takes some 40 MB of memory per volume and 150,000 vertices.
_BLOCK = 4

# As vol_to_surf of nilearn has it by default.
_N_DEPTHS = 10


class OpenImage(NamedTuple):
    """An image of which a volume is read at a time."""

    shape: tuple[int, ...]
    affine: np.ndarray
    volumes: Iterator[np.ndarray]  # each valid until the next
    has_labels: bool  # whether values name something, so that a mean means nothing


def project_to_surface(
    img: Any,
    surfaces: Bunch,
    *,
    target: str = "fsnative",
    interpolation: str = "linear",
    mode: str | None = None,
    verbose: int = 1,
) -> SurfaceImage:
    """Project an image of a subject to its cortex, or values on it to fsaverage.

    At each vertex, the image is sampled at ten depths from the white to the pial
    surface, and averaged, by :func:`nilearn.surface.vol_to_surf`. For fsaverage, each
    of its vertices then takes the value of the subject's vertex nearest to it on the
    sphere that FreeSurfer registered the subject by.

    Parameters
    ----------
    img : str, path, image or :class:`nilearn.surface.SurfaceImage`
        A 3-D or 4-D NIfTI image in the subject's T1w space, such as a noise ceiling or
        a map made from betas: ``betas.to_img(values)``, of which only the voxels of
        ``betas`` count. Zeros beside a region in any other image would be averaged with
        its values: use NaN. A file is read a few volumes at a time. Or values on the
        subject's surface, such as ``surfaces.sulc`` or ``surfaces.roi_masks["FFA1"]``,
        for fsaverage; they keep their type.
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
        plot_surf(
            surfaces.inflated,
            surf_map=project_to_surface(ceiling, surfaces),
            bg_map=surfaces.sulc,
            hemi="right",
            view="ventral",
        )

    Mean over subjects, on fsaverage::

        maps = []
        for subject in ("sub-01", "sub-03"):
            ceiling = data.noise_ceilings[subject]["Allrep"]
            surfaces = fetch_laion_surfaces(subject, rois=None)
            maps.append(project_to_surface(ceiling, surfaces, target="fsaverage5"))
    """
    check_surfaces(surfaces)
    check_choice("target", target, ("fsnative", *TEMPLATES))
    check_choice("interpolation", interpolation, ("linear", "nearest_most_frequent"))
    mode, verbose = check_mode(mode), check_verbose(verbose)

    from nilearn.surface import SurfaceImage

    if isinstance(img, SurfaceImage):
        _check_mesh(img, surfaces, target)
        template, centres = load_template(target, mode)
        values = {
            h: part[_nearest(surfaces.sphere_reg.parts[h].coordinates, centres[h])]
            for h, part in img.data.parts.items()
        }
        return SurfaceImage(template, values)
    image = open_image(img, surfaces.subject)
    if interpolation == "linear" and image.has_labels:
        warn(
            "img holds labels, a mask or other whole numbers, which "
            "interpolation='linear' averages; 'nearest_most_frequent' keeps them."
        )
    vertices = [part.coordinates for part in surfaces.white.parts.values()]
    voxels = apply_affine(np.linalg.inv(image.affine), np.concatenate(vertices))
    if not np.any(np.all((voxels >= 0) & (voxels < image.shape[:3]), axis=1)):
        raise InvalidQueryError(
            f"img holds no part of the cortex of {surfaces.subject}; it must be in the "
            "T1w space of the subject"
        )
    mesh, spheres = surfaces.pial, None
    if target != "fsnative":
        mesh, spheres = load_template(target, mode)
    values = _project(image, surfaces, interpolation, mesh, spheres, verbose)
    return SurfaceImage(mesh, values)


def check_surfaces(surfaces: Any) -> None:
    """Raise unless surfaces are those of one subject."""
    if not (hasattr(surfaces, "sphere_reg") and hasattr(surfaces, "subject")):
        advice = ""
        if isinstance(surfaces, Bunch) and surfaces:
            advice = f"; of several subjects, surfaces[{next(iter(surfaces))!r}]"
        raise InvalidQueryError(
            f"surfaces is a {type(surfaces).__name__}; it must be the Bunch that "
            f"fetch_laion_surfaces returned for a subject{advice}"
        )


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise unless an argument is one of its valid values."""
    if value not in valid:
        raise InvalidQueryError(
            f"{name} is {value!r}; {did_you_mean(value, valid).rstrip('.')}"
        )


def _check_mesh(img: SurfaceImage, surfaces: Bunch, target: str) -> None:
    """Raise unless values lie on the subject's surface and fsaverage is the target."""
    if target == "fsnative":
        raise InvalidQueryError(
            "img lies on the subject's surface, which is target='fsnative', already; "
            f"name one of {', '.join(TEMPLATES)}"
        )
    for h in HEMISPHERES:
        # Of two reconstructions, not even the number of vertices is the same.
        if not np.array_equal(img.mesh.parts[h].faces, surfaces.pial.parts[h].faces):
            raise InvalidQueryError(
                f"img does not lie on the surface of {surfaces.subject}: its {h} "
                "hemisphere has other triangles. Values on fsaverage cannot be "
                "projected again; of another subject, fetch its surfaces"
            )


def open_image(img: Any, subject: str) -> OpenImage:
    """Return the volumes of an image, in memory or on disk."""
    is_path = isinstance(img, (str, os.PathLike))
    if not is_path and not isinstance(img, nib.spatialimages.SpatialImage):
        raise InvalidQueryError(
            f"img is a {type(img).__name__}; give the path of a NIfTI file or an image "
            "of nibabel, such as betas.to_img(values) and nilearn's functions return"
        )
    file = user_path(img, "img") if is_path else img.get_filename() or ""
    extra = {} if is_path else img.extra  # what to_img of betas says of them
    name = os.path.basename(file)
    of_subject = subject_of_name(name) if file else extra.get("subject")
    if of_subject not in (None, subject):
        raise InvalidQueryError(
            f"img is {name or 'made of betas'}, an image of {of_subject}, and surfaces "
            f"are of {subject}; fetch_laion_surfaces({of_subject!r}) fits it"
        )
    if is_path and not os.path.exists(file):
        raise InvalidQueryError(f"img is {file!r}, which does not exist")
    if is_path or (nib.is_proxy(img.dataobj) and is_nifti_name(file)):
        header = read_header(file)
        shape = header.nifti.get_data_shape()
        affine = header.affine if is_path else img.affine
        is_scaled = (header.slope, header.inter) != (1, 0)
        dtype = np.dtype(float) if is_scaled else header.dtype
        volumes = (
            scaled(header, volume, "float32").reshape(header.shape, order="F")
            for volume in iter_volumes(header)
        )
    else:
        data = np.asanyarray(img.dataobj)
        shape, affine = data.shape, img.affine
        if data.ndim not in (3, 4) or data.dtype.kind not in "biuf":
            raise InvalidQueryError(
                f"img is {data.dtype} of shape {shape}; it must hold real numbers in "
                "3 or 4 dimensions"
            )
        dtype = extra.get("dtype", data.dtype)
        inside = extra.get("inside", True)  # elsewhere, betas have no values
        frames = data[..., None] if data.ndim == 3 else data
        volumes = (
            np.where(inside, frames[..., i], np.nan).astype(np.float32)
            for i in range(frames.shape[3])
        )
    suffix = record_of_path(name)["suffix"]
    has_labels = dtype.kind in "biu"
    if suffix is not None:
        has_labels = interpolation_for({"suffix": suffix}, "linear") == "nearest"
    return OpenImage(shape, affine, volumes, has_labels)


def _project(
    image: OpenImage,
    surfaces: Bunch,
    interpolation: str,
    mesh: Any,
    spheres: dict[str, np.ndarray] | None,
    verbose: int,
) -> dict[str, np.ndarray]:
    """Return values on a mesh by hemisphere: per vertex, or vertices x volumes."""
    n_volumes = image.shape[3] if len(image.shape) == 4 else 1
    values: dict[str, np.ndarray] = {}
    vertices: dict[str, Any] = {}
    for h in HEMISPHERES:
        values[h] = np.empty((len(mesh.parts[h].coordinates), n_volumes), np.float32)
        vertices[h] = slice(None)
        if spheres:
            sphere = surfaces.sphere_reg.parts[h].coordinates
            vertices[h] = _nearest(sphere, spheres[h])
    sample = _sample_linear if interpolation == "linear" else _sample_most_frequent
    bar = progress_bar(
        total=n_volumes,
        desc="Projecting",
        unit="volume",
        disable=not (verbose and n_volumes > _BLOCK and can_draw()),
    )
    start = 0
    with bar:
        # Volumes are copied one by one, as the next may overwrite the one before.
        # Asking for one more than there are compares the checksum of a file.
        while volumes := [np.array(v) for v in islice(image.volumes, _BLOCK)]:
            block, stop = np.stack(volumes, axis=3), start + len(volumes)
            for h in HEMISPHERES:
                sampled = sample(block, image.affine, surfaces, h)
                values[h][:, start:stop] = sampled[vertices[h]]
            bar.update(len(volumes))
            start = stop
    return values if len(image.shape) == 4 else {h: v[:, 0] for h, v in values.items()}


def _sample_linear(
    block: np.ndarray, affine: np.ndarray, surfaces: Bunch, hemisphere: str
) -> np.ndarray:
    """Return means between white and pial at the vertices: vertices x volumes."""
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
        weights[weights == 0] = np.nan
        return sample(np.where(has_value, block, 0)) / weights


def _sample_most_frequent(
    block: np.ndarray, affine: np.ndarray, surfaces: Bunch, hemisphere: str
) -> np.ndarray:
    """Return the most frequent value between white and pial: vertices x volumes.

    As vol_to_surf of nilearn has it, of equally frequent ones the lowest. That counts
    NaN as a value, though, and fails at vertices outside of the image.
    """
    outer = surfaces.pial.parts[hemisphere].coordinates
    inner = surfaces.white.parts[hemisphere].coordinates
    depths = np.linspace(0, 1, _N_DEPTHS)[:, None, None]
    points = apply_affine(np.linalg.inv(affine), outer + depths * (inner - outer))
    voxels = np.rint(points).astype(int)
    is_inside = np.all((voxels >= 0) & (voxels < block.shape[:3]), axis=-1)
    values = np.full((*is_inside.shape, block.shape[3]), np.nan, block.dtype)
    values[is_inside] = block[tuple(voxels[is_inside].T)]
    values.sort(axis=0)
    counts = np.zeros(values.shape, np.uint8)
    for value in values:
        counts += values == value  # NaN equals nothing
    return np.take_along_axis(values, counts.argmax(axis=0)[None], axis=0)[0]


def _nearest(sphere: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return, for each point of a template's sphere, the nearest of a subject's."""
    from sklearn.neighbors import KDTree

    # Spheres around the origin, of whatever radius.
    sphere, template = (
        points / np.linalg.norm(points, axis=1, keepdims=True)
        for points in (sphere, template)
    )
    return KDTree(sphere).query(template, return_distance=False)[:, 0]
