"""Images taken to MNI space, and values on a surface to fsaverage.

Transforms and matrices are written out here, and not taken from the package.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_to_img

from laion_fmri_fetchers import (
    fetch_laion_betas,
    fetch_laion_surfaces,
    project_to_mni,
    project_to_surface,
)
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError

XFM = "derivatives/freesurfer/sub-01/mri/transforms/talairach.xfm"
TEXT = """MNI Transform File
% avi2talxfm

Transform_Type = Linear;
Linear_Transform =
1.05 0.02 -0.01 1.5
-0.03 1.08 0.06 -12.0
0.02 -0.05 1.12 9.25;
"""
TO_305 = np.array(
    [
        [1.05, 0.02, -0.01, 1.5],
        [-0.03, 1.08, 0.06, -12.0],
        [0.02, -0.05, 1.12, 9.25],
        [0, 0, 0, 1],
    ]
)
# https://surfer.nmr.mgh.harvard.edu/fswiki/CoordinateSystems, "MNI305 to MNI152".
FROM_305_TO_152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
        [0, 0, 0, 1],
    ]
)
TO_152 = FROM_305_TO_152 @ TO_305
AFFINE = np.array([[-1.8, 0, 0, 95], [0, 1.8, 0, -125], [0, 0, 1.8, -80], [0, 0, 0, 1]])
SHAPE = (105, 125, 110)


@pytest.fixture
def surfaces(server, bucket_folder, data_dir):
    server.put(XFM, TEXT.encode())
    yield fetch_laion_surfaces("sub-01", rois="FFA1", verbose=0)
    server.put(XFM, (bucket_folder / XFM).read_bytes())


def image(function, dtype=np.float32):
    """An image of a function of scanner coordinates."""
    points = apply_affine(AFFINE, np.stack(np.indices(SHAPE), axis=-1))
    return nib.Nifti1Image(function(points).astype(dtype), AFFINE)


def ball(centre, radius=8.0):
    return lambda points: np.linalg.norm(points - centre, axis=-1) < radius


def test_the_transform_is_that_of_the_file(surfaces):
    np.testing.assert_array_equal(surfaces.to_mni305, TO_305)


@pytest.mark.parametrize("place", [(40, -50, -20), (-30, -80, 10), (0, 20, 40)])
def test_a_ball_at_a_coordinate_of_the_template_comes_out_there(surfaces, place):
    img = image(ball(apply_affine(np.linalg.inv(TO_152), place)))
    result = project_to_mni(img, surfaces)
    weights = np.nan_to_num(result.get_fdata())
    voxels = np.stack(np.indices(result.shape), axis=-1)
    found = np.average(
        apply_affine(result.affine, voxels[weights > 0]),
        axis=0,
        weights=weights[weights > 0],
    )
    np.testing.assert_allclose(found, place, atol=0.3)


def test_a_linear_function_stays_linear_and_beyond_the_image_it_is_nan(surfaces):
    slopes = np.array([0.5, -0.25, 0.125])
    result = project_to_mni(image(lambda points: points @ slopes + 7), surfaces)
    template = load_mni152_template(resolution=2)
    assert result.shape == template.shape
    np.testing.assert_array_equal(result.affine, template.affine)
    points = apply_affine(template.affine, np.stack(np.indices(result.shape), -1))
    source = apply_affine(np.linalg.inv(TO_152), points)
    voxels = apply_affine(np.linalg.inv(AFFINE), source)
    inside = np.all((voxels > 0) & (voxels < np.array(SHAPE) - 1), axis=-1)
    outside = np.any((voxels < -1) | (voxels > np.array(SHAPE)), axis=-1)
    assert inside.mean() > 0.5
    assert outside.any()
    values = result.get_fdata()
    np.testing.assert_allclose(values[inside], source[inside] @ slopes + 7, atol=1e-3)
    assert np.isnan(values[outside]).all()


def test_it_is_what_nilearn_resamples_to_its_template(surfaces):
    noise = np.random.default_rng(0).random((*SHAPE, 2), np.float32)
    result = project_to_mni(nib.Nifti1Image(noise, AFFINE), surfaces)
    moved = nib.Nifti1Image(noise, TO_152 @ AFFINE)
    template = load_mni152_template(resolution=2)
    expected = resample_to_img(
        moved, template, "linear", copy_header=True, force_resample=True
    ).get_fdata()
    assert result.shape == (*template.shape, 2)
    inside = result.get_fdata()[20:80, 20:80, 20:60]
    np.testing.assert_allclose(inside, expected[20:80, 20:80, 20:60], atol=1e-5)


def test_in_mni305_voxels_stay_as_they_are(surfaces):
    img = image(lambda points: points[..., 0])
    result = project_to_mni(img, surfaces, target="MNI305")
    np.testing.assert_array_equal(result.get_fdata(), img.get_fdata())
    np.testing.assert_allclose(result.affine, TO_305 @ AFFINE, atol=1e-5)
    assert result.get_sform(coded=True)[1] == 3  # of Talairach's space


def test_of_betas_only_their_voxels_count(surfaces):
    betas = fetch_laion_betas("sub-01", "FFA1", sessions=1, verbose=0)
    img = betas.to_img(np.full(betas.data.shape[1], 3.0))
    values = project_to_mni(img, surfaces).get_fdata()
    assert np.isfinite(values).sum() > 10
    np.testing.assert_allclose(values[np.isfinite(values)], 3, atol=1e-5)


def test_labels_are_kept_by_nearest_and_linear_warns(surfaces):
    img = image(lambda points: 5 * (points[..., 0] > 3), np.int16)
    nearest = project_to_mni(img, surfaces, interpolation="nearest").get_fdata()
    assert set(np.unique(nearest[np.isfinite(nearest)])) == {0, 5}
    with pytest.warns(UserWarning, match="'nearest' keeps them"):
        project_to_mni(img, surfaces)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target": "MNI125"}, "target is 'MNI125'; did you mean 'MNI152'"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"surfaces": {}}, "the Bunch that fetch_laion_surfaces returned"),
        ({"img": 3}, "img is a int"),
    ],
)
def test_wrong_arguments(surfaces, kwargs, words):
    arguments = {"img": image(lambda points: points[..., 0]), "surfaces": surfaces}
    with pytest.raises(InvalidQueryError, match=words):
        project_to_mni(**{**arguments, **kwargs})


def test_an_image_elsewhere_is_refused(surfaces):
    away = nib.Nifti1Image(np.ones((5, 5, 5), np.float32), np.diag([1, 1, 1, 1]) * 1.0)
    away.affine[:3, 3] = 900
    with pytest.raises(InvalidQueryError, match="does not overlap with the template"):
        project_to_mni(away, surfaces)


def test_a_bucket_without_the_transform_is_named(server, bucket_folder, data_dir):
    server.delete(XFM)
    try:
        surfaces = fetch_laion_surfaces("sub-01", rois=None, verbose=0)
    finally:
        server.put(XFM, (bucket_folder / XFM).read_bytes())
    assert surfaces.to_mni305 is None
    with pytest.raises(InvalidQueryError, match=r"no mri/transforms/talairach\.xfm"):
        project_to_mni(image(lambda points: points[..., 0]), surfaces)


@pytest.mark.parametrize(
    "text", ["", TEXT[:-20], TEXT.replace("1.05", "x"), TEXT.replace("1.05", "-1.05")]
)
def test_a_damaged_transform_is_named(surfaces, data_dir, text):
    (data_dir / XFM).write_text(text.ljust(len(TEXT)))
    with pytest.raises(CorruptImageError, match=r"talairach\.xfm cannot be read"):
        fetch_laion_surfaces("sub-01", rois="FFA1", mode="offline", verbose=0)


# --- Values on a surface --------------------------------------------------------------


def test_values_on_a_surface_go_to_fsaverage_as_the_volume_does(surfaces):
    img = image(lambda points: points[..., 1])
    on_cortex = project_to_surface(img, surfaces)
    at_once = project_to_surface(img, surfaces, target="fsaverage5")
    after = project_to_surface(on_cortex, surfaces, target="fsaverage5")
    for h in ("left", "right"):
        values = after.data.parts[h]
        assert len(values) == 10_242
        assert np.isfinite(values).mean() > 0.9
        np.testing.assert_array_equal(values, at_once.data.parts[h])


def test_a_mask_of_vertices_stays_a_mask_on_fsaverage(surfaces):
    mask = project_to_surface(surfaces.roi_masks["FFA1"], surfaces, target="fsaverage5")
    for h in ("left", "right"):
        assert mask.data.parts[h].dtype == bool
        assert 0 < mask.data.parts[h].mean() < 0.2


def test_values_that_lie_on_the_target_or_on_another_surface_are_refused(surfaces):
    sulc = surfaces.sulc
    with pytest.raises(InvalidQueryError, match="target='fsnative', already"):
        project_to_surface(sulc, surfaces)
    on_average = project_to_surface(sulc, surfaces, target="fsaverage5")
    with pytest.raises(InvalidQueryError, match="not lie on the surface of sub-01"):
        project_to_surface(on_average, surfaces, target="fsaverage5")
