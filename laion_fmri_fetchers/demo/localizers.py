"""Localizer maps of a synthetic subject: contrasts, and effects of single runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .brain import Brain, localizer_grid, points_of_grid, resample, responses
from .cortex import cortex
from .facts import LOCALIZERS, Localizer
from .formats import Files, gifti_bytes, nifti_bytes
from .labels import CONTENT, rng_of

N_EFFECT_RUNS = 2
"""Runs whose effects are written; the published ones are of every run."""

_CONTENT_OF = {"character": "word", "moving": "motion"}
_DRIVE_OF = {"scrambled": 0.6, "static": 0.8}  # they drive as much, but nothing prefers
_NOISE = 0.4  # percent signal change, standard deviation of an effect of a run


def localizer_files(subject: str, brain: Brain, resolution: float, seed: int) -> Files:
    """Yield the maps of all localizers, on surfaces and on two grids."""
    fine = localizer_grid(subject, resolution)
    evoked = {
        "volume": _evoked(subject, points_of_grid(fine.affine, fine.mask), (-1, 1)),
        "L": _evoked(subject, cortex(subject, -1).middle, (-1,)),
        "R": _evoked(subject, cortex(subject, 1).middle, (1,)),
    }
    for localizer in LOCALIZERS:
        stem = f"{subject}_{localizer.session}"
        folder = f"derivatives/localizers/{subject}/{localizer.session}/func"
        is_short = (subject, localizer.tasks) == ("sub-01", ("floc",))
        n_runs = localizer.n_runs - is_short
        for task, run, contrast, stat in _maps(localizer):
            head = f"{folder}/{stem}_task-{task}" + (f"_run-{run:02d}" if run else "")
            tail = f"contrast-{contrast}_stat-{stat}_statmap"
            name, _, reference = contrast.partition("Vs")
            others = [c for c in localizer.conditions if c != name]
            against = {"": [], "Baseline": [], "Others": others}.get(
                reference, [reference.lower()]
            )
            scale, noise = (np.sqrt(n_runs) / _NOISE, 1) if stat == "z" else (1, _NOISE)
            for space, effects in evoked.items():
                rng = rng_of(seed, subject, task, str(run), contrast, space)
                values = effects[name] - sum(effects[c] / len(against) for c in against)
                values = values * scale + rng.normal(0, noise, len(values))
                # In steps of 1/8, which compress well: most of their bits are 0.
                values = (np.round(values * 8) / 8).astype(np.float32)
                if space != "volume":
                    key = f"{head}_hemi-{space}_space-fsnative_{tail}.func.gii"
                    yield key, gifti_bytes(values)
                    continue
                volume = np.zeros(fine.mask.shape, np.float32)
                volume[fine.mask] = values
                fit = nifti_bytes(volume, fine.affine)
                yield f"{head}_space-T1w_res-1pt5_{tail}.nii.gz", fit
                # On the grid of the betas, nothing is known outside that of the fit.
                target = brain.affine, brain.mask.shape
                volume = resample(volume, fine.affine, *target, order=0, cval=np.nan)
                key = f"{head}_space-T1w_res-1pt8_{tail}.nii.gz"
                yield key, nifti_bytes(volume, brain.affine)


def _maps(localizer: Localizer) -> Iterator[tuple[str, int, str, str]]:
    """Yield task, run (0 for all), contrast or condition, and statistic of the maps."""
    for task in localizer.tasks:
        for contrast in localizer.contrasts:
            yield task, 0, contrast, "z"
        for run in range(1, N_EFFECT_RUNS + 1) if task != "MotionLoc" else ():
            for condition in localizer.conditions:
                yield task, run, condition, "effect"


def _evoked(
    subject: str, points: np.ndarray, sides: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return the percent signal change that each condition evokes at some points."""
    _, tuning, visual = responses(subject, points, sides)
    evoked = {}
    for condition in {c for localizer in LOCALIZERS for c in localizer.conditions}:
        content = _CONTENT_OF.get(condition, condition)
        preferred = tuning[:, CONTENT.index(content)] if content in CONTENT else 0
        evoked[condition] = _DRIVE_OF.get(condition, 1) * visual + 1.5 * preferred
    return evoked
