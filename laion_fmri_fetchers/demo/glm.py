"""GLMsingle's results of a synthetic subject and of its sessions.

Responses follow the content of the images (`content_category`), so that decoding
and localizers give what one expects, and the published noise ceilings are the true
ones: they follow from the same ratio of signal to noise that the betas are drawn with.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .brain import Brain
from .facts import INVERSE_REPEATS
from .formats import Files, with_sidecar
from .labels import CONTENT, content_category, rng_of

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
        maps[f"desc-Noiseceiling{repeats}"] = _noise_ceiling(brain, inverse)
    for name, values in maps.items():
        key = f"{stem}_space-T1w_{name}_statmap"
        yield from with_sidecar(key, brain.fitted.image(values), Units="percent")
    yield f"{stem}_desc-GLMsingle_summary.json", {"sessions": list(sessions)}


def session_files(
    subject: str, session: str, labels: Sequence[str], brain: Brain, seed: int
) -> Files:
    """Yield trial table, betas, model, maps, summary and a figure of a session."""
    from PIL import Image

    folder = f"derivatives/glmsingle-tedana/{subject}/{session}/func"
    stem = f"{folder}/{subject}_{session}_task-images"
    n_trials, n_voxels = len(labels), len(brain.tuning)
    rows = [(session, 1 + 4 * i // n_trials, i, x) for i, x in enumerate(labels)]
    table = [("session", "run", "beta_index", "label"), *rows]
    about = {"beta_index": {"Description": "Volume of the beta image, from 0"}}
    yield f"{stem}_desc-SingletrialBetas_trials.tsv", table
    yield f"{stem}_desc-SingletrialBetas_trials.json", about
    yield f"{stem}_desc-GLMsingle_summary.json", {"n_trials": n_trials}

    rng = rng_of(seed, subject, session, "maps")
    results = {
        "betasmd": _betas(subject, session, labels, brain, seed),
        "R2": _rsquare(subject, session, brain, seed),
        "HRFindex": rng.integers(1, 21, n_voxels, dtype=np.int16),
        "FRACvalue": (rng.integers(1, 21, n_voxels) * 0.05).astype(np.float32),
        "meanvol": rng.integers(800, 1200, n_voxels).astype(np.float32),
    }
    yield f"{stem}_space-T1w_desc-GLMsingle_model.h5", results
    yield f"{stem}_space-T1w_desc-GLMsingle_model.json", {}
    inverse = float(np.mean([1 / n for n in Counter(labels).values()]))
    ceiling = _noise_ceiling(brain, inverse * rng.uniform(0.9, 1.1, n_voxels))
    for name, values in (
        ("stat-effect_desc-SingletrialBetas_statmap", results["betasmd"]),
        ("stat-rsquare_desc-R2_statmap", results["R2"]),
        ("desc-Noiseceiling_statmap", ceiling),
        ("desc-HRFindex_dseg", results["HRFindex"]),
        ("desc-Fracridge_statmap", results["FRACvalue"]),
    ):
        key, image = f"{stem}_space-T1w_{name}", brain.fitted.image(values)
        yield from with_sidecar(key, image, Description=f"{name} of {session}")
    figure = io.BytesIO()
    axial = brain.fitted.image(results["R2"])[0][:, :, brain.grid.mask.shape[2] // 2]
    Image.fromarray(axial.T[::-1].astype(np.uint8)).save(figure, "PNG")
    key = f"{folder}/figures/{subject}_{session}_task-images_desc-R2_axial.png"
    yield key, figure.getvalue()


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


def _noise_ceiling(brain: Brain, inverse_repeats: float | np.ndarray) -> np.ndarray:
    """Return the noise ceiling of `_betas` in percent, for a mean of 1 / repeats."""
    ncsnr_squared = brain.tuning.var(axis=1) + (PATTERN * brain.visual) ** 2
    ceiling = 100 * ncsnr_squared / (ncsnr_squared + inverse_repeats)
    return ceiling.astype(np.float32)


def _rsquare(subject: str, session: str, brain: Brain, seed: int) -> np.ndarray:
    """Return R2 in percent, over 0 everywhere and highest in visual regions."""
    rng = rng_of(seed, subject, session, "R2")
    values = 45 * brain.visual * rng.uniform(0.6, 1.2, len(brain.visual))
    return np.clip(np.round(values * 4) / 4, 0.25, 100).astype(np.float32)
