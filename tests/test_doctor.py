"""The doctor: services as they should be, and each point broken."""

from __future__ import annotations

import gzip
import io
import json
import re
import signal
import socket
import ssl
import subprocess
import sys

import conftest
import h5py
import nibabel as nib
import pytest
import requests
from fault_server import FaultServer
from model_buckets import (
    BRAIN_MASK,
    image_key,
    model_key,
    model_of,
    roi_key,
    table_key,
)

from laion_fmri_fetchers import doctor
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_access, serve_bucket
from laion_fmri_fetchers.remote.client import CA_VARIABLES

TRIALS, BETAS, MODEL = (f("ses-01") for f in (table_key, image_key, model_key))
TABLE = "stimuli/task-images_metadata.csv"
STIMULI = b"""image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03,shared,4rep
unique_THINGS_air_pump_p03.jpg,THINGS,sub-05,unique,4rep
"""


@pytest.fixture
def bucket(bucket_folder, monkeypatch, data_dir):
    """A bucket in force in which what the doctor looks at is as published."""
    with serve_bucket(bucket_folder) as server:
        server.put(TABLE, STIMULI)
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        data_dir.mkdir()
        yield server


@pytest.fixture
def service(bucket, monkeypatch):
    """The access service in force, with a manifest that a test may change."""
    with serve_access(bucket) as server:
        server.terms_version = "2026-05-12"
        server.manifest = requests.get(f"{server.url}/api/v1/manifest").json()
        server.answers["/api/v1/manifest"] = lambda _: (200, {}, server.manifest)
        server.requests.clear()
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", server.url)
        yield server


def by_name(points, state=None):
    """Return points by their names, or those of a state."""
    return {p["point"]: p for p in points if state in (None, p["state"])}


def failed(**how):
    return by_name(doctor(**how), "failed")


def doubled(content):
    """Return a model file whose betas are twice those of the image."""
    content = bytearray(content)
    with h5py.File(io.BytesIO(content)) as file:
        betas = file["betasmd"]
        start, size = betas.id.get_offset(), betas.id.get_storage_size()
        content[start : start + size] = (betas[:] * 2).tobytes()
    return bytes(content)


def cropped(content):
    """Return an image without its first volume, or its first slice."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    return gzip.compress(image.slicer[..., 1:].to_bytes(), 1)


# State, changes of files, and what is found at which points; all at once.
BROKEN = [
    (
        *("failed", {TRIALS: (b"beta_index", b"n"), TABLE: (b"image_name", b"name")}),
        "trials: no column beta_index; columns: image_name",
    ),
    (
        *("failed", {TRIALS: (b"_p01.jpg", b"_p02.jpg"), BETAS: cropped}),
        "unique labels: sub-06; trials and betas: 64 trials, 63 volumes",
    ),
    (
        *("failed", {TRIALS: (b"\t0\t", b"\t1\t"), BRAIN_MASK: cropped}),
        "trials: beta_index; grid: brain_mask",
    ),
    (
        *("note", {TRIALS: (b"shared_4rep_", b"new_"), TABLE: (b"4rep", b"9")}),
        "labels: new_; kinds of images: no known label",
    ),
    (
        *("note", {TABLE: (b"4rep_NSD", b"4rep_LAION"), MODEL: doubled}),
        "kinds of images: shared 4 LAION; model file: not the voxels",
    ),
    ("note", {MODEL: lambda _: b"not HDF5"}, "model file: HDF5"),
]


@pytest.mark.parametrize(("state", "changes", "found"), BROKEN)
def test_files_that_are_not_as_published(bucket, service, state, changes, found):
    for key, change in changes.items():
        before = bucket.objects[key].value
        after = change(before) if callable(change) else before.replace(*change)
        assert after != before
        bucket.put(key, after)
    points = doctor()
    assert state == "failed" or not by_name(points, "failed")
    for each in found.split("; "):
        point, words = each.split(": ")
        wrong = by_name(points, state)[point]
        assert words in wrong["found"]
        assert wrong["advice"]


def test_where_all_is_well_notes_and_a_count_are_printed(service, data_dir, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    assert err == ""
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"\d\d points as expected", last)
    assert {line[:8].strip() for line in lines} <= {"note", ""}
    assert main(["doctor", "-v"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"(?m)^ok      held-out session +sub-01.*$", out)
    assert list(data_dir.iterdir()) == []


def test_json_is_the_list_of_points_with_the_facts_that_were_read(service, capsys):
    assert main(["doctor", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert len(points) > 25
    assert {point["state"] for point in points} == {"ok", "note"}
    assert {" ".join(p) for p in points} == {"point state found expected advice"}
    points = by_name(points)
    for point, found in (
        ("trials and betas", "64 trials, 64 volumes"),
        ("held-out session", "answers 403"),
        ("If-Match", "status 412"),
        ("model file", "in order C"),
    ):
        assert points[point]["found"].endswith(found)
    assert points["ROI masks"]["state"] == points["grid"]["state"] == "ok"
    assert points["subjects"]["state"] == "note", "this bucket has two of them"
    amount, unit = points["traffic"]["found"].split()[:2]
    assert float(amount) * {"kB": 1e3, "MB": 1e6}[unit] < 20e6


def test_a_way_to_the_bucket_that_alters_bytes_fails(bucket, service, capsys):
    bucket.faults[BETAS] = (200, {}, bucket.objects[BETAS].value)
    altered = bucket.objects[TRIALS].value.replace(b"12rep", b"21rep")
    bucket.faults[TRIALS] = (200, {}, altered)
    bucket.faults["stimuli/task-images_stimuli.h5"] = (404, {}, b"")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert re.search("FAILED  ranges +status 200", out)
    assert "FAILED  ETag" in out
    assert re.search("note    gated archive +.* answers 404", out)


def test_what_is_new_is_a_note(bucket, service, bucket_folder, tmp_path, monkeypatch):
    for pool, name in (("shared", "tau"), ("sub-01", "random_0")):
        (tmp_path / pool).mkdir()
        split = {"variants": [{"train_ids": ["a.jpg"], "test_ids": ["b.jpg"]}]}
        (tmp_path / pool / f"{name}.json").write_text(json.dumps(split))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path))
    odd = roi_key("face", "FFA-1").replace("FFA-1", "aTL-faces")
    glm = "derivatives/glmsingle-tedana/sub-01"
    for key in (odd, f"{glm}/notes of a run.bin", "derivatives/fmriprep/sub-01/a.txt"):
        bucket.put(key, b"x")
    bucket.put(f"{glm}/sub-01_large_summary.json", bytes(3000), part_size=1000)
    bucket.put(MODEL, model_of(bucket_folder, "ses-01", voxels="brain"))
    bucket.denied = None
    points = doctor()
    assert by_name(points, "failed") == {}
    notes = by_name(points, "note")
    for point, found in (
        *(("ROI names", "face/aTLfaces"), ("unknown files", "notes of a run.bin")),
        *(("new trees", "derivatives/fmriprep/"), ("part sizes", "large_summary.json")),
        *(("gated archive", "206"), ("held-out session", "206")),
        ("random splits", f"revision None from {tmp_path}"),
    ):
        assert found in notes[point]["found"]
    advice = notes["held-out session"]["advice"]
    assert "released: time for a new version of this package" in advice
    assert "sessions=31" in advice
    points = by_name(points)
    assert f"1 train, 1 test> from {tmp_path}" in points["splits"]["found"]
    assert points["model file"]["found"].endswith("the brain mask, in order C")


@pytest.mark.parametrize(
    ("content", "size", "point"),
    [
        ({"files": [{"name": "task-images_stimuli.h5"}]}, 0, "access service"),
        ({"current_terms_version": None}, 0, "access service"),
        ({}, 1, "size of the archive"),
    ],
)
def test_a_manifest_that_is_not_as_published_fails(service, content, size, point):
    service.manifest["files"][0]["size"] += size
    service.manifest |= content
    assert set(failed()) == {point}


def test_another_bucket_fails(service, monkeypatch):
    with serve_bucket() as other:
        for key in ("README", "data.csv", "sub-01/ses-01/x.txt"):
            other.put(key, b"hello")
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", other.url)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://127.0.0.1:9")
        points = doctor()
    assert set(by_name(points, "failed")) == {
        *("trees", "subjects", "sessions", "image types", "ROI masks"),
        *("stimulus files", "access service"),
    }
    assert "data.csv" in by_name(points)["unknown files"]["found"]


# --- The way to the bucket ------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "point", "found"),
    [
        ("http://127.0.0.1:9", "connection", "cannot connect"),
        ("http://no-such-host.invalid", "name", "cannot be resolved"),
        (None, "listing", "status 403"),
    ],
)
def test_a_bucket_that_does_not_list_fails_alone(
    url, point, found, bucket, service, monkeypatch
):
    if url is None:
        bucket.deny_listing = True
    else:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
    points = doctor()
    (wrong,) = by_name(points, "failed").values()
    assert wrong["point"] == point
    assert found in wrong["found"]
    assert url is None or "LAION_FMRI_BUCKET_URL" in wrong["advice"]
    splits = by_name(points, "note")["splits"]
    assert "cannot connect" in splits["found"]
    assert "LAION_FMRI_SPLITS" in splits["advice"]


def test_a_certificate_that_is_not_trusted_fails(service, tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with FaultServer(context) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        point = failed()["TLS"]
        assert "TLS fails" in point["found"]
        assert "REQUESTS_CA_BUNDLE (none is set)" in point["advice"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert "certificate is trusted" in by_name(doctor())["connection"]["found"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "none.pem")
        assert "none.pem, which cannot be used" in failed()["TLS"]["found"]


@pytest.mark.parametrize(("scheme", "status"), [("http", 404), ("https", 501)])
def test_a_proxy_that_refuses_fails(service, monkeypatch, capsys, scheme, status):
    address = service.url.removeprefix("http://")  # a server that is no proxy
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://ada:pa55-word@{address}")
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"{scheme}://bucket.example.org")
    assert main(["doctor", "-v"]) == 1
    out = capsys.readouterr().out
    assert "pa55-word" not in out
    assert "ada" not in re.findall(r"\w+", out)
    assert f"by the proxy {address}" in " ".join(out.split())
    assert re.search(rf"FAILED  proxy .*(\n +.*)?{status}", out)


def test_a_silent_server_is_given_up_or_ctrl_c_ends_it(data_dir, monkeypatch):
    command = [sys.executable, "-m", "laion_fmri_fetchers", "doctor"]
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
        with (
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
            server.accept()[0],
        ):
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=240)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert failed(timeout=0.3)["connection"]["found"] == "no byte for 0.3 s"


# --- The machine; nobody is asked anything --------------------------------------------


@pytest.fixture
def offline(monkeypatch, no_network):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")


def test_offline_opens_no_socket(data_dir, offline):
    points = doctor()
    assert by_name(points, "failed") == {}
    found = by_name(points, "note")["bucket"]["found"]
    assert found == "not checked, because LAION_FMRI_OFFLINE is set"


def test_a_data_directory_need_not_exist_but_must_be_writable(offline, tmp_path):
    points = by_name(doctor(data_dir=tmp_path / "new" / "folder"))
    assert points["data directory"]["state"] == points["file locks"]["state"] == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "new" / ".laion_fmri").mkdir(parents=True)
    for place, folder, words in (
        ("file", "file", f"{tmp_path / 'file'} is a file"),
        ("new", "new/.laion_fmri", "ermission denied"),
        ("new", "new", "ermission denied"),
    ):
        with conftest.unwritable(tmp_path / folder):
            wrong = failed(data_dir=tmp_path / place)
        assert place == "file" or set(wrong) == {"data directory"}
        assert words in wrong["data directory"]["found"]


def test_an_id_that_others_can_read_fails_and_is_not_shown(service, data_dir, capsys):
    request_id = service.grant()
    file = data_dir / ".laion_fmri" / "auth.json"
    file.parent.mkdir()
    content = {"server_url": service.url, "request_id": request_id}
    file.write_text(json.dumps(content))
    file.chmod(0o644)
    assert main(["doctor", "-v"]) == 1
    out = capsys.readouterr().out
    assert request_id[-3:] not in out
    assert re.search("FAILED  request_id +approved", out)
    assert f"chmod 600 {file}" in " ".join(out.split())
    assert all(body is None for _, _, body in service.requests)
    file.chmod(0o600)
    assert by_name(doctor())["request_id"]["state"] == "ok"


def test_secrets_of_the_environment_are_not_shown(service, monkeypatch, capsys):
    """Not even what servers echo shows them."""
    secret, password = "id_0123456789abcdefghijklmnop", "pa55/wo@rd"
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", secret)
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", f"http://ada:{password}@127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", f"http://ada:{password}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LAION_FMRI_DATADIR", "/data")
    echo = f"{secret} of https://x.org/a?X-Amz-Signature=1"
    service.manifest["current_terms_version"] = echo
    assert main(["doctor", "--json"]) == 1
    out = capsys.readouterr().out
    assert set(by_name(json.loads(out), "failed")) == {"splits"}
    for hidden in (secret, secret[4:], password, "wo@rd", "X-Amz-Signature"):
        assert hidden not in out
    point = by_name(json.loads(out), "note")["settings"]
    assert "did you mean 'LAION_FMRI_DATA_DIR'" in point["advice"]
