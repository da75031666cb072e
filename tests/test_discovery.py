"""Discovery of subjects and ROIs, and the catalog behind it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from urllib.parse import parse_qs

import pytest
from policies import set_policy

from laion_fmri_fetchers import (
    describe,
    fetch_laion_fmri,
    get_rois,
    get_subjects,
    inspect_bucket,
)
from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.layout.names import ROI_CATEGORIES
from laion_fmri_fetchers.remote import retry


def test_subjects(server, data_dir):
    assert get_subjects() == ["sub-01", "sub-03"]
    assert not list(data_dir.rglob("*.nii.gz"))


def test_rois(server, data_dir):
    assert get_rois("sub-01", "place") == ["MPA", "OPA", "PPA"]
    assert get_rois(1, "place") == get_rois("01", "place")
    published = {name for names in ROI_CATEGORIES.values() for name in names}
    assert published - set(get_rois("sub-01")) == {"AFP1", "AFP2", "SPL", "EVC"}
    assert set(get_rois("sub-01")) < published
    union = set(get_rois("sub-01")) | set(get_rois("sub-03"))
    assert get_rois() == sorted(union)
    assert set(get_rois("sub-01")) < union
    assert [key for _, key, _ in server.requests if key] == []


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
    with pytest.raises(InvalidQueryError, match=words):
        get_rois(**query)


def test_without_the_bucket(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        subjects, rois = get_subjects(), get_rois(1)
    with pytest.warns(UserWarning, match="saved earlier") as caught:
        assert get_subjects() == subjects
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(UserWarning, match="saved earlier"):
        assert get_rois(1) == rois
    with pytest.raises(BucketError, match="no listing was saved"):
        inspect_bucket("derivatives/anatomical/sub-01")


def test_subjects_stay_known_when_the_bucket_is_gone(
    bucket_folder, data_dir, monkeypatch
):
    """What a fetch lists of the top level says nothing about the subjects."""
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        fetch_laion_fmri("all", sessions=1, rois=None, verbose=0)
    shutil.rmtree(data_dir / "derivatives/glmsingle-tedana/sub-03")
    with pytest.warns(UserWarning, match="saved earlier"):
        assert get_subjects() == ["sub-01", "sub-03"]
    with pytest.raises(BucketError, match="Missing.*sub-03"):
        fetch_laion_fmri("all", sessions=1, rois=None, verbose=0)


@pytest.mark.parametrize("call", [describe, get_rois, get_subjects])
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
    assert len({parse_qs(query)["delimiter"][0] for query in asked}) == 1


def test_without_the_bucket_and_its_listings(cached, capsys):
    shutil.rmtree(cached / ".laion_fmri" / "listings")
    with pytest.warns(UserWarning, match="Showing what is on disk"):
        assert get_subjects() == ["sub-01", "sub-03"]
    with pytest.warns(UserWarning, match="Showing what is on disk"):
        assert get_rois(1, "place") == ["MPA", "OPA", "PPA"]
    with pytest.warns(UserWarning, match="Showing what is on disk"):
        describe()
    assert "sub-03" in capsys.readouterr().out


def test_listings_of_another_bucket_do_not_answer_for_this(
    server, data_dir, monkeypatch
):
    wanted = [("derivatives/", "/")]
    before = read_catalog(wanted, str(data_dir))
    assert before.folders
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/other")
    found = read_catalog(wanted, str(data_dir))
    assert (found.folders, found.unlisted) == (frozenset(), ["derivatives/"])
    assert read_catalog(wanted, str(data_dir), mode="offline").folders == before.folders
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    assert read_catalog(wanted, str(data_dir), mode="offline").folders == before.folders


def test_a_broken_listing_is_made_anew(server, data_dir):
    wanted = [("derivatives/rois/sub-01/", "")]
    before = read_catalog(wanted, str(data_dir))
    (file,) = (data_dir / ".laion_fmri/listings").glob("derivatives%2Frois*")
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "objects": [[None]]}))
    assert read_catalog(wanted, str(data_dir), mode="offline").unlisted == [
        "derivatives/rois/sub-01/"
    ]
    assert read_catalog(wanted, str(data_dir)).objects == before.objects
    assert read_catalog(wanted, str(data_dir), mode="offline").objects == before.objects


def test_a_bucket_that_takes_long_is_told_of(server, data_dir, capsys, monkeypatch):
    set_policy(monkeypatch, quiet=0.0)
    read_catalog([("", "/")], str(data_dir))
    assert (
        capsys.readouterr().err == f"Waiting for {server.url} to list its files ...\n"
    )
    read_catalog([("", "/")], str(data_dir), verbose=0)
    assert capsys.readouterr().err == ""


def test_describe(server, data_dir, capsys):
    describe()
    text = capsys.readouterr().out
    for word in ("sub-01", "sub-03", "place", "FFA1", str(data_dir)):
        assert word in text
    (row,) = [line for line in text.splitlines() if line.startswith("sub-01 ")]
    assert row.split()[1:3] == ["4", "2"]


def test_inspect_bucket(server, data_dir, capsys):
    inspect_bucket()
    text = capsys.readouterr().out
    assert "derivatives/" in text
    assert "participants.tsv" in text
    inspect_bucket("/derivatives/rois/sub-01")
    assert "face/" in capsys.readouterr().out
    with pytest.raises(InvalidQueryError, match="nowhere"):
        inspect_bucket("nowhere")


def test_records_of_what_is_only_on_disk(tmp_path):
    folder = tmp_path / "derivatives/rois/sub-01/face"
    folder.mkdir(parents=True)
    (folder / "sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz").write_bytes(b"1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = [("derivatives/rois/sub-01/", "")]
        found = read_catalog(wanted, str(tmp_path), mode="offline")
    (record,) = found.records(found.on_disk, str(tmp_path))
    assert (record["roi"], record["size"], record["etag"]) == ("FFA1", None, None)
    assert record["absolute_path"].startswith(str(folder))


def test_offline_a_level_is_shown_as_online(cached, server, monkeypatch, capsys):
    inspect_bucket("derivatives/rois/")
    online = capsys.readouterr().out
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    inspect_bucket("derivatives/rois/")
    assert capsys.readouterr().out == online
