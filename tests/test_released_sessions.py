"""A bucket whose held-out sessions were released, with images of a new kind."""

from __future__ import annotations

import pytest

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri
from laion_fmri_fetchers.demo import build_bucket, serve_bucket

TABLE = (
    "derivatives/glmsingle-tedana/sub-01/{0}/func/"
    "sub-01_{0}_task-images_desc-SingletrialBetas_trials.tsv"
)
NEW = "shared_4rep_LAION_controversial_17_i2.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty public sessions; 31 and 32 show a new image, 31 one of session 1 too."""
    folder = build_bucket(
        tmp_path_factory.mktemp("released"),
        subjects=["sub-01"],
        n_sessions=30,
        held_out=["ses-31", "ses-32"],
        n_trials=8,
    )
    tables = {n: folder / TABLE.format(f"ses-{n:02d}") for n in (1, 31, 32)}
    old = tables[1].read_text().splitlines()[1].split("\t")[3]
    for number, labels in ((31, [NEW, old]), (32, [NEW])):
        header, *rows = tables[number].read_text().splitlines()
        for i, label in enumerate(labels):
            rows[i] = "\t".join([*rows[i].split("\t")[:3], label])
        tables[number].write_text("\n".join([header, *rows, ""]))
    return folder


@pytest.fixture
def released(folder, monkeypatch):
    with serve_bucket(folder) as running:
        running.denied = None
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", running.url)
        yield running


def test_released_sessions_are_fetched_by_name(released, data_dir, recwarn):
    data = fetch_laion_fmri(1, None, [31, 32], trial_filter={"label": NEW}, verbose=0)
    assert [meta["session"] for meta in data.images_meta] == ["ses-31", "ses-32"]
    trials = data.trials
    assert trials["repetition"].tolist() == [1, 2]
    assert set(trials["n_reps"]) == {4}
    assert set(trials["dataset"]) == {"LAION"}
    assert set(trials["unique_or_shared"]) == {"shared"}
    assert trials["ood_type"].isna().all()
    assert [str(w.message) for w in recwarn] == []


def test_repetition_goes_on_in_released_sessions(released, data_dir):
    last = fetch_laion_fmri(1, None, 31, verbose=0).trials.iloc[1]
    all_of_it = {"label": last["label"]}
    data = fetch_laion_fmri(
        1, None, [*range(1, 32)], trial_filter=all_of_it, dry_run=True, verbose=0
    )
    assert data.trials["repetition"].tolist() == [*range(1, len(data.trials) + 1)]
    assert last["repetition"] == len(data.trials) > 1


def test_betas_of_released_sessions(released, data_dir):
    betas = fetch_laion_betas(1, "PPA", [31, 32], verbose=0)
    assert betas.data.shape == (len(betas.trials), 12)
    assert set(betas.trials["session"]) == {"ses-31", "ses-32"}
    offline = fetch_laion_betas(1, "PPA", [31, 32], mode="offline", verbose=0)
    assert (offline.data == betas.data).all()


def test_all_sessions_stay_those_published_before(released, data_dir):
    data = fetch_laion_fmri(1, None, "all", dry_run=True, verbose=0)
    assert len(data.images) == 30
