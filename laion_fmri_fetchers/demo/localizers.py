"""Localizer maps of a synthetic subject: contrasts, and effects of single runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from .brain import (
    BOTH_SIDES,
    Brain,
    Grid,
    localizer_grid,
    points_of_grid,
    preferences,
    regions_of_points,
    visual_drive,
)
from .cortex import cortex
from .facts import LOCALIZERS, Localizer
from .formats import gifti_bytes, nifti_bytes
from .labels import CONTENT, rng_of

N_EFFECT_RUNS = 2
"""Runs whose effects are written; the published ones are of every run."""

_CONTENT_OF = {"character": "word", "moving": "motion"}
_DRIVE_OF = {"scrambled": 0.6, "static": 0.8}  # they drive as much, but nothing prefers
_NOISE = 0.4  # percent signal change, standard deviation of an effect of a run


def localizer_files(
    subject: str, brain: Brain, resolution: float, seed: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the maps of all localizers, on surfaces and on two grids."""
    fine = localizer_grid(subject, resolution)
    voxels = points_of_grid(fine.affine, fine.mask)
    spaces = {
        "volume": _evoked(subject, voxels, BOTH_SIDES),
        "L": _evoked(subject, cortex(subject, -1).middle, (-1,)),
        "R": _evoked(subject, cortex(subject, 1).middle, (1,)),
    }
    for localizer in LOCALIZERS:
        folder = f"derivatives/localizers/{subject}/{localizer.session}/func"
        for task, run, contrast, stat in _maps(localizer):
            head = f"{folder}/{subject}_{localizer.session}_task-{task}"
            head += f"_run-{run:02d}" if run else ""
            tail = f"contrast-{contrast}_stat-{stat}_statmap"
            n_runs = _n_runs(localizer, subject)
            for space, evoked in spaces.items():
                rng = rng_of(seed, subject, task, str(run), contrast, space)
                values = _values(evoked, localizer, contrast, stat, n_runs, rng)
                if space == "volume":
                    yield from _volumes(head, tail, values, fine, brain)
                else:
                    name = f"{head}_hemi-{space}_space-fsnative_{tail}.func.gii"
                    yield name, gifti_bytes(values)


def _n_runs(localizer: Localizer, subject: str) -> int:
    is_short = "floc" in localizer.tasks and subject == "sub-01"
    return localizer.n_runs - is_short


def _maps(localizer: Localizer) -> Iterator[tuple[str, int, str, str]]:
    """Yield task, run (0 for all), contrast or condition, and statistic of the maps."""
    for task in localizer.tasks:
        for contrast in localizer.contrasts:
            yield task, 0, contrast, "z"
    for task in localizer.run_tasks:
        for run in range(1, N_EFFECT_RUNS + 1):
            for condition in localizer.conditions:
                yield task, run, condition, "effect"


def _evoked(
    subject: str, points: np.ndarray, sides: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return the percent signal change that each condition evokes at some points."""
    drive = visual_drive(regions_of_points(subject, points, sides))
    tuning = preferences(subject, points, sides)
    evoked = {}
    for condition in {c for localizer in LOCALIZERS for c in localizer.conditions}:
        content = _CONTENT_OF.get(condition, condition)
        preferred = tuning[:, CONTENT.index(content)] if content in CONTENT else 0
        evoked[condition] = _DRIVE_OF.get(condition, 1) * drive + 1.5 * preferred
    return evoked


def _values(
    evoked: Mapping[str, np.ndarray],
    localizer: Localizer,
    contrast: str,
    stat: str,
    n_runs: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a map."""
    if stat == "effect":
        noisy = evoked[contrast] + rng.normal(0, _NOISE, len(evoked[contrast]))
        return _rounded(noisy)
    name, _, reference = contrast.partition("Vs")
    others = [c for c in localizer.conditions if c != name]
    against = {"Baseline": [], "Others": others}.get(reference, [reference.lower()])
    difference = evoked[name] - sum(evoked[c] / len(against) for c in against)
    z = difference * np.sqrt(n_runs) / _NOISE + rng.standard_normal(len(difference))
    return _rounded(z)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return values in steps of 1/8, which compress well: most of their bits are 0."""
    return (np.round(values * 8) / 8).astype(np.float32)


def _volumes(
    head: str, tail: str, values: np.ndarray, fine: Grid, brain: Brain
) -> Iterator[tuple[str, bytes]]:
    """Yield a map on the grid of its fit and, from there, on that of the betas."""
    from scipy.ndimage import affine_transform

    volume = np.zeros(fine.mask.shape, np.float32)
    volume[fine.mask] = values
    yield f"{head}_space-T1w_res-1pt5_{tail}.nii.gz", nifti_bytes(volume, fine.affine)
    to_fine = np.linalg.inv(fine.affine) @ brain.affine
    resampled = affine_transform(
        volume,
        to_fine[:3, :3],
        to_fine[:3, 3],
        output_shape=brain.mask.shape,
        order=0,
        cval=np.nan,
    )
    resampled = nifti_bytes(resampled, brain.affine)
    yield f"{head}_space-T1w_res-1pt8_{tail}.nii.gz", resampled
