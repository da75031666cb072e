"""A small bucket of a subject, whose model files a test chooses, and its betas."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel as nib
import numpy as np

from laion_fmri_fetchers.demo.formats import hdf5_bytes

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


def put_models(server, folder, sessions=SESSIONS, **options):
    """Replace the model files of a running server."""
    for session in sessions:
        server.put(model_key(session), model_of(folder, session, **options))


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

    def n_bytes(self, key):
        """Return the bytes asked for of an object, by ranges."""
        return sum(stop - start for asked, start, stop in self.ranges if asked == key)

    @property
    def keys(self):
        return {key for key, _, _ in self.ranges}
