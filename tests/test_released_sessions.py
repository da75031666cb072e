"""A bucket whose held-out sessions were released, with 700 shared images of a new kind.

Everything works when they are named; what was published before stays as it was.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from model_buckets import image_key, model_key, model_of, table_key

import laion_fmri_fetchers as lf
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import (
    build_bucket,
    serve_access,
    serve_bucket,
    serve_splits,
)

RELEASED = ("ses-31", "ses-32", "ses-33", "ses-34")
NEW = [f"shared_4rep_LAION_controversial_{i}_i2.jpg" for i in range(700)]
ARCHIVE, TABLE = "stimuli/task-images_stimuli.h5", "stimuli/task-images_metadata.csv"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A bucket with thirty public sessions, and four that are held out."""
    return build_bucket(
        tmp_path_factory.mktemp("published"),
        subjects=["sub-01"],
        n_sessions=30,
        held_out=RELEASED,
        n_trials=8,
        resolution=16,
    )


@pytest.fixture(scope="module")
def old(published):
    """A label that a public session shows, too."""
    return pd.read_csv(published / table_key("ses-01"), sep="\t")["label"][0]


@pytest.fixture(scope="module")
def folder(published, old, tmp_path_factory):
    """The same bucket later: each of the four shows all new images, and an old one."""
    folder = tmp_path_factory.mktemp("released") / "bucket"
    shutil.copytree(published, folder)
    for session in RELEASED:
        labels = [*np.random.default_rng(int(session[-1])).permutation(NEW), old]
        image = nib.load(folder / image_key(session))
        betas = np.tile(image.get_fdata(dtype="f4"), 351)[..., : len(labels)]
        nib.save(nib.Nifti1Image(betas, image.affine), folder / image_key(session))
        (folder / model_key(session)).write_bytes(model_of(folder, session))
        table = {"session": session, "run": 1, "beta_index": range(len(labels))}
        table = pd.DataFrame({**table, "label": labels})
        table.to_csv(folder / table_key(session), sep="\t", index=False)
    with h5py.File(folder / ARCHIVE, "r+") as file:
        images = [*file["images"][()], *[file["images"][0]] * len(NEW)]
        del file["images"]
        kind = h5py.vlen_dtype(np.uint8)
        file.create_dataset("images", data=np.array(images, object), dtype=kind)
    with open(folder / TABLE, "a") as file:
        file.writelines(f"{label},LAION,shared,shared,4rep\n" for label in NEW)
    return folder


@pytest.fixture
def released(folder, data_dir, monkeypatch):
    labels = pd.read_csv(folder / TABLE)["image_name"]
    with (
        serve_bucket(folder, denied=r"stimuli\.h5$") as bucket,
        serve_access(bucket) as access,
        serve_splits(labels) as splits,
    ):
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", bucket.url)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", access.url)
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", splits.url)
        yield bucket


def test_trials_of_released_sessions(released, old, recwarn):
    new = {"label": [*NEW]}
    data = lf.fetch_laion_fmri(1, None, [*range(31, 35)], trial_filter=new, verbose=0)
    assert [meta["session"] for meta in data.images_meta] == [*RELEASED]
    trials = data.trials
    assert len(trials) == 4 * 700
    assert (trials["repetition"] == trials["session"].str[-1].astype(int)).all()
    for name, value in {
        "n_reps": 4,
        "dataset": "LAION",
        "unique_or_shared": "shared",
    }.items():
        assert set(trials[name]) == {value}
    assert trials[["ood_type", "participant"]].isna().all(axis=None)
    # That of an old image goes on where the public sessions ended.
    old = {"label": [old]}
    data = lf.fetch_laion_fmri(
        1, None, range(1, 35), trial_filter=old, dry_run=True, verbose=0
    )
    assert data.trials["session"].tolist()[-4:] == [*RELEASED]
    assert data.trials["repetition"].tolist() == [*range(1, len(data.trials) + 1)]
    assert len(data.trials) > 4
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("source", ["model", "images"])
def test_betas_of_released_sessions(released, folder, source):
    betas = lf.fetch_laion_betas(1, "PPA", [31, 34], source=source, verbose=0)
    values = [nib.load(folder / image_key(f"ses-{n}")).get_fdata() for n in (31, 34)]
    inside = betas.mask_img.get_fdata() > 0
    expected = np.nan_to_num(np.concatenate([x[inside].T for x in values]))
    np.testing.assert_array_equal(betas.data, expected.astype("f4"))
    offline = lf.fetch_laion_betas(1, "PPA", [31, 34], mode="offline", verbose=0)
    np.testing.assert_array_equal(offline.data, betas.data)


def test_stimuli_of_released_sessions(released):
    table = lf.fetch_laion_stimulus_metadata(labels=NEW, verbose=0).metadata
    assert set(table["n_reps"]) == {4}
    lf.request_stimulus_access(
        name="Ada Example",
        email="ada@university.example",
        institution="University of Examples",
        research_purpose="Encoding models of natural images",
        accept_terms_version="1.0",
        acknowledge_privacy=True,
        verbose=0,
    )
    how = {"rois": None, "sessions": 31, "dry_run": True, "verbose": 0}
    trials = lf.fetch_laion_fmri(1, **how).trials
    stimuli = lf.fetch_laion_stimuli(labels=trials, verbose=0)
    assert {*NEW} <= {*stimuli.metadata.index}
    assert len(lf.load_stimuli(stimuli, size=8)) == 701


def test_splits_stay_as_published(released, published, monkeypatch):
    labels = pd.read_csv(published / TABLE)["image_name"]
    after = lf.fetch_laion_splits(verbose=0)
    with serve_splits(labels) as splits, serve_bucket(published) as bucket:
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", splits.url)
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", bucket.url)
        before = lf.fetch_laion_splits(mode="overwrite", verbose=0)
    assert after.splits == before.splits
    for split in after.splits.values():
        assert {*split.train, *split.test}.isdisjoint(NEW)


def test_doctor_says_so(released):
    notes = {p["point"]: p for p in lf.doctor() if p["state"] == "note"}
    advice = notes["held-out session"]["advice"]
    assert "It was released: time for a new version of this package" in advice
    assert "sessions=31" in advice
    assert "shared 4 LAION" in notes["kinds of images"]["found"]


def test_all_sessions_stay_those_published_before(released, capsys):
    data = lf.fetch_laion_fmri(1, None, "all", dry_run=True, verbose=0)
    assert len(data.images) == 30
    assert main(["fetch", "--rois", "none", "--sessions", "31-34", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_one_constant_makes_them_part_of_all(released):
    code = (
        "from laion_fmri_fetchers.layout import trees\n"
        "trees.HELD_OUT = frozenset(['ses-34'])\n"
        "from laion_fmri_fetchers import *\n"
        "data = fetch_laion_fmri(1, None, 'all', dry_run=True, verbose=0)\n"
        "print(len(data.images), data.subjects_meta[0]['sessions'][-1])\n"
        "describe()"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.startswith("33 ses-33\n")
    (row,) = [line for line in said.splitlines() if line.startswith("sub-01 ")]
    assert row.split()[1:3] == ["33", "1"]
