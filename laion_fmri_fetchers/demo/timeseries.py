"""Raw BIDS and preprocessed runs of a session, in miniature: runs of a few volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .brain import Brain, Grid, anatomical_grid
from .formats import nifti_bytes, tsv_bytes, with_sidecar
from .labels import rng_of

RAW_TR, TEDANA_TR = 1.9, 1.0
ECHO_TIMES = (0.0126, 0.0295, 0.0464)
FIELD_ECHO_TIMES = (0.00408, 0.0051)
N_RUNS, N_RAW, N_TEDANA = 2, 6, 11
"""Runs, and volumes per run: 11.4 s of raw data, 11 s of preprocessed data."""

_TRIAL_SPACING = 3.0  # seconds


def tedana_files(
    subject: str, session: str, brain: Brain, seed: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the preprocessed runs of a session, on the grid of the betas."""
    for run in range(1, N_RUNS + 1):
        stem = (
            f"derivatives/tedana/{subject}/{session}/func/{subject}_{session}"
            f"_task-images_run-{run:02d}_space-T1w_desc-optcom_bold"
        )
        rng = rng_of(seed, subject, session, "tedana", str(run))
        bold = np.zeros((*brain.mask.shape, N_TEDANA), np.float32)
        level = 400 + 400 * brain.t1[brain.mask, None]
        bold[brain.mask] = np.round(
            level + rng.normal(0, 8, (brain.mask.sum(), N_TEDANA))
        )
        yield from with_sidecar(
            stem,
            nifti_bytes(bold, brain.affine, TEDANA_TR),
            {
                "TaskName": "images",
                "RepetitionTime": TEDANA_TR,
                "Description": "Optimal combination of three echoes",
            },
        )


def raw_files(
    subject: str, session: str, labels: Sequence[str], resolution: float, seed: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the raw data of a session, its folders func, fmap and anat."""
    grid = anatomical_grid(subject, 1.75 * resolution)
    top, stem = f"{subject}/{session}", f"{subject}_{session}"
    for run in range(1, N_RUNS + 1):
        func = f"{top}/func/{stem}_task-images_run-{run:02d}"
        rng = rng_of(seed, subject, session, "raw", str(run))
        yield from _echoes(func, run, grid, rng)
        yield f"{func}_events.tsv", tsv_bytes(_events(labels, run))
        yield from _fieldmaps(f"{top}/fmap/{stem}_run-{run:02d}", grid, rng)
    yield from _gradient_echoes(f"{top}/anat/{stem}", grid, rng)


def _echoes(
    func: str, run: int, grid: Grid, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    """Yield runs and single-band references; those of run 2 name no part."""
    for echo, echo_time in enumerate(ECHO_TIMES, 1):
        fields = {
            "TaskName": "images",
            "RepetitionTime": RAW_TR,
            "EchoTime": echo_time,
            "MagneticFieldStrength": 7,
        }
        magnitude = _magnitude(grid, N_RAW, echo_time, rng)
        phase = _phase(grid, N_RAW, rng)
        for part, data in (("mag", magnitude), ("phase", phase)):
            yield from with_sidecar(
                f"{func}_echo-{echo}_part-{part}_bold",
                nifti_bytes(data, grid.affine, RAW_TR),
                _of_part(fields, part),
            )
        reference = _magnitude(grid, 1, echo_time, rng)[..., 0]
        part = "_part-mag" if run == 1 else ""
        yield from with_sidecar(
            f"{func}_echo-{echo}{part}_sbref",
            nifti_bytes(reference, grid.affine),
            fields,
        )


def _fieldmaps(
    stem: str, grid: Grid, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    for number, echo_time in enumerate(FIELD_ECHO_TIMES, 1):
        data = _magnitude(grid, 1, echo_time, rng)[..., 0]
        image = nifti_bytes(data, grid.affine)
        yield from with_sidecar(
            f"{stem}_magnitude{number}", image, {"EchoTime": echo_time}
        )
    difference = _phase(grid, 1, rng)[..., 0]
    times = {f"EchoTime{i}": time for i, time in enumerate(FIELD_ECHO_TIMES, 1)}
    image = nifti_bytes(difference, grid.affine)
    yield from with_sidecar(f"{stem}_phasediff", image, times)


def _gradient_echoes(
    stem: str, grid: Grid, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    for echo, echo_time in enumerate(ECHO_TIMES, 1):
        magnitude = _magnitude(grid, 1, echo_time, rng)[..., 0]
        phase = _phase(grid, 1, rng)[..., 0]
        for part, data in (("mag", magnitude), ("phase", phase)):
            image = nifti_bytes(data, grid.affine)
            yield from with_sidecar(
                f"{stem}_echo-{echo}_part-{part}_MEGRE",
                image,
                _of_part({"EchoTime": echo_time}, part),
            )


def _of_part(fields: dict[str, Any], part: str) -> dict[str, Any]:
    return fields | ({"Units": "arbitrary"} if part == "phase" else {})


def _magnitude(
    grid: Grid, n_volumes: int, echo_time: float, rng: np.random.Generator
) -> np.ndarray:
    signal = 1000 * grid.t1[..., None] * np.exp(-echo_time / 0.03)
    noise = np.abs(rng.normal(0, 10, (*grid.t1.shape, n_volumes)))
    return np.round(signal + noise).astype(np.int16)


def _phase(grid: Grid, n_volumes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-4096, 4096, (*grid.t1.shape, n_volumes), dtype=np.int16)


def _events(labels: Sequence[str], run: int) -> Iterator[tuple[object, ...]]:
    """Yield the trials of a run that its few volumes hold."""
    yield "onset", "duration", "trial_type", "stim_file"
    of_run = [x for i, x in enumerate(labels) if 1 + 4 * i // len(labels) == run]
    n_shown = int(N_RAW * RAW_TR // _TRIAL_SPACING)
    for i, label in enumerate(of_run[:n_shown]):
        yield f"{_TRIAL_SPACING * i + 1:.1f}", "2.5", "image", f"images/{label}"
