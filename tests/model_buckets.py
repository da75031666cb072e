"""A small bucket of a subject, whose model files a test chooses, and its betas."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri
from laion_fmri_fetchers.demo.formats import hdf5_bytes, nifti_bytes

SUBJECT = "sub-01"
SESSIONS = ("ses-01", "ses-02", "ses-03")
N_TRIALS = 40
HELD_OUT = "ses-31"

_GLM = "derivatives/glmsingle-tedana/sub-01"
BRAIN_MASK = (
    "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/"
    "sub-01_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
)
MEAN_RSQUARE = (
    f"{_GLM}/{SUBJECT}_task-images_space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz"
)


def _func(session, name):
    return f"{_GLM}/{session}/func/{SUBJECT}_{session}_task-images_{name}"


def image_key(session):
    return _func(session, "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz")


def model_key(session):
    return _func(session, "space-T1w_desc-GLMsingle_model.h5")


def rsquare_key(session):
    return _func(session, "space-T1w_stat-rsquare_desc-R2_statmap.nii.gz")


def table_key(session):
    return _func(session, "desc-SingletrialBetas_trials.tsv")


def ceiling_key(name):
    return (
        f"{_GLM}/{SUBJECT}_task-images_space-T1w_desc-Noiseceiling{name}_statmap.nii.gz"
    )


def roi_key(category, label):
    return (
        f"derivatives/rois/{SUBJECT}/{category}/"
        f"{SUBJECT}_space-T1w_res-1pt8_label-{label}_mask.nii.gz"
    )


def read(folder, key):
    """Return the values of a NIfTI file of a bucket."""
    return np.asarray(nib.load(Path(folder) / key).dataobj)


def brain(folder):
    return read(folder, BRAIN_MASK) > 0


def fitted(folder, session):
    """Return the voxels that have a fit, and so a row in the demo's model files."""
    return read(folder, rsquare_key(session)) != 0


def roi(folder, category, label):
    """Return the voxels of a region within the brain mask."""
    return (read(folder, roi_key(category, label)) > 0) & brain(folder)


def true_betas(folder, mask, sessions=SESSIONS):
    """Return trials x voxels in the order of ``volume[mask]``; holes are 0."""
    parts = [read(folder, image_key(session))[mask].T for session in sessions]
    return np.nan_to_num(np.concatenate(parts))


def model_of(folder, session, voxels="fitted", betas=None, **options):
    """Return the content of a model file of a session's betas."""
    mask = brain(folder) if voxels == "brain" else fitted(folder, session)
    betas = read(folder, image_key(session)) if betas is None else betas
    maps = {"R2": read(folder, rsquare_key(session))}
    return model_file(betas, mask, maps, **options)


def put_session(server, folder, change, session="ses-01"):
    """Replace image and model of a session by changed betas; return them, holes as 0.

    ``change`` is a function of the values, or a number that they are multiplied by.
    """
    values = read(folder, image_key(session)).copy()
    values = change(values) if callable(change) else values * np.float32(change)
    affine = nib.load(folder / image_key(session)).affine
    server.put(image_key(session), nifti_bytes(values, affine))
    server.put(model_key(session), model_of(folder, session, betas=values))
    return np.nan_to_num(values)


def fetch(rois="FFA1", sessions=1, **options):
    return fetch_laion_betas(1, rois, sessions, **{"verbose": 0, **options})


def images(rois="FFA1", sessions=1, **options):
    return fetch_laion_fmri(1, rois, sessions, **{"verbose": 0, **options})


@pytest.fixture
def server(betas_server, data_dir):
    return betas_server


@pytest.fixture
def log(server):
    return Log(server, [f(s) for f in (model_key, image_key) for s in SESSIONS])


@pytest.fixture(scope="session")
def face(betas_folder):
    """The voxels of FFA-1."""
    return roi(betas_folder, "face", "FFA-1")


@pytest.fixture(scope="session")
def expected(betas_folder, face):
    """The betas of FFA-1 in the first session."""
    return true_betas(betas_folder, face, ["ses-01"])


@pytest.fixture
def store(data_dir):
    """The folder of the first session in the voxel store."""
    return data_dir / ".laion_fmri" / "voxels" / "sub-01" / "ses-01"


def model_file(
    betas,
    mask,
    maps=None,
    *,
    shape="2d",
    layout="contiguous",
    dtype="float32",
    order="C",
    rows="mask",
):
    """Return a model file in one of the forms that it may have.

    ``betasmd`` is (n_voxels, n_trials), "glmsingle" (n_voxels, 1, 1, n_trials) or
    "volume" (X, Y, Z, n_trials), NaN outside the mask; "contiguous", "chunked" or
    "gzip"; rows are of ``betas[mask]``, with the first axis fastest for order "F", or
    "shuffled". Maps, such as R2, have its shape without the trials.
    """
    indices = np.argwhere(mask) if order == "C" else np.argwhere(mask.T)[:, ::-1]
    if rows == "shuffled":
        indices = np.random.default_rng(0).permutation(indices)
    arrays = {}
    for name, array in {"betasmd": betas.astype(dtype), **(maps or {})}.items():
        if shape == "volume":
            arrays[name] = array.copy()
            arrays[name][~mask] = np.nan if array.dtype.kind == "f" else 0
            continue
        values = array[tuple(indices.T)]
        middle = (1, 1) if shape == "glmsingle" else ()
        arrays[name] = values.reshape(len(values), *middle, *values.shape[1:])
    options = {
        "contiguous": {},
        "chunked": {"chunks": True},
        "gzip": {"chunks": True, "compression": "gzip"},
    }
    return hdf5_bytes(arrays, **options[layout])


class Log:
    """The ranges that were asked of some objects of a running server."""

    def __init__(self, server, keys):
        self.ranges = []
        self._lock = threading.Lock()
        for key in keys:
            server.faults[key] = self._noting(key, server.faults.get(key))

    def _noting(self, key, fault):
        def note(environ):
            asked = environ.get("HTTP_RANGE", "")
            start, _, last = asked.removeprefix("bytes=").partition("-")
            with self._lock:
                self.ranges.append((key, int(start or 0), int(last or -1) + 1))
            return fault(environ) if callable(fault) else fault

        return note

    def clear(self):
        self.ranges.clear()

    def n_bytes(self, key=None):
        """Return the bytes asked for by ranges, of an object or in all."""
        return sum(b - a for asked, a, b in self.ranges if key in (None, asked))

    @property
    def keys(self):
        return {key for key, _, _ in self.ranges}
