"""GLMsingle's results of a synthetic subject and of its sessions.

Responses follow the content of the images (`content_category`), so that decoding
and localizers give what one expects, and the published noise ceilings are the true
ones: they follow from the same ratio of signal to noise that the betas are drawn with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .brain import Brain
from .facts import INVERSE_REPEATS, noise_ceiling
from .formats import (
    Files,
    json_bytes,
    nifti_bytes,
    png_bytes,
    table_bytes,
    with_sidecar,
)
from .labels import CONTENT, content_category, rng_of
from .model import model_file

BETA_STEP = 0.25  # of beta values; keeps noise small on disk
PATTERN = 0.6  # standard deviation of images' own patterns, in units of the noise


def subject_files(
    subject: str, brain: Brain, sessions: Sequence[str], seed: int
) -> Files:
    """Yield noise ceilings, the mean R2 and the summary of a subject."""
    stem = f"derivatives/glmsingle-tedana/{subject}/{subject}_task-images"
    rsquare = [_rsquare(subject, session, brain, seed) for session in sessions]
    maps = {"stat-rsquare_desc-R2mean": np.mean(rsquare, axis=0)}
    for repeats, inverse in INVERSE_REPEATS.items():
        ceiling = noise_ceiling(_signal_to_noise(brain), inverse).astype(np.float32)
        maps[f"desc-Noiseceiling{repeats}"] = ceiling
    for name, values in maps.items():
        image = nifti_bytes(_in_brain(brain, values), brain.affine)
        about = {"Description": name, "Units": "percent"}
        yield from with_sidecar(f"{stem}_space-T1w_{name}_statmap", image, about)
    summary = {"subject": subject, "n_sessions": len(sessions), "sessions": [*sessions]}
    yield f"{stem}_desc-GLMsingle_summary.json", json_bytes(summary)


def session_files(
    subject: str,
    session: str,
    labels: Sequence[str],
    brain: Brain,
    seed: int,
    model: Mapping[str, str],
) -> Files:
    """Yield trial table, betas, model, maps, summary and figures of a session."""
    folder = f"derivatives/glmsingle-tedana/{subject}/{session}/func"
    stem = f"{folder}/{subject}_{session}_task-images"
    n_trials = len(labels)
    rows = [(session, 1 + 4 * i // n_trials, i, x) for i, x in enumerate(labels)]
    table = table_bytes([("session", "run", "beta_index", "label"), *rows])
    columns = {"beta_index": {"Description": "Volume of the beta image, from 0"}}
    yield f"{stem}_desc-SingletrialBetas_trials.tsv", table
    yield f"{stem}_desc-SingletrialBetas_trials.json", json_bytes(columns)

    betas = _in_brain(brain, _betas(subject, session, labels, brain, seed))
    yield from with_sidecar(
        f"{stem}_space-T1w_stat-effect_desc-SingletrialBetas_statmap",
        nifti_bytes(betas, brain.affine),
        {"Description": "Single-trial response amplitudes", "NumberOfTrials": n_trials},
    )
    maps = _maps(subject, session, labels, brain, seed)
    for name, result, description in (
        ("stat-rsquare_desc-R2_statmap", "R2", "R2 in percent"),
        ("desc-Noiseceiling_statmap", "noiseceiling", "Noise ceiling in percent"),
        ("desc-HRFindex_dseg", "HRFindex", "Index of the chosen HRF"),
        ("desc-Fracridge_statmap", "FRACvalue", "Fraction of ridge regression"),
    ):
        image = nifti_bytes(maps[result], brain.affine)
        about = {"Description": description}
        yield from with_sidecar(f"{stem}_space-T1w_{name}", image, about)
    options = dict(model)
    voxels = options.pop("voxels", "fitted")
    masks = {"fitted": brain.fitted, "brain": brain.mask}
    if voxels not in masks:
        raise ValueError(f"voxels={voxels!r} is not one of {tuple(masks)}.")
    results = {name: maps[name] for name in maps if name != "noiseceiling"}
    content = model_file(betas, masks[voxels], results, **options)
    yield f"{stem}_space-T1w_desc-GLMsingle_model.h5", content
    about = {"Description": "Full GLMsingle output"}
    yield f"{stem}_space-T1w_desc-GLMsingle_model.json", json_bytes(about)
    summary = {
        "subject": subject,
        "session": session,
        "n_runs": 4,
        "n_trials": n_trials,
        "n_images": len(set(labels)),
        "median_rsquare": float(np.median(maps["R2"][brain.fitted])),
    }
    yield f"{stem}_desc-GLMsingle_summary.json", json_bytes(summary)
    figure = f"{folder}/figures/{subject}_{session}_task-images_desc-R2"
    x, _, z = np.array(brain.mask.shape) // 2
    yield f"{figure}_axial.png", png_bytes(maps["R2"][:, :, z].T[::-1])
    yield f"{figure}_sagittal.png", png_bytes(maps["R2"][x].T[::-1])


def _betas(
    subject: str, session: str, labels: Sequence[str], brain: Brain, seed: int
) -> np.ndarray:
    """Return single-trial responses, (voxels, trials) float32.

    A response is what the voxel prefers, a pattern of the image itself, and
    noise; scaled and shifted by voxel and session, as ridge regression does.
    """
    rng = rng_of(seed, subject, session, "betas")
    n_voxels = len(brain.tuning)
    patterns = {}
    for label in set(labels):
        own = rng_of(seed, subject, label).standard_normal(n_voxels, dtype=np.float32)
        preferred = brain.tuning[:, CONTENT.index(content_category(label))]
        patterns[label] = PATTERN * brain.visual * own + preferred
    betas = np.stack([patterns[label] for label in labels], axis=1, dtype=np.float32)
    betas += rng.standard_normal(betas.shape, dtype=np.float32)
    betas += brain.visual[:, None].astype(np.float32)
    gain = rng.uniform(0.5, 1.5, (n_voxels, 1)).astype(np.float32)
    offset = rng.normal(0, 0.3, (n_voxels, 1)).astype(np.float32)
    betas = np.round((betas * gain + offset) / BETA_STEP) * np.float32(BETA_STEP)
    betas[rng.choice(brain.edge, 5, replace=False)] = np.nan
    return betas


def _signal_to_noise(brain: Brain) -> np.ndarray:
    """Return standard deviation of signal over that of noise, by voxel of `_betas`."""
    return np.sqrt(brain.tuning.var(axis=1) + (PATTERN * brain.visual) ** 2)


def _maps(
    subject: str, session: str, labels: Sequence[str], brain: Brain, seed: int
) -> dict[str, np.ndarray]:
    """Return the per-voxel results of a session, volumes by GLMsingle's names."""
    rng = rng_of(seed, subject, session, "maps")
    n_voxels = len(brain.tuning)
    inverse = float(np.mean([1 / n for n in Counter(labels).values()]))
    ncsnr = _signal_to_noise(brain) * rng.uniform(0.9, 1.1, n_voxels)
    rsquare = _rsquare(subject, session, brain, seed)
    ceiling = np.round(noise_ceiling(ncsnr, inverse), 1)
    results = {
        "R2": rsquare,
        "noiseceiling": np.maximum(ceiling, 0.1).astype(np.float32),
        "HRFindex": rng.integers(1, 21, n_voxels, dtype=np.int16),
        "FRACvalue": (rng.integers(1, 21, n_voxels) * 0.05).astype(np.float32),
        "rrbadness": -rsquare,
        "glmbadness": -rsquare * np.float32(0.9),
        "meanvol": rng.integers(800, 1200, n_voxels).astype(np.float32),
        "noisepool": rsquare < 5,
    }
    return {name: _in_brain(brain, values) for name, values in results.items()}


def _rsquare(subject: str, session: str, brain: Brain, seed: int) -> np.ndarray:
    """Return R2 in percent, over 0 everywhere and highest in visual regions."""
    rng = rng_of(seed, subject, session, "R2")
    values = 45 * brain.visual * rng.uniform(0.6, 1.2, len(brain.visual))
    return np.clip(np.round(values * 4) / 4, 0.25, 100).astype(np.float32)


def _in_brain(brain: Brain, values: np.ndarray) -> np.ndarray:
    """Return a volume of values per fitted voxel, 0 elsewhere."""
    volume = np.zeros(brain.mask.shape + values.shape[1:], values.dtype)
    volume[brain.fitted] = values
    return volume
