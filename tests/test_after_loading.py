"""After loading: images of values, regions, ceilings, files, rows by image."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.masking import apply_mask
from policies import set_policy
from sklearn.utils import Bunch
from test_betas import AFFINE, SHAPE, brain, make, noise

from laion_fmri_fetchers import (
    align,
    fetch_laion_fmri,
    load_betas,
    normalized_score,
    shared_labels,
)
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DiskSpaceError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.splits import StimulusSplit

INVERSE = {"4rep": 1 / 4, "12rep": 1 / 12, "Allrep": (881 / 12 + 5323 / 4) / 6204}


@pytest.fixture
def fetch(cached, no_network):
    return lambda *args, **options: fetch_laion_fmri(
        *args, mode="offline", verbose=0, **options
    )


@pytest.fixture
def betas(fetch):
    return load_betas(fetch("sub-01", rois=["face", "V1d", "V1v", "PPA"]), verbose=0)


def load(*args, **options):
    return load_betas(*args, **{"verbose": 0, **options})


def same(first, second):
    """Tell whether two Bunches of betas hold the same."""
    assert type(first) is type(second)
    assert list(first) == list(second)
    assert first.data.dtype == second.data.dtype
    assert np.array_equal(first.data, second.data)
    pd.testing.assert_frame_equal(first.trials, second.trials)
    assert np.array_equal(first.mask_img.affine, second.mask_img.affine)
    assert first.mask_img.get_data_dtype() == second.mask_img.get_data_dtype()
    assert np.array_equal(first.mask_img.dataobj, second.mask_img.dataobj)
    assert np.array_equal(first.coordinates, second.coordinates)
    for key in ("roi_masks", "noise_ceilings", "groups"):
        assert list(first[key]) == list(second[key])
        for name, values in first[key].items():
            assert values.dtype == second[key][name].dtype
            np.testing.assert_array_equal(values, second[key][name])
    for key in ("roi_files", "roi_categories", "query", "data_dir", "versions"):
        assert first[key] == second[key]
    assert first.description == second.description
    return True


# Back on the grid


def test_coordinates_are_centres_of_voxels_in_mm(tmp_path):
    data = make(tmp_path, [noise(2)])
    betas = load(data, rois="brain")
    assert betas.coordinates.shape == (int(brain().sum()), 3)
    assert betas.coordinates.dtype == float
    # Voxel (1, 1, 1), on a grid of 2 mm whose first voxel is at (-9, -8, -7).
    assert betas.coordinates[0].tolist() == [-7, -6, -5]
    assert betas.coordinates[1].tolist() == [-7, -6, -3]


def test_a_linear_function_of_position_goes_back_to_the_grid(betas):
    x, y, z = betas.coordinates.T
    image = betas.to_img(2 * x - y + 0.5 * z + 3)
    assert image.shape == betas.mask_img.shape
    assert np.array_equal(image.affine, betas.mask_img.affine)
    for voxel in np.argwhere(betas.mask_img.get_fdata())[::50]:
        x, y, z = (betas.mask_img.affine @ [*voxel, 1])[:3]
        assert image.get_fdata()[tuple(voxel)] == pytest.approx(2 * x - y + 0.5 * z + 3)
    assert not image.get_fdata()[betas.mask_img.get_fdata() == 0].any()


def test_rows_go_back_as_volumes(betas):
    image = betas.to_img(betas.data[:3])
    assert image.shape == (*betas.mask_img.shape, 3)
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(apply_mask(image, betas.mask_img), betas.data[:3])
    assert betas.to_img(betas.data[:1]).shape[3:] == (1,)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (bool, "uint8"),
        ("int64", "float64"),
        ("float16", "float32"),
        ("float64", "float64"),
    ],
)
def test_values_are_of_types_that_images_have(betas, given, stored, tmp_path):
    values = (np.arange(betas.data.shape[1]) % 2).astype(given)
    image = betas.to_img(values)
    image.to_filename(tmp_path / "image.nii.gz")
    read = nib.load(tmp_path / "image.nii.gz")
    assert read.get_data_dtype() == stored
    assert read.get_fdata().sum() == values.sum()
    assert betas.to_img(list(values)).shape == betas.mask_img.shape


@pytest.mark.parametrize(
    "wrong", [np.zeros(5), np.zeros((5, 2)), np.zeros((1, 1, 9)), 1]
)
def test_values_of_a_wrong_shape_are_refused(betas, wrong):
    n = betas.data.shape[1]
    with pytest.raises(InvalidQueryError, match=rf"\({n},\), one value per voxel"):
        betas.to_img(wrong)
    with pytest.raises(InvalidQueryError, match="takes numbers"):
        betas.to_img(["a"] * n)


# Regions


def test_masks_of_regions_by_any_name(betas):
    masks = betas.roi_masks
    faces = [roi for roi in masks if betas.roi_categories[roi] == "face"]
    assert set(faces) >= {"FFA1", "OFA"}
    assert "PPA" not in faces
    union = np.logical_or.reduce([masks[roi] for roi in faces])
    for name in ("face", "Face"):
        assert np.array_equal(betas.roi_mask(name), union)
    assert not union.all()
    for name in ("FFA1", "FFA-1", "ffa1"):
        assert np.array_equal(betas.roi_mask(name), masks["FFA1"])
    assert np.array_equal(betas.roi_mask("V1"), masks["V1d"] | masks["V1v"])
    assert betas.roi_mask("V1").dtype == bool
    both = masks["FFA1"] | masks["V1d"]
    assert np.array_equal(betas.roi_mask(["FFA1", "V1d"]), both)
    assert np.array_equal(betas.roi_mask(("face", "V1")), union | betas.roi_mask("V1"))
    betas.roi_mask("FFA1")[:] = False  # a copy
    assert masks["FFA1"].any()


def test_a_region_that_is_no_key_names_the_method_that_finds_it(betas, tmp_path):
    betas.save(tmp_path / "betas.npz")
    for each in (betas, load_betas(tmp_path / "betas.npz"), betas.copy()):
        with pytest.raises(KeyError, match=r"betas\.roi_mask\('face'\)"):
            each.roi_masks["face"]
        assert each.roi_masks.get("face") is None


def test_masks_of_regions_that_were_not_asked_for(fetch):
    data = fetch("sub-01", rois=["face", "V1d"])
    whole = load(data, rois="brain")
    assert whole.roi_masks == {}
    for name in ("FFA1", "V1d"):
        inside = whole.roi_mask(name)
        (file,) = whole.roi_files[name]
        assert np.array_equal(inside, apply_mask(file, whole.mask_img) > 0)
        assert 0 < inside.sum() < len(inside)
    part = load(data, rois=["FFA1", "V1d"])
    faces = set(map(tuple, load(data, rois="face").coordinates))
    expected = [tuple(voxel) in faces for voxel in part.coordinates]
    assert np.array_equal(part.roi_mask("face"), expected)
    assert not all(expected)
    os.unlink(whole.roi_files["OFA"][0])
    with pytest.raises(NotCachedError, match="OFA"):
        whole.roi_mask("OFA")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FFA3", "no ROI 'FFA3' in betas.*did you mean 'FFA1'"),
        ("faces", "did you mean .*'face'"),
        ("V2", "no ROI 'V2'"),
        (3, "no ROI 3"),
    ],
)
def test_regions_that_there_are_not(betas, name, message):
    with pytest.raises(InvalidQueryError, match=message):
        betas.roi_mask(name)


# Noise ceilings


def simulated(folder, n_repeats, seed=0):
    """Return data of images shown n times, the true responses, ncsnr per voxel.

    A third of the voxels has no signal, one as much as half of the noise, one as much
    as the noise; the noise differs between voxels.
    """
    rng = np.random.default_rng(seed)
    n_voxels = int(brain().sum())
    ncsnr = np.resize([0.0, 0.5, 1.0], n_voxels)
    deviation = np.resize([1.0, 3.0], n_voxels)
    signal = rng.normal(size=(len(n_repeats), n_voxels)) * ncsnr * deviation
    image_of_trial = rng.permutation(np.repeat(np.arange(len(n_repeats)), n_repeats))
    values = np.zeros((*SHAPE, len(image_of_trial)), np.float32)
    noisy = rng.normal(size=(len(image_of_trial), n_voxels)) * deviation
    values[brain() > 0] = (signal[image_of_trial] + noisy).T
    data = make(folder, [nib.Nifti1Image(values, AFFINE)])
    data.trials["label"] = [f"image {i:04}" for i in image_of_trial]
    data.noise_ceilings["sub-01"] = {}
    for name, inverse in INVERSE.items():
        published = np.zeros(SHAPE, np.float32)
        published[brain() > 0] = 100 * ncsnr**2 / (ncsnr**2 + inverse)
        file = str(folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(published, AFFINE), file)
        data.noise_ceilings["sub-01"][name] = file
    return data, signal, ncsnr


def explained(measured, signal):
    """Return how much of each voxel's variance the true responses explain, in %."""
    residual = ((measured - signal) ** 2).sum(axis=0)
    return 100 * (1 - residual / (measured**2).sum(axis=0))


@pytest.mark.parametrize("name", INVERSE)
def test_ceilings_of_averages_are_what_the_true_responses_explain(tmp_path, name):
    n_repeats = np.repeat([1, 4, 12], [200, 200, 100])
    data, signal, ncsnr = simulated(tmp_path, n_repeats)
    names = np.array([f"image {i:04}" for i in range(len(n_repeats))])
    cases = {n: np.flatnonzero(n_repeats == n) for n in (1, 4, 12)}
    cases["mixed"] = np.arange(len(n_repeats))
    for n, images in cases.items():
        betas = load(data, rois="brain", average_repeats=True, labels=names[images])
        assert list(betas.trials["label"]) == list(names[images])
        share = explained(betas.data, signal[images])
        averaged = betas.noise_ceiling("averaged", name)
        assert averaged.dtype == np.float32
        for level in (0.5, 1.0):
            voxels = ncsnr == level
            assert averaged[voxels].mean() == pytest.approx(share[voxels].mean(), abs=2)
        assert np.array_equal(averaged, betas.noise_ceiling(n_repeats[images], name))
        if n != "mixed":
            assert np.allclose(averaged, betas.noise_ceiling(n, name))
    singles = load(data, rois="brain")
    truth = signal[singles.trials["label"].str[-4:].astype(int)]
    share = explained(singles.data, truth)[ncsnr == 1].mean()
    assert singles.noise_ceiling("averaged", name)[ncsnr == 1].mean() == pytest.approx(
        share, abs=2
    )
    assert np.allclose(singles.noise_ceiling(1, name)[ncsnr == 1], 50)


def test_a_ceiling_of_the_repeats_of_a_map_is_the_map(betas):
    published = betas.noise_ceilings
    assert np.allclose(betas.noise_ceiling(4, "4rep"), published["4rep"], rtol=1e-6)
    assert np.allclose(betas.noise_ceiling(12, "12rep"), published["12rep"], rtol=1e-6)
    mixed = [12] * 881 + [4] * 5323
    assert np.allclose(betas.noise_ceiling(mixed), published["Allrep"], rtol=1e-6)
    # One map tells the others: those of the demo have one ratio of signal and noise.
    assert np.allclose(betas.noise_ceiling(12, "4rep"), published["12rep"], atol=1e-3)
    assert np.array_equal(betas.noise_ceiling("averaged"), betas.noise_ceiling(1))
    assert np.array_equal(betas.noise_ceiling(np.int64(4)), betas.noise_ceiling(4.0))
    twice = pd.Series([1, 2], dtype="Int64")
    assert np.array_equal(betas.noise_ceiling(twice), betas.noise_ceiling(4 / 3))


def test_a_ceiling_is_not_computed_before_repeats_are_named(betas):
    """``noise_ceiling("4rep")`` alone looks like the map of 4 repeats, and is not."""
    with pytest.raises(TypeError, match="n_repeats"):
        betas.noise_ceiling(noise_ceiling="4rep")
    with pytest.raises(InvalidQueryError, match="n_repeats is '4rep'"):
        betas.noise_ceiling("4rep")


def test_ceilings_of_0_and_100_and_nan_stay(betas):
    n = betas.data.shape[1]
    odd = np.resize([0, 100, np.nan, 100.00001, -1e-6], n).astype(np.float32)
    betas.noise_ceilings["4rep"] = odd
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n_repeats in (1, 100, [1, 3]):
            derived = betas.noise_ceiling(n_repeats, "4rep")[:5]
            assert np.array_equal(derived, [0, 100, np.nan, 100, 0], equal_nan=True)


@pytest.mark.parametrize(
    "n_repeats", [0, -1, np.nan, np.inf, True, "all", None, [], [1, 0], [[1, 2]], {}]
)
def test_repeats_that_are_none(betas, n_repeats):
    with pytest.raises(InvalidQueryError, match="n_repeats is .*'averaged'"):
        betas.noise_ceiling(n_repeats)


def test_a_map_that_there_is_not(betas):
    with pytest.raises(InvalidQueryError, match="'4 rep'; did you mean '4rep'"):
        betas.noise_ceiling(4, "4 rep")
    betas.noise_ceilings = {}
    with pytest.raises(InvalidQueryError, match="no noise ceiling 'Allrep'"):
        betas.noise_ceiling(4)


def test_scores_are_shares_of_the_ceiling():
    ceiling = np.array([50, 0, np.nan, np.inf, 100, 10])
    r2 = np.array([0.25, 0.1, 0.1, 0.1, 0.3, 0.2])
    expected = [0.5, np.nan, np.nan, np.nan, 0.3, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(normalized_score(r2, ceiling), expected, equal_nan=True)
        folds = normalized_score([r2, 2 * r2], ceiling)
        assert np.allclose(folds[1], 2 * np.array(expected), equal_nan=True)
        assert normalized_score(0.2, 40) == pytest.approx(0.5)
        assert np.isnan(normalized_score([0.2], [0])).all()


def test_scores_and_ceilings_that_do_not_fit():
    with pytest.raises(InvalidQueryError, match=r"\(3,\).*\(2,\)"):
        normalized_score(np.zeros(3), np.ones(2))
    with pytest.warns(UserWarning, match="percent"):
        normalized_score([0.1, 0.2], [0.2, 0.4])


# Copies and files


def test_copies_have_the_methods(betas):
    for made in (
        pickle.loads(pickle.dumps(betas)),
        copy.copy(betas),
        copy.deepcopy(betas),
        betas.copy(),
    ):
        assert same(made, betas)
        assert np.array_equal(made.roi_mask("V1"), betas.roi_mask("V1"))
    methods = {"to_img", "roi_mask", "noise_ceiling", "save", "methods"}
    assert methods <= set(dir(betas))
    assert len(repr(betas).splitlines()) == len(betas)


@pytest.mark.parametrize("average_repeats", [False, True])
def test_saved_betas_are_the_same(fetch, tmp_path, average_repeats):
    data = fetch("sub-01", rois=["face", "V1"])
    betas = load(data, average_repeats=average_repeats, dtype="float64")
    betas.save(tmp_path / "new" / "betas.npz")
    assert os.listdir(tmp_path / "new") == ["betas.npz"]
    again = load_betas(str(tmp_path / "new" / "betas.npz"))
    assert same(again, betas)
    values = np.arange(betas.data.shape[1])
    assert np.array_equal(again.to_img(values).dataobj, betas.to_img(values).dataobj)
    assert np.array_equal(again.roi_mask("face"), betas.roi_mask("face"))
    assert np.array_equal(again.noise_ceiling(4), betas.noise_ceiling(4))
    # numpy reads the file, without unpickling anything.
    with np.load(tmp_path / "new" / "betas.npz", allow_pickle=False) as arrays:
        assert any(np.array_equal(arrays[name], betas.data) for name in arrays)


def test_saved_betas_are_loaded_as_they_were_saved_or_not_at_all(betas, tmp_path):
    betas.save(tmp_path / "betas.npz")
    for choice in ({"rois": "FFA1"}, {"standardize": "zscore"}, {"labels": ["a.jpg"]}):
        (name,) = choice
        with pytest.raises(InvalidQueryError, match=f"{name} is for betas that are"):
            load_betas(tmp_path / "betas.npz", **choice)
    assert same(load_betas(tmp_path / "betas.npz", rois="fetched", verbose=0), betas)


def test_columns_that_users_add_to_trials_are_saved(betas, tmp_path):
    n = len(betas.trials)
    betas.trials = betas.trials.assign(
        mixed=np.resize(np.array([None, "", "é", 3, 2.5, True], object), n),
        exact=np.random.default_rng(0).normal(size=n),
        odd=np.resize([np.nan, np.inf], n),
        kind=pd.Categorical(np.resize(["b", "a"], n), categories=["b", "a", "c"]),
        order=pd.Categorical(np.resize([1, 2], n), ordered=True),
        when=pd.Timestamp("2026-01-02") + pd.to_timedelta(np.arange(n), unit="h"),
        text=pd.array(np.resize(["x", None], n), dtype="string"),
        flag=pd.array(np.resize([True, None], n), dtype="boolean"),
        half=np.float16(0.5),
    )
    betas.notes = "keys that are added are not saved"
    betas.save(tmp_path / "betas")
    again = load_betas(tmp_path / "betas")
    pd.testing.assert_frame_equal(again.trials, betas.trials)
    assert "notes" not in again


def test_what_cannot_be_saved_leaves_the_file_as_it_was(betas, tmp_path):
    file = tmp_path / "betas.npz"
    betas.save(file)
    before = file.read_bytes()
    part = betas.copy()
    part.trials = betas.trials.assign(model=[object()] * len(betas.data))
    with pytest.raises(InvalidQueryError, match=r"trials\['model'\] cannot be saved"):
        part.save(file)
    part = betas.copy()
    part.data = betas.data[:, :5]
    with pytest.raises(InvalidQueryError, match="mask_img is of .*cut all keys"):
        part.save(file)
    with pytest.raises(InvalidQueryError, match="is a folder"):
        betas.save(tmp_path)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.*")] == ["betas.npz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills(betas, monkeypatch, tmp_path):
    real = os.open

    def full(path, *args):
        if str(path).endswith(".tmp"):
            os.close(real(path, *args))
            return real("/dev/full", os.O_WRONLY)
        return real(path, *args)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(DiskSpaceError, match="full"):
        betas.save(tmp_path / "betas.npz")
    assert not list(tmp_path.glob("*.*"))


def test_a_damaged_file_is_an_error_and_never_other_numbers(tmp_path):
    data = make(tmp_path, [noise(3)])
    betas = load(data, rois="brain")
    file = tmp_path / "betas.npz"
    betas.save(file)
    content = file.read_bytes()
    n_refused = 0
    for place in range(5, len(content), len(content) // 97):
        changed = bytearray(content)
        changed[place] ^= 0x55
        file.write_bytes(changed)
        try:
            again = load_betas(file)
        except CorruptImageError:
            n_refused += 1
        else:  # in what the format does not use, such as a time
            assert same(again, betas)
    assert n_refused > 80
    file.write_bytes(content)
    lengths = (0, 10, len(content) // 2, len(content) - 1)
    altered = io.BytesIO()
    with zipfile.ZipFile(file) as ours, zipfile.ZipFile(altered, "w") as theirs:
        for name in ours.namelist():
            theirs.writestr(name, ours.read(name).replace(b"'descr'", b"'descr "))
    for damaged in (altered.getvalue(), *(content[:length] for length in lengths)):
        file.write_bytes(damaged)
        with pytest.raises(CorruptImageError, match=r"betas\.npz cannot be read.*save"):
            load_betas(file)


def test_files_that_are_not_betas(tmp_path, betas):
    with pytest.raises(NotCachedError, match="nope"):
        load_betas(tmp_path / "nope")
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    np.savez(tmp_path / "about.npz", about=np.frombuffer(b'{"format": "x"}', np.uint8))
    (tmp_path / "text").write_text("data")
    for name in ("other.npz", "about.npz", "text"):
        with pytest.raises(CorruptImageError, match=name):
            load_betas(tmp_path / name)
    betas.save(tmp_path / "whole")
    for name, old, new in (
        ("less", b'"trials": ', b'"others": '),
        ("later", b'"version": 1,', b'"version": 9,'),
    ):
        with (
            zipfile.ZipFile(tmp_path / "whole") as archive,
            zipfile.ZipFile(tmp_path / name, "w") as changed,
        ):
            for member in archive.namelist():
                content = archive.read(member)
                if member == "about.npy":
                    content = content.replace(old, new)
                changed.writestr(member, content)
    with pytest.raises(CorruptImageError, match="less cannot be read"):
        load_betas(tmp_path / "less")
    with pytest.raises(InvalidQueryError, match="later version"):
        load_betas(tmp_path / "later")
    del betas["trials"]
    with pytest.raises(InvalidQueryError, match="betas lack trials"):
        betas.save(tmp_path / "whole")


# Where betas come from


def test_betas_carry_what_was_asked_and_the_versions_of_files(fetch, tmp_path):
    data = fetch("sub-01", rois="face", sessions=[1, 2], trial_filter={"run": [1, 2]})
    betas = load(data, rois="FFA1", standardize="zscore", nc_threshold=10)
    assert betas.query["trial_filter"] == data.query["trial_filter"]
    asked = {"subjects": "sub-01", "rois": ["FFA1"], "standardize": "zscore"}
    assert betas.query.items() >= {**asked, "nc_threshold": 10}.items()
    assert (betas.data_dir, betas.description) == (data.data_dir, data.description)
    metas = [*data.images_meta, *data.rois_meta]
    used = [m for m in metas if m["roi"] in (None, "FFA1")]
    assert betas.versions.items() >= {m["id"]: m["etag"] for m in used}.items()
    others = betas.versions.keys() - {m["id"] for m in used}
    assert len([name for name in others if name.endswith("_trials.tsv")]) == 2
    assert len(others) == 2 + 1 + len(betas.noise_ceilings)  # and the brain mask
    assert not any(name.startswith(("/", "..")) for name in others)
    size = os.path.getsize(Path(data.data_dir, min(others)))
    assert betas.versions[min(others)].startswith(f"{size} bytes, 20")
    image = load(data, rois="brain", mask_img=betas.mask_img, labels=betas.trials.label)
    assert image.query["mask_img"] == "an image in memory"
    assert image.query["labels"] == betas.trials.label.tolist()


def test_a_paragraph_on_methods(fetch, tmp_path):
    data = fetch("all", rois="face", sessions=[1, 2, 3], trial_filter={"run": 1})
    text = data.methods()
    for part in (
        "sub-01 (3 sessions: ses-01 to ses-03); sub-03 (3 sessions",
        f"{len(data.trials)} trials of {data.trials['label'].nunique()} images",
        'trial_filter = {"run": 1}',
        "FFA1",
        "https://laion-fmri.hebartlab.com",
        "laion_fmri_fetchers 0",
        "numpy",
    ):
        assert part in text
    betas = load(
        data, 3, rois="FFA1", standardize="zscore", average_repeats=True, nc_threshold=9
    )
    betas.save(tmp_path / "betas.npz")
    text = betas.methods()
    n_trials = int((data.trials["subject"] == "sub-03").sum())
    for part in (
        "of sub-03 (3 sessions: ses-01 to ses-03).",
        f"{n_trials} trials",
        f"{betas.data.shape[1]} voxels, of a noise ceiling (Allrep) >= 9 %",
        "z-scored within each session",
        "averaged over the repeats",
        'trial_filter = {"run": 1}',
        "Allen et al. (2022)",
    ):
        assert part in text
    assert "sub-01" not in text
    assert load_betas(tmp_path / "betas.npz").methods() == text
    other = fetch(
        "sub-01", image_type=["subject_noise_ceiling", "betas"], sessions=1
    ).methods()
    assert "files of the types betas, subject_noise_ceiling" in other


# Rows by image


def test_labels_choose_and_order_rows(tmp_path):
    data = make(tmp_path, [noise(7, i) for i in range(2)])
    whole = load(data, rois="brain", standardize="zscore")
    for labels in (
        ["c", "a"],
        ("c", "a", "c"),
        pd.Series(["c", "a"]),
        np.array(["c", "a"]),
    ):
        betas = load(data, rois="brain", standardize="zscore", labels=labels)
        rows = [
            i
            for x in "ca"
            for i, label in enumerate(whole.trials["label"])
            if label == x
        ]
        assert np.array_equal(betas.data, whole.data[rows])
        expected = whole.trials.iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(betas.trials, expected)
    averaged = load(data, rois="brain", labels=["c", "a"], average_repeats=True)
    assert list(averaged.trials["label"]) == ["c", "a"]
    assert list(load(data, rois="brain", labels="b").trials["label"]) == ["b"] * 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["image_1.jgp", "image_2.jpg"],
            "lack 1 image: 'image_1.jgp'; did you mean 'im",
        ),
        ([], "labels is empty"),
        (3, "labels is a int"),
        ([3], "labels has the label 3"),
        ([None], "label None"),
    ],
)
def test_labels_that_there_are_not(tmp_path, labels, message):
    data = make(tmp_path, [noise(6)], labels=("image_1.jpg", "image_2.jpg"))
    with pytest.raises(InvalidQueryError, match=message):
        load(data, rois="brain", labels=labels)


def test_all_subjects_and_their_shared_images(fetch):
    data = fetch("all", rois="FFA1")
    labels = shared_labels(data)
    trials = data.trials
    first, second = (
        set(trials["label"][trials["subject"] == s]) for s in ("sub-01", "sub-03")
    )
    assert labels == sorted(first & second)
    assert labels
    assert labels == shared_labels(trials) == shared_labels(trials.iloc[::-1])
    both = load(data, "all", labels=labels, average_repeats=True)
    assert list(both) == ["sub-01", "sub-03"]
    for subject, betas in both.items():
        assert list(betas.trials["label"]) == labels
        alone = load(data, subject, labels=labels, average_repeats=True)
        assert same(betas, alone)
    assert shared_labels(both) == shared_labels([*both.values()]) == labels
    assert shared_labels(both["sub-01"], both["sub-03"]) == labels
    counts = trials.groupby(["subject", "label"]).size().unstack(0).dropna().min(axis=1)
    often = sorted(counts.index[counts >= 4])
    assert 0 < len(often) < len(labels)
    assert shared_labels(data, min_repeats=4) == often
    assert shared_labels(both, min_repeats=4) == often  # of averages, what they are of
    halves = [
        trials[trials["session"] <= "ses-02"],
        trials[trials["session"] > "ses-02"],
    ]
    in_halves = set(labels).intersection(*(shared_labels(half) for half in halves))
    assert shared_labels(*halves) == sorted(in_halves)
    with pytest.raises(InvalidQueryError, match="lack 1 image"):
        load(data, "all", labels=[*labels, min(first - second)])


def test_no_shared_images(fetch):
    data = fetch("all", rois="FFA1")
    with pytest.warns(
        UserWarning, match="5,?000 times or more by all of sub-01, sub-03"
    ):
        assert shared_labels(data, min_repeats=5000) == []
    data.trials = data.trials[data.trials["subject"] == "sub-01"]
    with pytest.warns(UserWarning, match="by all of sub-01, sub-03"):
        assert shared_labels(data) == []  # sub-03 was fetched, and saw none of these
    for wrong in (None, "sub-01", pd.DataFrame({"x": [1]}), [3]):
        with pytest.raises(InvalidQueryError, match="^data is a"):
            shared_labels(wrong)
    with pytest.raises(InvalidQueryError, match="no trials"):
        shared_labels([])
    with pytest.raises(InvalidQueryError, match="min_repeats"):
        shared_labels(data, min_repeats=0)


# Progress


class Terminal:
    written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_by_session(tmp_path, monkeypatch, capfd, n_jobs):
    data = make(tmp_path, [noise(3, i) for i in range(3)])
    load(data, rois="brain", n_jobs=n_jobs)
    assert capfd.readouterr().err == ""
    set_policy(monkeypatch, line_every=0.0)
    load_betas(data, rois="brain", n_jobs=n_jobs)
    first, *steps, last = capfd.readouterr().err.splitlines()
    assert first.startswith("Reading 9 trials of sub-01 at ")
    assert [step.split(",")[0] for step in steps] == [
        f"{n} of 3 sessions" for n in (1, 2, 3)
    ]
    assert last.startswith("3 of 3 sessions")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    load_betas(data, rois="brain", n_jobs=n_jobs, verbose=1)
    assert "3 of 3 sessions" in terminal.written
    before = terminal.written
    load(data, rois="brain", n_jobs=n_jobs)
    assert terminal.written == before


def test_a_session_that_fails_closes_the_bar(tmp_path, monkeypatch):
    data = make(tmp_path, [noise(30), noise(30)])
    content = Path(data.images[1]).read_bytes()
    Path(data.images[1]).write_bytes(content[: len(content) // 2])
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(CorruptImageError):
        load_betas(data, rois="brain")
    assert terminal.written.endswith("\n")
    with pytest.raises(InvalidQueryError, match="verbose"):
        load_betas(data, rois="brain", verbose="loud")


@pytest.mark.parametrize(
    "labels", [{"a", "b"}, frozenset({"a"}), {"a": 1}.keys() | {"b"}]
)
def test_sets_of_labels_are_refused_where_rows_follow_them(tmp_path, labels):
    data = make(tmp_path, [noise(4)], labels=("a", "b"))
    table = Bunch(metadata=pd.DataFrame(index=pd.Index(["a", "b"], name="image_name")))
    split = StimulusSplit(["a"], ["b"])
    for call, name in (
        (lambda: load(data, rois="brain", labels=labels), "labels"),
        (lambda: align(labels, table), "trials"),
        (lambda: split.masks(labels), "trials"),
        (lambda: list(split.split([0, 0], groups=labels)), "groups"),
    ):
        said = f"{name} is (a (frozen)?set, whose|.*in their order)"
        with pytest.raises(InvalidQueryError, match=said):
            call()


def test_collections_with_an_order_are_taken(tmp_path):
    data = make(tmp_path, [noise(4)], labels=("a", "b"))
    keys = dict.fromkeys("ba").keys()
    assert list(load(data, rois="brain", labels=keys).trials["label"]) == [*"bbaa"]
    assert StimulusSplit({"c", "a"}, {"b"}).train == ["a", "c"]
