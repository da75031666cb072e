"""Raw BIDS and preprocessed runs of a session, in miniature: runs of a few volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .brain import Brain, anatomical_grid
from .formats import Files, nifti_bytes, table_bytes, with_sidecar
from .labels import rng_of

RAW_TR, TEDANA_TR = 1.9, 1.0
ECHO_TIMES = (0.0126, 0.0295, 0.0464)
FIELD_ECHO_TIMES = (0.00408, 0.0051)
N_RUNS, N_RAW, N_TEDANA = 2, 6, 11
"""Runs, and volumes per run: 11.4 s of raw data, 11 s of preprocessed data."""


def tedana_files(subject: str, session: str, brain: Brain, seed: int) -> Files:
    """Yield the preprocessed runs of a session, on the grid of the betas."""
    about = {
        "TaskName": "images",
        "RepetitionTime": TEDANA_TR,
        "Description": "Optimal combination of three echoes",
    }
    for run in range(1, N_RUNS + 1):
        stem = (
            f"derivatives/tedana/{subject}/{session}/func/{subject}_{session}"
            f"_task-images_run-{run:02d}_space-T1w_desc-optcom_bold"
        )
        rng = rng_of(seed, subject, session, "tedana", str(run))
        level = 400 + 400 * brain.t1[brain.mask, None]
        noise = rng.normal(0, 8, (brain.mask.sum(), N_TEDANA))
        bold = np.zeros((*brain.mask.shape, N_TEDANA), np.float32)
        bold[brain.mask] = np.round(level + noise)
        yield from with_sidecar(stem, nifti_bytes(bold, brain.affine, TEDANA_TR), about)


def raw_files(
    subject: str, session: str, labels: Sequence[str], resolution: float, seed: int
) -> Files:
    """Yield the raw data of a session, its folders func, fmap and anat."""
    grid = anatomical_grid(subject, 1.75 * resolution)
    top, stem = f"{subject}/{session}", f"{subject}_{session}"
    rng = rng_of(seed, subject, session, "raw")

    def image(
        name: str, n_volumes: int, is_phase: bool = False, **fields: Any
    ) -> Files:
        """Yield an image, one of several volumes or none, with its sidecar."""
        shape = (*grid.t1.shape, n_volumes)
        if is_phase:
            data = rng.integers(-4096, 4096, shape, dtype=np.int16)
            fields["Units"] = "arbitrary"
        else:
            signal = 1000 * grid.t1[..., None] * np.exp(-fields["EchoTime"] / 0.03)
            noise = np.abs(rng.normal(0, 10, shape))
            data = np.round(signal + noise).astype(np.int16)
        tr = RAW_TR if n_volumes > 1 else None
        data = data if tr else data[..., 0]
        yield from with_sidecar(name, nifti_bytes(data, grid.affine, tr), fields)

    parts = (("mag", False), ("phase", True))
    for run in range(1, N_RUNS + 1):
        func = f"{top}/func/{stem}_task-images_run-{run:02d}"
        for echo, echo_time in enumerate(ECHO_TIMES, 1):
            about: dict[str, Any] = {
                "TaskName": "images",
                "RepetitionTime": RAW_TR,
                "EchoTime": echo_time,
                "MagneticFieldStrength": 7,
            }
            for part, is_phase in parts:
                name = f"{func}_echo-{echo}_part-{part}_bold"
                yield from image(name, N_RAW, is_phase, **about)
            part = "_part-mag" if run == 1 else ""  # those of run 2 name no part
            yield from image(f"{func}_echo-{echo}{part}_sbref", 1, **about)
        # The trials that the few volumes hold, one every three seconds.
        shown = [x for i, x in enumerate(labels) if 1 + 4 * i // len(labels) == run]
        events = [
            (f"{3 * i + 1:.1f}", "2.5", "image", f"images/{label}")
            for i, label in enumerate(shown[: int(N_RAW * RAW_TR // 3)])
        ]
        header = ("onset", "duration", "trial_type", "stim_file")
        yield f"{func}_events.tsv", table_bytes([header, *events])
        fmap = f"{top}/fmap/{stem}_run-{run:02d}"
        for number, echo_time in enumerate(FIELD_ECHO_TIMES, 1):
            yield from image(f"{fmap}_magnitude{number}", 1, EchoTime=echo_time)
        first, second = FIELD_ECHO_TIMES
        name = f"{fmap}_phasediff"
        yield from image(name, 1, True, EchoTime1=first, EchoTime2=second)
    for echo, echo_time in enumerate(ECHO_TIMES, 1):
        for part, is_phase in parts:
            name = f"{top}/anat/{stem}_echo-{echo}_part-{part}_MEGRE"
            yield from image(name, 1, is_phase, EchoTime=echo_time)
