"""Resampled images: as nilearn resamples them, beside the originals or without them."""

from __future__ import annotations

import gzip
import shutil
import tracemalloc
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from calls import fetch, fetch_ids, gets, no_warning
from nilearn.image import resample_img

from laion_fmri_fetchers import NotNull, load_betas, verify_cache
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)

# One session on a coarse grid: of its betas, and of a map, which takes less time.
BETAS = {"sessions": 1, "rois": None, "resolution": 12}
MAP = {**BETAS, "image_type": "rsquare"}


def values(file):
    return nib.load(file).get_fdata()


def moved(file):
    """Return an image whose voxels are moved, as bytes of the same length."""
    image = nib.load(file)
    data = np.roll(np.asanyarray(image.dataobj), 4, axis=0)
    content = nib.Nifti1Image(data, image.affine).to_bytes()
    return gzip.compress(content, compresslevel=0, mtime=0)


@pytest.mark.parametrize(
    ("terms", "asked", "used", "dtype"),
    [
        ({"image_type": "betas"}, "continuous", "continuous", "float32"),
        ({"image_type": "rsquare"}, "linear", "linear", "float32"),
        ({"image_type": "rsquare"}, "nearest", "nearest", "float32"),
        ({"suffix": "T1w", "res": "1pt8"}, "continuous", "continuous", "float32"),
        ({"suffix": "T1w", "res": "1pt8"}, "nearest", "nearest", "uint8"),
        ({"image_type": "hrf_index"}, "linear", "nearest", "int16"),
        ({"suffix": "mask", "res": "1pt8"}, "continuous", "nearest", "uint8"),
    ],
)
def test_each_volume_is_that_of_nilearn(server, data_dir, terms, asked, used, dtype):
    """Of labels and masks it is the nearest, whatever was asked for."""
    if "suffix" in terms:
        terms = {"image_type": ["anatomical", "brain_mask"], **terms}
    query = {"sessions": 1, "rois": None, "resolution": 7.5, "interpolation": asked}
    (meta,) = fetch(**query, **terms).images_meta
    original = nib.load(data_dir / meta["id"])
    resampled = nib.load(meta["absolute_path"])
    assert "derivatives/laion-fmri-fetchers/" in meta["absolute_path"]
    assert "_res-7pt5_" in meta["absolute_path"]
    assert meta["res"] == "7pt5"
    assert resampled.header.get_xyzt_units() == original.header.get_xyzt_units()
    assert resampled.shape[3:] == original.shape[3:]
    assert resampled.get_data_dtype() == dtype
    one = (..., 11) if original.ndim == 4 else ...
    volume = nib.Nifti1Image(original.get_fdata(dtype="float32")[one], original.affine)
    expected = resample_img(volume, np.eye(3) * 7.5, None, used, copy_header=True)
    assert np.allclose(resampled.affine, expected.affine, atol=1e-5)
    mine, theirs = values(meta["absolute_path"])[one], expected.get_fdata()
    assert np.allclose(np.nan_to_num(mine), np.nan_to_num(theirs), atol=1e-4)


def test_all_that_goes_with_an_image_is_on_its_grid(server, data_dir):
    query = {"rois": "FFA1", "sessions": 1, "resolution": 12}
    data, original = fetch(**query), fetch(rois="FFA1", sessions=1)
    (mask,) = data.brain_masks.values()
    (ceiling, *_) = data.noise_ceilings["sub-01"].values()
    for file in (*data.images, *data.rois, ceiling):
        assert nib.load(file).shape[:3] == nib.load(mask).shape
        assert np.allclose(nib.load(file).affine, nib.load(mask).affine)
    assert original.images_meta[0]["res"] is None
    pd.testing.assert_frame_equal(data.trials, original.trials)
    assert len(load_betas(data, nc_threshold=0, verbose=0).data) == len(data.trials)
    before = Path(data.images[0]).stat().st_mtime_ns
    server.reset()
    for mode in ("download_new", "offline"):
        assert fetch(**query, mode=mode).images_meta == data.images_meta
    assert gets(server) == []
    assert Path(data.images[0]).stat().st_mtime_ns == before
    bids = pytest.importorskip("bids")
    ours = data_dir / "derivatives/laion-fmri-fetchers"
    layout = bids.BIDSLayout(data_dir, derivatives=[ours])
    assert layout.description["Name"].startswith("LAION-fMRI")
    found = layout.derivatives["laion_fmri_fetchers"]
    assert found.get(suffix="mask", extension=".nii.gz")


def test_holes_stay_holes_without_a_warning(cached):
    (file,) = cached.rglob("sub-01_ses-01*_stat-effect_*Betas_statmap.nii.gz")
    image = nib.load(file)
    data = np.nan_to_num(image.get_fdata(dtype="float32"))
    data[8:14, 8:14, 8:14, 1] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), file)
    with pytest.warns(UserWarning, match="another size") as seen:
        made = fetch(**BETAS, interpolation="linear", mode="offline")
    assert len(seen) == 1
    has_hole = np.isnan(values(made.images[0])).any((0, 1, 2))
    assert np.flatnonzero(has_hole).tolist() == [1]


def test_memory_does_not_grow_with_the_number_of_volumes(cached):
    (file,) = cached.rglob("sub-01_ses-01*_stat-effect_*Betas_statmap.nii.gz")
    image = nib.load(file)
    volume = image.get_fdata(dtype="float32")[..., :1]
    shutil.rmtree(cached / ".laion_fmri")
    peaks = []
    for resolution, n in ((11, 9), (12, 9), (13, 60)):  # the first one imports
        data = np.broadcast_to(volume, (*volume.shape[:3], n))
        nib.save(nib.Nifti1Image(data, image.affine), file)
        tracemalloc.start()
        fetch(**BETAS | {"resolution": resolution}, mode="offline")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 15 * volume.nbytes


@pytest.mark.parametrize("resolution", [0, -1, "3", True, np.inf, np.nan, 1.8], ids=str)
def test_resolutions_that_are_not_valid(resolution, no_network):
    with pytest.raises(InvalidQueryError, match="resolution"):
        fetch(resolution=resolution, mode="offline")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_original": False}, "keep_original is False.*give resolution"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'.*give resolution"),
        ({"interpolation": "linearr"}, "'continuous', 'linear', 'nearest'"),
    ],
    ids=["original", "interpolation", "misspelt"],
)
def test_settings_of_resampling_that_are_not_valid(options, words, no_network):
    with pytest.raises(InvalidQueryError, match=words):
        fetch(**options)


def test_a_resolution_in_centimetres_is_told(on_disk):
    with pytest.warns(UserWarning, match=r"did you mean 2\?"):
        fetch(1, None, 1, resolution=0.2, dry_run=True)


def test_nothing_is_left_of_a_failure(cached):
    image = Path(fetch(rois=None, sessions=1, mode="offline").images[0])
    image.write_bytes(image.read_bytes()[:-2000])
    with (
        pytest.warns(UserWarning, match="another size"),
        pytest.raises(CorruptImageError, match="verify --repair"),
    ):
        fetch(**BETAS, mode="offline")
    assert not list(cached.glob("derivatives/laion-fmri-fetchers/**/*Betas*"))


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_resampling_in_workers_of_any_kind(cached, backend):
    with joblib.parallel_config(backend, n_jobs=2):
        data = fetch("all", **BETAS, mode="offline")
    assert [nib.load(path).shape[3] > 1 for path in data.images] == [True, True]


def test_rois_that_vanish_on_a_coarse_grid_are_named(cached, no_network):
    query = {"sessions": 1, "resolution": 25, "max_images": 0, "mode": "offline"}
    for _ in range(2):  # resampled, and found on disk
        with pytest.warns(UserWarning, match="No voxel of 25 mm is in ") as seen:
            data = fetch(**query, rois="retinotopy")
        empty = [meta["roi"] for meta in data.rois_meta if not has_voxels(meta)]
        assert 0 < len(empty) < len(data.rois)
        assert f"is in {empty[0]} of sub-01" in str(seen[0].message)
        assert len(seen) == 1


def has_voxels(meta):
    return values(meta["absolute_path"]).any()


def test_images_that_another_interpolation_replaces_are_named(server, data_dir):
    first = fetch(**MAP)
    with pytest.warns(UserWarning, match="another interpolation .* replaced, such as"):
        second = fetch(**MAP, interpolation="nearest")
    assert second.images == first.images
    with no_warning():
        fetch(**MAP, interpolation="nearest")
    Path(second.images[0]).write_bytes(b"cut")
    assert values(fetch(**MAP, interpolation="nearest").images[0]).any()


def test_two_grids_of_one_image_are_not_resampled_to_one_file(server, data_dir):
    with pytest.raises(InvalidQueryError, match="one image on two grids.*res='1pt8'"):
        fetch(rois="FFA1", sessions=1, resolution=3, roi_filter={"res": NotNull()})


def test_maps_of_the_surface_that_keep_their_grid_are_named(server, data_dir):
    query = {"image_type": "localizer", "rois": None, "resolution": 12}
    contrast = {"contrast": "faceVsOthers"}
    with pytest.warns(UserWarning, match="volumes.*returned as published: .*hemi-L"):
        data = fetch(**query, image_filter={"space": "fsnative", **contrast})
    assert [meta["res"] for meta in data.images_meta] == [None, None]
    with no_warning():
        data = fetch(**query, image_filter={"res": "1pt8", **contrast})
    assert [meta["res"] for meta in data.images_meta] == ["12"]


def test_resampling_to_the_other_grid_leaves_published_masks_alone(
    server, data_dir, bucket_folder
):
    published = fetch(rois="FFA1", max_images=0, roi_filter={"res": "1pt5"})
    query = {**MAP, "rois": "FFA1", "resolution": 1.5, "interpolation": "nearest"}
    resampled = fetch(**query)
    ours = data_dir / "derivatives/laion-fmri-fetchers"
    for path in (*resampled.images, *resampled.rois, *resampled.brain_masks.values()):
        assert Path(path).is_relative_to(ours)
    source = bucket_folder / published.rois_meta[0]["key"]
    assert Path(published.rois[0]).read_bytes() == source.read_bytes()
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    elsewhere = fetch_ids([m["id"] for m in resampled.rois_meta])
    assert [m["res"] for m in elsewhere.images_meta] == ["1pt8"]


# --- Originals that change ------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_updated_masks_are_resampled_anew(own_server, data_dir, at_once):
    """Also where the file keeps its size, as a mask that moved often does."""
    query = {**MAP, "rois": "FFA1"}
    published = fetch(sessions=1, rois="FFA1", image_type="rsquare")
    keys = [published.rois_meta[0]["key"]]
    keys += [Path(f).relative_to(data_dir) for f in published.brain_masks.values()]

    def masks(**options):
        data = fetch(**query, **options)
        return [values(file) for file in (*data.rois, *data.brain_masks.values())]

    before = masks()
    for key in map(str, keys):
        (data_dir / "original.nii.gz").write_bytes(own_server.objects[key].value)
        own_server.put(key, moved(data_dir / "original.nii.gz"))
    (data_dir / "original.nii.gz").unlink()
    if not at_once:
        fetch(sessions=1, rois="FFA1", image_type="rsquare", mode="overwrite")
    after = masks(mode="overwrite" if at_once else "offline")
    for one, other in zip(before, after, strict=True):
        assert one.any()
        assert not np.array_equal(one, other)


def test_a_derived_brain_mask_follows_its_source(own_server, data_dir, bucket_folder):
    anatomy = bucket_folder / "derivatives/anatomical/sub-01"
    for mask in anatomy.rglob("*res-1pt8_desc-brain_mask.nii.gz"):
        own_server.delete(mask.relative_to(bucket_folder).as_posix())
    query = {"max_images": 0, "rois": None}
    planned = fetch(**query, dry_run=True).brain_masks
    assert not Path(planned["sub-01"]).exists()
    with pytest.warns(UserWarning, match="no brain mask.* derived from .*R2 is above"):
        data = fetch(**query)
    assert data.brain_masks == planned
    assert ".laion_fmri" in planned["sub-01"]
    (mean,) = data_dir.rglob("*desc-R2mean_statmap.nii.gz")
    before = values(planned["sub-01"])
    np.testing.assert_array_equal(before, values(mean) > 0)
    with no_warning():
        assert fetch(**query, mode="offline").brain_masks == planned
    own_server.put(mean.relative_to(data_dir).as_posix(), moved(mean))
    with pytest.warns(UserWarning, match="no brain mask"):
        fetch(**query, mode="overwrite")
    np.testing.assert_array_equal(values(planned["sub-01"]), values(mean) > 0)
    assert not np.array_equal(values(planned["sub-01"]), before)


# --- Without originals ----------------------------------------------------------------

REMOVED = {"keep_original": False}


def test_originals_that_were_removed_are_not_missing(server, data_dir):
    data = fetch(**BETAS, **REMOVED)
    (image,) = data_dir.rglob("*Betas_statmap.nii.gz")
    assert str(image) == data.images[0]
    server.reset()
    for mode in ("download_new", "offline"):
        again = fetch(**BETAS, **REMOVED, mode=mode)
        assert again.images_meta == data.images_meta
    assert gets(server) == []
    report = verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}
    assert data.images_meta[0]["id"] not in set(report["id"])
    with pytest.raises(NotCachedError, match="ses-01"):
        fetch(sessions=1, mode="offline")
    shutil.rmtree(data_dir / ".laion_fmri")
    again = fetch(**BETAS, **REMOVED, mode="offline")
    assert (again.images, len(again.trials)) == (data.images, len(data.trials))
    assert len(fetch(sessions=1, rois=None).images) == 1


def test_originals_that_are_asked_for_twice_are_resampled_once(server, data_dir):
    """Noise ceilings are images here, and go with images, too."""
    query = {"image_type": "subject_noise_ceiling", "rois": None, "resolution": 12}
    data = fetch(**query, **REMOVED)
    assert len(data.images) == 3
    assert all("_res-12_" in path and Path(path).exists() for path in data.images)
    assert not any((data_dir / meta["id"]).exists() for meta in data.images_meta)
    assert set(data.noise_ceilings["sub-01"].values()) == set(data.images)


def test_removed_originals_are_fetched_for_another_interpolation(server, data_dir):
    query = {**MAP, **REMOVED}
    first = fetch(**query)
    before = Path(first.images[0]).read_bytes()
    query["interpolation"] = "linear"
    assert first.images_meta[0]["id"] in set(fetch(**query, dry_run=True).plan["id"])
    with pytest.warns(UserWarning, match="not on disk"):
        assert fetch(**query, mode="offline", allow_missing=True).images == []
    with pytest.warns(UserWarning, match="another interpolation"):
        assert Path(fetch(**query).images[0]).read_bytes() != before


def test_a_new_version_of_a_removed_original_is_noticed(own_server, data_dir):
    query = {**MAP, **REMOVED}
    (old,) = fetch(**query).images_meta
    content = own_server.objects[old["key"]].value + b"\0" * 8
    own_server.put(old["key"], content)
    with pytest.warns(UserWarning, match="version of 1 file.*unknown size"):
        (again,) = fetch(**query).images_meta
    assert (again["outdated"], again["etag"]) == (True, None)
    (new,) = fetch(**query, mode="overwrite", outdated=True).images_meta
    assert not new["outdated"]
    assert new["etag"] != old["etag"]
    (data_dir / old["id"]).write_bytes(content)  # came back in another way
    with no_warning():
        (meta,) = fetch(sessions=1, rois=None, image_type="rsquare").images_meta
    assert (meta["outdated"], meta["size"]) == (False, len(content))
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
