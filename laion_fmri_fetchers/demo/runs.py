"""What runs give: localizer maps, and raw and preprocessed time series in miniature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .anatomy import SIDES, cortex
from .brain import FITTED, Brain, brain_grid, resample, responses
from .facts import LOCALIZERS
from .formats import Files, with_sidecar
from .labels import CONTENT, CONTENT_OF, rng_of

N_RUNS = 2
"""Runs that are written; the published ones are more."""

RAW_TR, TEDANA_TR = 1.9, 1.0
N_RAW, N_TEDANA = 6, 11
"""Volumes a run: 11.4 s of raw data, 11 s of preprocessed data."""

ECHO_TIMES = (0.0126, 0.0295, 0.0464)

_DRIVE_OF = {"scrambled": 0.9, "static": 0.9}  # nothing prefers them
_NOISE = 0.4  # percent signal change, standard deviation of an effect of a run
_Z_OF_EFFECT = 12  # z over percent signal change


def localizer_files(subject: str, brain: Brain, resolution: float, seed: int) -> Files:
    """Yield the maps of all localizers, on surfaces and on two grids."""
    fine = brain_grid(subject, resolution * 1.5 / 1.778, FITTED)
    evoked = {"volume": _evoked(*responses(subject, fine.points())[1:])}
    for hemi, side in SIDES.items():
        middle = cortex(subject, side).middle
        evoked[hemi] = _evoked(*responses(subject, middle, (side,))[1:])
    for session, names in LOCALIZERS.items():
        stem = f"derivatives/localizers/{subject}/{session}/func/{subject}_{session}"
        tasks, conditions, contrasts = map(str.split, names)
        maps = [(f"task-{task}", name, "z") for task in tasks for name in contrasts]
        for task, run in itertools.product(tasks, range(1, N_RUNS + 1)):
            if task != "MotionLoc":  # which pools the others
                part = f"task-{task}_run-{run:02d}"
                maps += [(part, name, "effect") for name in conditions]
        for task, contrast, stat in maps:
            tail = f"contrast-{contrast}_stat-{stat}_statmap"
            name, _, reference = contrast.partition("Vs")
            scale, noise = (_Z_OF_EFFECT, 1) if stat == "z" else (1, _NOISE)
            for space, effects in evoked.items():
                rng = rng_of(seed, subject, task, contrast, space)
                values = scale * (effects[name] - effects[reference.lower()])
                values += rng.normal(0, noise, len(values))
                # In steps of 1/8, which compress well: most of their bits are 0.
                values = (np.round(values * 8) / 8).astype(np.float32)
                if space != "volume":
                    key = f"{stem}_{task}_hemi-{space}_space-fsnative_{tail}.func.gii"
                    yield key, values
                    continue
                image = fine.image(values)
                yield f"{stem}_{task}_space-T1w_res-1pt5_{tail}.nii.gz", image
                # On the grid of the betas, nothing is known outside that of the fit.
                values = resample(*image, brain.grid, order=0, cval=np.nan)
                image = values, brain.grid.affine
                yield f"{stem}_{task}_space-T1w_res-1pt8_{tail}.nii.gz", image


def _evoked(tuning: np.ndarray, visual: np.ndarray) -> dict[str, np.ndarray]:
    """Return the percent signal change that conditions evoke, and references do."""
    evoked = dict.fromkeys(("", "baseline"), np.zeros(len(visual)))
    for _, conditions, _ in LOCALIZERS.values():
        for name in conditions.split():
            evoked[name] = _DRIVE_OF.get(name, 1) * visual
            if name in CONTENT_OF:
                content = CONTENT.index(CONTENT_OF[name])
                evoked[name] = evoked[name] + 1.5 * tuning[:, content]
    categories = LOCALIZERS["ses-4BarScreenfLoc"][1].split()
    evoked["others"] = np.mean([evoked[name] for name in categories], axis=0)
    return evoked


def tedana_files(subject: str, session: str, brain: Brain, seed: int) -> Files:
    """Yield the preprocessed runs of a session, on the grid of the betas."""
    grid, about = brain.grid, {"TaskName": "images", "RepetitionTime": TEDANA_TR}
    stem = f"derivatives/tedana/{subject}/{session}/func/{subject}_{session}"
    rng = rng_of(seed, subject, session, "tedana")
    for run in range(1, N_RUNS + 1):
        noise = rng.normal(0, 8, (grid.mask.sum(), N_TEDANA))
        bold = np.round(400 + 400 * grid.t1[grid.mask, None] + noise)
        image = *grid.image(bold.astype(np.float32)), TEDANA_TR
        name = f"{stem}_task-images_run-{run:02d}_space-T1w_desc-optcom_bold"
        yield from with_sidecar(name, image, **about)


def raw_files(
    subject: str, session: str, labels: Sequence[str], resolution: float
) -> Files:
    """Yield the raw data of a session: func, fmap and anat, all of the same picture."""
    grid = brain_grid(subject, 1.75 * resolution)
    volume = (1000 * grid.t1).astype(np.int16)
    image = volume, grid.affine
    bold = np.stack([volume] * N_RAW, axis=3), grid.affine, RAW_TR
    stem = f"{subject}_{session}"
    func, fmap, anat = (
        f"{subject}/{session}/{folder}/{stem}" for folder in ("func", "fmap", "anat")
    )
    for run in range(1, N_RUNS + 1):
        task = f"{func}_task-images_run-{run:02d}"
        for echo, time in enumerate(ECHO_TIMES, 1):
            about = {"TaskName": "images", "RepetitionTime": RAW_TR, "EchoTime": time}
            for part in ("mag", "phase"):
                name = f"{task}_echo-{echo}_part-{part}_bold"
                yield from with_sidecar(name, bold, **about)
            part = "_part-mag" if run == 1 else ""  # those of run 2 name no part
            yield from with_sidecar(f"{task}_echo-{echo}{part}_sbref", image, **about)
        # The trials that the few volumes hold, one every three seconds.
        shown = [x for i, x in enumerate(labels) if 1 + 4 * i // len(labels) == run]
        events = [
            (f"{3 * i + 1:.1f}", "2.5", "image", f"images/{label}")
            for i, label in enumerate(shown[: int(N_RAW * RAW_TR // 3)])
        ]
        header = "onset", "duration", "trial_type", "stim_file"
        yield f"{task}_events.tsv", [header, *events]
        field = f"{fmap}_run-{run:02d}"
        first, second = 0.00408, 0.0051
        times = {"EchoTime1": first, "EchoTime2": second}
        yield from with_sidecar(f"{field}_magnitude1", image, EchoTime=first)
        yield from with_sidecar(f"{field}_magnitude2", image, EchoTime=second)
        yield from with_sidecar(f"{field}_phasediff", image, **times)
    for echo, time in enumerate(ECHO_TIMES, 1):
        for part in ("mag", "phase"):
            name = f"{anat}_echo-{echo}_part-{part}_MEGRE"
            yield from with_sidecar(name, image, EchoTime=time)
