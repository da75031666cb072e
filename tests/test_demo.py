"""The demo bucket and its server follow the published facts of the dataset."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs, quote, unquote_plus, urlsplit

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.stats import ttest_ind

from laion_fmri_fetchers import (
    AccessRequiredError,
    current_terms_version,
    fetch_laion_fmri,
    fetch_laion_stimuli,
    get_data_dir,
)
from laion_fmri_fetchers.demo import (
    CONTENT,
    build_bucket,
    content_category,
    serve_access,
    serve_bucket,
    serve_demo,
)
from laion_fmri_fetchers.demo import server as server_module
from laion_fmri_fetchers.demo.bucket import ODD_LABEL

SUBJECTS = ("sub-01", "sub-03", "sub-05")
MAIN = ("ses-01", "ses-02", "ses-03", "ses-04")
HELD_OUT = ("ses-31", "ses-32")

ROI_NAMES = {
    "body": "EBA FBA",
    "character": "VWFA1 VWFA2 mfswords pSTSwords",
    "face": "FFA1 FFA2 OFA pSTSfaces",
    "laion": "laionEVC laiondorsal laiongeneral laionlateral laionventral",
    "motion": "MST MT",
    "object": "lobjects vobjects",
    "place": "MPA OPA PPA",
    "retinotopy": "IPCS IPS0 LO1 LO2 SPCS TO1 TO2 V1d V1v V2d V2v V3A V3B V3d V3v "
    "VO1 VO2 hV4",
}
ROIS_OF_SUB_01 = {
    f"{c}/{name}" for c, names in ROI_NAMES.items() for name in names.split()
}

OOD_TYPES = {
    "cropped",
    "gabor",
    "gaudy",
    "illusion-classic",
    "illusion-natural",
    "relations",
    "selfmade",
    "shape",
    "unusual",
}
LABELS = {
    "12rep": r"shared_12rep_(?P<source>LAION|THINGS\+)_.+\.(jpg|png)",
    "NSD": r"shared_4rep_(?P<source>NSD)_.+\.(jpg|png)",
    "OOD": rf"shared_4rep_(?P<source>OOD)_({'|'.join(OOD_TYPES)})_.+\.(jpg|png)",
    "unique": r"unique_(?P<source>LAION|THINGS|THINGS\+)_.+_p(?P<number>\d\d)\.jpg",
}

_SUB = r"(?P<sub>sub-0[13567])"
_SES = r"(?P<ses>ses-\d\d)"
_GLM = rf"derivatives/glmsingle-tedana/{_SUB}"
_FUNC = rf"{_GLM}/{_SES}/func/(?P=sub)_(?P=ses)_task-images"
_ANAT = (
    rf"derivatives/anatomical/{_SUB}/ses-PrismaAnat/anat/"
    r"(?P=sub)_ses-PrismaAnat_space-T1w(?P<res>_res-1pt8)?"
)
_MAP = r"_statmap\.(nii\.gz|json)"
_ROI = rf"derivatives/rois/{_SUB}/(?P<category>[a-z]+)/(?P=sub)"
_LABEL = r"label-(?P<roi>[A-Za-z0-9-]+)_mask"
TOP_KEYS = {
    "dataset_description.json",
    "participants.tsv",
    "participants.json",
    "README",
    "stimuli/task-images_stimuli.h5",
    "stimuli/task-images_metadata.csv",
    *(
        f"stimuli/task-images_desc-{model}_embeddings.h5"
        for model in ("CLIP", "DINOv2", "PEcore", "SigLIP2")
    ),
    "stimuli/task-images_desc-segmentations.h5",
    "stimuli/task-images_desc-segmentations_metadata.csv",
    "stimuli/task-images_desc-captions.csv",
}
SUBJECT_KEYS = {
    "summary": rf"{_GLM}/(?P=sub)_task-images_desc-GLMsingle_summary\.json",
    "mean_rsquare": rf"{_GLM}/(?P=sub)_task-images_space-T1w_stat-rsquare"
    rf"_desc-R2mean{_MAP}",
    **{
        reps: rf"{_GLM}/(?P=sub)_task-images_space-T1w_desc-Noiseceiling{reps}{_MAP}"
        for reps in ("4rep", "12rep", "Allrep")
    },
    "anatomical": rf"{_ANAT}_T[12]w\.nii\.gz",
    "brain_mask": rf"{_ANAT}_desc-brain_mask\.nii\.gz",
    "roi": rf"{_ROI}_space-T1w_res-1pt8_{_LABEL}\.nii\.gz",
    "roi_surface": rf"{_ROI}_hemi-[LR]_space-fsnative_{_LABEL}\.func\.gii",
    "roi_label": rf"{_ROI}_hemi-[LR]_space-fsnative_{_LABEL}\.label",
    "freesurfer": rf"derivatives/freesurfer/{_SUB}/(mri|surf|label|stats)/[^/]+",
}
SESSION_KEYS = {
    "summary": rf"{_FUNC}_desc-GLMsingle_summary\.json",
    "trials": rf"{_FUNC}_desc-SingletrialBetas_trials\.(tsv|json)",
    "model": rf"{_FUNC}_space-T1w_desc-GLMsingle_model\.(h5|json)",
    "betas": rf"{_FUNC}_space-T1w_stat-effect_desc-SingletrialBetas{_MAP}",
    "rsquare": rf"{_FUNC}_space-T1w_stat-rsquare_desc-R2{_MAP}",
    "ceiling": rf"{_FUNC}_space-T1w_desc-Noiseceiling{_MAP}",
    "hrf_index": rf"{_FUNC}_space-T1w_desc-HRFindex_dseg\.(nii\.gz|json)",
    "fracridge": rf"{_FUNC}_space-T1w_desc-Fracridge{_MAP}",
    "figure": rf"{_GLM}/{_SES}/func/figures/.+\.png",
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    return build_bucket(tmp_path_factory.mktemp("demo") / "bucket")


@pytest.fixture(scope="module")
def keys(bucket):
    return sorted(_files(bucket))


@pytest.fixture(scope="module")
def served(bucket):
    with serve_bucket(bucket) as server:
        yield server


@pytest.fixture
def server():
    with serve_bucket() as server:
        yield server


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _func(bucket, subject, session, rest):
    folder = bucket / "derivatives/glmsingle-tedana" / subject / session / "func"
    return folder / f"{subject}_{session}_task-images_{rest}"


def _trials(bucket, subject, session):
    path = _func(bucket, subject, session, "desc-SingletrialBetas_trials.tsv")
    return pd.read_csv(path, sep="\t")


def _betas(bucket, subject, session):
    name = "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
    return nibabel.load(_func(bucket, subject, session, name))


def _brain_mask(bucket, subject):
    name = f"{subject}_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
    folder = bucket / "derivatives/anatomical" / subject / "ses-PrismaAnat/anat"
    return nibabel.load(folder / name)


def _roi(bucket, subject, category, label):
    name = f"{subject}_space-T1w_res-1pt8_label-{label}_mask.nii.gz"
    return nibabel.load(bucket / "derivatives/rois" / subject / category / name)


def _all_sessions():
    return [(sub, ses) for sub in SUBJECTS for ses in (*MAIN, *HELD_OUT)]


# The bucket


def test_every_key_is_of_one_published_kind(keys):
    patterns = [*SUBJECT_KEYS.values(), *SESSION_KEYS.values()]
    for key in keys:
        kinds = [p for p in patterns if re.fullmatch(p, key)]
        assert len(kinds) == (0 if key in TOP_KEYS else 1), key
    assert set(keys) >= TOP_KEYS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_kind_is_there(keys, subject):
    for pattern in SUBJECT_KEYS.values():
        matches = [re.fullmatch(pattern, key) for key in keys]
        assert subject in {match["sub"] for match in matches if match}, pattern
    for pattern in SESSION_KEYS.values():
        matches = [re.fullmatch(pattern, key) for key in keys]
        sessions = {m["ses"] for m in matches if m and m["sub"] == subject}
        assert sessions == {*MAIN, *HELD_OUT}, pattern


def test_session_images_have_sidecars(keys):
    for key in keys:
        if "/func/" in key and key.endswith((".nii.gz", ".tsv", ".h5")):
            stem = re.sub(r"\.(nii\.gz|tsv|h5)$", "", key)
            assert f"{stem}.json" in keys


def test_rois_are_those_of_the_dataset(keys):
    found = {subject: set() for subject in SUBJECTS}
    labels = set()
    for key in keys:
        match = re.fullmatch(SUBJECT_KEYS["roi"], key)
        if match:
            labels.add(match["roi"])
            name = match["roi"].replace("-", "")
            found[match["sub"]].add(f"{match['category']}/{name}")
    assert found["sub-01"] == ROIS_OF_SUB_01
    assert {"FFA-1", "pSTS-faces", "laion-dorsal", "EBA"} <= labels
    assert len({frozenset(names) for names in found.values()}) == len(SUBJECTS)


def test_rois_come_as_volume_surfaces_and_labels(keys):
    volumes = [key for key in keys if re.fullmatch(SUBJECT_KEYS["roi"], key)]
    for key in volumes:
        for hemisphere in "LR":
            surface = key.replace(
                "_space-T1w_res-1pt8_", f"_hemi-{hemisphere}_space-fsnative_"
            ).removesuffix(".nii.gz")
            assert {f"{surface}.func.gii", f"{surface}.label"} <= set(keys)


def test_same_arguments_same_bytes(tmp_path):
    def build(name, subjects, **more):
        return _files(
            build_bucket(
                tmp_path / name, subjects=subjects, n_sessions=1, held_out=(), **more
            )
        )

    first = build("first", ["sub-01"])
    both = build("both", ["sub-03", "sub-01"])
    assert build("again", ["sub-01"]) == first
    own = {key: data for key, data in first.items() if key.startswith("derivatives/")}
    assert {key: both[key] for key in own} == own
    other = build("other", ["sub-01"], seed=1)
    assert sorted(other) == sorted(first)
    assert {key for key in first if other[key] != first[key]} >= {
        key for key in first if "SingletrialBetas_statmap.nii" in key
    }


def test_no_time_of_writing(bucket, keys):
    compressed = [key for key in keys if key.endswith((".gz", ".mgz"))]
    assert compressed
    for key in compressed:
        with open(bucket / key, "rb") as file:
            assert file.read(8)[4:] == bytes(4), key


def test_small(bucket):
    assert sum(len(data) for data in _files(bucket).values()) < 30e6


def test_participants_have_missing_values(bucket):
    text = (bucket / "participants.tsv").read_text()
    table = pd.read_csv(io.StringIO(text), sep="\t")
    assert list(table["participant_id"]) == [
        "sub-01",
        "sub-03",
        "sub-05",
        "sub-06",
        "sub-07",
    ]
    assert "n/a" in text
    assert table["age"].dtype == float


@pytest.mark.parametrize(("subject", "session"), _all_sessions())
def test_trial_tables(bucket, subject, session):
    trials = _trials(bucket, subject, session)
    assert list(trials) == ["session", "run", "beta_index", "label"]
    assert list(trials["beta_index"]) == list(range(len(trials)))
    assert len(trials) == _betas(bucket, subject, session).shape[3]
    assert trials["run"].is_monotonic_increasing
    assert trials["run"].nunique() > 1
    assert set(trials["session"]) == {session}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_labels_follow_the_grammar(bucket, subject):
    tables = {session: _trials(bucket, subject, session) for session in MAIN}
    labels = pd.concat(tables.values())["label"]
    shown = labels.value_counts()
    odd = [
        x for x in shown.index if not any(re.fullmatch(p, x) for p in LABELS.values())
    ]
    assert odd == ([ODD_LABEL] if subject == "sub-01" else [])
    for kind, sources in {
        "12rep": {"LAION", "THINGS+"},
        "NSD": {"NSD"},
        "OOD": {"OOD"},
        "unique": {"LAION", "THINGS", "THINGS+"},
    }.items():
        matches = [m for m in (re.fullmatch(LABELS[kind], x) for x in shown.index) if m]
        assert {match["source"] for match in matches} == sources
        counts = {shown[match[0]] for match in matches}
        # The last of the unique images runs out of trials.
        assert max(counts) == (12 if kind == "12rep" else 4)
        assert kind == "unique" or len(counts) == 1
        if kind == "unique":
            assert {match["number"] for match in matches} == {subject[-2:]}
    assert {x.split("_")[3] for x in shown.index if "_OOD_" in x} == OOD_TYPES
    names = "".join(shown.index)
    assert " " in names
    assert "+" in names
    assert re.search(r"\w\.\w+\.\w", names)


def test_images_shown_twelve_times_are_in_some_sessions_only(bucket):
    for subject, expected in {
        "sub-01": ["ses-01", "ses-03"],
        "sub-03": ["ses-02", "ses-04"],
        "sub-05": ["ses-01", "ses-03"],
    }.items():
        with_12rep = [
            session
            for session in (*MAIN, *HELD_OUT)
            if _trials(bucket, subject, session)["label"].str.contains("_12rep_").any()
        ]
        assert with_12rep == expected


@pytest.mark.parametrize("subject", SUBJECTS)
def test_one_grid_a_subject(bucket, subject):
    mask = _brain_mask(bucket, subject)
    functional = [
        path
        for path in bucket.rglob(f"{subject}*space-T1w*.nii.gz")
        if "anatomical" not in path.parts or "res-1pt8" in path.name
    ]
    assert len(functional) > 60
    for path in functional:
        image = nibabel.load(path)
        assert image.shape[:3] == mask.shape, path
        assert np.array_equal(image.affine, mask.affine), path


def test_grids_differ_between_subjects(bucket):
    affines = {_brain_mask(bucket, subject).affine.tobytes() for subject in SUBJECTS}
    assert len(affines) == len(SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_rois_lie_in_the_brain(bucket, subject):
    brain = _brain_mask(bucket, subject).get_fdata() > 0
    for path in (bucket / "derivatives/rois" / subject).rglob("*.nii.gz"):
        roi = np.asarray(nibabel.load(path).dataobj) > 0
        assert roi.any(), path
        assert not (roi & ~brain).any(), path
        left = roi[: roi.shape[0] // 2].sum()
        assert 0 < left < roi.sum(), path


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_are_zero_outside_and_nan_only_at_the_edge(bucket, subject):
    brain = _brain_mask(bucket, subject).get_fdata() > 0
    inner = binary_erosion(brain)
    for session in (*MAIN, *HELD_OUT):
        image = _betas(bucket, subject, session)
        assert image.get_data_dtype() == np.float32
        betas = np.asarray(image.dataobj)
        assert (betas[~brain] == 0).all()
        nan = np.isnan(betas).all(axis=3)
        assert nan.any()
        assert not (nan & inner).any()
        assert np.isfinite(betas[brain & ~nan]).all()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_maps(bucket, subject):
    brain = _brain_mask(bucket, subject).get_fdata() > 0
    visual = np.asarray(_roi(bucket, subject, "laion", "laion-general").dataobj) > 0
    folder = bucket / "derivatives/glmsingle-tedana" / subject
    for pattern in (
        "*Noiseceiling*",
        "*R2mean*",
        "**/*desc-R2_*",
        "**/*Noiseceiling_*",
    ):
        paths = list(folder.glob(f"{pattern}.nii.gz"))
        assert paths
        for path in paths:
            values = nibabel.load(path).get_fdata()
            assert values.min() == 0
            assert values.max() <= 100
            assert np.array_equal(values > 0, brain)
            assert values[visual].mean() > 2 * values[brain & ~visual].mean()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_rois_prefer_their_content(bucket, subject):
    sessions = []
    for session in MAIN:
        betas = np.asarray(_betas(bucket, subject, session).dataobj)
        shown = _trials(bucket, subject, session)["label"].map(content_category)
        sessions.append((betas, shown))
    for category, label, content in [
        ("face", "FFA-1", "face"),
        ("body", "EBA", "body"),
        ("place", "PPA", "place"),
        ("object", "lobjects", "object"),
        ("character", "VWFA-1", "word"),
        ("motion", "MT", "motion"),
    ]:
        roi = np.asarray(_roi(bucket, subject, category, label).dataobj) > 0
        preferred, rest = [], []
        for betas, shown in sessions:
            inside = betas[roi] - betas[roi].mean(axis=1, keepdims=True)
            response = (inside / inside.std(axis=1, keepdims=True)).mean(axis=0)
            preferred.extend(response[shown == content])
            rest.extend(response[shown != content])
        test = ttest_ind(preferred, rest, alternative="greater")
        assert test.pvalue < 1e-4, label


def test_contents(bucket):
    labels = pd.concat(_trials(bucket, *each)["label"] for each in _all_sessions())
    assert set(labels.map(content_category)) == set(CONTENT)
    assert content_category("shared_12rep_THINGS+_kmeans_211_bracelet2.jpg") == "object"


def test_formats_can_be_read(bucket):
    freesurfer = bucket / "derivatives/freesurfer/sub-01"
    brain = nibabel.load(freesurfer / "mri/brain.mgz")
    vertices, faces = nibabel.freesurfer.read_geometry(freesurfer / "surf/lh.white")
    cortex = nibabel.freesurfer.read_label(freesurfer / "label/lh.cortex.label")
    assert brain.shape == _brain_mask(bucket, "sub-01").shape
    assert faces.max() < len(vertices)
    assert cortex.max() < len(vertices)

    rois = bucket / "derivatives/rois/sub-01/face"
    stem = str(rois / "sub-01_hemi-L_space-fsnative_label-FFA-1_mask")
    mask = nibabel.load(f"{stem}.func.gii").agg_data()
    label = nibabel.freesurfer.read_label(f"{stem}.label")
    assert len(mask) == len(vertices)
    assert np.array_equal(np.flatnonzero(mask), np.ravel(label))

    model = _func(bucket, "sub-01", "ses-01", "space-T1w_desc-GLMsingle_model.h5")
    with h5py.File(model) as file:
        n_voxels = (_brain_mask(bucket, "sub-01").get_fdata() > 0).sum()
        assert len(file["R2"]) == n_voxels
    for path in model.parent.glob("figures/*.png"):
        with Image.open(path) as image:
            image.verify()


def test_sessions_can_differ_by_subject(tmp_path):
    folder = build_bucket(
        tmp_path,
        subjects=["sub-06", "sub-07"],
        n_sessions={"sub-06": 2, "sub-07": 1},
        held_out=(),
        n_trials=8,
        resolution=12,
    )
    found = {path.parent.name: set() for path in folder.rglob("ses-0*")}
    for path in folder.rglob("ses-0*"):
        found[path.parent.name].add(path.name)
    assert found == {"sub-06": {"ses-01", "ses-02"}, "sub-07": {"ses-01"}}


def test_refuses_what_it_cannot_build(tmp_path):
    with pytest.raises(ValueError, match="sub-02"):
        build_bucket(tmp_path, subjects=["sub-02"])
    with pytest.raises(ValueError, match="n_trials=0"):
        build_bucket(tmp_path, n_trials=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        build_bucket(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The server


def _list_pages(url, **options):
    token = {}
    while True:
        query = {"list-type": "2", **options, **token}
        answer = requests.get(f"{url}/", params=query, timeout=10)
        answer.raise_for_status()
        text = answer.text.replace(
            ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ""
        )
        assert text != answer.text
        page = ET.fromstring(text)
        yield page
        if page.findtext("IsTruncated") != "true":
            return
        token = {"continuation-token": page.findtext("NextContinuationToken")}


def _listed(url, **options):
    return [x.text for page in _list_pages(url, **options) for x in page.iter("Key")]


def test_serves_what_was_built(bucket, keys, served):
    assert _listed(served.url) == keys
    public = [key for key in keys if not server_module.DENIED.search(key)]
    for key in (public[0], public[-1], *(k for k in keys if "aparc+aseg" in k)):
        answer = requests.get(f"{served.url}/{quote(key)}", timeout=10)
        assert answer.content == (bucket / key).read_bytes()


def test_listing_entries(bucket, served):
    page = next(_list_pages(served.url, prefix="participants.tsv"))
    data = (bucket / "participants.tsv").read_bytes()
    entry = page.find("Contents")
    assert entry.findtext("ETag") == f'"{hashlib.md5(data).hexdigest()}"'
    assert entry.findtext("Size") == str(len(data))
    assert re.fullmatch(r"2025-06-01T12:00:00\.\d+Z", entry.findtext("LastModified"))
    assert page.findtext("Name") == "laion-fmri"


def test_held_out_sessions_are_listed_but_denied(keys, served):
    held_out = [key for key in keys if "/ses-31/" in key]
    assert held_out
    assert set(held_out) <= set(_listed(served.url))
    for key in held_out[:3]:
        answer = requests.get(f"{served.url}/{key}", timeout=10)
        assert answer.status_code == 403
        assert ET.fromstring(answer.content).findtext("Code") == "AccessDenied"
        assert requests.head(f"{served.url}/{key}", timeout=10).status_code == 403


def test_common_prefixes(served):
    page = next(_list_pages(served.url, prefix="derivatives/rois/", delimiter="/"))
    prefixes = [x.text for x in page.findall("CommonPrefixes/Prefix")]
    assert prefixes == [f"derivatives/rois/{subject}/" for subject in SUBJECTS]
    assert page.find("Contents") is None


def test_pages_of_a_thousand(server):
    for i in range(2100):
        server.put(f"many/{i:04d}", b"x")
    pages = list(_list_pages(server.url, **{"prefix": "many/", "max-keys": "5000"}))
    assert [len(page.findall("Contents")) for page in pages] == [1000, 1000, 100]
    assert _listed(server.url) == [f"many/{i:04d}" for i in range(2100)]


def test_listing_percent_encodes_as_s3(server):
    names = ["a b+c.txt", "sub dir/1+2 ü.txt", "x&<y>.txt", "100%25.txt", "~(*)'.txt"]
    for name in names:
        server.put(name, name.encode())
    assert _listed(server.url) == sorted(names)
    options = {"encoding-type": "url"}
    encoded = _listed(server.url, **options)
    assert [unquote_plus(key) for key in encoded] == sorted(names)
    assert "a+b%2Bc.txt" in encoded
    assert "sub+dir/1%2B2+%C3%BC.txt" in encoded
    options |= {"delimiter": "/", "start-after": "100%25.txt", "prefix": "sub d"}
    page = next(_list_pages(server.url, **options))
    assert page.findtext("EncodingType") == "url"
    assert page.findtext("CommonPrefixes/Prefix") == "sub+dir/"
    assert page.findtext("Prefix") == "sub+d"
    assert page.findtext("StartAfter") == "100%2525.txt"
    for name in names:
        answer = requests.get(f"{server.url}/{quote(name)}", timeout=10)
        assert answer.content == name.encode()


def test_a_plus_sign_in_a_path_is_a_space(server):
    server.put("1+2", b"plus")
    server.put("1 2", b"space")
    assert requests.get(f"{server.url}/1%2B2", timeout=10).content == b"plus"
    assert requests.get(f"{server.url}/1+2", timeout=10).content == b"space"
    assert requests.get(f"{server.url}/1%202", timeout=10).content == b"space"


def test_conditions_and_ranges(server):
    server.put("key", b"0123456789")
    url = f"{server.url}/key"

    def get(**headers):
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        return requests.get(url, headers=names, timeout=10)

    whole = get()
    assert whole.headers["ETag"] == f'"{hashlib.md5(b"0123456789").hexdigest()}"'
    assert whole.headers["Content-Length"] == "10"
    assert whole.headers["Last-Modified"].endswith("GMT")
    part = get(Range="bytes=3-5", If_Match=whole.headers["ETag"])
    assert (part.status_code, part.content) == (206, b"345")
    assert part.headers["Content-Range"] == "bytes 3-5/10"
    assert part.headers["Content-Length"] == "3"
    assert get(Range="bytes=7-").content == b"789"
    assert get(Range="bytes=-2").content == b"89"
    beyond = get(Range="bytes=10-")
    assert beyond.status_code == 416
    assert b"InvalidRange" in beyond.content
    assert get(If_Match='"other"').status_code == 412
    assert get(If_Match='"other"', Range="bytes=0-1").status_code == 412
    unchanged = get(If_None_Match=whole.headers["ETag"])
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    head = requests.head(url, timeout=10)
    assert head.headers["Content-Length"] == "10"
    assert head.headers["ETag"] == whole.headers["ETag"]
    missing = requests.get(f"{server.url}/none", timeout=10)
    assert missing.status_code == 404
    assert b"NoSuchKey" in missing.content


def test_large_objects_are_in_parts(server):
    rng = np.random.default_rng(0)
    data = rng.bytes(17 * 2**20)
    server.put("large", data)
    digests = [
        hashlib.md5(data[i : i + 8 * 2**20]).digest()
        for i in range(0, len(data), 8 * 2**20)
    ]
    etag = f'"{hashlib.md5(b"".join(digests)).hexdigest()}-3"'
    answer = requests.get(f"{server.url}/large", timeout=10)
    assert answer.content == data
    assert answer.headers["ETag"] == etag
    span = {"Range": f"bytes={8 * 2**20 - 5}-{8 * 2**20 + 4}"}
    part = requests.get(f"{server.url}/large", headers=span, timeout=10)
    assert part.content == data[8 * 2**20 - 5 : 8 * 2**20 + 5]
    server.put("large", b"small")
    assert requests.get(f"{server.url}/large", timeout=10).content == b"small"


def test_delete(server):
    server.put("key", b"x")
    server.delete("key")
    server.delete("key")
    assert requests.get(f"{server.url}/key", timeout=10).status_code == 404
    assert _listed(server.url) == []


def test_connections_are_kept_alive(server):
    server.put("key", b"x")
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.connect()
    used = connection.sock
    for method, path, status in [
        ("GET", "key", 200),
        ("HEAD", "key", 200),
        ("GET", "none", 404),
        ("GET", "ses-31/key", 403),
        ("PUT", "key", 403),
        ("GET", "", 200),
    ]:
        connection.request(method, f"{address.path}/{path}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert connection.sock is used
    connection.close()


def test_many_connections_at_once(server):
    for i in range(64):
        server.put(f"key {i}", str(i).encode() * 1000)
    got = {}

    def fetch(numbers):
        with requests.Session() as session:
            for i in numbers:
                key = quote(f"key {i}")
                got[i] = session.get(f"{server.url}/{key}", timeout=10).content

    threads = [
        threading.Thread(target=fetch, args=(range(n, 64, 16),)) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: str(i).encode() * 1000 for i in range(64)}


def test_records_requests(server):
    server.put("a b/ü", b"x")
    requests.get(f"{server.url}/{quote('a b/ü')}", timeout=10)
    requests.head(f"{server.url}/none", timeout=10)
    _listed(server.url, prefix="a b/")
    assert server.requests[:2] == [("GET", "a b/ü", ""), ("HEAD", "none", "")]
    method, key, query = server.requests[2]
    assert (method, key) == ("GET", "")
    assert parse_qs(query)["prefix"] == ["a b/"]
    server.reset()
    assert server.requests == []


def test_listing_can_be_denied(server):
    server.put("key", b"x")
    server.deny_listing = True
    answer = requests.get(f"{server.url}/?list-type=2", timeout=10)
    assert answer.status_code == 403
    assert b"<Code>AccessDenied</Code>" in answer.content
    assert requests.get(f"{server.url}/key", timeout=10).content == b"x"
    server.reset()
    assert _listed(server.url) == ["key"]


def test_faults(server):
    for key in ("busy", "short", "flaky"):
        server.put(key, b"fine")
    answers = [(503, {"Retry-After": "1"}, b"<Code>SlowDown</Code>")]
    server.faults["busy"] = answers[0]
    server.faults["short"] = (200, {"Content-Length": "10"}, [b"123", b"45"])
    server.faults["flaky"] = lambda environ: answers.pop() if answers else None
    server.faults[""] = (200, {}, b"no listing")
    with requests.Session() as session:
        busy = session.get(f"{server.url}/busy", timeout=10)
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            session.get(f"{server.url}/short", timeout=10)
        statuses = [session.get(f"{server.url}/flaky", timeout=10) for _ in range(2)]
        assert [answer.status_code for answer in statuses] == [503, 200]
        assert session.get(f"{server.url}/", timeout=10).content == b"no listing"
        server.reset()
        assert session.get(f"{server.url}/busy", timeout=10).content == b"fine"


def test_clients_cannot_write(server):
    assert requests.put(f"{server.url}/key", data=b"x", timeout=10).status_code == 403
    assert _listed(server.url) == []
    other = server.url.replace("laion-fmri", "other")
    assert requests.get(f"{other}/key", timeout=10).status_code == 404


def test_servers_are_independent():
    with serve_bucket() as first:
        first.put("first", b"1")
        with serve_bucket() as second, serve_bucket(name="mirror") as third:
            second.put("second", b"2")
            assert _listed(first.url) == ["first"]
            assert _listed(second.url) == ["second"]
            assert _listed(third.url) == []
            assert third.url.endswith("/mirror")
        assert requests.get(f"{first.url}/first", timeout=10).content == b"1"
    with serve_bucket() as later:
        assert _listed(later.url) == []


def test_a_stopped_server_refuses_connections():
    with serve_bucket() as server:
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(address.netloc, timeout=10)
        connection.request("HEAD", address.path)
        connection.getresponse().read()
        server.stop()
        assert connection.sock.recv(1) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=10)


def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve_bucket(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            server.__enter__()


def test_serving_leaves_the_process_as_it_was(capfd):
    before = dict(os.environ)
    with serve_bucket() as server:
        requests.get(f"{server.url}/", timeout=10)
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_moto_is_imported_only_to_serve():
    code = (
        "import sys, laion_fmri_fetchers.demo; "
        "print([m for m in ('moto', 'boto3', 'werkzeug') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_without_moto_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "moto.server", None)
    server_module._import_moto.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"laion_fmri_fetchers\[demo\]"):
            serve_bucket().__enter__()
    finally:
        server_module._import_moto.cache_clear()


# All of it in one call


def test_calls_go_to_the_demo_until_it_stops():
    before = dict(os.environ)
    demo = serve_demo(subjects=["sub-01"], n_sessions=1, held_out=())
    data = fetch_laion_fmri(rois="FFA1", verbose=0)
    assert data.data_dir == demo.data_dir == get_data_dir()
    assert len(data.images) == 1
    assert data.images_meta[0]["key"] in {key for _, key, _ in demo.bucket.requests}
    assert current_terms_version() == demo.access.terms_version
    demo.stop()
    assert dict(os.environ) == before
    assert not os.path.exists(demo.data_dir)
    for url in (demo.bucket.url, demo.access.url):
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=10)


def test_a_request_id_of_the_user_is_not_sent_to_the_demo(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_of_somebody")
    with serve_demo(subjects=["sub-01"], n_sessions=1) as demo:
        with pytest.raises(AccessRequiredError):
            fetch_laion_stimuli(verbose=0)
        assert demo.access.requests == []
    assert os.environ["LAION_FMRI_REQUEST_ID"] == "lfm_of_somebody"


def test_a_demo_that_cannot_be_built_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    with pytest.raises(ValueError, match="not among the subjects"):
        serve_demo(subjects=["sub-02"])
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


# The access service


@pytest.fixture
def access(served):
    with serve_access(served) as service:
        yield service


FORM = {
    "name": "Ada Example",
    "email": "ada@university.example",
    "institution": "University of Examples",
    "pi_or_supervisor": None,
    "research_purpose": "Encoding models of natural images",
    "accepted_terms": True,
    "terms_version": "1.0",
    "source": "cli",
}


def _post(service, path, body):
    return requests.post(service.url + path, json=body, timeout=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("email", "nowhere"),
        ("institution", None),
        ("research_purpose", "too short"),
        ("accepted_terms", "yes"),
        ("terms_version", "0.9"),
        ("pi_or_supervisor", ...),
        ("source", ...),
    ],
)
def test_the_service_refuses_a_form(access, field, value):
    form = {**FORM, field: value}
    if value is ...:
        del form[field]
    answer = _post(access, "/api/v1/access/request", form)
    assert answer.status_code == 422
    assert {one["loc"][-1] for one in answer.json()["detail"]} == {field}
    assert all(one["msg"] for one in answer.json()["detail"])
    assert _post(access, "/api/v1/access/request", FORM).status_code == 200


def test_the_service_knows_its_pages_and_versions(access):
    for page in ("/terms", "/privacy", "/takedown", "/request"):
        assert requests.get(access.url + page, timeout=10).status_code == 200
    assert requests.get(f"{access.url}/nowhere", timeout=10).status_code == 404
    assert _post(access, "/api/v1/manifest", {}).status_code == 404
    body = {"request_id": access.grant(), "dataset_version": "v0"}
    answer = _post(access, "/api/v1/refresh", body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "dataset_version"]


def test_gated_objects_need_a_good_signature(access, bucket):
    body = {"request_id": access.grant(), "dataset_version": "v1"}
    files = _post(access, "/api/v1/refresh", body).json()["files"]
    (url,) = [file["url"] for file in files if file["name"].endswith(".csv")]
    data = (bucket / "stimuli/task-images_metadata.csv").read_bytes()

    def get(url, **headers):
        return requests.get(url, headers=headers, timeout=10)

    whole = get(url)
    assert (whole.status_code, whole.content) == (200, data)
    etag = whole.headers["ETag"]
    part = get(url, Range="bytes=5-14")
    assert (part.status_code, part.content) == (206, data[5:15])
    assert part.headers["Content-Range"] == f"bytes 5-14/{len(data)}"
    assert get(url, Range="bytes=5-", **{"If-Match": etag}).content == data[5:]
    assert get(url, Range=f"bytes={len(data)}-").status_code == 416
    assert get(url, **{"If-Match": '"other"'}).status_code == 412
    assert get(url.partition("?")[0]).status_code == 403
    assert get(url.replace("Signature=", "Signature=0")).status_code == 403
    access.expire()
    assert get(url).status_code == 403
