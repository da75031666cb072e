"""The doctor: services as they should be, and each point broken."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading

import conftest
import h5py
import nibabel as nib
import numpy as np
import pytest
from fault_server import FaultServer
from model_buckets import model_of

from laion_fmri_fetchers import doctor
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_access, serve_bucket
from laion_fmri_fetchers.remote.client import CA_VARIABLES

DENIED = re.compile(
    r"^(?!derivatives/localizers/)(.*/)?ses-3[1-4]/|^stimuli/task-images_stimuli\.h5$"
)
GLM = "derivatives/glmsingle-tedana/sub-01"
SESSION = f"{GLM}/ses-01/func/sub-01_ses-01_task-images"
TRIALS = f"{SESSION}_desc-SingletrialBetas_trials.tsv"
BETAS = f"{SESSION}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
MODEL = f"{SESSION}_space-T1w_desc-GLMsingle_model.h5"
ROI = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-{}_label-FFA-1_mask.nii.gz"
BRAIN = (
    "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/"
    "sub-01_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
)
ARCHIVE = "stimuli/task-images_stimuli.h5"
TABLE = "stimuli/task-images_metadata.csv"
STIMULI = b"""image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03,shared,4rep
unique_THINGS_air_pump_p03.jpg,THINGS,sub-05,unique,4rep
"""


@pytest.fixture(scope="module")
def whole_bucket(bucket_folder):
    """A bucket in which what the doctor looks at is as published."""
    with serve_bucket(bucket_folder, denied=DENIED) as server:
        server.put(ROI.format("1pt8"), (bucket_folder / BRAIN).read_bytes())
        server.put(TABLE, STIMULI)
        yield server


@pytest.fixture
def bucket(whole_bucket, monkeypatch, data_dir):
    """The bucket in force; it is as it was when a test ends."""
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", whole_bucket.url)
    whole_bucket.reset()
    data_dir.mkdir()
    yield whole_bucket
    whole_bucket.reset()
    whole_bucket.denied = DENIED


@pytest.fixture
def service(bucket, bucket_folder, monkeypatch):
    """The access service in force, with a manifest as published."""
    archive = (bucket_folder / ARCHIVE).read_bytes()
    with serve_access(bucket) as server:
        entry = {"name": "task-images_stimuli.h5", "size": len(archive)}
        entry["sha256"] = hashlib.sha256(archive).hexdigest()
        server.manifest = {"current_terms_version": "2026-05-12", "files": [entry]}
        server.answers["/api/v1/manifest"] = lambda _: (200, {}, server.manifest)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", server.url)
        bucket.faults.clear()
        yield server


def by_name(points, state=None):
    """Return points by their names, or those of a state."""
    return {p["point"]: p for p in points if state in (None, p["state"])}


def failures(**how):
    return set(by_name(doctor(**how), "failed"))


@contextlib.contextmanager
def changed(bucket, bucket_folder, key, change):
    """Let the bucket hold another content for a while."""
    before = (bucket_folder / key).read_bytes() if key != TABLE else STIMULI
    after = change(before)
    assert after != before
    bucket.put(key, after)
    try:
        yield
    finally:
        bucket.put(key, before)


def swap(old, new):
    """Return a change of bytes."""
    return lambda content: content.replace(old, new)


def reshape(change):
    """Return a change of a compressed image."""

    def changed_bytes(data):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
        return gzip.compress(change(image).to_bytes(), 1)

    return changed_bytes


def other_grid(image):
    return nib.Nifti1Image(image.get_fdata(), np.diag([2, 2, 2, 1]))


def doubled(content):
    """Return a model file whose betas are twice those of the image."""
    content = bytearray(content)
    with h5py.File(io.BytesIO(content)) as file:
        betas = file["betasmd"]
        start, size = betas.id.get_offset(), betas.id.get_storage_size()
        content[start : start + size] = (betas[:] * 2).tobytes()
    return bytes(content)


# --- As it should be ------------------------------------------------------------------


def test_notes_and_a_count_are_printed_where_all_is_well(service, data_dir, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert re.fullmatch(r"\d\d points as expected", out.splitlines()[-1])
    assert {line[:8].strip() for line in out.splitlines()[:-1]} <= {"note", ""}
    assert main(["doctor", "-v"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ok      held-out session +sub-01.*$", out, re.MULTILINE)
    assert list(data_dir.iterdir()) == []


def test_json_is_the_list_of_points(service, capsys):
    assert main(["doctor", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    for point in points:
        assert list(point) == ["point", "state", "found", "expected", "advice"]
        assert point["state"] in ("ok", "note")
    assert len(points) > 25
    amount, unit = by_name(points)["traffic"]["found"].split()[:2]
    assert float(amount) * {"kB": 1e3, "MB": 1e6}[unit] < 20e6


def test_facts_are_read(service):
    points = by_name(doctor())
    assert points["trials and betas"]["found"] == "64 trials, 64 volumes"
    assert points["held-out session"]["found"].endswith("answers 403")
    assert points["ROI masks"]["state"] == points["grid"]["state"] == "ok"
    assert points["If-Match"]["found"] == "status 412"
    assert points["model file"]["found"].endswith("in order C")
    # The bucket of these tests has two subjects.
    assert points["subjects"]["state"] == "note"


# --- One point broken -----------------------------------------------------------------


def test_a_server_without_ranges_fails(bucket, service, bucket_folder, capsys):
    bucket.faults[BETAS] = (200, {}, (bucket_folder / BETAS).read_bytes())
    assert main(["doctor"]) == 1
    assert re.search("FAILED  ranges +status 200", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("key", "change", "point", "found"),
    [
        (TRIALS, swap(b"beta_index", b"number"), "trials", "no column beta_index"),
        (TRIALS, swap(b"\t0\t", b"\t1\t"), "trials", "beta_index"),
        (TRIALS, swap(b"_p01.jpg", b"_p02.jpg"), "unique labels", "sub-06"),
        (TABLE, swap(b"image_name", b"name"), "columns", "image_name"),
        (BETAS, reshape(lambda im: im.slicer[..., 1:]), "trials and betas", "63 vol"),
        (BRAIN, reshape(other_grid), "grid", "not of brain_mask"),
    ],
)
def test_files_that_calls_cannot_use_fail(
    bucket, service, bucket_folder, key, change, point, found
):
    with changed(bucket, bucket_folder, key, change):
        failed = by_name(doctor(), "failed")
    assert found in failed[point]["found"]
    assert failed[point]["advice"]


@pytest.mark.parametrize(
    ("key", "change", "point", "found"),
    [
        (TRIALS, swap(b"shared_4rep_", b"new_"), "labels", "new_"),
        (TABLE, swap(b"shared_4rep", b"shared_9"), "kinds of images", "no known label"),
        (TABLE, swap(b"4rep_NSD", b"4rep_LAION"), "kinds of images", "shared 4 LAION"),
        (MODEL, lambda _: b"not HDF5", "model file", "HDF5"),
        (MODEL, doubled, "model file", "not the voxels"),
    ],
)
def test_what_is_not_known_is_a_note(
    bucket, service, bucket_folder, key, change, point, found
):
    with changed(bucket, bucket_folder, key, change):
        points = doctor()
    assert by_name(points, "failed") == {}
    assert found in by_name(points, "note")[point]["found"]


def test_trees_rois_and_files_that_are_not_known_are_notes(bucket, service):
    odd = ROI.format("1pt8").replace("label-FFA-1", "label-aTL-faces")
    keys = (odd, f"{GLM}/notes of a run.bin", "derivatives/fmriprep/sub-01/a.txt")
    for key in keys:
        bucket.put(key, b"x")
    try:
        points = doctor()
    finally:
        for key in keys:
            bucket.delete(key)
    assert by_name(points, "failed") == {}
    notes = by_name(points, "note")
    assert notes["ROI names"]["found"] == "face/aTLfaces"
    assert "notes of a run.bin" in notes["unknown files"]["found"]
    assert notes["new trees"]["found"] == "derivatives/fmriprep/"


def test_a_model_file_with_rows_of_the_brain_mask(bucket, service, bucket_folder):
    content = model_of(bucket_folder, "ses-01", voxels="brain")
    with changed(bucket, bucket_folder, MODEL, lambda _: content):
        points = by_name(doctor())
    assert points["model file"]["found"].endswith("the brain mask, in order C")


def test_altered_bytes_fail(bucket, service, bucket_folder):
    data = (bucket_folder / TRIALS).read_bytes()
    bucket.faults[TRIALS] = (200, {}, data.replace(b"12rep", b"21rep"))
    assert "ETag" in failures()


def test_parts_of_an_unusual_size_are_a_note(bucket, service):
    key = f"{GLM}/sub-01_large_summary.json"
    bucket.put(key, bytes(3000), part_size=1000)
    try:
        assert by_name(doctor(), "note")["part sizes"]["found"] == key
    finally:
        bucket.delete(key)


@pytest.mark.parametrize(
    "content",
    [{"files": [{"name": "task-images_stimuli.h5"}]}, {"current_terms_version": None}],
)
def test_a_manifest_without_its_fields_fails(service, content):
    service.manifest |= content
    assert failures() == {"access service"}


def test_a_manifest_of_another_archive_fails(service, monkeypatch):
    service.manifest["files"][0]["size"] += 1
    assert failures() == {"size of the archive"}
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://127.0.0.1:9")
    assert failures() == {"access service"}


def test_what_became_public_is_a_note(bucket, service):
    bucket.denied = None
    points = doctor()
    assert by_name(points, "failed") == {}
    notes = by_name(points, "note")
    assert "gated archive" in notes
    advice = notes["held-out session"]["advice"]
    assert "released: time for a new version of this package" in advice
    assert "sessions=31" in advice


def test_another_bucket_fails(service, monkeypatch):
    with serve_bucket() as other:
        for key in ("README", "data.csv", "sub-01/ses-01/x.txt"):
            other.put(key, b"hello")
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", other.url)
        points = doctor()
    assert set(by_name(points, "failed")) == {
        *("trees", "subjects", "sessions", "image types", "ROI masks"),
        "stimulus files",
    }
    assert "data.csv" in by_name(points)["unknown files"]["found"]


def test_splits_are_read_from_their_source(service, tmp_path, monkeypatch):
    for pool, name in (("shared", "tau"), ("sub-01", "random_0")):
        file = tmp_path / pool / f"{name}.json"
        file.parent.mkdir()
        variant = {"train_ids": ["a.jpg"], "test_ids": ["b.jpg"]}
        file.write_text(json.dumps({"name": name, "variants": [variant]}))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path))
    points = by_name(doctor())
    assert f"1 train, 1 test> from {tmp_path}" in points["splits"]["found"]
    assert points["random splits"]["state"] == "note"
    assert points["random splits"]["found"] == f"revision None from {tmp_path}"
    (tmp_path / "shared" / "tau.json").write_text("<html>")
    assert "Expecting value" in by_name(doctor(), "note")["splits"]["found"]
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    assert "cannot connect" in by_name(doctor(), "note")["splits"]["found"]


# --- The way to the bucket ------------------------------------------------------------


def test_a_listing_that_is_denied_fails_alone(bucket, service):
    bucket.deny_listing = True
    failed = by_name(doctor(), "failed")
    assert set(failed) == {"listing"}
    assert "status 403" in failed["listing"]["found"]


def test_a_certificate_that_is_not_trusted_fails(service, tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate}"
    )
    command += " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with FaultServer(context) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        point = by_name(doctor(), "failed")["TLS"]
        assert "TLS fails" in point["found"]
        assert "REQUESTS_CA_BUNDLE (none is set)" in point["advice"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert "certificate is trusted" in by_name(doctor())["connection"]["found"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "none.pem")
        point = by_name(doctor(), "failed")["TLS"]
    assert "none.pem, which cannot be used" in point["found"]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that answers everything with the same status."""

    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815


@pytest.mark.parametrize(("scheme", "status"), [("http", 403), ("https", 407)])
def test_a_proxy_that_refuses_fails(data_dir, monkeypatch, capsys, scheme, status):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"{scheme}://bucket.example.org")
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "https://access.example.org")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        proxy.status, address = status, f"127.0.0.1:{proxy.server_port}"
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://ada:pa55-word@{address}")
        try:
            assert main(["doctor", "-v"]) == 1
        finally:
            proxy.shutdown()
            thread.join()
    out = capsys.readouterr().out
    assert "pa55-word" not in out
    assert "ada" not in re.findall(r"\w+", out)
    assert f"by the proxy {address}" in " ".join(out.split())
    assert re.search(rf"FAILED  proxy .*(\n +.*)?{status}", out)


@pytest.mark.parametrize(
    ("url", "point"),
    [("http://127.0.0.1:9", "connection"), ("http://no-such-host.invalid", "name")],
)
def test_a_bucket_that_is_not_reached_fails(url, point, service, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
    failed = by_name(doctor(), "failed")
    assert set(failed) == {point}
    assert "LAION_FMRI_BUCKET_URL" in failed[point]["advice"]


@pytest.fixture
def silent(monkeypatch):
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
        yield server


def test_a_silent_server_is_given_up(silent, data_dir):
    point = by_name(doctor(timeout=1), "failed")["connection"]
    assert point["found"] == "no byte for 1 s"


def test_ctrl_c_ends_it(silent, data_dir):
    command = [sys.executable, "-m", "laion_fmri_fetchers", "doctor"]
    silent.settimeout(60)
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        silent.accept()[0],
    ):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_offline_opens_no_socket(data_dir, monkeypatch, no_network):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    points = doctor()
    assert by_name(points, "failed") == {}
    found = by_name(points, "note")["bucket"]["found"]
    assert found == "not checked, because LAION_FMRI_OFFLINE is set"


# --- The machine ----------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", ".laion_fmri"])
def test_a_directory_that_cannot_be_written_fails(service, tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    with conftest.unwritable(tmp_path / folder):
        failed = by_name(doctor(data_dir=tmp_path), "failed")
    assert set(failed) == {"data directory"}
    assert "permission denied" in failed["data directory"]["found"].lower()


def test_a_data_directory_need_not_exist(service, tmp_path):
    points = by_name(doctor(data_dir=tmp_path / "new" / "folder"))
    assert points["data directory"]["state"] == points["file locks"]["state"] == "ok"
    assert not (tmp_path / "new").exists()
    file = tmp_path / "file"
    file.touch()
    failed = by_name(doctor(data_dir=file), "failed")
    assert f"{file} is a file" in failed["data directory"]["found"]


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
