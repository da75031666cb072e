"""The cache against what was listed and fetched, and its repair."""

from __future__ import annotations

import json
import shutil
from multiprocessing import get_context
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
from laion_fmri_fetchers.cache import notes as notes_of_files
from laion_fmri_fetchers.cache.notes import note_fetched, read_notes
from laion_fmri_fetchers.cache.state import license_marker
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import (
    BucketError,
    DownloadError,
    InvalidQueryError,
    LicenseNotAcceptedError,
    NotCachedError,
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
    betas[2].unlink()
    (folder / "derivatives" / "mine.txt").write_text("not of the bucket")
    statuses = dict(
        zip(
            [path.relative_to(folder).as_posix() for path in betas],
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


def test_by_listings_alone(cached):
    shutil.rmtree(cached / ".laion_fmri" / "fetched")
    expected = damage(cached)
    missing = [one for one, status in expected.items() if status == "missing"]
    for one in missing:
        del expected[one]
    assert statuses(verify_cache(verbose=0)) == expected


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
    one = file.relative_to(cached).as_posix()
    listings = cached / ".laion_fmri" / "listings"
    text = {path: path.read_text() for path in listings.iterdir()}
    etag = read_notes(str(cached))[one][2]
    for path, before in text.items():
        path.write_text(before.replace(etag, "0" * 32))
    assert any(path.read_text() != before for path, before in text.items())
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


UNDATED = {"last_modified": None}


def note(folder, name):
    for i in range(30):
        path = f"{name}-{i}"
        record = {"id": path, "key": path, "size": i, "etag": None, **UNDATED}
        note_fetched(folder, [record])


def test_notes_of_many_writers_are_all_kept(tmp_path):
    context = get_context("forkserver")
    writers = [
        context.Process(target=note, args=(str(tmp_path), f"writer{n}"))
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_notes(str(tmp_path))) == 120
    notes = list((tmp_path / ".laion_fmri" / "fetched").iterdir())
    assert len(notes) < 60
    for file in notes:
        json.loads(file.read_text())


def test_the_newest_note_counts_when_notes_are_joined(tmp_path):
    for i in range(120):
        record = {"id": "a", "key": "a", "size": i, "etag": None, **UNDATED}
        once = {"id": f"once-{i}", "key": f"once-{i}"}
        note_fetched(str(tmp_path), [record, {**record, **once}])
        noted = read_notes(str(tmp_path))
        assert noted["a"][:4] == ("a", i, None, None)
        assert len(noted) == i + 2


def test_notes_that_cannot_be_read_are_not_joined(tmp_path, monkeypatch):
    folder = tmp_path / ".laion_fmri" / "fetched"
    note(str(tmp_path), "other")
    theirs = min(folder.iterdir())
    content = theirs.read_bytes()
    theirs.write_bytes(b"cut short by a network file sys")
    note(str(tmp_path), "own")
    note(str(tmp_path), "own")
    assert len(list(folder.iterdir())) < 60
    theirs.write_bytes(content)
    assert {f"other-{i}" for i in range(30)} <= {*read_notes(str(tmp_path))}


def test_a_note_written_while_others_are_joined_counts(tmp_path, monkeypatch):
    for i in range(50):
        once = {"id": f"own-{i}", "key": f"own-{i}", "size": i, "etag": None}
        note_fetched(str(tmp_path), [{**once, **UNDATED}])
    real_read = notes_of_files._read

    def read_late(files):
        result = real_read(files)
        monkeypatch.setattr(notes_of_files, "_read", real_read)
        new = {"id": "own-0", "key": "own-0", "size": 99, "etag": None, **UNDATED}
        note_fetched(str(tmp_path), [new])
        return result

    monkeypatch.setattr(notes_of_files, "_read", read_late)
    note_fetched(str(tmp_path), [])
    assert read_notes(str(tmp_path))["own-0"].size == 99


def test_a_call_notes_what_it_fetched(server, data_dir):
    data = fetch_laion_fmri(sessions=1, rois="FFA1", verbose=0)
    noted = read_notes(str(data_dir))
    for meta in [*data.images_meta, *data.rois_meta]:
        version = (meta["key"], meta["size"], meta["etag"], meta["last_modified"])
        assert noted[meta["id"]][:4] == version
    assert all(Path(data_dir, one).is_file() for one in noted)


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
    del expected[next(path for path, state in expected.items() if state == "missing")]
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


def test_a_note_of_a_file_outside_is_not_repaired(cached, server, tmp_path):
    """In a shared directory, others can write notes."""
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    note = {"../victim.txt": ["participants.tsv", 5, "0" * 32]}
    (cached / ".laion_fmri/fetched/0-evil.json").write_text(json.dumps(note))
    report = verify_cache(repair=True, verbose=0)
    assert set(report["status"]) == {"ok"}
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "note",
    [
        "[]",
        "null",
        '{"a": 1}',
        '{"a": ["b", 1, "c"]}',
        '{"a": ["a", "1", "c"]}',
        '{"a": ["a", -1, "c"]}',
        '{"a": ["a", 1]}',
        "[" * 100_000,
    ],
)
def test_broken_notes_are_passed_over(cached, note):
    before = read_notes(str(cached))
    (cached / ".laion_fmri/fetched/9-broken.json").write_text(note)
    assert read_notes(str(cached)) == before


def test_a_repair_beside_voxels_that_cannot_be_removed(cached, server):
    fetch_laion_betas(1, "FFA1", sessions=1, verbose=0)
    store = cached / ".laion_fmri/voxels/sub-01/ses-01"
    (part,) = store.glob("*.npy")
    part.write_bytes(part.read_bytes()[:-4])
    damaged = sorted(damage(cached))
    with (
        unwritable(store),
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
