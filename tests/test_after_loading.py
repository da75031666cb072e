"""After loading: images of values, regions, ceilings, files, rows by image."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import made_betas
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from checks import fails, no_warnings, warned
from made_betas import BRAIN, INSIDE, SHAPE, image, load, make, noise
from nilearn.masking import apply_mask
from policies import set_policy
from sklearn.utils import Bunch

from laion_fmri_fetchers import align, fetch_laion_fmri, normalized_score, shared_labels
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.splits import StimulusSplit

fetch = made_betas.fetch

INVERSE = {"4rep": 1 / 4, "12rep": 1 / 12, "Allrep": (881 / 12 + 5323 / 4) / 6204}


@pytest.fixture(scope="module")
def loaded(cached_folder):
    rois = ["face", "V1d", "V1v", "PPA"]
    here = {"data_dir": cached_folder, "mode": "offline", "verbose": 0}
    return load(fetch_laion_fmri("sub-01", rois=rois, **here))


@pytest.fixture
def betas(loaded):
    return copy.deepcopy(loaded)


def contents(betas):
    """Return all that betas hold, for comparison."""
    mask = betas.mask_img
    mask = [mask.affine, mask.get_data_dtype(), np.asarray(mask.dataobj)]
    return {**betas, "type": betas.data.dtype, "mask_img": mask, "trials": None}


def check_same(first, second):
    assert type(first) is type(second)
    pd.testing.assert_frame_equal(first.trials, second.trials)
    np.testing.assert_equal(contents(first), contents(second))


# Back on the grid


def test_coordinates_are_centres_of_voxels_in_mm(tmp_path):
    betas = load(make(tmp_path, [noise(2)]), rois="brain")
    assert betas.coordinates.shape == (int(INSIDE.sum()), 3)
    assert betas.coordinates.dtype == float
    # Voxel (1, 1, 1), on a grid of 2 mm whose first voxel is at (-9, -8, -7).
    assert betas.coordinates[:2].tolist() == [[-7, -6, -5], [-7, -6, -3]]


def test_values_go_back_to_the_grid(betas):
    inside = betas.mask_img.get_fdata() > 0
    n_voxels = betas.data.shape[1]
    x, y, z = nib.affines.apply_affine(betas.mask_img.affine, np.argwhere(inside)).T
    assert np.allclose(betas.coordinates, np.transpose([x, y, z]))
    linear = betas.to_img(2 * x - y + 0.5 * z + 3)
    assert np.array_equal(linear.affine, betas.mask_img.affine)
    assert np.allclose(linear.get_fdata()[inside], 2 * x - y + 0.5 * z + 3)
    assert not linear.get_fdata()[~inside].any()
    rows = betas.to_img(betas.data[:3])
    assert rows.shape == (*inside.shape, 3)
    assert rows.get_data_dtype() == np.float32
    assert np.array_equal(apply_mask(rows, betas.mask_img), betas.data[:3])
    assert betas.to_img(betas.data[:1]).shape[3:] == (1,)
    for fill in (0.5, 70_000, np.nan):
        filled = betas.to_img(np.ones(n_voxels, bool), fill=fill).get_fdata()
        assert np.array_equal(filled, np.where(inside, 1, fill), equal_nan=True)
    for given, stored in (
        *((bool, "uint8"), ("int64", "float64")),
        *(("float16", "float32"), ("float64", "float64")),
    ):
        values = (np.arange(n_voxels) % 2).astype(given)
        read = nib.Nifti1Image.from_bytes(betas.to_img(values).to_bytes())
        assert read.get_data_dtype() == stored
        assert np.array_equal(read.get_fdata()[inside], values)
    for wrong in (np.zeros(5), np.zeros((5, 2)), np.zeros((1, 1, 9)), 1):
        fails(InvalidQueryError, "one value per voxel", betas.to_img, wrong)
    fails(InvalidQueryError, "takes numbers", betas.to_img, ["a"] * n_voxels)


# Regions


def test_masks_of_regions_by_any_name(betas, tmp_path):
    masks = betas.roi_masks
    faces = [masks[roi] for roi in masks if betas.roi_categories[roi] == "face"]
    union, v1 = np.logical_or.reduce(faces), masks["V1d"] | masks["V1v"]
    assert not union.all()
    for name, expected in (
        *(("face", union), ("Face", union), ("V1", v1), (["face", "V1"], union | v1)),
        *((name, masks["FFA1"]) for name in ("FFA1", "FFA-1", "ffa1")),
    ):
        mask = betas.roi_mask(name)
        assert mask.dtype == bool
        assert np.array_equal(mask, expected)
    betas.roi_mask("FFA1")[:] = False  # a copy
    assert masks["FFA1"].any()
    for name, words in (
        ("FFA3", "no ROI 'FFA3' in betas.*did you mean 'FFA1'"),
        *(("faces", "did you mean .*'face'"), ("V2", "no ROI 'V2'"), (3, "no ROI 3")),
    ):
        fails(InvalidQueryError, words, betas.roi_mask, name)
    betas.save(tmp_path / "betas.npz")
    words = r"betas\.roi_mask\('face'\)"
    for each in (betas, load(tmp_path / "betas.npz"), betas.copy()):
        fails(KeyError, words, each.roi_masks.__getitem__, "face")
        assert each.roi_masks.get("face") is None


def test_masks_of_regions_that_were_not_asked_for(cached, no_network):
    rois = ["face", "V1d"]
    data = fetch_laion_fmri("sub-01", rois, 1, mode="offline", verbose=0)
    whole, part = load(data, rois="brain"), load(data, rois=["FFA1", "V1d"])
    for betas in (whole, part):
        for name in ("OFA", "V1d"):
            (file,) = whole.roi_files[name]
            expected = apply_mask(file, betas.mask_img) > 0
            assert np.array_equal(betas.roi_mask(name), expected)
    os.unlink(whole.roi_files["OFA"][0])
    fails(errors.NotCachedError, "OFA", whole.roi_mask, "OFA")


# Noise ceilings


def test_ceilings_of_averages_follow_from_a_map(tmp_path):
    """With the ratio of signal to noise: 100 ncsnr² / (ncsnr² + mean of 1/n)."""
    data = make(tmp_path, [noise(7)])  # "b" is shown 3 times, "a" and "c" twice
    ncsnr = np.linspace(0, 3, BRAIN.size).reshape(SHAPE)
    data.noise_ceilings["sub-01"] = {}
    for name, inverse in INVERSE.items():
        file = data.noise_ceilings["sub-01"][name] = str(tmp_path / f"{name}.nii")
        published = 100 * ncsnr**2 / (ncsnr**2 + inverse)
        nib.save(image(published.astype("f4")), file)
    averaged = load(data, rois="brain", average_repeats=True)
    single = load(data, rois="brain")
    of_averages = (1 / 3 + 1 / 2 + 1 / 2) / 3
    for name in INVERSE:
        for betas, n_repeats, inverse in (
            *((single, "averaged", 1), (averaged, "averaged", of_averages)),
            *((single, 1, 1), (single, 4, 1 / 4), (single, [1, 3], 2 / 3)),
        ):
            found = betas.noise_ceiling(n_repeats, name)
            expected = 100 * ncsnr**2 / (ncsnr**2 + inverse)
            assert found.dtype == np.float32
            assert np.allclose(found, expected[INSIDE], rtol=1e-5)


def test_a_ceiling_of_the_repeats_of_a_map_is_the_map(betas):
    published = betas.noise_ceilings
    assert np.allclose(betas.noise_ceiling(4, "4rep"), published["4rep"], rtol=1e-6)
    assert np.allclose(betas.noise_ceiling(12, "12rep"), published["12rep"], rtol=1e-6)
    mixed = [12] * 881 + [4] * 5323
    assert np.allclose(betas.noise_ceiling(mixed), published["Allrep"], rtol=1e-6)
    # One map tells the others: those of the demo have one ratio of signal and noise.
    assert np.allclose(betas.noise_ceiling(12, "4rep"), published["12rep"], atol=1e-3)
    twice = pd.Series([1, 2], dtype="Int64")
    for first, second in (("averaged", 1), (np.int64(4), 4.0), (twice, 4 / 3)):
        first, second = betas.noise_ceiling(first), betas.noise_ceiling(second)
        assert np.array_equal(first, second)
    odd = [0, 100, np.nan, 100.00001, -1e-6]
    published["4rep"] = np.resize(odd, betas.data.shape[1]).astype(np.float32)
    with no_warnings():
        for n_repeats in (1, 100, [1, 3]):
            derived = betas.noise_ceiling(n_repeats, "4rep")[:5]
            assert np.array_equal(derived, [0, 100, np.nan, 100, 0], equal_nan=True)


def test_ceilings_that_there_are_not(betas):
    # "4rep" alone looks like the map of 4 repeats, and is not.
    fails(TypeError, "n_repeats", betas.noise_ceiling, noise_ceiling="4rep")
    odd = [0, -1, np.nan, np.inf, True, "4rep", None, [], [1, 0], [[1, 2]], {}]
    for n_repeats in odd:
        words = "n_repeats is .*'averaged'"
        fails(InvalidQueryError, words, betas.noise_ceiling, n_repeats)
    words = "'4 rep'; did you mean '4rep'"
    fails(InvalidQueryError, words, betas.noise_ceiling, 4, "4 rep")
    betas.noise_ceilings = {}
    fails(InvalidQueryError, "no noise ceiling 'Allrep'", betas.noise_ceiling, 4)


def test_scores_are_shares_of_the_ceiling():
    ceiling = np.array([50, 0, np.nan, np.inf, 100, 10])
    r2 = np.array([0.25, 0.1, 0.1, 0.1, 0.3, 0.2])
    expected = np.array([0.5, np.nan, np.nan, np.nan, 0.3, 2])
    with no_warnings():
        assert np.allclose(normalized_score(r2, ceiling), expected, equal_nan=True)
        folds = normalized_score([r2, 2 * r2], ceiling)
        assert np.allclose(folds[1], 2 * expected, equal_nan=True)
        assert normalized_score(0.2, 40) == pytest.approx(0.5)
        assert np.isnan(normalized_score([0.2], [0])).all()
    words = r"\(3,\).*\(2,\)"
    fails(InvalidQueryError, words, normalized_score, np.zeros(3), np.ones(2))
    for r2, ceiling in (([0.1, 0.2], [0.2, 0.4]), ([10, 20], [20, 40])):
        warned("percent", normalized_score, r2, ceiling)


# Copies and files


def test_copies_and_saved_betas_are_the_same(fetch, tmp_path):
    file = tmp_path / "new" / "betas.npz"
    for options in ({"dtype": "float64"}, {"average_repeats": True}):
        betas = load(fetch("sub-01", rois=["face", "V1"]), **options)
        betas.save(file)
        assert os.listdir(file.parent) == ["betas.npz"]
        for again in (
            *(pickle.loads(pickle.dumps(betas)), copy.copy(betas), betas.copy()),
            *(copy.deepcopy(betas), load(str(file)), load(file, rois="fetched")),
        ):
            check_same(again, betas)
            for name in ("face", "V1"):
                assert np.array_equal(again.roi_mask(name), betas.roi_mask(name))
            assert np.array_equal(again.noise_ceiling(4), betas.noise_ceiling(4))
        # numpy reads the file, without unpickling anything.
        with np.load(file, allow_pickle=False) as arrays:
            assert any(np.array_equal(arrays[name], betas.data) for name in arrays)
    assert len(repr(betas).splitlines()) == len(betas)
    for choice in ({"rois": "FFA1"}, {"standardize": "zscore"}, {"labels": ["a.jpg"]}):
        words = f"{min(choice)} is for betas that are"
        fails(InvalidQueryError, words, load, file, **choice)


def test_columns_that_users_add_to_trials_are_saved(betas, tmp_path):
    n = len(betas.trials)
    columns = {
        "mixed": np.array([None, "", "é", 3, 2.5, True], object),
        "exact": np.array([0.1, np.nan, np.inf]),
        "half": np.array([0.5], "f2"),
        "when": np.array(["2026-01-02", "2026-01-03"], "datetime64[ns]"),
    }
    added = {name: np.resize(values, n) for name, values in columns.items()}
    added["kind"] = pd.Categorical(np.resize([*"ba"], n), [*"bac"], ordered=True)
    added["text"] = pd.array(np.resize(["x", None], n), dtype="string")
    added["flag"] = pd.array(np.resize([True, None], n), dtype="boolean")
    betas.trials = betas.trials.assign(**added)
    betas.notes = "keys that are added are not saved"
    betas.save(tmp_path / "betas")
    again = load(tmp_path / "betas")
    pd.testing.assert_frame_equal(again.trials, betas.trials)
    assert "notes" not in again


def test_what_cannot_be_saved_leaves_the_file_as_it_was(betas, tmp_path, monkeypatch):
    file = tmp_path / "betas.npz"
    betas.save(file)
    before = file.read_bytes()
    odd = betas.trials.assign(model=[object()] * len(betas.data))
    for changes, place, words in (
        ({"trials": odd}, file, r"trials\['model'\] cannot be saved"),
        ({"data": betas.data[:, :5]}, file, "mask_img is of .*cut all keys"),
        ({"trials": None}, file, "betas lack trials"),
        ({}, tmp_path, "is a folder"),
    ):
        part = betas.copy()
        part.update(changes)
        if part.trials is None:
            del part["trials"]
        fails(InvalidQueryError, words, part.save, place)
    real = os.open

    def full(path, *args):
        if str(path).endswith(".tmp"):
            os.close(real(path, *args))
            return real("/dev/full", os.O_WRONLY)
        return real(path, *args)

    if os.path.exists("/dev/full"):
        monkeypatch.setattr(os, "open", full)
        fails(errors.DiskSpaceError, "full", betas.save, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.*")] == ["betas.npz"]


def rewritten(content, old, new):
    """Return a zip file in which bytes of its members are replaced."""
    altered = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as ours,
        zipfile.ZipFile(altered, "w") as theirs,
    ):
        for name in ours.namelist():
            theirs.writestr(name, ours.read(name).replace(old, new))
    return altered.getvalue()


def test_a_damaged_file_is_an_error_and_never_other_numbers(tmp_path):
    betas = load(make(tmp_path, [noise(3)]), rois="brain")
    file = tmp_path / "betas.npz"
    betas.save(file)
    content = file.read_bytes()
    n_refused = 0
    for place in range(5, len(content), len(content) // 97):
        changed = bytearray(content)
        changed[place] ^= 0x55
        file.write_bytes(changed)
        try:
            again = load(file)
        except CorruptImageError:
            n_refused += 1
        else:  # in what the format does not use, such as a time
            check_same(again, betas)
    assert n_refused > 80
    other, note = io.BytesIO(), np.frombuffer(b'{"format": "x"}', np.uint8)
    np.savez(other, data=np.zeros(3), about=note)
    for damaged in (
        *(content[:n] for n in (0, 10, len(content) // 2, len(content) - 1)),
        rewritten(content, b"'descr'", b"'descr "),
        rewritten(content, b'"trials": ', b'"others": '),
        *(other.getvalue(), b"data"),
    ):
        file.write_bytes(damaged)
        fails(CorruptImageError, r"betas\.npz cannot be read.*save", load, file)
    file.write_bytes(rewritten(content, b'"version": 1,', b'"version": 9,'))
    fails(InvalidQueryError, "later version", load, file)
    fails(errors.NotCachedError, "nope", load, tmp_path / "nope")


# Where betas come from


def test_betas_carry_what_was_asked_and_the_versions_of_files(fetch):
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
    own = load(data, rois="brain", mask_img=betas.mask_img, labels=betas.trials.label)
    assert own.query["mask_img"] == "an image in memory"
    assert own.query["labels"] == betas.trials.label.tolist()


def test_a_paragraph_on_methods(fetch, tmp_path):
    data = fetch("all", rois="face", sessions=[1, 2, 3], trial_filter={"run": 1})
    options = {"rois": "FFA1", "standardize": "zscore", "average_repeats": True}
    betas = load(data, 3, nc_threshold=9, **options)
    betas.save(tmp_path / "betas.npz")
    n_trials = int((data.trials["subject"] == "sub-03").sum())
    of_data, of_betas = data.methods(), betas.methods()
    for text, part in (
        (of_data, "sub-01 (3 sessions: ses-01 to ses-03); sub-03 (3 sessions"),
        (of_data, f"{len(data.trials)} trials of {data.trials['label'].nunique()} im"),
        *((of_data, 'trial_filter = {"run": 1}'), (of_data, "FFA1")),
        *((of_data, "laion-fmri.hebartlab.com"), (of_data, "laion_fmri_fetchers 0")),
        *((of_betas, "of sub-03 (3 sessions"), (of_betas, f"{n_trials} trials")),
        (of_betas, f"{betas.data.shape[1]} voxels, of a noise ceiling (Allrep) >= 9 %"),
        *((of_betas, "z-scored within each"), (of_betas, "averaged over the repeats")),
        (of_betas, "Allen et al. (2022)"),
    ):
        assert part in text
    assert "sub-01" not in betas.methods()
    assert load(tmp_path / "betas.npz").methods() == betas.methods()
    types = ["subject_noise_ceiling", "betas"]
    text = fetch("sub-01", image_type=types, sessions=1).methods()
    assert "files of the types betas, subject_noise_ceiling" in text


# Rows by image


def test_labels_choose_and_order_rows(tmp_path):
    data = make(tmp_path, [noise(7, i) for i in range(2)])
    options = {"rois": "brain", "standardize": "zscore"}
    whole = load(data, **options)
    shown = whole.trials["label"]
    rows = [*np.flatnonzero(shown == "c"), *np.flatnonzero(shown == "a")]
    keys = dict.fromkeys("ca").keys()
    for labels in (["c", "a"], (*"cac",), pd.Series([*"ca"]), np.array([*"ca"]), keys):
        betas = load(data, labels=labels, **options)
        assert np.array_equal(betas.data, whole.data[rows])
        expected = whole.trials.iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(betas.trials, expected)
    averaged = load(data, labels=["c", "a"], average_repeats=True, **options)
    assert list(averaged.trials["label"]) == ["c", "a"]
    assert list(load(data, labels="b", **options).trials["label"]) == ["b"] * 5
    for labels, words in (
        (["bb", "c"], "lack 1 image: 'bb'; did you mean 'b'"),
        *(([], "labels is empty"), (3, "labels is a int"), ([None], "label None")),
    ):
        fails(InvalidQueryError, words, load, data, labels=labels, **options)


@pytest.mark.parametrize(
    "labels", [{"a", "b"}, frozenset("a"), {"a": 1}.keys() | {"b"}]
)
def test_sets_of_labels_are_refused_where_rows_follow_them(tmp_path, labels):
    data = make(tmp_path, [noise(4)], labels=("a", "b"))
    table = Bunch(metadata=pd.DataFrame(index=pd.Index(["a", "b"], name="image_name")))
    split = StimulusSplit({"c", "a"}, {"b"})
    assert split.train == ["a", "c"]  # whose order does not matter
    for call, name in (
        (lambda: load(data, rois="brain", labels=labels), "labels"),
        (lambda: align(labels, table), "trials"),
        (lambda: split.masks(labels), "trials"),
        (lambda: list(split.split([0, 0], groups=labels)), "groups"),
    ):
        said = f"{name} is (a (frozen)?set, whose|.*in their order)"
        fails(InvalidQueryError, said, call)


def test_all_subjects_and_their_shared_images(fetch):
    data = fetch("all", rois="FFA1")
    labels, trials = shared_labels(data), data.trials
    first, second = (
        set(trials["label"][trials["subject"] == s]) for s in ("sub-01", "sub-03")
    )
    assert labels == sorted(first & second)
    assert labels
    assert labels == shared_labels(trials) == shared_labels(trials.iloc[::-1])
    both = load(data, "all", labels=iter(labels), average_repeats=True)
    assert list(both) == ["sub-01", "sub-03"]
    for subject, betas in both.items():
        assert list(betas.trials["label"]) == labels
        check_same(betas, load(data, subject, labels=labels, average_repeats=True))
    assert shared_labels(both) == shared_labels([*both.values()]) == labels
    assert shared_labels(both["sub-01"], both["sub-03"]) == labels
    counts = trials.groupby(["subject", "label"]).size().unstack(0).dropna().min(axis=1)
    often = sorted(counts.index[counts >= 4])
    assert 0 < len(often) < len(labels)
    assert shared_labels(data, min_repeats=4) == often
    assert shared_labels(both, min_repeats=4) == often  # of averages, what they are of
    is_early = trials["session"] <= "ses-02"
    halves = [trials[is_early], trials[~is_early]]
    in_halves = set(labels).intersection(*(shared_labels(half) for half in halves))
    assert shared_labels(*halves) == sorted(in_halves)
    with pytest.raises(InvalidQueryError, match="lack 1 image"):
        load(data, "all", labels=[*labels, min(first - second)])
    words = "5,?000 times or more by all of sub-01, sub-03"
    assert warned(words, shared_labels, data, min_repeats=5000) == []
    data.trials = trials[trials["subject"] == "sub-01"]
    # sub-03 was fetched, and saw none of these.
    assert warned("by all of sub-01, sub-03", shared_labels, data) == []
    for wrong in (None, "sub-01", pd.DataFrame({"x": [1]}), [3]):
        fails(InvalidQueryError, "^data is a", shared_labels, wrong)
    fails(InvalidQueryError, "no trials", shared_labels, [])
    fails(InvalidQueryError, "min_repeats", shared_labels, data, min_repeats=0)


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_by_session(tmp_path, monkeypatch, capfd, n_jobs):
    data = make(tmp_path, [noise(30, i) for i in range(3)])
    options = {"rois": "brain", "n_jobs": n_jobs}
    set_policy(monkeypatch, line_every=0.0)
    load(data, **options)
    assert capfd.readouterr().err == ""
    load(data, **options, verbose=1)
    first, *steps, _ = capfd.readouterr().err.splitlines()
    assert first.startswith("Reading 90 trials of sub-01 at ")
    expected = [f"{n} of 3 sessions" for n in (1, 2, 3)]
    assert [step.split(",")[0] for step in steps] == expected
    monkeypatch.setattr(sys, "stderr", Terminal())
    os.truncate(data.images[1], os.path.getsize(data.images[1]) // 2)
    fails(CorruptImageError, "verify", load, data, **options, verbose=1)
    assert sys.stderr.getvalue().endswith("\n")  # the bar is closed
