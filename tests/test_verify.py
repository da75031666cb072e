"""The cache against what was listed and fetched, and its repair."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gate_fixtures
import joblib
import pytest
from conftest import unreadable, unwritable

from laion_fmri_fetchers import (
    LaionFmriError,
    fetch_laion_betas,
    fetch_laion_captions,
    fetch_laion_fmri,
    fetch_laion_stimuli,
    login,
    verify_cache,
)
from laion_fmri_fetchers.cache import listings
from laion_fmri_fetchers.cache.state import license_marker
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import (
    BucketError,
    DownloadError,
    InvalidQueryError,
    LicenseNotAcceptedError,
    NotCachedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.layout.trees import ARCHIVE

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


def damage(folder):
    """Damage a file in each way; return the statuses to be reported."""
    betas = sorted(folder.rglob("*Betas_statmap.nii.gz"))
    content = bytearray(betas[0].read_bytes())
    content[len(content) // 2] ^= 1
    betas[0].write_bytes(content)
    betas[1].write_bytes(betas[1].read_bytes()[:1000])
    table = min(betas[2].parent.glob("*_trials.tsv"))
    table.unlink()
    (folder / "derivatives" / "mine.txt").write_text("not of the bucket")
    statuses = dict(
        zip(
            [path.relative_to(folder).as_posix() for path in (*betas[:2], table)],
            ["altered", "truncated", "missing"],
            strict=False,
        )
    )
    return {**statuses, "derivatives/mine.txt": "unknown"}


def statuses(report):
    bad = report[report["status"] != "ok"]
    return dict(zip(bad["id"], bad["status"], strict=True))


def test_a_good_cache(cached, no_network):
    report = verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}
    files = [p for p in cached.rglob("*") if p.is_file() and ".laion" not in str(p)]
    assert len(report) == len(files)
    assert report["size"].sum() == sum(path.stat().st_size for path in files)


def test_each_kept_listing_is_read_once(cached, monkeypatch):
    read = []

    def read_file(file):
        read.append(file)
        return Path(file).read_bytes()

    monkeypatch.setattr(listings, "read_file", read_file)
    verify_cache(verbose=0)
    assert sorted(read) == sorted((cached / ".laion_fmri/listings").iterdir())


def test_damage_is_found_and_repaired(cached, server, bucket_folder, capsys):
    expected = damage(cached)
    report = verify_cache(verbose=1)
    assert statuses(report) == expected
    said = capsys.readouterr().err
    for one, status in expected.items():
        assert status == "unknown" or (one in said and status in said)
    assert server.requests == []
    report = verify_cache(repair=True, verbose=0)
    repaired = {one for one, status in expected.items() if status != "unknown"}
    assert set(report.loc[report["status"] == "repaired", "id"]) == repaired
    assert {key for _, key, _ in server.requests} == repaired
    for one in repaired:
        assert (cached / one).read_bytes() == (bucket_folder / one).read_bytes()
    assert set(verify_cache(verbose=0)["status"]) == {"ok", "unknown"}


def test_what_cannot_be_repaired_stays(cached, server):
    expected = damage(cached)
    altered = next(one for one, status in expected.items() if status == "altered")
    before = (cached / altered).read_bytes()
    server.faults[altered] = (404, {}, b"")
    with pytest.raises(DownloadError, match="could not be repaired") as error:
        verify_cache(repair=True, verbose=0)
    assert [failure["id"] for failure in error.value.failed] == [altered]
    assert (cached / altered).read_bytes() == before
    assert statuses(verify_cache(verbose=0))[altered] == "altered"


def test_a_file_that_cannot_be_read(cached, capsys):
    file = min(cached.rglob("*_mask.nii.gz"))
    with unreadable(file):
        report = verify_cache(verbose=2).set_index("id")
    (one,) = statuses(report.reset_index())
    assert cached / one == file
    assert report.loc[one, "status"] == "unreadable"
    assert "Permission denied" in report.loc[one, "reason"]
    out, err = capsys.readouterr()
    assert out == ""
    assert all(name in err for name in report.index)
    assert f"unreadable {one}" in err


def test_what_is_gated_is_not_repaired_from_the_bucket(cached, server):
    fetch_laion_captions(verbose=0)
    assert statuses(verify_cache(verbose=0)) == {}
    (cached / ARCHIVE).write_bytes(b"cut short")
    assert statuses(verify_cache(verbose=0)) == {ARCHIVE: "truncated"}
    server.requests.clear()
    with pytest.raises(LaionFmriError, match=r"gated.*fetch_laion_stimuli\(mode="):
        verify_cache(repair=True, verbose=0)
    assert server.requests == []


def test_a_repair_asks_for_the_licence(cached, server, monkeypatch):
    damage(cached)
    license_marker(str(cached)).unlink()
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    with pytest.raises(LicenseNotAcceptedError):
        verify_cache(repair=True, verbose=0)
    assert server.requests == []


def test_a_file_that_changed_in_the_bucket_is_outdated_and_not_damaged(cached):
    file = min(cached.rglob("sub-01_ses-01*_trials.tsv"))
    file.write_text("an earlier version")
    os.utime(file, (1.7e9, 1.7e9))
    one = file.relative_to(cached).as_posix()
    assert statuses(verify_cache(verbose=0)) == {one: "outdated"}
    assert main(["verify", "-q"]) == 0


def test_an_object_that_changed_since_it_was_listed(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        plan = fetch_laion_fmri(sessions=1, rois=None, verbose=0, dry_run=True)
        key = plan.images_meta[0]["key"]
        new = (bucket_folder / key).read_bytes()[:-1]
        once = iter([lambda: server.put(key, new)])

        def change(environ):
            for put in once:
                put()

        server.faults[key] = change
        with pytest.warns(UserWarning, match="ses-01"):
            data = fetch_laion_fmri(sessions=1, rois=None, verbose=0)
    assert Path(data.images[0]).read_bytes() == new
    assert data.images_meta[0]["size"] == len(new)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_command(cached, server, capsys):
    assert main(["verify"]) == 0
    damage(cached)
    assert main(["verify"]) == 1
    assert "truncated" in capsys.readouterr().out
    assert main(["verify", "--repair"]) == 0
    assert main(["verify", "-q"]) == 0


def test_status(cached, no_network, capsys, monkeypatch):
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert str(cached) in said
    assert "accepted" in said
    (row,) = [line for line in said.splitlines() if line.startswith("sub-01")]
    assert row.split()[1] == "4"
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_verysecretvalue")
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "verysecret" not in said
    assert "LAION_FMRI_REQUEST_ID" in said


def test_status_says_how_much_is_unfinished(cached, capsys):
    folder = cached / ".laion_fmri" / "partial"
    folder.mkdir(exist_ok=True)
    (folder / "a.b.part").write_bytes(b"x" * 8000)
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "1 download, 8 kB, in .laion_fmri/partial" in said


def test_status_and_verify_count_the_same_files(cached, capsys):
    (cached / "notes.txt").write_text("not of the dataset")
    report = verify_cache(verbose=0)
    assert main(["status"]) == 0
    assert f"{len(report)} files" in capsys.readouterr().out
    assert "participants.tsv" in set(report["id"])


# ---------------------------------------------------------------- online


def test_a_directory_filled_by_others_is_verified_online(cached, server):
    shutil.rmtree(cached / ".laion_fmri")
    assert set(verify_cache(verbose=0)["status"]) == {"unknown"}
    assert server.requests == []
    assert set(verify_cache(online=True, verbose=0)["status"]) == {"ok"}
    assert {key for _, key, _ in server.requests} == {""}
    expected = damage(cached)
    assert statuses(verify_cache(online=True, verbose=0)) == expected


def test_files_of_others_without_a_listing_say_what_to_do(cached, capsys):
    verify_cache()
    assert "--online" not in capsys.readouterr().err
    shutil.rmtree(cached / ".laion_fmri")
    verify_cache()
    assert "verify --online" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_workers_of_any_kind(cached, backend):
    with joblib.parallel_config(backend, n_jobs=2):
        assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_online_without_the_bucket_is_an_error(cached):
    with pytest.raises(BucketError, match="cannot be listed"):
        verify_cache(online=True, verbose=0)


def test_extracted_images_are_known(server, access, data_dir):
    login(access.grant(), verbose=0)
    fetch_laion_stimuli(max_images=2, extract=True, verbose=0)
    report = verify_cache(verbose=0)
    assert report["id"].str.startswith("stimuli/images/").sum() == 2
    assert set(report["status"]) == {"ok"}


def test_the_public_table_is_not_judged_by_the_service(server, access, data_dir):
    login(access.grant(), verbose=0)
    fetch_laion_stimuli(verbose=0)
    manifest = access._manifest()
    for file in manifest["files"]:
        if file["name"].endswith(".csv"):
            file["sha256"] = "0" * 64
    access.answers["/api/v1/manifest"] = (200, {}, manifest)
    assert set(verify_cache(online=True, verbose=0)["status"]) == {"ok"}


def test_the_archive_is_compared_with_its_sha256(server, access, data_dir):
    login(access.grant(), verbose=0)
    fetch_laion_stimuli(verbose=0)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    archive = data_dir / ARCHIVE
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    report = verify_cache(verbose=0).set_index("id")
    assert report.loc[ARCHIVE, "status"] == "altered"
    assert "SHA-256" in report.loc[ARCHIVE, "reason"]
    shutil.rmtree(data_dir / ".laion_fmri")
    assert statuses(verify_cache(verbose=0))[ARCHIVE] == "unknown"
    assert statuses(verify_cache(online=True, verbose=0)) == {ARCHIVE: "altered"}


def test_a_directory_that_does_not_exist(tmp_path, capsys):
    with pytest.raises(NotCachedError, match="nowhere does not exist"):
        verify_cache(data_dir=tmp_path / "nowhere")
    assert main(["verify", "--data-dir", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_listing_of_a_file_outside_is_refused(cached, server, tmp_path):
    """In a shared directory, others can write what is kept."""
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    top = cached / ".laion_fmri/listings/top.level.json"
    listing = json.loads(top.read_text())
    listing["objects"].append(["../victim.txt", 5, "0" * 32, None])
    top.write_text(json.dumps(listing))
    with pytest.raises(UnsafeKeyError, match="victim"):
        verify_cache(repair=True, verbose=0)
    assert victim.read_text() == "mine"


def test_a_repair_beside_voxels_that_cannot_be_removed(cached, server):
    fetch_laion_betas(1, "FFA1", sessions=1, verbose=0)
    store = cached / ".laion_fmri/voxels/sub-01/ses-01"
    (part,) = store.rglob("*.npy")
    part.write_bytes(part.read_bytes()[:-4])
    damaged = sorted(damage(cached))
    with (
        unwritable(part.parent),
        pytest.warns(UserWarning, match=f"{part.name} cannot be rep"),
    ):
        report = verify_cache(repair=True, verbose=0)
    states = report.set_index("id")["status"]
    assert {states[path] for path in damaged} == {"repaired", "unknown"}


def test_a_repair_of_a_directory_that_cannot_be_written(cached):
    damage(cached)
    with (
        unwritable(cached, *cached.rglob("*")),
        pytest.warns(UserWarning, match="cannot be written"),
        pytest.raises(InvalidQueryError, match="nothing was repaired"),
    ):
        verify_cache(repair=True, verbose=0)
