"""The check-up: a bucket and a service as they should be, and each point broken."""

from __future__ import annotations

import _multiprocessing
import contextlib
import errno
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
import time

import conftest
import fault_server as faults
import h5py
import nibabel as nib
import numpy as np
import pytest
from fault_server import FaultServer
from model_buckets import model_of

from laion_fmri_fetchers import doctor
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_access, serve_bucket

DENIED = re.compile(
    r"^(?!derivatives/localizers/)(.*/)?ses-3[1-4]/|^stimuli/task-images_stimuli\.h5$"
)
GLM = "derivatives/glmsingle-tedana/sub-01"
SESSION = f"{GLM}/ses-01/func/sub-01_ses-01_task-images"
TRIALS = f"{SESSION}_desc-SingletrialBetas_trials.tsv"
BETAS = f"{SESSION}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
ROI = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-{}_label-FFA-1_mask.nii.gz"
BRAIN = (
    "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/"
    "sub-01_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
)
LOCALIZER = (
    "derivatives/localizers/sub-01/ses-31/func/sub-01_ses-31_task-oloc_space-T1w_"
    "res-1pt8_contrast-objectVsScrambled_stat-z_statmap.nii.gz"
)
ARCHIVE = "stimuli/task-images_stimuli.h5"
TABLE = "stimuli/task-images_metadata.csv"
STIMULI = b"""image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03,shared,4rep
unique_THINGS_air_pump_p03.jpg,THINGS,sub-05,unique,4rep
"""
SEGMENTATIONS = b"""mask_row,image_name,noun,instance_id,score,box_x0,box_y0,box_x1,\
box_y1,localized,mask_file
"""


@pytest.fixture(scope="module")
def whole_bucket(bucket_folder):
    """A bucket in which what a check-up looks at is as published."""
    with serve_bucket(bucket_folder, denied=DENIED) as server:
        brain = (bucket_folder / BRAIN).read_bytes()
        for res in ("1pt8", "1pt5"):
            server.put(ROI.format(res), brain)
        server.put(LOCALIZER, brain)
        server.put(TABLE, STIMULI)
        server.put("stimuli/task-images_desc-segmentations_metadata.csv", SEGMENTATIONS)
        for model in ("CLIP", "DINOv2", "PEcore", "SigLIP2"):
            name = f"task-images_desc-{model}_embeddings.h5"
            server.put(f"archive/embeddings/v1/{name}", b"first")
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
        server.manifest = {
            "current_terms_version": "2026-05-12",
            "files": [
                {
                    "name": "task-images_stimuli.h5",
                    "size": len(archive),
                    "sha256": hashlib.sha256(archive).hexdigest(),
                }
            ],
        }
        server.answers["/api/v1/manifest"] = lambda _: (200, {}, server.manifest)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", server.url)
        bucket.faults.clear()
        yield server


def by_name(points, state=None):
    return {p["point"]: p for p in points if state in (None, p["state"])}


def failures(**how):
    return set(by_name(doctor(**how), "failed"))


@contextlib.contextmanager
def changed(bucket, bucket_folder, key, change):
    """Let the bucket hold another content for a while, of its own size and ETag."""
    before = (bucket_folder / key).read_bytes()
    after = change(before)
    assert after != before
    bucket.put(key, after)
    try:
        yield
    finally:
        bucket.put(key, before)


# --- As it should be -------------------------------------------------------------


def test_all_is_as_it_should_be(service, data_dir, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    print(out)
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^\d+ points: \d+ ok, \d+ notes, 0 failed\.$", out, re.MULTILINE)
    assert list(data_dir.iterdir()) == []


def test_no_semaphores_of_the_system_are_needed(service, monkeypatch):
    """Hardened containers lack them: there is no shared memory to write to."""

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(_multiprocessing, "SemLock", refused)
    assert failures() == set()


def test_json_is_the_list_of_points(service, capsys):
    assert main(["doctor", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    for point in points:
        assert list(point) == ["point", "state", "found", "expected", "advice"]
        assert point["state"] in ("ok", "note")
    assert len(points) > 50


def test_traffic_is_counted(bucket, service):
    """All that was sent is in the report: listings, objects, and the service's."""
    points = by_name(doctor())
    amount, unit, answers = re.fullmatch(
        r"(\S+) (kB|MB) in (\d+) answers", points["traffic"]["found"]
    ).groups()
    assert int(answers) == len(bucket.requests) + len(service.requests)
    assert int(answers) <= 60
    betas = bucket_bytes(bucket, BETAS)
    assert float(amount) * {"kB": 1e3, "MB": 1e6}[unit] > betas
    assert float(amount) * {"kB": 1e3, "MB": 1e6}[unit] < 20e6


def bucket_bytes(bucket, key):
    return len(bucket._backend.get_bucket(bucket._bucket).keys[key].value)


def test_facts_are_read(service):
    points = by_name(doctor())
    assert points["trials and betas"]["found"] == "64 trials, 64 volumes"
    assert points["unique labels"]["found"] == "of sub-01 (p01)"
    assert points["held-out session"]["found"].endswith("answers 403")
    assert points["released localizers"]["found"].endswith("answers 206")
    assert points["stimuli and labels"]["found"] == (
        "dataset: NSD, THINGS, THINGSplus; n_reps: 12rep, 4rep"
    )
    assert points["grids of ROI masks"]["found"] == "1pt5, 1pt8"
    assert points["first embeddings"]["state"] == "ok"
    assert points["If-Match"]["found"].startswith("status 412")
    # The bucket of these tests has two subjects, and embeddings of an older date.
    assert points["subjects"]["state"] == "note"
    assert points["embeddings"]["state"] == "note"


# --- One point broken ------------------------------------------------------------


def without_ranges(bucket, key):
    data = bucket._backend.get_bucket(bucket._bucket).keys[key].value
    bucket.faults[key] = (200, {}, data)


def test_no_ranges(bucket, service, capsys):
    without_ranges(bucket, BETAS)
    assert main(["doctor"]) == 1
    assert "1 failed (ranges)" in capsys.readouterr().out


def test_a_server_without_ranges_sends_no_more_than_is_read(bucket, service):
    sent = []

    def endless(_):
        def pieces():
            for _ in range(200):
                sent.append(2**20)
                yield bytes(2**20)

        return 200, {"Content-Length": str(200 * 2**20)}, pieces()

    bucket.faults[BETAS] = endless
    points = by_name(doctor(), "failed")
    assert "ranges" in points
    # What sockets hold on both sides comes on top of what is read, for each request.
    assert sum(sent) < 20e6 + len(bucket.requests) * 2**20


@pytest.mark.parametrize(
    ("old", "new", "point"),
    [
        (b"beta_index", b"beta_number", "trial table"),
        (b"\t0\t", b"\t1\t", "beta_index"),
        (b"_p01.jpg", b"_p02.jpg", "unique labels"),
    ],
)
def test_trial_table(bucket, service, bucket_folder, old, new, point):
    with changed(bucket, bucket_folder, TRIALS, lambda b: b.replace(old, new)):
        points = by_name(doctor(), "failed")
    assert point in points
    if point == "trial table":
        assert "missing: beta_index" in points[point]["found"]
        assert "beta_number" in points[point]["found"]
    if point == "unique labels":
        assert points[point]["found"] == "of sub-06 (p02)"


def test_unknown_labels_are_a_note(bucket, service, bucket_folder):
    with changed(
        bucket, bucket_folder, TRIALS, lambda b: b.replace(b"shared_4rep_", b"new_")
    ):
        points = by_name(doctor())
    assert points["labels"]["state"] == "note"
    assert "new_" in points["labels"]["found"]
    assert by_name(points.values(), "failed") == {}


def test_images_of_a_new_kind_are_a_note(bucket, service, bucket_folder):
    name = "shared_4rep_LAION_controversial_17_i2.jpg"

    def add(content):
        row = content.splitlines()[1]
        old = row.decode().split(",")[0]
        return content + row.replace(old.encode(), name.encode()) + b"\n"

    key = "stimuli/task-images_metadata.csv"
    with changed(bucket, bucket_folder, key, add):
        point = by_name(doctor())["kinds of images"]
    assert point["state"] == "note"
    assert point["found"].endswith(f"shared 4 LAION, as {name}")


def test_fewer_volumes_than_trials(bucket, service, bucket_folder):
    def shorter(data):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
        return gzipped(image.slicer[..., :-1])

    with changed(bucket, bucket_folder, BETAS, shorter):
        points = by_name(doctor(), "failed")
    assert set(points) == {"trials and betas"}
    assert points["trials and betas"]["found"] == "64 trials, 63 volumes"


def gzipped(image):
    return gzip.compress(image.to_bytes(), 1)


def test_masks_on_another_grid(bucket, service, bucket_folder):
    def shifted(data):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
        affine = image.affine @ nib.affines.from_matvec(np.eye(3), [1, 0, 0])
        return gzipped(nib.Nifti1Image(np.asarray(image.dataobj), affine))

    with changed(bucket, bucket_folder, BRAIN, shifted):
        points = by_name(doctor(), "failed")
    assert set(points) == {"grid"}
    assert "brain_mask" in points["grid"]["found"]


MODEL = f"{SESSION}_space-T1w_desc-GLMsingle_model.h5"


def test_a_model_file_and_the_order_of_its_rows(service):
    points = by_name(doctor(), "ok")
    assert "contiguous" in points["model file"]["found"]
    assert points["rows of the model"]["found"].endswith("in order C")


def test_a_model_file_with_rows_of_the_brain_mask(bucket, service, bucket_folder):
    bucket.put(MODEL, model_of(bucket_folder, "ses-01", voxels="brain"))
    points = by_name(doctor(), "ok")
    assert points["rows of the model"]["found"] == "the brain mask, in order C"


def test_a_model_file_that_is_not_proved_is_a_note(bucket, service, bucket_folder):
    content = bytearray((bucket_folder / MODEL).read_bytes())
    with h5py.File(io.BytesIO(content)) as file:
        betas = file["betasmd"]
        start, size = betas.id.get_offset(), betas.id.get_storage_size()
        values = betas[:] * 2
    content[start : start + size] = values.tobytes()
    bucket.put(MODEL, bytes(content))
    notes = by_name(doctor(), "note")
    assert "its rows are not the voxels" in notes["model file"]["found"]
    bucket.put(MODEL, b"not HDF5")
    notes = by_name(doctor(), "note")
    assert "HDF5 cannot read it" in notes["model file"]["found"]


def test_altered_bytes(bucket, service, bucket_folder):
    data = (bucket_folder / TRIALS).read_bytes()
    bucket.faults[TRIALS] = (206, {}, data.replace(b"12rep", b"21rep"))
    assert "MD5" in failures()


@pytest.mark.parametrize(
    ("content", "point"),
    [
        ({"files": None}, "manifest's files"),
        ({"files": []}, "manifest's files"),
        ({"files": [{"name": "task-images_stimuli.h5"}]}, "manifest's files"),
        ({"current_terms_version": None}, "terms version"),
    ],
)
def test_manifest(service, content, point):
    service.manifest |= content
    assert failures() == {point}


def test_manifest_of_another_archive(service):
    service.manifest["files"][0]["size"] += 1
    assert failures() == {"size of the archive"}


def test_no_access_service(service, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://127.0.0.1:9")
    assert failures() == {"access manifest", "archive size", "access pages"}


def test_the_table_of_stimuli_is_denied(bucket, service):
    bucket.denied = re.compile(f"{DENIED.pattern}|^{TABLE}$")
    points = by_name(doctor(), "failed")
    assert set(points) == {"stimulus table"}
    assert "403" in points["stimulus table"]["found"]


def test_localizers_are_denied(bucket, service):
    bucket.denied = re.compile(r"ses-3[1-4]/|^stimuli/task-images_stimuli\.h5$")
    assert failures() == {"released localizers"}


def test_what_became_public_is_a_note(bucket, service):
    bucket.denied = None
    points = by_name(doctor())
    assert by_name(points.values(), "failed") == {}
    assert points["held-out session"]["state"] == "note"
    advice = points["held-out session"]["advice"]
    assert "released: time for a new version of this package" in advice
    assert "sessions=31" in advice
    assert points["gated archive"]["state"] == "note"


def test_names_that_are_not_known(bucket, service):
    odd = ROI.format("1pt8").replace("label-FFA-1", "label-aTL-faces")
    keys = (odd, f"{GLM}/notes of a run.bin", "derivatives/fmriprep/sub-01/a.txt")
    for key in keys:
        bucket.put(key, b"x")
    try:
        points = by_name(doctor())
    finally:
        for key in keys:
            bucket.delete(key)
    assert by_name(points.values(), "failed") == {}
    assert "face/aTLfaces" in points["ROI names"]["found"]
    assert "notes of a run.bin" in points["keys"]["found"]
    assert points["trees not known"]["found"] == "derivatives/fmriprep/"


def test_a_listing_that_does_not_go_on(bucket, service):
    def ignore_token(environ):
        query = environ["QUERY_STRING"]
        if "continuation-token" in query and "max-keys" not in query:
            return 200, {}, b"<ListBucketResult></ListBucketResult>"
        return None

    bucket.faults[""] = ignore_token
    assert failures() == {"listing goes on"}


def test_a_listing_is_denied(bucket, service):
    bucket.deny_listing = True
    points = by_name(doctor())
    assert set(by_name(points.values(), "failed")) == {"listing"}
    assert points["listing"]["found"] == "status 403"
    found = "not checked, because the bucket was not listed"
    for name in ("trial table", "stimulus table", "ranges"):
        assert list(points[name].values()) == [name, "note", found, "", ""]


def test_each_point_that_is_judged_has_advice(bucket, service):
    """What is not as expected says what was, and what to do about it."""
    bucket.denied = None
    service.manifest["files"] = []
    points = doctor()
    judged = [p for p in points if p["state"] == "failed"]
    judged += [p for p in points if p["point"] in ("gated archive", "embeddings")]
    assert len(judged) == 3
    assert all(point["expected"] and point["advice"] for point in judged)
    assert not any("%" in point["advice"] for point in points)


def test_the_clock_is_wrong(service, monkeypatch):
    with FaultServer() as server:
        server.put("", b"<ListBucketResult></ListBucketResult>")
        date = faults.headers(Date="Wed, 01 Jan 2020 00:00:00 GMT")
        server.faults[""] = [faults.always(date)]
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        point = by_name(doctor())["clock"]
    assert point["state"] == "note"
    assert re.fullmatch(r"\d{9,} s ahead of the server's", point["found"])


def test_parts(bucket, service):
    """A file in parts of 8 MiB, then one in parts that are not of a usual size."""
    key = f"{GLM}/sub-01_large_summary.json"
    try:
        bucket.put(key, bytes(9 * 2**20))
        usual = by_name(doctor())["parts"]
        bucket.put(key, bytes(3000), part_size=1000)
        odd = by_name(doctor())["parts"]
    finally:
        bucket.delete(key)
    assert (usual["state"], usual["found"]) == ("ok", "1 file in parts, 1 of 8 MiB")
    assert (odd["state"], odd["found"]) == (
        "note",
        "not a usual size: sub-01_large_summary.json",
    )


def test_another_bucket(service, monkeypatch):
    """Of a bucket with hardly anything, checks say what is not there."""
    with serve_bucket() as other:
        for key in ("README", "data.csv", "sub-01/ses-01/x.txt"):
            other.put(key, b"hello")
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", other.url)
        points = by_name(doctor())
    assert set(by_name(points.values(), "failed")) == {
        *("trees", "subjects", "sessions", "grids of ROI masks", "stimulus files"),
        "stimulus table",
    }
    assert points["files at the top"]["found"] == "data.csv"
    assert points["participants.tsv"]["state"] == "note"


def test_a_manifest_that_is_not_json(service):
    service.answers["/api/v1/manifest"] = (200, {}, b"<html>")
    assert "access manifest" in failures()


# --- The way to the bucket -------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Return files: a CA that nobody knows, and a server's certificate and key."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(
        *("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem"),
        *("-subj", "/CN=Institute CA", "-addext", "keyUsage=critical,keyCertSign"),
    )
    openssl(
        *("req", "-x509", *new, "-keyout", "server.key", "-out", "server.pem"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-CA", "ca.pem", "-CAkey", "ca.key"),
    )
    return folder


def test_a_certificate_of_another_ca(
    service, certificates, monkeypatch, capsys, data_dir
):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with FaultServer(context) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        assert main(["doctor"]) == 1
        out = capsys.readouterr().out
        assert "1 failed (TLS)" in out
        assert "unable to get local issuer certificate" in " ".join(out.split())
        assert "REQUESTS_CA_BUNDLE (none is set)" in " ".join(out.split())
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
        points = by_name(doctor())
        assert points["TLS"]["state"] == "ok"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "none.pem"))
        assert "REQUESTS_CA_BUNDLE" in failures()


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that refuses, with the password ``pa55-word``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://ada:pa55-word@127.0.0.1:{server.server_port}"
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, url)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [403, 407])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses(proxy, data_dir, monkeypatch, capsys, status, scheme):
    proxy.status = status
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"{scheme}://bucket.example.org")
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "https://access.example.org")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "pa55-word" not in out
    assert "ada" not in re.findall(r"\w+", out)
    assert re.search(rf"proxy in use +127.0.0.1:{proxy.server_port}\n", out)
    assert re.search(rf"FAILED +proxy .*(\n +.*)?{status}", out)


def test_no_server_ends_at_once(data_dir, capsys):
    began = time.monotonic()
    assert main(["doctor"]) == 1
    assert time.monotonic() - began < 60
    out = capsys.readouterr().out
    assert "FAILED  connection" in out
    assert out.count("FAILED") <= 3


def test_a_server_that_takes_no_connection(service, monkeypatch):
    """It costs a time-out to connect, once."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        points = by_name(doctor(timeout=5), "failed")
    assert set(points) == {"connection"}
    assert time.monotonic() - began < 30


@pytest.fixture
def silent(monkeypatch):
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
        yield server


def test_a_silent_server_costs_one_time_out(silent, data_dir):
    began = time.monotonic()
    points = by_name(doctor(timeout=2), "failed")
    assert time.monotonic() - began < 60
    assert points["listing"]["found"] == "no byte for 2 s"


def test_ctrl_c(silent, data_dir):
    command = [sys.executable, "-m", "laion_fmri_fetchers", "doctor"]
    silent.settimeout(60)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        connections = [silent.accept()[0] for _ in range(2)]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)
        for connection in connections:
            connection.close()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_offline_opens_no_socket(data_dir, monkeypatch, no_network):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    points = doctor()
    assert by_name(points, "failed") == {}
    assert by_name(points)["trees"]["found"] == (
        "not checked, because LAION_FMRI_OFFLINE is set"
    )


# --- The machine -----------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed")
    (folder / "data").write_bytes(bytes(48 * 1024))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(service, full_disk):
    points = by_name(doctor(data_dir=full_disk), "failed")
    assert set(points) == {"data directory"}
    assert "No space left on device" in points["data directory"]["found"]
    assert [file.name for file in full_disk.iterdir()] == ["data"]


def test_a_read_only_directory(service, tmp_path):
    with conftest.unwritable(tmp_path):
        points = by_name(doctor(data_dir=tmp_path), "failed")
    assert set(points) == {"data directory"}
    assert "Permission denied" in points["data directory"]["found"]
    assert "data_dir" in points["data directory"]["advice"]


def test_a_data_directory_that_is_a_file(service, tmp_path):
    file = tmp_path / "file"
    file.touch()
    points = by_name(doctor(data_dir=file), "failed")
    assert f"{file} is a file" in points["data directory"]["found"]


def test_no_data_directory_yet(service, tmp_path):
    points = by_name(doctor(data_dir=tmp_path / "new" / "folder"))
    assert points["data directory"]["state"] == "note"
    assert points["write and rename"]["state"] == "ok"
    assert not (tmp_path / "new").exists()


def test_a_saved_folder_that_is_gone(service, environment):
    config = environment / "config" / "laion_fmri" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"data_dir": "data/laion"}))
    point = by_name(doctor())["saved data directory"]
    assert (point["state"], point["found"]) == ("note", "data/laion")


def test_the_id_is_neither_sent_nor_shown(bucket, service, data_dir, capsys):
    request_id = service.grant()
    file = data_dir / ".laion_fmri" / "auth.json"
    file.parent.mkdir()
    content = {"server_url": service.url, "request_id": request_id}
    file.write_text(json.dumps(content))
    file.chmod(0o644)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert request_id not in out
    assert request_id[-3:] not in out
    assert "1 failed (auth.json)" in out
    assert "chmod 600" in out
    assert all(body is None for _, _, body in service.requests)
    file.chmod(0o600)
    points = by_name(doctor())
    assert points["auth.json"]["state"] == points["request_id"]["state"] == "ok"


def test_secrets_of_the_environment(bucket, service, monkeypatch, capsys):
    """Not even what servers echo shows them."""
    secret, password = "lfm_0123456789abcdefghijklmnop", "pa55/wo@rd"
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", secret)
    monkeypatch.setenv("ALL_PROXY", f"http://ada:{password}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LAION_FMRI_DATADIR", "/data")
    service.manifest["current_terms_version"] = (
        f"{secret} of https://x.org/a?X-Amz-Signature=1"
    )
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    for hidden in (secret, secret[4:], password, "wo@rd", "X-Amz-Signature"):
        assert hidden not in out
    points = by_name(json.loads(out))
    assert points["LAION_FMRI_REQUEST_ID"]["found"] == "set"
    assert "LAION_FMRI_DATA_DIR" in points["LAION_FMRI_DATADIR"]["advice"]


def test_unfinished_downloads(bucket, service, data_dir):
    folder = data_dir / ".laion_fmri" / "partial"
    folder.mkdir(parents=True)
    (folder / "0123.host-1-2.part").write_bytes(bytes(2000))
    (folder / "0123.host-1-2.done").write_bytes(b"")
    point = by_name(doctor())["unfinished downloads"]
    assert (point["state"], point["found"]) == ("note", "1 file, 2 kB")
