"""fetch_laion_betas: a region of all sessions, by model files or by images."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import h5py
import nibabel as nib
import numpy as np
import pytest
from conftest import unwritable
from model_buckets import (
    BRAIN_MASK,
    MEAN_RSQUARE,
    N_TRIALS,
    SESSIONS,
    Log,
    brain,
    ceiling_key,
    fitted,
    image_key,
    model_key,
    model_of,
    put_models,
    read,
    roi,
    rsquare_key,
    table_key,
    true_betas,
)
from policies import set_policy

from laion_fmri_fetchers import (
    fetch_laion_betas,
    fetch_laion_fmri,
    load_betas,
    verify_cache,
)
from laion_fmri_fetchers.betas import fill, model
from laion_fmri_fetchers.demo.formats import nifti_bytes
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    HeldOutSessionError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.messages import readable_size

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture
def server(betas_server):
    return betas_server


def fetch(rois="FFA1", **options):
    return fetch_laion_betas(1, rois, **{"verbose": 0, **options})


@pytest.fixture
def log(server):
    return Log(server, [f(s) for f in (model_key, image_key) for s in SESSIONS])


@pytest.fixture
def face(betas_folder):
    """The voxels of FFA-1."""
    return roi(betas_folder, "face", "FFA-1")


# Equality


OPTIONS = "shape", "order", "voxels"

# Pairs of options meet at least once.
VARIANTS = [
    ("2d", "C", "fitted"),
    ("2d", "F", "brain"),
    ("glmsingle", "F", "fitted"),
    ("glmsingle", "C", "brain"),
    ("volume", "C", "fitted"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_every_layout_of_models_gives_the_values_of_images(
    server, betas_folder, data_dir, variant
):
    options = dict(zip(OPTIONS, variant, strict=True))
    put_models(server, betas_folder, ["ses-01", "ses-02"], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        betas = fetch("EBA", sessions=[1, 2], source="model")
        whole = fetch("brain", sessions=[1], source="model")
    mask = roi(betas_folder, "body", "EBA")
    expected = true_betas(betas_folder, mask, ["ses-01", "ses-02"])
    assert np.array_equal(betas.data, expected)
    assert np.array_equal(betas.mask_img.get_fdata() > 0, mask)
    expected = true_betas(betas_folder, brain(betas_folder), ["ses-01"])
    assert np.array_equal(whole.data, expected)
    assert not (data_dir / image_key("ses-01")).exists()
    assert not (data_dir / model_key("ses-01")).exists()


def test_options_are_those_of_load_betas(server, data_dir, tmp_path, betas_folder):
    data = fetch_laion_fmri(1, rois="all", data_dir=tmp_path / "images", verbose=0)
    mask = nib.load(betas_folder / BRAIN_MASK)
    half = np.zeros(mask.shape, np.uint8)
    half[: mask.shape[0] // 2] = 1
    half = nib.Nifti1Image(half, mask.affine)
    for options in (
        {"rois": "EBA", "standardize": "zscore"},
        {"rois": ["face", "V1"], "standardize": "zscore_sample", "dtype": "float64"},
        {"rois": "EBA", "average_repeats": True, "standardize": "zscore"},
        {"rois": "all", "nc_threshold": 30, "noise_ceiling": "4rep"},
        {"rois": "brain", "nc_threshold": 40, "mask_img": half},
    ):
        expected = load_betas(data, verbose=0, **options)
        betas = fetch(source="model", **options)
        assert np.array_equal(betas.data, expected.data), options
        assert betas.data.dtype == expected.data.dtype
        assert betas.trials.equals(expected.trials)
        assert list(betas.roi_masks) == list(expected.roi_masks)
        assert list(betas.noise_ceilings) == list(expected.noise_ceilings)
        assert list(betas.groups) == list(expected.groups)
    assert not (data_dir / image_key("ses-01")).exists()


def test_trials_are_filtered_and_sessions_without_one_not_read(
    server, log, betas_folder, face
):
    label = fetch_laion_fmri(1, sessions=2, dry_run=True, verbose=0).trials["label"][3]
    betas = fetch(sessions=[1, 2], trial_filter={"label": label}, source="model")
    rows = betas.trials[["session", "beta_index"]].itertuples(index=False)
    expected = [
        np.nan_to_num(read(betas_folder, image_key(session))[face][:, index])
        for session, index in rows
    ]
    assert np.array_equal(betas.data, expected)
    sessions = set(betas.trials["session"])
    assert {key for key in log.keys if key.endswith(".h5")} == {
        model_key(session) for session in sessions
    }


@pytest.mark.parametrize("source", ["auto", "model", "images"])
def test_every_source_gives_the_same_numbers(server, betas_folder, face, source):
    expected = true_betas(betas_folder, face)
    assert np.array_equal(fetch(source=source).data, expected)


@pytest.mark.parametrize("source", ["model", "images"])
def test_betas_say_what_was_asked_and_read(server, data_dir, source):
    for mode in ("download_new", "offline"):
        betas = fetch(sessions=1, source=source, trial_filter={"run": 1}, mode=mode)
        assert betas.versions[image_key("ses-01")] == record_of_image(server)["etag"]
        assert betas.query["rois"] == ["FFA1"]
        assert betas.query["sessions"] == ["ses-01"]
        assert betas.query["trial_filter"] == {"run": 1}
        assert betas.data_dir == str(data_dir)
        assert betas.description


def test_images_on_disk_are_read_first(server, log, data_dir, betas_folder, face):
    fetch_laion_fmri(1, sessions=[1, 2, 3], verbose=0)
    log.clear()
    betas = fetch()
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert not log.keys
    assert (data_dir / image_key("ses-01")).exists()
    betas = fetch("EBA", sessions=1, source="model")
    expected = true_betas(betas_folder, roi(betas_folder, "body", "EBA"), ["ses-01"])
    assert np.array_equal(betas.data, expected)
    assert log.n_bytes(model_key("ses-01")) > 0


def test_offline_from_the_store_and_from_images(
    server, data_dir, betas_folder, face, no_network_from_now
):
    fetch_laion_fmri(1, rois="all", sessions=1, verbose=0)
    fetch(sessions=2)
    no_network_from_now()
    with pytest.warns(UserWarning, match=r"1 session of sub-01.*ses-03.*left out"):
        betas = fetch(mode="offline")
    expected = true_betas(betas_folder, face, ["ses-01", "ses-02"])
    assert np.array_equal(betas.data, expected)
    assert list(betas.trials["session"].unique()) == ["ses-01", "ses-02"]
    with pytest.raises(NotCachedError, match=r"ses-03.*download_new"):
        fetch(sessions=[1, 3], mode="offline")
    with pytest.raises(NotCachedError, match="ses-02"):
        fetch("EBA", sessions=2, mode="offline")


@pytest.fixture
def no_network_from_now(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    def start():
        import socket

        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return start


# Models that are not used


def h5(write):
    """Return an HDF5 file."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


def dataset(values, name="betasmd", **options):
    return h5(lambda file: file.create_dataset(name, data=values, **options))


def rows(folder):
    return read(folder, image_key("ses-01"))[fitted(folder, "ses-01")]


def patched(content, old, new):
    assert content.count(old) == 1
    return content.replace(old, new)


def one_row_altered(folder):
    values = read(folder, image_key("ses-01")).copy()
    values[tuple(np.argwhere(roi(folder, "face", "FFA-1"))[0])] += 1
    return model_of(folder, "ses-01", betas=values)


def other_storage(folder):
    return h5(
        lambda file: file.create_dataset(
            "betasmd", rows(folder).shape, "f4", external=[("other.bin", 0, 10**6)]
        )
    )


def virtual(folder):
    layout = h5py.VirtualLayout(rows(folder).shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "betasmd", rows(folder).shape)
    return h5(lambda file: file.create_virtual_dataset("betasmd", layout))


def lying_offset(folder):
    content = model_of(folder, "ses-01")
    with h5py.File(io.BytesIO(content)) as file:
        place = file["betasmd"].id.get_offset(), file["betasmd"].nbytes
    return patched(
        content, struct.pack("<QQ", *place), struct.pack("<QQ", 2**40, place[1])
    )


def shifted_offset(folder):
    content = model_of(folder, "ses-01")
    with h5py.File(io.BytesIO(content)) as file:
        place = file["betasmd"].id.get_offset(), file["betasmd"].nbytes
    new = struct.pack("<QQ", place[0] - 4, place[1])
    return patched(content, struct.pack("<QQ", *place), new)


def with_maps_without(folder):
    return h5(lambda file: file.create_dataset("R2", data=np.ones(3)))


def linked(link):
    return lambda folder: h5(lambda file: file.__setitem__("betasmd", link))


def compound(folder):
    return dataset(np.zeros((5, N_TRIALS), [("a", "f4"), ("b", "f4")]))


def own_betas(change):
    def make(folder):
        return model_of(
            folder, "ses-01", betas=change(read(folder, image_key("ses-01")))
        )

    return make


DIFFERS = "not the voxels of a known mask in a known order"
UNREADABLE = "HDF5 cannot read it"
NOT_USED = {
    "shuffled": (lambda f: model_of(f, "ses-01", rows="shuffled"), DIFFERS),
    "scaled": (own_betas(lambda values: values * 1.5), DIFFERS),
    "of another session": (lambda f: model_of(f, "ses-02"), DIFFERS),
    "fewer columns": (own_betas(lambda v: v[..., :-1]), "39 columns, but the image 40"),
    "fewer rows": (lambda f: dataset(rows(f)[:-7]), "another number of rows"),
    "one row altered": (one_row_altered, f"{DIFFERS}|1 of its 4 rows"),
    "cut short": (lambda f: model_of(f, "ses-01")[:100_000], UNREADABLE),
    "cut to nothing": (lambda f: b"", UNREADABLE),
    "not HDF5": (lambda f: bytes(100_000), UNREADABLE),
    "without betasmd": (with_maps_without, "no dataset 'betasmd', but R2"),
    "soft link": (linked(h5py.SoftLink("/R2")), "link to elsewhere"),
    "external link": (linked(h5py.ExternalLink("o.h5", "/x")), "link to elsewhere"),
    "external storage": (other_storage, "in other files"),
    "virtual": (virtual, "in other files"),
    "a group": (lambda f: h5(lambda file: file.create_group("betasmd")), "dataset"),
    "int16": (lambda f: dataset(rows(f).astype("i2")), "of type int16"),
    "float16": (lambda f: dataset(rows(f).astype("f2")), "of type float16"),
    "compound": (compound, "of type"),
    "one axis": (lambda f: dataset(np.ones(9, "f4")), r"shape \(9,\)"),
    "no values": (lambda f: dataset(np.ones((0, 9), "f4")), r"shape \(0, 9\)"),
    "never written": (
        lambda f: h5(lambda file: file.create_dataset("betasmd", (5, N_TRIALS), "f4")),
        "not in one place",
    ),
    "offset beyond the end": (lying_offset, "end at byte|HDF5 cannot read it"),
    "offset shifted": (shifted_offset, DIFFERS),
    "chunked": (lambda f: model_of(f, "ses-01", layout="chunked"), "in chunks"),
    "compressed": (lambda f: model_of(f, "ses-01", layout="gzip"), "by gzip"),
    "float64": (lambda f: model_of(f, "ses-01", dtype="float64"), "type float64"),
}


@pytest.mark.parametrize("name", NOT_USED)
def test_models_that_are_not_used(server, log, data_dir, betas_folder, face, name):
    make, reason = NOT_USED[name]
    content = make(betas_folder)
    server.put(model_key("ses-01"), content)
    with pytest.raises(CorruptImageError, match=reason) as error:
        fetch(sessions=1, source="model")
    assert "ses-01 of sub-01" in str(error.value)
    assert "source='auto' takes the image" in str(error.value)
    assert log.n_bytes(model_key("ses-01")) <= len(content) + 2**17
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        betas = fetch(sessions=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    (warning,) = [w for w in caught if issubclass(w.category, UserWarning)]
    assert "images are read instead" in str(warning.message)
    assert not list(data_dir.rglob("*.tmp"))
    assert not list((data_dir / ".laion_fmri" / "voxels").rglob(".image*"))


def put_session(server, folder, change, session="ses-01"):
    """Replace image and model of a session by altered betas, which are returned."""
    values = change(read(folder, image_key(session)).copy())
    affine = nib.load(folder / image_key(session)).affine
    server.put(image_key(session), nifti_bytes(values, affine))
    server.put(model_key(session), model_of(folder, session, betas=values))
    return values


def without_first(values):
    values[..., 0] = np.nan
    return values


def same_first(values):
    values[..., 0] = np.where(values[..., 1:].any(axis=3), 1, 0)
    return values


@pytest.mark.parametrize(
    ("change", "reason"),
    [(without_first, "tell nothing|may be"), (same_first, "may be")],
)
def test_first_volumes_that_prove_nothing(server, betas_folder, face, change, reason):
    values = put_session(server, betas_folder, change)
    with pytest.raises(CorruptImageError, match=reason):
        fetch(sessions=1, source="model")
    with pytest.warns(UserWarning, match=reason):
        betas = fetch(sessions=1)
    assert np.array_equal(betas.data, np.nan_to_num(values[face].T))


def test_holes_are_holes(server, betas_folder, face):
    def with_holes(values):
        voxels = np.argwhere(face)
        values[tuple(voxels[0])] = np.nan
        values[(*voxels[1], 3)] = np.nan
        return values

    values = put_session(server, betas_folder, with_holes)
    betas = fetch(sessions=1, source="model", standardize="zscore")
    expected = np.nan_to_num(values[face].T)
    assert np.array_equal(fetch(sessions=1).data, expected)
    voxel = np.delete(values[face][1], 3)
    scores = (voxel - voxel.mean()) / voxel.std()
    assert np.allclose(np.delete(betas.data[:, 1], 3), scores, atol=1e-5)
    assert betas.data[3, 1] == 0


def test_rows_that_are_proved_are_used_though_the_image_has_more(
    server, log, betas_folder, face
):
    """Voxels of the image that the model lacks are read of the image alone."""
    mask = fitted(betas_folder, "ses-01")
    values = read(betas_folder, image_key("ses-01"))
    lacking = tuple(np.argwhere(mask & ~face & (values[..., 0] != 0))[0])
    mask[lacking] = False
    affine = nib.load(betas_folder / BRAIN_MASK).affine
    server.put(rsquare_key("ses-01"), nifti_bytes(mask.astype("f4"), affine))
    server.put(model_key("ses-01"), dataset(values[mask]))
    only = {"sessions": 1, "source": "model"}
    assert np.array_equal(fetch(**only).data, np.nan_to_num(values[face].T))
    with pytest.raises(CorruptImageError, match="of those asked for"):
        fetch("brain", **only)
    whole = fetch("brain", sessions=1)
    expected = true_betas(betas_folder, brain(betas_folder), ["ses-01"])
    assert np.array_equal(whole.data, expected)


def test_a_model_of_the_brain_mask_with_an_image_beyond_it(server, log, betas_folder):
    """Masks of one's own are within the brain, too, so that no image is needed."""
    values = read(betas_folder, image_key("ses-01")).copy()
    inside = brain(betas_folder)
    values[~inside & (np.arange(values.shape[0]) > 5)[:, None, None]] = 7.5
    affine = nib.load(betas_folder / image_key("ses-01")).affine
    server.put(image_key("ses-01"), nifti_bytes(values, affine))
    server.put(model_key("ses-01"), dataset(values[inside]))
    for _ in range(2):
        betas = fetch("brain", sessions=1, source="model")
        assert np.array_equal(betas.data, np.nan_to_num(values[inside].T))


def test_an_r2_map_that_is_nan_outside_the_fit(server, betas_folder, face):
    rsquare = read(betas_folder, rsquare_key("ses-01"))
    is_fitted = rsquare != 0
    voxel = tuple(np.argwhere(is_fitted & ~face)[0])

    def with_a_zero(values):
        values[(*voxel, 0)] = 0  # so that the image does not tell the fit
        return values

    values = put_session(server, betas_folder, with_a_zero)
    affine = nib.load(betas_folder / BRAIN_MASK).affine
    rsquare[~is_fitted] = np.nan
    server.put(rsquare_key("ses-01"), nifti_bytes(rsquare, affine))
    betas = fetch(sessions=1, source="model")
    assert np.array_equal(betas.data, values[face].T)


@pytest.mark.parametrize(
    "content",
    [b"no map", zlib.compress(b"x"), nifti_bytes(np.ones((3, 3, 3)), np.eye(4))],
)
def test_a_damaged_map_of_the_bucket_is_no_mask(server, betas_folder, content):
    server.put(rsquare_key("ses-01"), content)
    values = rows(betas_folder)[3:]
    server.put(model_key("ses-01"), dataset(values))
    with pytest.raises(CorruptImageError, match="the R2 map"):
        fetch(sessions=1, source="model")


def test_a_structure_that_is_scattered(server, betas_folder, monkeypatch):
    def write(file):
        file.create_dataset("R2", data=np.zeros(200_000, "f4"))
        file.create_dataset("betasmd", data=rows(betas_folder))

    server.put(model_key("ses-01"), h5(write))
    fetch(sessions=1, source="model", mode="overwrite")
    monkeypatch.setattr(model, "_MOST_ROUNDS", 1)
    server.put(model_key("ses-01"), h5(write) + b" ")
    with pytest.raises(CorruptImageError, match="scattered over the file"):
        fetch("EBA", sessions=1, source="model")


def test_no_model_in_the_bucket(server, log, betas_folder, face):
    server.delete(model_key("ses-02"))
    with pytest.raises(InvalidQueryError, match=r"no model file of ses-02.*'auto'"):
        fetch(sessions=[1, 2], source="model")
    betas = fetch(sessions=[1, 2])
    assert np.array_equal(
        betas.data, true_betas(betas_folder, face, ["ses-01", "ses-02"])
    )
    assert model_key("ses-01") in log.keys


def test_models_that_are_more_bytes_than_the_image(server, log, betas_folder, capsys):
    betas = fetch("brain", sessions=1, verbose=1)
    expected = true_betas(betas_folder, brain(betas_folder), ["ses-01"])
    assert np.array_equal(betas.data, expected)
    assert log.keys == {image_key("ses-01")}
    assert "they are smaller than these voxels in the model" in capsys.readouterr().err


# What is downloaded


def test_only_voxels_that_lack_are_downloaded(server, log, data_dir, betas_folder):
    fetch("EBA", sessions=1)
    assert log.n_bytes(image_key("ses-01")) < 30_000
    log.clear()
    n_new = (
        roi(betas_folder, "face", "FFA-1") & ~roi(betas_folder, "body", "EBA")
    ).sum()
    fetch(["EBA", "FFA1"], sessions=1)
    assert 0 < n_new * N_TRIALS * 4 <= log.n_bytes(model_key("ses-01"))
    assert log.n_bytes(model_key("ses-01")) <= 1.5 * n_new * N_TRIALS * 4
    assert log.keys == {model_key("ses-01")}
    log.clear()
    fetch(["FFA1", "EBA"], sessions=1)
    fetch("FFA1", sessions=1, standardize="zscore")
    assert not log.ranges
    on_disk = [path for path in data_dir.rglob("*") if path.is_file()]
    assert not [p for p in on_disk if p.suffix == ".h5" or "_betas" in p.name.lower()]


def test_images_are_removed_once_their_voxels_are_stored(
    server, data_dir, betas_folder, face, monkeypatch
):
    most = []
    monkeypatch.setattr(
        "laion_fmri_fetchers.betas.fill.read_header",
        lambda file: most.append(len(images_of(data_dir))) or real_header(file),
    )
    fetch_laion_fmri(1, rois="all", sessions=2, verbose=0)
    betas = fetch(source="images")
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert max(most) <= 4
    assert images_of(data_dir) == [image_key("ses-02")]
    assert not list(data_dir.rglob(".image*"))
    report = verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}, report
    assert image_key("ses-01") not in set(report["id"])


def images_of(data_dir):
    """Return all beta images, whole or in part, of the user or the store."""
    files = [
        *data_dir.rglob("*SingletrialBetas_statmap.nii.gz"),
        *data_dir.rglob(".image*"),
    ]
    return [path.relative_to(data_dir).as_posix() for path in files]


def real_header(file):
    from laion_fmri_fetchers.volumes import read_header

    return read_header(file)


def test_images_are_kept_where_asked_for(server, data_dir):
    fetch(sessions=1, source="images", keep_images=True)
    assert images_of(data_dir) == [image_key("ses-01")]
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def stalling(server, key):
    """Let an object stop after some bytes; return events: begun, and go on."""
    begun, go_on = threading.Event(), threading.Event()
    content = server.objects[key].value

    def fault(environ):
        if go_on.is_set():
            return None
        asked = environ.get("HTTP_RANGE", f"bytes=0-{len(content) - 1}")
        start, last = map(int, asked.removeprefix("bytes=").split("-"))

        def body():
            yield content[start : start + 20_000]
            begun.set()
            go_on.wait(100)

        status, headers, _ = sent(content, start, last + 1, content[start : last + 1])
        return (status if "HTTP_RANGE" in environ else 200), headers, body()

    server.faults[key] = fault
    return begun, go_on


@pytest.mark.parametrize("source", ["images", "model"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_end_from_outside_leaves_nothing_for_long(
    server, data_dir, betas_folder, face, end, source
):
    key = (image_key if source == "images" else model_key)("ses-03")
    begun, go_on = stalling(server, key)
    code = (
        "from laion_fmri_fetchers import fetch_laion_betas as f\n"
        f"f(1, 'FFA1', source={source!r}, verbose=0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    assert begun.wait(240)
    process.send_signal(end)
    _, errors = process.communicate(timeout=240)
    go_on.set()
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (end == signal.SIGINT)
    week_ago = time.time() - 7 * 24 * 3600
    for left in data_dir.rglob("*.tmp"):
        os.utime(left, (week_ago, week_ago))
    # The user fetches an image meanwhile: it stays.
    fetch_laion_fmri(1, sessions=3, verbose=0)
    betas = fetch(source=source)
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert images_of(data_dir) == [image_key("ses-03")]
    assert not list(data_dir.rglob("*.tmp"))
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_what_a_killed_process_left_is_removed_though_all_is_stored(server, data_dir):
    fetch(sessions=1)
    left = data_dir / ".laion_fmri" / "voxels" / "sub-01" / "ses-01" / ".image-e.nii.gz"
    left.write_bytes(b"an image")
    fetch(sessions=1)
    assert left.exists()  # as another process may be about to read it
    os.utime(left, (time.time(), time.time() - 7200))
    fetch(sessions=1)
    assert not left.exists()


def test_a_damaged_image_that_a_killed_process_left(
    server, data_dir, betas_folder, face
):
    fetch("OFA", sessions=1, source="images")
    etag = record_of_image(server)["etag"]
    store = data_dir / ".laion_fmri" / "voxels" / "sub-01" / "ses-01"
    (store / f".image-{etag}.nii.gz").write_bytes(b"an image, once")
    betas = fetch(sessions=1, source="images")
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    assert images_of(data_dir) == []


def record_of_image(server):
    """Return ETag and size of the first session's image in the bucket."""
    stored = server.objects[image_key("ses-01")]
    return {"etag": stored.etag.strip('"'), "size": len(stored.value)}


def test_offline_with_nothing_stored(server, data_dir):
    fetch(dry_run=True)
    with pytest.raises(NotCachedError, match="Voxels of 3 sessions of sub-01"):
        fetch(mode="offline")
    fetch(sessions=2)
    with pytest.warns(UserWarning, match="Voxels of 2 sessions of sub-01"):
        assert set(fetch(mode="offline").trials["session"]) == {"ses-02"}
    (label,) = fetch(sessions=[1], mode="download_new").trials["label"][:1]
    store = data_dir / ".laion_fmri" / "voxels" / "sub-01" / "ses-01"
    shutil.rmtree(store)
    only = {"label": label, "session": "ses-01"}
    with pytest.raises(NotCachedError, match="Voxels of 1 session of sub-01"):
        fetch(mode="offline", trial_filter=only)


def test_images_in_a_directory_that_cannot_be_written(
    server, data_dir, betas_folder, face
):
    fetch_laion_fmri(1, rois="FFA1", verbose=0)
    fetch(dry_run=True)
    expected = true_betas(betas_folder, face)
    with unwritable(data_dir, *data_dir.rglob("*")):
        assert np.array_equal(fetch(mode="offline").data, expected)
        with pytest.warns(UserWarning, match="cannot be written"):
            assert np.array_equal(fetch().data, expected)
    assert not (data_dir / ".laion_fmri" / "voxels").exists()


def test_an_image_that_another_process_removes_is_downloaded_again(
    server, data_dir, betas_folder, face, monkeypatch
):
    def removing(file):
        if len(removed) < n_removals:
            removed.append(file)
            os.unlink(file)
        return read_header(file)

    read_header, removed, n_removals = fill.read_header, [], 3
    monkeypatch.setattr(fill, "read_header", removing)
    betas = fetch(sessions=1, source="images")
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    assert len(removed) == 3
    assert images_of(data_dir) == []
    n_removals = 100
    with pytest.raises(NotCachedError, match="is not on disk"):
        fetch("EBA", sessions=1, source="images")


# Images


def image_of(folder, change, compress=gzip.compress):
    """Return a beta image whose bytes are changed before they are compressed."""
    content = gzip.decompress((folder / image_key("ses-01")).read_bytes())
    return compress(change(bytearray(content)))


def of_type_8(content):
    content[70:74] = struct.pack("<hh", 128, 24)  # RGB
    return content


def of_three_axes(content):
    content[40:42] = struct.pack("<h", 3)
    return content


def of_large_volumes(content):
    content[42:48] = struct.pack("<3h", 2000, 2000, 2000)
    return content


def of_infinite_slope(content):
    content[112:120] = struct.pack("<ff", 2, np.inf)
    return content


IMAGES = {
    "no gzip": (lambda f: bytes(50_000), "cannot be read"),
    "no NIfTI": (lambda f: image_of(f, lambda c: bytes(len(c))), "image"),
    "cut short": (lambda f: image_of(f, lambda c: c[:9000]), "before its first volume"),
    "of colours": (lambda f: image_of(f, of_type_8), "image"),
    "3-D": (lambda f: image_of(f, of_three_axes), "of shape"),
    "large": (lambda f: image_of(f, of_large_volumes), "header is not that of betas"),
    "bad slope": (lambda f: image_of(f, of_infinite_slope), "image"),
    "hidden": (
        lambda f: gzip.compress(b"") * 20_000 + (f / image_key("ses-01")).read_bytes(),
        "lack its first volume",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_whose_first_volume_cannot_be_read(server, log, betas_folder, name):
    make, reason = IMAGES[name]
    server.put(image_key("ses-01"), make(betas_folder))
    with pytest.raises(CorruptImageError, match=reason) as error:
        fetch(sessions=1, source="model")
    assert image_key("ses-01") in str(error.value)


def test_an_image_of_scaled_integers(server, betas_folder, face):
    values = read(betas_folder, image_key("ses-01"))
    affine = nib.load(betas_folder / image_key("ses-01")).affine
    steps = np.round(np.nan_to_num(values) * 4).astype("i2")
    image = nib.Nifti1Image(steps, affine)
    image.header.set_slope_inter(0.25, 0)
    image.header.set_data_dtype("i2")
    buffer = gzip.compress(image.to_bytes())
    server.put(image_key("ses-01"), scaled_by(buffer, 0.25))
    betas = (steps * 0.25).astype("f4")
    server.put(model_key("ses-01"), model_of(betas_folder, "ses-01", betas=betas))
    assert np.array_equal(fetch(sessions=1, source="model").data, betas[face].T)
    assert np.array_equal(
        fetch(sessions=1, source="images", mode="overwrite").data, betas[face].T
    )


def with_afni_extension(image):
    text = b"<AFNI_attributes>" + b" " * 3_000_000
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", text))


FORMS = {
    "AFNI's extension": (nib.Nifti1Image, "<f4", with_afni_extension, (1, 0)),
    "NIfTI-2": (nib.Nifti2Image, "<f4", lambda image: None, (1, 0)),
    "NIfTI-2 with an extension": (nib.Nifti2Image, "<f8", with_afni_extension, (1, 0)),
    "other byte order": (nib.Nifti1Image, ">f4", lambda image: None, (1, 0)),
    "scaled": (nib.Nifti1Image, "<f4", lambda image: None, (0.37, -2)),
    "scaled whole numbers": (nib.Nifti2Image, ">i2", lambda image: None, (0.01, 7)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_as_other_tools_write_them(server, data_dir, betas_folder, face, form):
    """Both ways give what nibabel reads, and the model's rows are proved."""
    kind, dtype, change, (slope, inter) = FORMS[form]
    original = nib.load(betas_folder / image_key("ses-01"))
    values = np.nan_to_num(np.asarray(original.dataobj))
    header = kind.header_class(endianness=dtype[0])
    header.set_data_dtype(dtype)
    image = kind(((values - inter) / slope).astype(dtype), original.affine, header)
    image.header.set_data_dtype(dtype)
    change(image)
    content = bytearray(image.to_bytes())
    place, number = (112, "f") if kind is nib.Nifti1Image else (176, "d")
    size = 2 * struct.calcsize(number)
    content[place : place + size] = struct.pack(f"{dtype[0]}2{number}", slope, inter)
    read_by_nibabel = np.asarray(kind.from_bytes(bytes(content)).dataobj).astype("f4")
    server.put(image_key("ses-01"), gzip.compress(content, 1))
    mask = brain(betas_folder).astype("f4")
    rsquare = nib.Nifti2Image(mask, original.affine).to_bytes()
    server.put(rsquare_key("ses-01"), gzip.compress(rsquare))
    model = model_of(betas_folder, "ses-01", voxels="brain", betas=read_by_nibabel)
    server.put(model_key("ses-01"), model)
    expected = read_by_nibabel[face].T
    for source in ("model", "images"):
        shutil.rmtree(data_dir / ".laion_fmri" / "voxels", ignore_errors=True)
        assert np.array_equal(fetch(sessions=1, source=source).data, expected), source


def scaled_by(content, slope):
    content = bytearray(gzip.decompress(content))
    content[112:120] = struct.pack("<ff", slope, 0)
    return gzip.compress(bytes(content))


def test_an_image_without_a_first_volume(server, betas_folder):
    def blank(values):
        values[..., 0] = 0
        return values

    values = put_session(server, betas_folder, blank)
    content = model_of(betas_folder, "ses-01", betas=values, shape="volume")
    server.put(model_key("ses-01"), content)
    with pytest.raises(CorruptImageError, match="tell nothing"):
        fetch(sessions=1, source="model")


@pytest.mark.parametrize("axis", [0, 3])
def test_images_that_disagree_with_masks_or_trials(server, betas_folder, axis):
    values = read(betas_folder, image_key("ses-01"))
    values = np.delete(values, 0, axis)
    server.put(image_key("ses-01"), nifti_bytes(values, np.eye(4)))
    for source in ("images", "model"):
        with pytest.raises(CorruptImageError, match="ses-01"):
            fetch(sessions=1, source=source)


def test_sessions_whose_rows_differ_in_order(server, betas_folder, face):
    for session, order, voxels in zip(
        SESSIONS, "CFC", ("fitted", "fitted", "brain"), strict=True
    ):
        put_models(server, betas_folder, [session], order=order, voxels=voxels)
    betas = fetch(source="model")
    assert np.array_equal(betas.data, true_betas(betas_folder, face))


# Faults


@pytest.fixture
def quick(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01, tries=3, smallest_piece=2**12)


def answers(server, key, *faulty, always=False):
    """Let the next answers be faulty: functions of content, start and stop."""
    waiting = list(faulty)
    lock = threading.Lock()

    def fault(environ):
        with lock:
            if not waiting:
                return None
            make = waiting[0] if always else waiting.pop(0)
        stored = server.objects[key]
        asked = environ.get("HTTP_RANGE", "bytes=0-").removeprefix("bytes=")
        start, _, last = asked.partition("-")
        stop = int(last) + 1 if last else len(stored.value)
        return make(stored.value, int(start), stop)

    server.faults[key] = fault


def busy(content, start, stop):
    return 503, {"Retry-After": "0"}, b"slow down"


def sent(content, start, stop, body, **headers):
    place = f"bytes {start}-{stop - 1}/{len(content)}"
    return (
        206,
        {"Content-Range": place, "Content-Length": str(len(body)), **headers},
        body,
    )


def ends_early(content, start, stop):
    length = {"Content-Length": str(stop - start)}
    return sent(content, start, stop, content[start : start + 5], **length)


def wrong_place(content, start, stop):
    return sent(content, start + 4, stop + 4, content[start + 4 : stop + 4])


def of_other_size(content, start, stop):
    return sent(content + b"0", start, stop, content[start:stop])


def whole(content, start, stop):
    return 200, {"Content-Length": str(len(content))}, content


PASSING = [busy, ends_early, of_other_size]
LASTING = [wrong_place, whole]


@pytest.mark.parametrize("fault", [*PASSING, wrong_place], ids=lambda f: f.__name__)
def test_faults_that_pass(server, quick, betas_folder, fault):
    answers(server, model_key("ses-01"), fault, fault)
    answers(server, image_key("ses-01"), fault)
    betas = fetch("EBA", sessions=1, source="model")
    expected = true_betas(betas_folder, roi(betas_folder, "body", "EBA"), ["ses-01"])
    assert np.array_equal(betas.data, expected)


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f.__name__)
def test_faults_that_last_and_go_on_from_there(
    server, quick, betas_folder, face, fault
):
    answers(server, model_key("ses-02"), fault, always=True)
    for source in ("model", "auto"):
        with pytest.raises(
            DownloadError, match=r"ses-02 of sub-01.*goes on from there"
        ):
            fetch(sessions=[1, 2, 3], source=source)
    server.faults.clear()
    log = Log(server, [model_key(session) for session in SESSIONS])
    betas = fetch(sessions=[1, 2, 3], source="model")
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert log.keys == {model_key("ses-02")}


@pytest.mark.parametrize("key", [image_key, table_key, BRAIN_MASK])
def test_errors_of_downloads_name_no_argument_of_other_calls(server, quick, key):
    key = key if isinstance(key, str) else key("ses-01")
    server.faults[key] = (500, {}, b"")
    with pytest.raises(DownloadError, match="the same call resumes") as caught:
        fetch(sessions=1, source="images")
    assert "allow_missing" not in str(caught.value)


def test_a_connection_that_stalls(server, quick, betas_folder, face):
    def stalls(content, start, stop):
        def body():
            yield content[start : start + 8]
            time.sleep(5)

        status, headers, _ = sent(content, start, stop, b"stalls " * 9)
        return status, headers, body()

    answers(server, model_key("ses-01"), stalls)
    betas = fetch(sessions=1, source="model", timeout=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


@pytest.mark.parametrize("fault", LASTING, ids=lambda f: f.__name__)
def test_servers_that_do_not_send_ranges(server, quick, betas_folder, face, fault):
    answers(server, model_key("ses-01"), fault, always=True)
    with pytest.raises(BucketError, match=r"ses-01 of sub-01.*source='auto'"):
        fetch(sessions=1, source="model")
    with pytest.warns(UserWarning, match="images are read instead"):
        betas = fetch(sessions=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


def test_a_model_that_the_bucket_denies(server, quick, betas_folder, face):
    server.faults[model_key("ses-01")] = 403, {}, b"denied"
    with pytest.raises(BucketError, match="403"):
        fetch(sessions=1, source="model")
    with pytest.warns(UserWarning, match="images are read instead"):
        betas = fetch(sessions=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


def test_objects_that_change_meanwhile(server, quick, betas_folder, face):
    changed = []

    def change(environ):
        if not changed and environ.get("HTTP_RANGE"):
            changed.append(put_session(server, betas_folder, lambda v: v + (v != 0)))

    fetch_laion_fmri(1, sessions=1, dry_run=True, verbose=0)
    server.faults[model_key("ses-01")] = change
    betas = fetch(sessions=1, source="model")
    assert np.array_equal(betas.data, np.nan_to_num(changed[0][face].T))


def test_objects_that_change_again_and_again(server, quick, betas_folder):
    n_changes = []

    def change(environ):
        n_changes.append(1)
        put_session(server, betas_folder, lambda v: v + (v != 0) * len(n_changes))

    server.faults[model_key("ses-01")] = change
    with pytest.raises(CorruptImageError, match="change again and again"):
        fetch(sessions=1, source="model")


@pytest.mark.parametrize("source", ["auto", "model", "images"])
def test_held_out_sessions(server, source):
    with pytest.raises(HeldOutSessionError, match="ses-31"):
        fetch(sessions=["ses-01", "ses-31"], source=source)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "modal"}, "source is 'modal'.*'model'"),
        ({"source": 3}, "source is 3"),
        ({"rois": "FFA11"}, "FFA1"),
        ({"rois": 3}, "rois"),
        ({"rois": None}, "rois is None.*'all'"),
        ({"sessions": "ses-99"}, "ses-99"),
        ({"standardize": "zscor"}, "standardize"),
        ({"dtype": "int16"}, "dtype is 'int16'"),
        ({"nc_threshold": 101}, "nc_threshold"),
        ({"noise_ceiling": "5rep", "nc_threshold": 9}, "'5rep'.*'4rep'"),
        ({"trial_filter": {"labl": "x"}}, "label"),
        ({"mode": "offlin"}, "offline"),
        ({"n_connections": 0}, "n_connections"),
        ({"timeout": -1}, "timeout"),
        ({"mask_img": "none.nii.gz"}, "none.nii.gz"),
    ],
)
def test_bad_arguments(server, log, options, message):
    with pytest.raises(InvalidQueryError, match=message):
        fetch(**options)
    assert not log.ranges


@pytest.mark.parametrize("subjects", [[], None, True, 1.5, ["sub-01", "all"]])
def test_subjects_that_are_none(server, subjects):
    with pytest.raises(InvalidQueryError, match="subjects (holds|is empty)"):
        fetch_laion_betas(subjects, verbose=0)


def test_a_bucket_without_a_brain_mask(server, betas_folder, face):
    server.delete(BRAIN_MASK)
    with pytest.warns(UserWarning, match="no brain mask.*derived"):
        betas = fetch(sessions=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


def test_a_bucket_of_which_the_brain_is_not_known(server, data_dir):
    server.delete(BRAIN_MASK)
    server.delete(MEAN_RSQUARE)
    with pytest.raises(InvalidQueryError, match=r"no brain mask of sub-01.*mask_img"):
        fetch()


def test_the_brain_knows_its_regions(server):
    """All masks are fetched with it, as they are small."""
    betas = fetch(rois="brain", sessions=1)
    face = fetch(rois="face", sessions=1)
    inside = betas.roi_mask("face")
    np.testing.assert_array_equal(betas.data[:, inside], face.data)


def test_offline_advice_is_of_this_call(server):
    fetch(sessions=1)
    with pytest.raises(NotCachedError) as caught:
        fetch(rois="MPA", sessions=1, mode="offline")
    assert "allow_missing" not in str(caught.value)


def test_a_dry_run(server, log, data_dir, betas_folder, capsys):
    plan = fetch(sessions=[1, 2], dry_run=True, verbose=1)
    assert list(plan.plan["id"]) == [model_key("ses-01"), model_key("ses-02")]
    assert list(plan.plan.columns) == ["id", "size", "reason", "source"]
    assert set(plan.plan["source"]) == {"model"}
    assert plan.plan_size == plan.plan["size"].sum() == plan.sizes["model"]
    sizes = [(betas_folder / image_key(s)).stat().st_size for s in SESSIONS[:2]]
    assert plan.sizes["images"] == sum(sizes)
    assert "by model files" in capsys.readouterr().err
    assert not log.ranges
    assert not (data_dir / ".laion_fmri" / "voxels").exists()
    assert (data_dir / ceiling_key("Allrep")).exists()
    fetch(sessions=1)
    plan = fetch(sessions=[1, 2], dry_run=True, source="images")
    assert list(plan.plan["id"]) == [image_key("ses-02")]
    assert plan.plan_size == plan.sizes["images"] == sizes[1]
    assert len(fetch(sessions=1, dry_run=True).plan) == 0


@pytest.mark.parametrize("rois", ["FFA1", ["V1", "face"], "all"])
def test_what_is_announced_is_what_is_read(server, betas_folder, capsys, rois):
    keys = [model_key, image_key, rsquare_key]
    log = Log(server, [key(s) for key in keys for s in SESSIONS])
    planned = fetch(rois, dry_run=True).plan_size
    log.clear()
    fetch(rois, verbose=1)
    n_bytes = sum(max(0, stop - start) for _, start, stop in log.ranges)
    assert 0.8 * n_bytes <= planned <= 1.2 * n_bytes
    said = f"Reading about {readable_size(planned)} of 3 model files"
    assert said in capsys.readouterr().err
    # What was proved once is not read again, nor announced.
    planned = fetch("brain", source="model", dry_run=True).plan_size
    log.clear()
    fetch("brain", source="model")
    n_bytes = sum(stop - start for _, start, stop in log.ranges)
    assert 0.8 * n_bytes <= planned <= 1.2 * n_bytes


# Selections of trials


@pytest.mark.parametrize("query", [{"n_reps": "12"}, {"label": "none such"}])
def test_a_selection_without_trials_is_an_error_as_in_load_betas(server, query):
    message = "No trial of sub-01 is selected"
    with (
        pytest.warns(UserWarning, match="Nothing passes trial_filter"),
        pytest.raises(InvalidQueryError, match=message),
    ):
        fetch(trial_filter=query)
    with pytest.warns(UserWarning, match="Nothing passes trial_filter"):
        assert fetch(trial_filter=query, dry_run=True).plan_size == 0
    data = fetch_laion_fmri(1, "FFA1", max_images=1, verbose=0)
    data.trials = data.trials[:0]
    with pytest.raises(InvalidQueryError, match=message):
        load_betas(data, verbose=0)


def test_labels_that_no_trial_shows_are_an_error_before_the_download(server):
    trials = fetch_laion_fmri(1, None, dry_run=True, verbose=0).trials
    known = trials["label"][0]
    for dry_run in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(
                InvalidQueryError, match=f"lack 1 .*did you mean '{known}"
            ):
                fetch(labels=[known, known + "x"], dry_run=dry_run)
    with pytest.raises(InvalidQueryError, match="labels is a set, whose order"):
        fetch(labels={*trials["label"][:2]})
    betas = fetch(labels=[trials["label"][1], known])
    assert list(dict.fromkeys(betas.trials["label"])) == [trials["label"][1], known]


def test_rois_and_labels_may_be_iterators(server):
    labels = list(
        fetch_laion_fmri(1, None, dry_run=True, verbose=0).trials["label"][:2]
    )
    expected = fetch("FFA1", labels=labels)
    for subjects in (1, (n for n in [1])):
        rois, names = (n for n in ["FFA1"]), iter(labels)
        got = fetch_laion_betas(subjects, rois, labels=names, verbose=0)
        got = got if subjects == 1 else got["sub-01"]
        assert np.array_equal(got.data, expected.data)
    data = fetch_laion_fmri("all", "FFA1", 1, verbose=0)
    each = load_betas(data, "all", labels=iter(labels[:1]), verbose=0)
    assert all(set(betas.trials["label"]) == {labels[0]} for betas in each.values())


def test_a_region_that_one_of_several_subjects_lacks_is_a_warning(server, betas_folder):
    """The second subject has the files of the first, but for a region."""
    for path in betas_folder.rglob("*"):
        key = path.relative_to(betas_folder).as_posix()
        if path.is_file() and "sub-01" in key and "FFA" not in key:
            server.put(key.replace("sub-01", "sub-03"), path.read_bytes())
    subjects = ["sub-01", "sub-03"]
    with pytest.warns(UserWarning, match="sub-03 has no ROI FFA1"):
        both = fetch_laion_betas(subjects, ["FFA1", "OFA"], 1, verbose=0)
    assert list(both["sub-01"].roi_masks) == ["FFA1", "OFA"]
    assert list(both["sub-03"].roi_masks) == ["OFA"]
    with pytest.warns(UserWarning, match="sub-03 has no ROI FFA1"):
        assert list(fetch_laion_betas(subjects, "FFA1", 1, verbose=0)) == ["sub-01"]
    with pytest.raises(InvalidQueryError, match="sub-03 has no ROI FFA1"):
        fetch_laion_betas("sub-03", "FFA1", 1, verbose=0)
