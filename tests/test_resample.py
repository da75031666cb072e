"""Resampled images: as nilearn resamples them, beside the originals."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import index_img, resample_img

from laion_fmri_fetchers import fetch_laion_fmri
from laion_fmri_fetchers.betas.load import load_betas
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.fetchers.resample import Grid, resample_files
from laion_fmri_fetchers.layout.grids import (
    can_be_resampled,
    interpolation_for,
    resampled_path,
    resolution_label,
)
from laion_fmri_fetchers.layout.keys import record_of

SHAPE = (10, 11, 9)
AFFINE = np.array([[-1.8, 0.1, 0, 9], [0, 1.8, 0.1, -8], [0, 0, 1.8, -7], [0, 0, 0, 1]])
NAME = "sub-01_ses-01_space-T1w_stat-effect_statmap.nii.gz"


def resample_file(file, resolution, interpolation="continuous"):
    path = f"derivatives/glmsingle-tedana/{os.path.basename(file)}"
    rec = {**record_of(path), "absolute_path": os.fspath(file)}
    grid = Grid(resolution, interpolation, True, os.path.dirname(file))
    resample_files([rec], grid)
    return grid.target(path)


def save(file, n=3, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(5, 20, (*SHAPE, n)).astype(dtype)
    image = nib.Nifti1Image(values[..., 0] if n == 1 else values, AFFINE, dtype=dtype)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, file)
    return str(file)


@pytest.mark.parametrize("interpolation", ["continuous", "linear", "nearest"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_each_volume_is_that_of_nilearn(tmp_path, interpolation, n, dtype):
    file = save(tmp_path / NAME, n, dtype)
    resampled = nib.load(resample_file(file, 2.5, interpolation))
    assert resampled.get_filename().endswith(
        "_space-T1w_res-2pt5_stat-effect_statmap.nii.gz"
    )
    assert np.allclose(resampled.affine[:3, :3], np.eye(3) * 2.5)
    assert resampled.header.get_zooms()[:3] == (2.5, 2.5, 2.5)
    assert resampled.header.get_xyzt_units() == ("mm", "sec")
    assert len(resampled.shape) == (3 if n == 1 else 4)
    kept = interpolation == "nearest" and dtype == "uint8"
    assert resampled.get_data_dtype() == ("uint8" if kept else "float32")
    original = nib.load(file)
    for i in range(n):
        volume = original if n == 1 else index_img(original, i)
        volume = nib.Nifti1Image(volume.get_fdata(dtype="float32"), AFFINE)
        expected = resample_img(
            volume, np.eye(3) * 2.5, None, interpolation, copy_header=True
        )
        mine = resampled if n == 1 else index_img(resampled, i)
        assert np.allclose(mine.affine, expected.affine, atol=1e-5)
        assert np.allclose(mine.get_fdata(), expected.get_fdata(), atol=1e-4)


def test_holes_stay_holes_without_a_warning(tmp_path):
    image = nib.load(save(tmp_path / NAME))
    values = image.get_fdata(dtype="float32")
    values[2:5, 3:6, 4:7, 1] = np.nan
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = resample_file(tmp_path / NAME, 2, "linear")
    assert np.isnan(nib.load(file).get_fdata()).any((0, 1, 2)).tolist() == [0, 1, 0]


def test_a_resampled_image_is_used_again_while_it_fits(tmp_path):
    file = save(tmp_path / NAME)
    made = resample_file(file, 3.0, "linear")
    inode = os.stat(made).st_ino
    assert resample_file(file, 3.0, "linear") == made
    assert os.stat(made).st_ino == inode
    os.unlink(file)
    assert resample_file(file, 3.0, "linear") == made
    with (
        pytest.raises(FileNotFoundError),
        pytest.warns(UserWarning, match="made with another interpolation"),
    ):
        resample_file(file, 3.0)
    save(file, n=5)
    resample_file(file, 3.0, "linear")
    assert nib.load(made).shape[3] == 5
    with open(made, "wb") as stream:
        stream.write(b"cut")
    resample_file(file, 3.0, "linear")
    assert nib.load(made).shape[3] == 5


def test_an_original_that_changed_and_kept_its_size_is_resampled_again(tmp_path):
    sizes, masks = set(), []
    for shift in (0, 1):
        values = np.zeros(SHAPE, "uint8")
        values[3 + shift : 7 + shift, 3:7, 3:7] = 1
        content = nib.Nifti1Image(values, AFFINE).to_bytes()
        stored = gzip.compress(content, compresslevel=0, mtime=0)
        (tmp_path / NAME).write_bytes(stored)
        sizes.add(len(stored))
        masks.append(nib.load(resample_file(tmp_path / NAME, 2.0)).get_fdata())
    assert len(sizes) == 1
    assert not np.array_equal(*masks)


@pytest.mark.parametrize("resolution", [0, -1, "3", True, np.inf, np.nan, 1.8])
def test_resolutions_that_are_not_valid(resolution, no_network):
    with pytest.raises(InvalidQueryError, match="resolution"):
        fetch_laion_fmri(resolution=resolution, mode="offline")


def test_nothing_is_left_of_a_failure(tmp_path):
    file = save(tmp_path / NAME, n=40)
    with open(file, "r+b") as stream:
        stream.truncate(os.path.getsize(file) - 2000)
    with pytest.raises(CorruptImageError, match="verify --repair"):
        resample_file(file, 3)
    assert [path.name for path in tmp_path.rglob("*.nii.gz")] == [NAME]
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_memory_is_constant_in_the_number_of_volumes(tmp_path):
    resample_file(save(tmp_path / NAME), 3)  # imports
    peaks = []
    for n in (10, 60):
        file = save(tmp_path / NAME, n)
        tracemalloc.start()
        resample_file(file, 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    volume = np.prod(SHAPE) * 4
    assert peaks[1] - peaks[0] < 10 * volume


def test_names():
    assert resolution_label(np.float32(2.5)) == "2pt5"
    assert resolution_label(0.75) == "0pt75"
    ours = "derivatives/laion-fmri-fetchers/"
    path = resampled_path("sub-01/anat/sub-01_T1w.nii.gz", 2)
    assert path == f"{ours}sub-01/anat/sub-01_res-2_T1w.nii.gz"
    mask = (
        "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz"
    )
    betas = (
        "derivatives/glmsingle-tedana/sub-01/ses-01/func/sub-01_ses-01_task-images_"
        "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
    )
    for path, res in ((mask, "1pt8"), (betas, None)):
        before, after = record_of(path), record_of(resampled_path(path, 3))
        assert before["res"] == res
        assert "_res-3_" in after["id"]
        assert after["id"].startswith(ours)
        assert can_be_resampled(before)
    assert interpolation_for(record_of(mask), "linear") == "nearest"
    assert interpolation_for(record_of(betas), "linear") == "linear"
    with pytest.raises(InvalidQueryError, match="'continuous'"):
        interpolation_for(record_of(betas), "cubic")
    assert not can_be_resampled(record_of(mask.replace(".nii.gz", ".func.gii")))


def test_resampled_betas_and_masks_load_together(cached, no_network):
    data = fetch_laion_fmri(
        "sub-01", "face", 1, resolution=5, mode="offline", verbose=0
    )
    betas = load_betas(data, nc_threshold=0, verbose=0)
    assert np.allclose(betas.mask_img.affine[:3, :3], np.eye(3) * 5)
    assert len(betas.data) == len(data.trials)
    assert betas.data.std() > 0
