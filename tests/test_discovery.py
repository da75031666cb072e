"""Discovery of subjects and ROIs, with the bucket and without."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from policies import set_policy

import laion_fmri_fetchers as lf
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.layout.names import ROI_CATEGORIES
from laion_fmri_fetchers.remote import retry


def test_subjects_and_rois(server, data_dir):
    assert lf.get_subjects() == ["sub-01", "sub-03"]
    assert lf.get_rois("sub-01", "place") == ["MPA", "OPA", "PPA"]
    assert lf.get_rois(1, "place") == lf.get_rois("01", "place")
    published = {name for names in ROI_CATEGORIES.values() for name in names}
    first, third = set(lf.get_rois("sub-01")), set(lf.get_rois("sub-03"))
    assert published - first == {"AFP1", "AFP2", "SPL", "EVC"}
    assert first < published
    assert lf.get_rois() == lf.get_rois([1, 3]) == sorted(first | third)
    assert {key for _, key, _ in server.requests} == {""}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"subjects": "sub-09"}, "sub-09.*sub-01"),
        ({"subjects": "bob"}, "bob.*sub-01"),
        ({"category": "faces"}, "faces.*did you mean 'face'"),
        ({"subjects": 1, "category": "plaice"}, "did you mean 'place'"),
    ],
)
def test_mistyped(server, data_dir, query, words):
    with pytest.raises(errors.InvalidQueryError, match=words):
        lf.get_rois(**query)


def test_describe_and_inspect(cached, server, monkeypatch, capsys):
    lf.describe()
    text = capsys.readouterr().out
    for word in ("sub-01", "sub-03", "place", "FFA1", str(cached)):
        assert word in text
    (row,) = [line for line in text.splitlines() if line.startswith("sub-01 ")]
    assert row.split()[1:3] == ["4", "2"]
    lf.inspect_bucket()
    text = capsys.readouterr().out
    assert "derivatives/" in text
    assert "participants.tsv" in text
    with pytest.raises(errors.InvalidQueryError, match="nowhere"):
        lf.inspect_bucket("nowhere")
    lf.inspect_bucket("/derivatives/rois/sub-01")
    online = capsys.readouterr().out
    assert "face/" in online
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    lf.inspect_bucket("derivatives/rois/sub-01/")
    assert capsys.readouterr().out == online


# --- Without the bucket ---------------------------------------------------------------


def test_a_listing_saved_earlier_is_shown_with_a_warning(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        # What a fetch lists of the top level says nothing about the subjects.
        lf.fetch_laion_fmri("all", sessions=1, rois=None, verbose=0)
        rois = lf.get_rois(1)
    shutil.rmtree(data_dir / "derivatives/glmsingle-tedana/sub-03")
    with pytest.warns(UserWarning, match="saved earlier") as caught:
        assert lf.get_subjects() == ["sub-01", "sub-03"]
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(UserWarning, match="saved earlier"):
        assert lf.get_rois(1) == rois
    with pytest.raises(errors.BucketError, match="no listing was saved"):
        lf.inspect_bucket("derivatives/localizers/sub-01")
    with pytest.raises(errors.BucketError, match="Missing.*sub-03"):
        lf.fetch_laion_fmri("all", sessions=1, rois=None, verbose=0)


@pytest.mark.parametrize("call", [lf.describe, lf.get_rois, lf.get_subjects])
def test_a_bucket_that_does_not_answer_is_waited_for_once(
    server, data_dir, monkeypatch, call, capsys
):
    set_policy(monkeypatch, first_wait=0.001)
    data_dir.mkdir()
    whole = call(), capsys.readouterr().out
    server.requests.clear()
    server.faults[""] = (503, {}, b"")
    with pytest.warns(UserWarning, match="Showing a listing saved") as warned:
        assert (call(), capsys.readouterr().out) == whole
    assert len(warned) == 1
    asked = Counter(query for _, _, query in server.requests)
    assert max(asked.values()) == retry.TRIES


def test_without_any_listing_the_disk_is_shown(cached, capsys):
    shutil.rmtree(cached / ".laion_fmri" / "listings")
    for call, found in (
        (lf.get_subjects, ["sub-01", "sub-03"]),
        (lambda: lf.get_rois(1, "place"), ["MPA", "OPA", "PPA"]),
        (lf.describe, None),
    ):
        with pytest.warns(UserWarning, match="Showing what is on disk"):
            assert call() == found
    assert "sub-03" in capsys.readouterr().out


def test_listings_of_another_bucket_do_not_answer_for_this(
    server, data_dir, monkeypatch
):
    subjects = lf.get_subjects()
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/other")
    with pytest.raises(errors.BucketError, match="no listing was saved"):
        lf.get_subjects()
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    assert lf.get_subjects() == subjects


def test_a_broken_listing_is_made_anew(server, data_dir, monkeypatch):
    rois = lf.get_rois(1)
    for file in (data_dir / ".laion_fmri/listings").iterdir():
        file.write_text(file.read_text().replace('"objects": [', '"objects": [[null],'))
    with monkeypatch.context() as offline:
        offline.setenv("LAION_FMRI_OFFLINE", "1")
        with pytest.raises(lf.LaionFmriError):
            lf.get_rois(1)
    assert lf.get_rois(1) == rois
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    assert lf.get_rois(1) == rois


def test_a_bucket_that_takes_long_is_told_of(server, data_dir, capsys, monkeypatch):
    set_policy(monkeypatch, quiet=0.0)
    lf.get_subjects()
    said = f"Waiting for {server.url} to list its files ...\n"
    assert said in capsys.readouterr().err
