"""fetch_laion_betas: a region of all sessions, by model files or by images."""

from __future__ import annotations

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import h5py
import model_buckets as bucket
import nibabel as nib
import numpy as np
import pytest
from checks import fails, no_warnings, warned
from conftest import unwritable
from model_buckets import SESSIONS, fetch, image_key, model_key, model_of, true_betas
from policies import set_policy

from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers import fetch_laion_betas, load_betas, verify_cache
from laion_fmri_fetchers.demo.formats import nifti_bytes
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.messages import readable_size

server, log, face, store = bucket.server, bucket.log, bucket.face, bucket.store
expected, images = bucket.expected, bucket.images
IMAGE, MODEL = image_key("ses-01"), model_key("ses-01")
RSQUARE = bucket.rsquare_key("ses-01")


@pytest.fixture(scope="session")
def eba(betas_folder):
    return bucket.roi(betas_folder, "body", "EBA")


@pytest.fixture(scope="session")
def values(betas_folder):
    """The first session's image, and where its affine is that of."""
    return bucket.read(betas_folder, IMAGE)


# Equality


@pytest.mark.parametrize(
    "forms",
    [
        [("2d", "C", "fitted"), ("2d", "F", "brain"), ("glmsingle", "F", "fitted")],
        [("glmsingle", "C", "brain"), ("volume", "C", "fitted"), ("2d", "C", "brain")],
    ],
    ids=str,
)
def test_models_have_the_values_of_images(server, betas_folder, data_dir, eba, forms):
    for session, (shape, order, voxels) in zip(SESSIONS, forms, strict=True):
        options = {"shape": shape, "order": order, "voxels": voxels}
        server.put(model_key(session), model_of(betas_folder, session, **options))
    brain = bucket.brain(betas_folder)
    for rois, mask in (("EBA", eba), ("brain", brain)):
        with no_warnings():
            betas = fetch(rois, "all", source="model")
        assert np.array_equal(betas.data, true_betas(betas_folder, mask))
        assert np.array_equal(betas.mask_img.get_fdata() > 0, mask)
    # All masks are fetched with the brain, as they are small.
    of_face = fetch("face", "all", mode="offline").data
    assert np.array_equal(betas.data[:, betas.roi_mask("face")], of_face)
    assert not [*data_dir.rglob("*.h5"), *images_in(data_dir)]


def images_in(data_dir):
    """Return all beta images, whole or in part, of the user or the store."""
    patterns = "*SingletrialBetas_statmap.nii.gz", ".image*"
    files = [path for pattern in patterns for path in data_dir.rglob(pattern)]
    return sorted(path.relative_to(data_dir).as_posix() for path in files)


def test_options_are_those_of_load_betas(server, data_dir, tmp_path, betas_folder):
    data = images("all", "all", data_dir=tmp_path / "images")
    mask = nib.load(betas_folder / bucket.BRAIN_MASK)
    half = mask.get_fdata()
    half[len(half) // 2 :] = 0
    half = nib.Nifti1Image(half, mask.affine)
    for options in (
        {"rois": "EBA", "standardize": "zscore"},
        {"rois": ["face", "V1"], "standardize": "zscore_sample", "dtype": "float64"},
        {"rois": "EBA", "average_repeats": True, "standardize": "zscore"},
        {"rois": "all", "nc_threshold": 30, "noise_ceiling": "4rep"},
        {"rois": "brain", "nc_threshold": 40, "mask_img": half, "dtype": "float16"},
    ):
        expected = load_betas(data, verbose=0, **options)
        betas = fetch(sessions="all", source="model", **options)
        assert np.array_equal(betas.data, expected.data), options
        assert betas.data.dtype == expected.data.dtype
        assert betas.trials.equals(expected.trials)
        for key in ("roi_masks", "noise_ceilings", "groups"):
            assert list(betas[key]) == list(expected[key])
    lazy = fetch("EBA", "all", as_dask=True, mode="offline")
    assert np.array_equal(lazy.data.compute(), fetch("EBA", "all").data)
    assert not images_in(data_dir)


def test_trials_that_pass_choose_sessions(server, log, betas_folder, face):
    label = images(None, 2, dry_run=True).trials["label"][3]
    betas = fetch(sessions=[1, 2], trial_filter={"label": label}, source="model")
    expected = {s: true_betas(betas_folder, face, [s]) for s in SESSIONS}
    shown = betas.trials[["session", "beta_index"]].itertuples(index=False)
    assert np.array_equal(betas.data, [expected[session][i] for session, i in shown])
    read_models = {key for key in log.keys if key.endswith(".h5")}
    assert read_models == {model_key(session) for session in betas.trials["session"]}


@pytest.mark.parametrize("source", ["auto", "model", "images"])
def test_every_source_says_what_was_read(server, data_dir, expected, source):
    etag = server.objects[IMAGE].etag
    for mode in ("download_new", "offline"):
        betas = fetch(source=source, trial_filter={"run": 1}, mode=mode)
        assert np.array_equal(betas.data, expected[betas.trials["beta_index"]])
        assert betas.versions[IMAGE] == etag
        asked = {"rois": ["FFA1"], "sessions": ["ses-01"], "trial_filter": {"run": 1}}
        assert betas.query.items() >= asked.items()
        assert betas.data_dir == str(data_dir)
        assert betas.description
    held_out = {"sessions": ["ses-01", "ses-31"], "source": source}
    fails(errors.HeldOutSessionError, "ses-31", fetch, **held_out)


def test_images_on_disk_are_read_first(server, log, data_dir, expected):
    images()
    log.clear()
    assert np.array_equal(fetch().data, expected)
    assert not log.keys
    assert images_in(data_dir) == [IMAGE]
    fetch("EBA", source="model")
    assert log.n_bytes(MODEL) > 0


def test_offline_from_the_store_and_from_images(server, betas_folder, face, request):
    fetch(sessions="all", dry_run=True)
    words = "Voxels of 3 sessions of sub-01"
    fails(errors.NotCachedError, words, fetch, sessions="all", mode="offline")
    images("all")
    fetch(sessions=2)
    request.getfixturevalue("no_network")
    words = r"1 session of sub-01.*ses-03.*left out"
    betas = warned(words, fetch, sessions="all", mode="offline")
    assert np.array_equal(betas.data, true_betas(betas_folder, face, SESSIONS[:2]))
    assert list(betas.trials["session"].unique()) == ["ses-01", "ses-02"]
    for query, words in (
        ({"sessions": [1, 3]}, r"ses-03.*download_new"),
        ({"rois": "EBA", "sessions": 2}, "ses-02"),
        ({"sessions": "all", "trial_filter": {"session": "ses-03"}}, "of 1 session"),
    ):
        error = fails(errors.NotCachedError, words, fetch, mode="offline", **query)
        assert "allow_missing" not in str(error)


# Models that are not used


def h5(write=None, **content):
    """Return an HDF5 file of arrays and links, and of what a function writes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in content.items():
            file[name] = values
        if write:
            write(file)
    return buffer.getvalue()


def fitted(folder):
    return bucket.read(folder, IMAGE)[bucket.fitted(folder, "ses-01")]


def one_row_altered(folder):
    """Return a model of which a row is not the image's, and not in every sample."""
    values = bucket.read(folder, IMAGE).copy()
    values[tuple(np.argwhere(bucket.roi(folder, "face", "FFA-1"))[0])] += 1
    return model_of(folder, "ses-01", betas=values)


def changed(change):
    """Return a model of betas that are not the image's."""
    return lambda f: model_of(f, "ses-01", betas=change(bucket.read(f, IMAGE).copy()))


def declared(**options):
    """Return a model of which values are not where they are expected."""
    options = {"shape": (5, 40), "dtype": "f4", **options}
    return lambda f: h5(lambda file: file.create_dataset("betasmd", **options))


def at_offset(change):
    """Return a model that says that its values are elsewhere."""

    def make(folder):
        content = model_of(folder, "ses-01")
        with h5py.File(io.BytesIO(content)) as file:
            offset, n_bytes = file["betasmd"].id.get_offset(), file["betasmd"].nbytes
        old, new = (struct.pack("<QQ", at, n_bytes) for at in (offset, change(offset)))
        assert content.count(old) == 1
        return content.replace(old, new)

    return make


DIFFERS = "not the voxels of a known mask in a known order"
UNREADABLE = "HDF5 cannot read it"
NOT_USED = {
    "shuffled": (lambda f: model_of(f, "ses-01", rows="shuffled"), DIFFERS),
    "of another session": (lambda f: model_of(f, "ses-02"), DIFFERS),
    "fewer columns": (changed(lambda v: v[..., :-1]), "39 columns, but the image 40"),
    "fewer rows": (lambda f: h5(betasmd=fitted(f)[:-7]), "another number of rows"),
    "one row altered": (one_row_altered, "1 of its 4 rows lack the value"),
    "offset shifted": (at_offset(lambda offset: offset - 4), DIFFERS),
    "offset beyond": (at_offset(lambda _: 2**40), f"end at byte|{UNREADABLE}"),
    "cut short": (lambda f: model_of(f, "ses-01")[:100_000], UNREADABLE),
    "nothing": (lambda f: b"", UNREADABLE),
    "without betasmd": (lambda f: h5(R2=np.ones(3)), "no dataset 'betasmd', but R2"),
    "a link": (lambda f: h5(betasmd=h5py.SoftLink("/R2")), "link to elsewhere"),
    "a group": (lambda f: h5(lambda file: file.create_group("betasmd")), "dataset"),
    "float64": (lambda f: model_of(f, "ses-01", dtype="float64"), "type float64"),
    "one axis": (lambda f: h5(betasmd=np.ones(9, "f4")), r"shape \(9,\)"),
    "elsewhere": (declared(external=[("x.bin", 0, 10**6)]), "in other files"),
    "never written": (declared(), "not in one place"),
    "compressed": (lambda f: model_of(f, "ses-01", layout="gzip"), "chunks.*by gzip"),
}


@pytest.mark.parametrize(("make", "reason"), NOT_USED.values(), ids=NOT_USED)
def test_other_models(server, log, data_dir, betas_folder, expected, make, reason):
    content = make(betas_folder)
    server.put(MODEL, content)
    words = f"ses-01 of sub-01.*{reason}.*source='auto' takes the image"
    fails(CorruptImageError, words, fetch, source="model")
    assert log.n_bytes(MODEL) <= len(content) + 2**17
    with pytest.warns(UserWarning, match="images are read instead") as caught:
        assert np.array_equal(fetch().data, expected)
    assert len(caught) == 1
    assert not [*data_dir.rglob("*.tmp"), *images_in(data_dir)]


def with_first(first):
    """Return a change of the first volume, to a function of all."""

    def change(values):
        values[..., 0] = first(values)
        return values

    return change


SAME = with_first(lambda values: values[..., 1:].any(axis=3))
PROVE_NOTHING = {
    "NaN": (with_first(lambda values: np.nan), "2d"),
    "same": (SAME, "2d"),
    "same on the grid": (SAME, "volume"),
    "blank": (with_first(lambda values: 0), "volume"),
}


@pytest.mark.parametrize(("change", "shape"), PROVE_NOTHING.values(), ids=PROVE_NOTHING)
def test_first_volumes_that_prove_nothing(server, betas_folder, face, change, shape):
    values = bucket.put_session(server, betas_folder, change)
    if shape == "volume":
        model = model_of(betas_folder, "ses-01", betas=values, shape=shape)
        server.put(MODEL, model)
    reason = "tell nothing|may be"
    fails(CorruptImageError, reason, fetch, source="model")
    assert np.array_equal(warned(reason, fetch).data, values[face].T)


def test_holes_are_holes(server, betas_folder, face):
    def with_holes(values):
        voxels = np.argwhere(face)
        values[tuple(voxels[0])] = values[(*voxels[1], 3)] = np.nan
        return values

    values = bucket.put_session(server, betas_folder, with_holes)[face]
    betas = fetch(source="model", standardize="zscore")
    assert np.array_equal(fetch().data, values.T)
    voxel = np.delete(values[1], 3)
    scores = (voxel - voxel.mean()) / voxel.std()
    assert np.allclose(np.delete(betas.data[:, 1], 3), scores, atol=1e-5)
    assert betas.data[3, 1] == 0


def test_an_image_of_more_than_rows(server, betas_folder, face, expected, values):
    """Voxels of the image that the model lacks are read of the image alone."""
    mask = bucket.fitted(betas_folder, "ses-01")
    mask[tuple(np.argwhere(mask & ~face & (values[..., 0] != 0))[0])] = False
    rsquare = np.where(mask, 1, np.nan).astype("f4")  # NaN is outside, as 0 is
    server.put(RSQUARE, nifti_bytes(rsquare, np.eye(4)))
    # What GLMsingle writes before the betas may put them far into the file.
    server.put(MODEL, h5(R2=np.zeros(200_000, "f4"), betasmd=values[mask]))
    assert np.array_equal(fetch(source="model").data, expected)
    fails(CorruptImageError, "of those asked for", fetch, "brain", source="model")
    whole = true_betas(betas_folder, bucket.brain(betas_folder), ["ses-01"])
    assert np.array_equal(fetch("brain").data, whole)
    for content in (b"no map", nifti_bytes(np.ones((3, 3, 3)), np.eye(4))):
        server.put(RSQUARE, content)
        server.put(MODEL, h5(betasmd=values[mask][3:]))
        anew = {"source": "model", "mode": "overwrite"}
        fails(CorruptImageError, "the R2 map", fetch, **anew)


def test_an_image_beyond_the_brain_mask(server, betas_folder, values):
    """Masks of one's own are within the brain, too, so that no image is needed."""
    inside = bucket.brain(betas_folder)
    beyond = values.copy()
    beyond[~inside & (np.arange(len(values)) > 5)[:, None, None]] = 7.5
    server.put(IMAGE, nifti_bytes(beyond, nib.load(betas_folder / IMAGE).affine))
    server.put(MODEL, h5(betasmd=values[inside]))
    for _ in range(2):
        betas = fetch("brain", source="model")
        assert np.array_equal(betas.data, np.nan_to_num(values[inside].T))


def test_where_there_is_no_model_or_it_is_larger(server, log, capsys):
    fetch("brain", verbose=1)
    assert log.keys == {IMAGE}
    assert "they are smaller than these voxels in the model" in capsys.readouterr().err
    server.delete(model_key("ses-02"))
    words = r"no model file of ses-02.*'auto'"
    fails(InvalidQueryError, words, fetch, sessions=[2, 3], source="model")
    log.clear()
    fetch(sessions=[2, 3])
    of_third = {image_key("ses-03"), model_key("ses-03")}
    assert log.keys - {image_key("ses-02")} == of_third


# What is downloaded


def test_only_voxels_that_lack_are_downloaded(server, log, face, eba):
    fetch("EBA")
    assert log.n_bytes(IMAGE) < 30_000
    log.clear()
    fetch(["EBA", "FFA1"])
    n_bytes = (face & ~eba).sum() * 40 * 4
    assert 0 < n_bytes <= log.n_bytes(MODEL) <= 1.5 * n_bytes
    assert log.keys == {MODEL}
    log.clear()
    fetch(["FFA1", "EBA"], standardize="zscore")
    assert not log.ranges


@pytest.mark.parametrize("keep", [False, True])
def test_images_go(server, data_dir, betas_folder, face, monkeypatch, keep):
    most, real = [], nib.load

    def noted(file, *args, **options):
        most.append(len(images_in(data_dir)))
        return real(file, *args, **options)

    images("all", 2)
    monkeypatch.setattr(nib, "load", noted)
    betas = fetch(sessions="all", source="images", keep_images=keep)
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert 0 < max(most) <= 4
    kept = SESSIONS if keep else ["ses-02"]
    assert images_in(data_dir) == [image_key(session) for session in kept]
    report = verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}, report
    assert (IMAGE in set(report["id"])) == keep


@pytest.mark.parametrize(
    ("source", "end"),
    [("images", "SIGINT"), ("images", "SIGKILL"), ("model", "SIGKILL")],
)
def test_an_end_from_outside(server, data_dir, betas_folder, face, source, end):
    begun, go_on = threading.Event(), threading.Event()

    def stalls(content, start, stop):
        def body():
            yield content[start : start + 20_000]
            begun.set()
            go_on.wait(100)

        status, headers, _ = sent(content, start, stop, content[start:stop])
        return status, headers, body()

    key = (image_key if source == "images" else model_key)("ses-03")
    answers(server, key, stalls, always=True)
    code = (
        "from laion_fmri_fetchers import fetch_laion_betas as f\n"
        f"f(1, 'FFA1', source={source!r}, verbose=0)"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    process = subprocess.Popen(command, stderr=pipe, text=True)
    assert begun.wait(240)
    process.send_signal(getattr(signal, end))
    _, errors = process.communicate(timeout=240)
    go_on.set()
    server.faults.clear()
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (end == "SIGINT")
    week_ago = time.time() - 7 * 24 * 3600
    for left in data_dir.rglob("*.tmp"):
        os.utime(left, (week_ago, week_ago))
    # The user fetches an image meanwhile: it stays.
    images(sessions=3)
    betas = fetch(sessions="all", source=source)
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert images_in(data_dir) == [image_key("ses-03")]
    assert not list(data_dir.rglob("*.tmp"))
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_images_that_a_killed_process_left(server, data_dir, store, expected):
    fetch("OFA")
    left = store / f".image-{server.objects[IMAGE].etag}.nii.gz"
    # A young one stays while nobody needs it, as another process may be reading it.
    for rois, source, age in (
        *(("OFA", "auto", 0), ("FFA1", "images", 0), ("FFA1", "auto", 7200)),
    ):
        left.write_bytes(b"an image, once")
        os.utime(left, (time.time(), time.time() - age))
        betas = fetch(rois, source=source)
        assert left.exists() == (rois == "OFA")
    assert np.array_equal(betas.data, expected)


def test_images_that_others_remove(server, data_dir, expected, monkeypatch):
    removed, n_removals, real = [], 3, nib.load

    def removing(file, *args, **options):
        if ".image" in os.fspath(file) and len(removed) < n_removals:
            removed.append(file)
            os.unlink(file)
        return real(file, *args, **options)

    monkeypatch.setattr(nib, "load", removing)
    assert np.array_equal(fetch(source="images").data, expected)
    assert len(removed) == 3
    assert images_in(data_dir) == []
    n_removals = 100
    fails(errors.NotCachedError, "is not on disk", fetch, "EBA", source="images")


def test_images_in_a_directory_that_cannot_be_written(server, data_dir, expected):
    images()
    fetch(dry_run=True)
    with unwritable(data_dir, *data_dir.rglob("*")):
        assert np.array_equal(fetch(mode="offline").data, expected)
        assert np.array_equal(warned("cannot be written", fetch).data, expected)
    assert not (data_dir / ".laion_fmri" / "voxels").exists()


# Images


def with_header(place, kind, *values):
    """Return a beta image with other bytes in its header."""

    def make(content):
        content = bytearray(gzip.decompress(content))
        struct.pack_into(kind, content, place, *values)
        return gzip.compress(content)

    return make


IMAGES = {
    "no gzip": (lambda c: bytes(50_000), "cannot be read"),
    "cut": (lambda c: gzip.compress(gzip.decompress(c)[:9000]), "before its first"),
    "3-D": (with_header(40, "<h", 3), "of shape"),
    "large": (with_header(42, "<3h", 2000, 2000, 2000), "header is not that of betas"),
    "bad slope": (with_header(112, "<ff", 2, np.inf), "image"),
    "hidden": (lambda c: gzip.compress(b"") * 20_000 + c, "lack its first volume"),
}


@pytest.mark.parametrize(("change", "reason"), IMAGES.values(), ids=IMAGES)
def test_images_whose_first_volume_cannot_be_read(server, change, reason):
    server.put(IMAGE, change(server.objects[IMAGE].value))
    error = fails(CorruptImageError, reason, fetch, source="model")
    assert IMAGE in str(error)


@pytest.mark.parametrize("axis", [0, 3])
def test_images_that_disagree_with_masks_or_trials(server, values, axis):
    server.put(IMAGE, nifti_bytes(np.delete(values, 0, axis), np.eye(4)))
    for source in ("images", "model"):
        fails(CorruptImageError, "ses-01", fetch, source=source)


def test_models_that_disagree_with_trials(server, store, betas_folder):
    """Also where their image lacks the same trial."""
    bucket.put_session(server, betas_folder, lambda values: values[..., 1:])
    words = "39 columns, but the trial table 40 trials"
    fails(CorruptImageError, words, fetch, source="model")
    assert not [*store.rglob("*.npy")]


FORMS = {
    "AFNI's extension": (nib.Nifti1Image, "<f4", (1, 0)),
    "NIfTI-2 with AFNI's extension": (nib.Nifti2Image, "<f8", (1, 0)),
    "other byte order": (nib.Nifti1Image, ">f4", (1, 0)),
    "scaled": (nib.Nifti1Image, "<f4", (0.37, -2)),
    "scaled whole numbers": (nib.Nifti2Image, ">i2", (0.01, 7)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_as_other_tools_write_them(server, betas_folder, face, values, form):
    """Both ways give what nibabel reads, and the model's rows are proved."""
    kind, dtype, (slope, inter) = FORMS[form]
    header = kind.header_class(endianness=dtype[0])
    header.set_data_dtype(dtype)
    steps = ((np.nan_to_num(values) - inter) / slope).astype(dtype)
    image = kind(steps, nib.load(betas_folder / IMAGE).affine, header)
    image.header.set_data_dtype(dtype)
    if "AFNI" in form:
        text = b"<AFNI_attributes>" + b" " * 3_000_000
        image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", text))
    content = bytearray(image.to_bytes())
    place, number = (112, "f") if kind is nib.Nifti1Image else (176, "d")
    struct.pack_into(f"{dtype[0]}2{number}", content, place, slope, inter)
    by_nibabel = np.asarray(kind.from_bytes(bytes(content)).dataobj).astype("f4")
    server.put(IMAGE, gzip.compress(content, 1))
    mask = bucket.brain(betas_folder).astype("f4")
    server.put(RSQUARE, gzip.compress(nib.Nifti2Image(mask, np.eye(4)).to_bytes()))
    server.put(MODEL, model_of(betas_folder, "ses-01", "brain", by_nibabel))
    for source in ("model", "images"):
        betas = fetch(source=source, mode="overwrite")
        assert np.array_equal(betas.data, by_nibabel[face].T), source


# Faults


@pytest.fixture
def quick(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01, tries=3, smallest_piece=2**12)


def answers(server, key, *faulty, always=False):
    """Let the next answers be faulty: functions of content, start and stop."""
    waiting, lock = list(faulty), threading.Lock()

    def fault(environ):
        with lock:
            if not waiting:
                return None
            make = waiting[0] if always else waiting.pop(0)
        content = server.objects[key].value
        asked = environ.get("HTTP_RANGE", "bytes=0-").removeprefix("bytes=")
        start, _, last = asked.partition("-")
        return make(content, int(start), int(last) + 1 if last else len(content))

    server.faults[key] = fault


def sent(content, start, stop, body, **headers):
    place = f"bytes {start}-{stop - 1}/{len(content)}"
    headers = {"Content-Length": str(len(body)), **headers}
    return 206, {"Content-Range": place, **headers}, body


def ends_early(content, start, stop):
    length = {"Content-Length": str(stop - start)}
    return sent(content, start, stop, content[start : start + 5], **length)


def stalls(content, start, stop):
    def body():
        yield content[start : start + 8]
        time.sleep(5)

    status, headers, _ = sent(content, start, stop, b"stalls " * 9)
    return status, headers, body()


FAULTS = {
    "busy": lambda c, start, stop: (503, {"Retry-After": "0"}, b"slow down"),
    "ends early": ends_early,
    "of other size": lambda c, start, stop: sent(c + b"0", start, stop, c[start:stop]),
    "wrong place": lambda c, a, b: sent(c, a + 4, b + 4, c[a + 4 : b + 4]),
    "stalls": stalls,
    "whole": lambda c, start, stop: (200, {"Content-Length": str(len(c))}, c),
    "denied": lambda c, start, stop: (403, {}, b"denied"),
}


@pytest.mark.parametrize("name", [*FAULTS][:5])
def test_faults_that_pass(server, quick, betas_folder, eba, name):
    fault = FAULTS[name]
    answers(server, MODEL, fault, *[fault] * (name != "stalls"))
    answers(server, IMAGE, fault)
    betas = fetch("EBA", source="model", timeout=1)
    assert np.array_equal(betas.data, true_betas(betas_folder, eba, ["ses-01"]))


@pytest.mark.parametrize("name", [*FAULTS][:3])
def test_faults_that_last_and_go_on_from_there(server, quick, betas_folder, face, name):
    answers(server, model_key("ses-02"), FAULTS[name], always=True)
    words = r"ses-02 of sub-01.*resumes"
    for source in ("model", "auto"):
        fails(errors.DownloadError, words, fetch, sessions="all", source=source)
    server.faults.clear()
    log = bucket.Log(server, [model_key(session) for session in SESSIONS])
    betas = fetch(sessions="all", source="model")
    assert np.array_equal(betas.data, true_betas(betas_folder, face))
    assert log.keys == {model_key("ses-02")}


@pytest.mark.parametrize("name", ["wrong place", "whole", "denied"])
def test_servers_that_do_not_send_ranges(server, quick, expected, name):
    answers(server, MODEL, FAULTS[name], always=True)
    words = "403" if name == "denied" else r"ses-01 of sub-01.*source='auto'"
    fails(errors.BucketError, words, fetch, source="model")
    betas = warned("images are read instead", fetch)
    assert np.array_equal(betas.data, expected)
    server.faults[image_key("ses-02")] = (500, {}, b"")
    words = "the same call resumes"
    error = fails(errors.DownloadError, words, fetch, sessions=2, source="images")
    assert "allow_missing" not in str(error)


@pytest.mark.parametrize("most", [1, 1000])
def test_objects_that_change_meanwhile(server, quick, betas_folder, face, most):
    changed = []

    def change(environ):
        if len(changed) < most and environ.get("HTTP_RANGE"):
            changed.append(bucket.put_session(server, betas_folder, 2 + len(changed)))

    images(dry_run=True)
    server.faults[MODEL] = change
    if most == 1:
        assert np.array_equal(fetch(source="model").data, changed[0][face].T)
    else:
        words = "change again and again"
        fails(CorruptImageError, words, fetch, source="model")


# Arguments


def test_bad_arguments(server, log):
    for options, words in (
        ({"source": "modal"}, "source is 'modal'.*'model'"),
        ({"rois": "FFA11"}, "FFA1"),
        ({"rois": None}, "rois is None.*'all'"),
        ({"sessions": "ses-99"}, "ses-99"),
        ({"standardize": "zscor"}, "standardize"),
        ({"nc_threshold": 101}, "nc_threshold"),
        ({"noise_ceiling": "5rep", "nc_threshold": 9}, "'5rep'.*'4rep'"),
        ({"trial_filter": {"labl": "x"}}, "label"),
        ({"mode": "offlin"}, "offline"),
        ({"n_connections": 0}, "n_connections"),
        ({"mask_img": "none.nii.gz"}, "none.nii.gz"),
    ):
        fails(InvalidQueryError, words, fetch, **options)
    for subjects in ([], None, True, 1.5, ["sub-01", "all"]):
        fails(
            InvalidQueryError, "subjects (holds|is empty)", fetch_laion_betas, subjects
        )
    assert not log.ranges


def test_a_bucket_without_a_brain_mask(server, expected):
    server.delete(bucket.BRAIN_MASK)
    betas = warned("no brain mask.*derived", fetch)
    assert np.array_equal(betas.data, expected)
    server.delete(bucket.MEAN_RSQUARE)
    words = r"no brain mask of sub-01.*mask_img"
    fails(InvalidQueryError, words, fetch, data_dir=f"{betas.data_dir}2")


def test_a_dry_run(server, log, data_dir, betas_folder, capsys):
    plan = fetch(sessions=[1, 2], dry_run=True, verbose=1)
    assert list(plan.plan["id"]) == [MODEL, model_key("ses-02")]
    assert list(plan.plan.columns) == ["id", "size", "reason", "source"]
    assert set(plan.plan["source"]) == {"model"}
    assert plan.plan_size == plan.plan["size"].sum() == plan.sizes["model"]
    sizes = [(betas_folder / image_key(s)).stat().st_size for s in SESSIONS[:2]]
    assert plan.sizes["images"] == sum(sizes)
    assert "by model files" in capsys.readouterr().err
    assert not log.ranges
    assert not (data_dir / ".laion_fmri" / "voxels").exists()
    assert (data_dir / bucket.ceiling_key("Allrep")).exists()
    fetch()
    plan = fetch(sessions=[1, 2], dry_run=True, source="images")
    assert list(plan.plan["id"]) == [image_key("ses-02")]
    assert plan.plan_size == plan.sizes["images"] == sizes[1]
    assert len(fetch(dry_run=True).plan) == 0


@pytest.mark.parametrize("rois", ["FFA1", "all"])
def test_what_is_announced_is_what_is_read(server, capsys, rois):
    keys = [model_key, image_key, bucket.rsquare_key]
    log = bucket.Log(server, [key(s) for key in keys for s in SESSIONS])
    for wanted, source in ((rois, "auto"), ("brain", "model")):
        # What was proved once is not read again, nor announced.
        planned = fetch(wanted, "all", source=source, dry_run=True).plan_size
        log.clear()
        fetch(wanted, "all", source=source, verbose=1)
        assert 0.8 * log.n_bytes() <= planned <= 1.2 * log.n_bytes()
        said = f"Reading about {readable_size(planned)} of 3 model files"
        shown = capsys.readouterr().err
        assert said in shown
        assert " 0 sessions" not in shown


# Selections of trials


@pytest.mark.filterwarnings("ignore:Nothing passes trial_filter")
def test_a_selection_without_trials_is_an_error_as_in_load_betas(server):
    words = "No trial of sub-01 is selected"
    for query in ({"n_reps": "12"}, {"label": "none such"}):
        fails(InvalidQueryError, words, fetch, trial_filter=query)
        warning, options = "Nothing passes trial_filter", {"trial_filter": query}
        assert warned(warning, fetch, dry_run=True, **options).plan_size == 0
    data = images(max_images=1)
    data.trials = data.trials[:0]
    fails(InvalidQueryError, words, load_betas, data)


def test_labels_are_checked_before_the_download(server, log):
    first, second = images(None, dry_run=True).trials["label"][:2]
    typo = {"labels": [first, first + "x"]}
    for dry_run in (True, False):
        with no_warnings():
            words = f"lack 1 .*did you mean '{first}"
            fails(InvalidQueryError, words, fetch, dry_run=dry_run, **typo)
    fails(InvalidQueryError, "labels is a set, whose", fetch, labels={first, second})
    assert not log.ranges
    betas = fetch(labels=[second, first])
    assert list(dict.fromkeys(betas.trials["label"])) == [second, first]
    options = {"rois": iter(["FFA1"]), "labels": iter([second, first]), "verbose": 0}
    each = fetch_laion_betas(iter([1]), sessions=iter([1]), **options)
    assert np.array_equal(each["sub-01"].data, betas.data)


def test_a_region_that_one_of_several_subjects_lacks_is_a_warning(server):
    """The second subject has the files of the first, but for a region."""
    for key, stored in list(server.objects.items()):
        if "sub-01" in key and "FFA" not in key:
            server.put(key.replace("sub-01", "sub-03"), stored.value)
    call, words = fetch_laion_betas, "sub-03 has no ROI FFA1"
    for rois, regions in (
        (["FFA1", "OFA"], {"sub-01": ["FFA1", "OFA"], "sub-03": ["OFA"]}),
        ("FFA1", {"sub-01": ["FFA1"]}),
    ):
        each = warned(words, call, ["sub-01", "sub-03"], rois, 1, verbose=0)
        assert {name: [*betas.roi_masks] for name, betas in each.items()} == regions
    fails(InvalidQueryError, words, call, "sub-03", "FFA1", 1, verbose=0)
