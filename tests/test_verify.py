"""The cache against what was listed and fetched, and its repair."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gate_fixtures
import joblib
import pytest
import requests
from conftest import unreadable, unwritable

import laion_fmri_fetchers as lf
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.cli.main import main

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

ARCHIVE = "stimuli/task-images_stimuli.h5"


def damage(folder):
    """Damage a file in each way; return the statuses to be reported."""
    altered, cut, lost = sorted(folder.rglob("*Betas_statmap.nii.gz"))[:3]
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:1000])
    lost = min(lost.parent.glob("*_trials.tsv"))
    lost.unlink()
    mine = folder / "derivatives" / "mine.txt"
    mine.write_text("not of the bucket")
    files = {altered: "altered", cut: "truncated", lost: "missing", mine: "unknown"}
    return {path.relative_to(folder).as_posix(): files[path] for path in files}


def statuses(report=None, **how):
    """Return the files of a report that are not in order, and their statuses."""
    report = lf.verify_cache(verbose=0, **how) if report is None else report
    bad = report[report["status"] != "ok"]
    return dict(zip(bad["id"], bad["status"], strict=True))


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_a_good_cache(cached, no_network, backend):
    with joblib.parallel_config(backend, n_jobs=2):
        report = lf.verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}
    files = [p for p in cached.rglob("*") if p.is_file() and ".laion" not in str(p)]
    assert list(report["id"]) == sorted(p.relative_to(cached).as_posix() for p in files)
    assert report["size"].sum() == sum(path.stat().st_size for path in files)


def test_damage_is_found_and_repaired(cached, server, bucket_folder, capsys):
    assert main(["verify"]) == 0
    expected = damage(cached)
    assert main(["verify"]) == 1
    out, err = capsys.readouterr()
    for path, status in expected.items():
        assert (f"{status}\t{path}\n" in out) == (status != "unknown")
        assert status == "unknown" or f"{status:<10} {path}" in err
    assert statuses() == expected
    assert server.requests == []
    report = lf.verify_cache(repair=True, verbose=0)
    repaired = {path for path in expected if expected[path] != "unknown"}
    assert {*report.loc[report["status"] == "repaired", "id"]} == repaired
    assert {key for _, key, _ in server.requests} == repaired
    for path in repaired:
        assert (cached / path).read_bytes() == (bucket_folder / path).read_bytes()
    assert set(statuses().values()) == {"unknown"}
    damage(cached)
    assert main(["verify", "--repair"]) == 0
    assert main(["verify", "-q"]) == 0


def test_what_cannot_be_repaired_stays(cached, server):
    altered = next(
        path for path, status in damage(cached).items() if status == "altered"
    )
    before = (cached / altered).read_bytes()
    server.faults[altered] = (404, {}, b"")
    with pytest.raises(errors.DownloadError, match="could not be repaired") as error:
        lf.verify_cache(repair=True, verbose=0)
    assert [failure["id"] for failure in error.value.failed] == [altered]
    assert (cached / altered).read_bytes() == before
    assert statuses() == {altered: "altered", "derivatives/mine.txt": "unknown"}


def test_a_file_that_cannot_be_read(cached, capsys):
    file = min(cached.rglob("*_mask.nii.gz"))
    with unreadable(file):
        report = lf.verify_cache(verbose=2)
    path = file.relative_to(cached).as_posix()
    assert statuses(report) == {path: "unreadable"}
    assert "Permission denied" in report.set_index("id").loc[path, "reason"]
    out, err = capsys.readouterr()
    assert out == ""
    assert all(name in err for name in report["id"])
    assert f"unreadable {path}" in err


def test_what_is_gated_is_not_repaired_from_the_bucket(cached, server):
    (cached / "stimuli").mkdir(exist_ok=True)
    (cached / ARCHIVE).write_bytes(b"cut short")
    assert statuses(online=True) == {ARCHIVE: "truncated"}
    server.requests.clear()
    with pytest.raises(lf.LaionFmriError, match=r"gated.*fetch_laion_stimuli\(mode="):
        lf.verify_cache(repair=True, verbose=0)
    assert server.requests == []


def test_a_repair_asks_for_the_licence_and_writes_nothing_without(
    cached, server, monkeypatch
):
    damage(cached)
    with (
        unwritable(cached, *cached.rglob("*")),
        pytest.warns(UserWarning, match="cannot be written"),
        pytest.raises(errors.InvalidQueryError, match="nothing was repaired"),
    ):
        lf.verify_cache(repair=True, verbose=0)
    (cached / ".laion_fmri" / "license_accepted").unlink()
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    with pytest.raises(errors.LicenseNotAcceptedError):
        lf.verify_cache(repair=True, verbose=0)
    assert {key for _, key, _ in server.requests} <= {""}


def test_a_file_that_changed_in_the_bucket_is_outdated_and_not_damaged(cached):
    file = min(cached.rglob("sub-01_ses-01*_trials.tsv"))
    file.write_text("an earlier version")
    os.utime(file, (1.7e9, 1.7e9))
    assert statuses() == {file.relative_to(cached).as_posix(): "outdated"}
    assert main(["verify", "-q"]) == 0


def test_an_object_that_changed_since_it_was_listed(betas_server, data_dir):
    how = {"sessions": 1, "rois": None, "verbose": 0}
    key = lf.fetch_laion_fmri(**how, dry_run=True).images_meta[0]["key"]
    new = betas_server.objects[key].value[:-1]
    once = [lambda: betas_server.put(key, new)]
    betas_server.faults[key] = lambda environ: once.pop()() if once else None
    with pytest.warns(UserWarning, match="ses-01"):
        data = lf.fetch_laion_fmri(**how)
    assert Path(data.images[0]).read_bytes() == new
    assert data.images_meta[0]["size"] == len(new)
    assert statuses() == {}


def test_a_listing_of_a_file_outside_is_refused(cached, server, tmp_path):
    """In a shared directory, others can write what is kept."""
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    top = cached / ".laion_fmri/listings/top.level.json"
    listing = json.loads(top.read_text())
    listing["objects"].append(["../victim.txt", 5, "0" * 32, None])
    top.write_text(json.dumps(listing))
    with pytest.raises(errors.UnsafeKeyError, match="victim"):
        lf.verify_cache(repair=True, verbose=0)
    assert victim.read_text() == "mine"


def test_a_repair_beside_voxels_that_cannot_be_removed(cached, server):
    lf.fetch_laion_betas(1, "FFA1", sessions=1, verbose=0)
    store = cached / ".laion_fmri/voxels/sub-01/ses-01"
    (part,) = store.rglob("*.npy")
    part.write_bytes(part.read_bytes()[:-4])
    damaged = damage(cached)
    with (
        unwritable(part.parent),
        pytest.warns(UserWarning, match=f"{part.name} cannot be rep"),
    ):
        found = statuses(lf.verify_cache(repair=True, verbose=0))
    assert {found.pop(path) for path in damaged} == {"repaired", "unknown"}
    assert found == {part.relative_to(cached).as_posix(): "altered"}


# --- Status ---------------------------------------------------------------------------


def test_status(cached, no_network, capsys, monkeypatch):
    (cached / "notes.txt").write_text("not of the dataset")
    folder = cached / ".laion_fmri" / "partial"
    folder.mkdir(exist_ok=True)
    (folder / "a.b.part").write_bytes(b"x" * 8000)
    report = lf.verify_cache(verbose=0)
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_verysecretvalue")
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    for words in (
        *(str(cached), "CC0 terms        accepted", "LAION_FMRI_REQUEST_ID"),
        *(f"{len(report)} files", "1 download, 8 kB, in .laion_fmri/partial"),
    ):
        assert words in said
    assert "verysecret" not in said
    (row,) = [line for line in said.splitlines() if line.startswith("sub-01")]
    assert row.split()[1] == "4"


# --- Online ---------------------------------------------------------------------------


def test_a_directory_filled_by_others_is_verified_online(cached, server, capsys):
    lf.verify_cache()
    assert "--online" not in capsys.readouterr().err
    shutil.rmtree(cached / ".laion_fmri")
    assert set(lf.verify_cache()["status"]) == {"unknown"}
    assert "verify --online" in capsys.readouterr().err
    assert server.requests == []
    assert statuses(online=True) == {}
    assert {key for _, key, _ in server.requests} == {""}
    expected = damage(cached)
    assert statuses(online=True) == expected


def test_without_the_bucket_or_the_directory_is_an_error(cached, tmp_path, capsys):
    with pytest.raises(errors.BucketError, match="cannot be listed"):
        lf.verify_cache(online=True, verbose=0)
    with pytest.raises(errors.NotCachedError, match="nowhere does not exist"):
        lf.verify_cache(data_dir=tmp_path / "nowhere")
    assert main(["verify", "--data-dir", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_stimuli_are_compared_with_what_the_service_says(server, access, data_dir):
    lf.login(access.grant(), verbose=0)
    lf.fetch_laion_stimuli(max_images=2, extract=True, verbose=0)
    report = lf.verify_cache(verbose=0)
    assert report["id"].str.startswith("stimuli/images/").sum() == 2
    assert statuses(report) == {}
    # The table is public: what the service says of it is of no matter.
    manifest = requests.get(f"{access.url}/api/v1/manifest", timeout=10).json()
    for file in manifest["files"]:
        if file["name"].endswith(".csv"):
            file["sha256"] = "0" * 64
    access.answers["/api/v1/manifest"] = (200, {}, manifest)
    assert statuses(online=True) == {}
    content = bytearray((data_dir / ARCHIVE).read_bytes())
    content[len(content) // 2] ^= 1
    (data_dir / ARCHIVE).write_bytes(content)
    report = lf.verify_cache(verbose=0).set_index("id")
    assert report.loc[ARCHIVE, "status"] == "altered"
    assert "SHA-256" in report.loc[ARCHIVE, "reason"]
    shutil.rmtree(data_dir / ".laion_fmri")
    assert statuses()[ARCHIVE] == "unknown"
    assert statuses(online=True) == {ARCHIVE: "altered"}
