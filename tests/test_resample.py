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
from laion_fmri_fetchers.arrays import resample
from laion_fmri_fetchers.betas.load import load_betas
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
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


def save(file, n=3, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(5, 20, (*SHAPE, n)).astype(dtype)
    image = nib.Nifti1Image(values[..., 0] if n == 1 else values, AFFINE, dtype=dtype)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, file)
    return str(file)


def target_of(file, resolution):
    folder, name = os.path.split(os.fspath(file))
    path = resampled_path(f"derivatives/glmsingle-tedana/{name}", resolution)
    return f"{folder}/{path}"


def resample_file(file, resolution, interpolation="continuous", **how):
    target = target_of(file, resolution)
    resample.resample_file(os.fspath(file), target, resolution, interpolation, **how)
    return target


def find_resampled(file, resolution, interpolation="continuous"):
    target = target_of(file, resolution)
    found = resample.find_resampled(os.fspath(file), target, resolution, interpolation)
    return target if found else None


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


def test_a_file_that_holds_is_used_again(tmp_path):
    file = save(tmp_path / NAME)
    assert find_resampled(file, 3) is None
    made = resample_file(file, 3, "linear")
    inode = os.stat(made).st_ino
    assert find_resampled(file, 3, "linear") == made
    assert resample_file(file, 3, "linear") == made
    assert os.stat(made).st_ino == inode
    # made otherwise, or of another original
    assert find_resampled(file, 3, "continuous") is None
    assert find_resampled(file, 3.5, "linear") is None
    assert resample_file(file, 3, "continuous") == made
    assert find_resampled(file, 3, "linear") is None
    save(file, n=5)
    assert find_resampled(file, 3) is None
    resample_file(file, 3)
    assert nib.load(made).shape[3] == 5
    inode = os.stat(made).st_ino
    resample_file(file, 3, overwrite=True)
    assert os.stat(made).st_ino != inode
    with open(made, "wb") as stream:
        stream.write(b"cut")
    assert find_resampled(file, 3) is None


def test_doing_without_the_original(tmp_path):
    file = save(tmp_path / NAME)
    made = resample_file(file, 3)
    os.unlink(file)
    assert find_resampled(file, 3) == made
    assert find_resampled(file, 3, "linear") is None
    assert resample_file(file, 3) == made
    with pytest.raises(FileNotFoundError):
        resample_file(file, 3, "linear")
    assert find_resampled(file, 3) == made


def test_an_original_that_changed_and_kept_its_size_is_resampled_again(tmp_path):
    sizes, masks = set(), []
    for shift in (0, 1):
        values = np.zeros(SHAPE, "uint8")
        values[3 + shift : 7 + shift, 3:7, 3:7] = 1
        content = nib.Nifti1Image(values, AFFINE).to_bytes()
        stored = gzip.compress(content, compresslevel=0, mtime=0)
        (tmp_path / NAME).write_bytes(stored)
        sizes.add(len(stored))
        masks.append(nib.load(resample_file(tmp_path / NAME, 2, "nearest")).get_fdata())
    assert len(sizes) == 1
    assert not np.array_equal(*masks)


def test_nothing_is_left_of_a_failure(tmp_path):
    file = save(tmp_path / NAME, n=40)
    with open(file, "r+b") as stream:
        stream.truncate(os.path.getsize(file) - 2000)
    with pytest.raises(CorruptImageError, match="verify --repair"):
        resample_file(file, 3)
    assert [path.name for path in tmp_path.rglob("*.nii.gz")] == [NAME]
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_several_volumes_at_once(tmp_path):
    file = save(tmp_path / NAME, n=7)
    with open(resample_file(file, 3), "rb") as stream:
        alone = stream.read()
    with open(resample_file(file, 3, overwrite=True, n_jobs=2), "rb") as stream:
        assert stream.read() == alone


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


@pytest.mark.parametrize("resolution", [0, -1, "3", None, True, np.inf, np.nan, 1.8])
def test_resolutions_that_are_not_valid(resolution, tmp_path):
    with pytest.raises(InvalidQueryError, match="resolution"):
        resample_file(save(tmp_path / NAME), resolution)


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
        "sub-01", rois="face", sessions=1, mode="offline", verbose=0
    )
    data.images = [resample_file(file, 5, "linear") for file in data.images]
    data.rois = [resample_file(file, 5, "nearest") for file in data.rois]
    brain = data.brain_masks["sub-01"]
    data.brain_masks["sub-01"] = resample_file(brain, 5, "nearest")
    maps = data.noise_ceilings["sub-01"]
    data.noise_ceilings["sub-01"] = {k: resample_file(f, 5) for k, f in maps.items()}
    betas = load_betas(data, nc_threshold=0)
    assert np.allclose(betas.mask_img.affine[:3, :3], np.eye(3) * 5)
    assert len(betas.data) == len(data.trials)
    assert betas.data.std() > 0
