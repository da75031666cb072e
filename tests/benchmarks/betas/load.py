"""load_betas on a file of the real shape, against what else reads it.

    python tests/benchmarks/betas/load.py

Every figure comes from a new process, after its imports; the cases take turns, and the
median of several rounds is shown. Peak memory is what a case adds to the process after
imports, less the array it returns. ``--volumes
1044`` is a full session (12 GB uncompressed, 1.2 GB on disk); add ``--only igzip
ours``, as what reads it whole needs 30 GB of memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

N, N_VOXELS, N_ROI = 143, 275_000, 222
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])


def write_betas(file: Path, n_volumes: int) -> None:
    """Write noise within a brain of zeros, by gzip's level 1."""
    header = nib.Nifti1Header()
    header.set_data_shape((N, N, N, n_volumes))
    header.set_data_dtype(np.float32)
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    brain, rng = np.flatnonzero(ball(N_VOXELS)), np.random.default_rng(0)
    volume = np.zeros(N**3, dtype=np.float32)
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(n_volumes):
            volume[brain] = rng.standard_normal(N_VOXELS, dtype=np.float32)
            stream.write(volume)


def write_mask(file: Path, mask: np.ndarray) -> None:
    values = mask.reshape((N, N, N), order="F").astype(np.uint8)
    nib.save(nib.Nifti1Image(values, AFFINE), file)


def ball(n_voxels: int) -> np.ndarray:
    """Return the voxels nearest to the middle, flat."""
    steps = (np.arange(N) - N // 2) ** 2
    distance = (steps[:, None, None] + steps[:, None] + steps).ravel()
    mask = np.zeros(N**3, dtype=bool)
    mask[np.argsort(distance, kind="stable")[:n_voxels]] = True
    return mask


def build(folder: Path, n_volumes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_betas(folder / "betas.nii.gz", n_volumes)
    write_mask(folder / "brain.nii.gz", ball(N_VOXELS))
    write_mask(folder / "roi.nii.gz", ball(N_ROI))


def bunch(folder: Path, trials: slice = slice(None), n_sessions: int = 1) -> Any:
    """Return what load_betas takes, as fetch_laion_fmri returns it."""
    import pandas as pd
    from sklearn.utils import Bunch

    meta = {"image_type": "betas", "subject": "sub-01", "extension": "nii.gz"}
    n = nib.load(folder / "betas.nii.gz").shape[3]
    sessions = [f"ses-{i + 1:02d}" for i in range(n_sessions)]
    tables = [
        pd.DataFrame(
            {
                "subject": "sub-01",
                "session": session,
                "beta_index": np.arange(n),
                "label": [f"image {v % (n * 2 // 3)}" for v in range(n)],
                "image_index": i,
            }
        ).iloc[trials]
        for i, session in enumerate(sessions)
    ]
    roi = {"image_type": "roi", "roi": "FFA1", "roi_category": "face"}
    return Bunch(
        images=[str(folder / "betas.nii.gz")] * n_sessions,
        images_meta=[{**meta, "session": session} for session in sessions],
        rois=[str(folder / "roi.nii.gz")],
        rois_meta=[{**meta, **roi, "session": None}],
        brain_masks={"sub-01": str(folder / "brain.nii.gz")},
        noise_ceilings={},
        trials=pd.concat(tables, ignore_index=True),
        data_dir=str(folder / "no-tables"),
    )


# The cases: each returns a function to be measured


def igzip_to_nowhere(folder: Path) -> Callable[[], Any]:
    from isal import igzip

    def run() -> None:
        with igzip.open(folder / "betas.nii.gz") as stream:
            while stream.read(2**20):
                pass

    return run


def nifti_masker(folder: Path) -> Callable[[], Any]:
    from nilearn.maskers import NiftiMasker

    masker = NiftiMasker(str(folder / "brain.nii.gz"), standardize=None)
    return lambda: masker.fit_transform(str(folder / "betas.nii.gz"))


def nibabel_numpy(folder: Path) -> Callable[[], Any]:
    def run() -> np.ndarray:
        mask = np.asanyarray(nib.load(folder / "brain.nii.gz").dataobj) != 0
        return np.asanyarray(nib.load(folder / "betas.nii.gz").dataobj)[mask].T

    return run


def ours(
    folder: Path,
    rois: str = "brain",
    trials: slice = slice(None),
    n_sessions: int = 1,
    **options: Any,
) -> Callable[[], Any]:
    from laion_fmri_fetchers.betas.load import load_betas

    data = bunch(folder, trials, n_sessions)

    def run() -> np.ndarray:
        return load_betas(data, rois=rois, **options).data

    return run


CASES: dict[str, tuple[Callable, dict[str, Any]]] = {
    "igzip to nowhere": (igzip_to_nowhere, {}),
    "NiftiMasker": (nifti_masker, {}),
    "nibabel + numpy": (nibabel_numpy, {}),
    "ours, brain": (ours, {}),
    "ours, one ROI": (ours, {"rois": "FFA1"}),
    "ours, first 10 trials": (ours, {"trials": slice(10)}),
    "ours, zscore": (ours, {"standardize": "zscore"}),
    "ours, ROI, zscore": (ours, {"rois": "FFA1", "standardize": "zscore"}),
    "ours, zscore, averaged": (
        ours,
        {"standardize": "zscore", "average_repeats": True},
    ),
    "ours, 2 files, 1 thread": (ours, {"n_sessions": 2}),
    "ours, 2 files, 2 threads": (ours, {"n_sessions": 2, "n_jobs": 2}),
}

BARS = (
    ("ours, brain", "igzip to nowhere", 2.0),
    ("ours, brain", "NiftiMasker", 1 / 8),
    ("ours, one ROI", "igzip to nowhere", 1.5),
    ("ours, first 10 trials", "ours, brain", 0.4),
)


# Measuring


def measure(folder: Path, name: str) -> None:
    """Run a case in this process, and print seconds and megabytes."""
    make, options = CASES[name]
    run = make(folder, **options)
    with Resident() as resident:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    output = 0 if result is None else result.nbytes
    print(json.dumps([seconds, (resident.added() - output) / 1e6, output / 1e6]))


class Resident:
    """The memory that this process adds, at the peak."""

    def __enter__(self) -> Resident:
        self.before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *exception: object) -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
        self.peak = int(peak) * 1024

    def added(self) -> int:
        return self.peak - self.before


def rounds(folder: Path, names: list[str], n: int) -> Iterator[tuple[str, list[float]]]:
    for _ in range(n):
        for name in names:
            done = subprocess.run(
                [sys.executable, __file__, "--folder", str(folder), "--case", name],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            yield name, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of cases' names")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments.folder, arguments.case)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "roi.nii.gz").exists():
            build(folder, arguments.volumes)
        (folder / "betas.nii.gz").read_bytes()  # warms the page cache
        names = [n for n in CASES if any(part in n for part in arguments.only)]
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for name, figures in rounds(folder, names, arguments.rounds):
            found[name].append(figures)
    print(f"{os.cpu_count()} processors, medians of {arguments.rounds} rounds\n")
    print(f"{'case':<28} {'seconds':>8} {'best':>8} {'peak MB':>8} {'output MB':>10}")
    for name, figures in found.items():
        seconds, peak, output = zip(*figures, strict=True)
        print(
            f"{name:<28} {statistics.median(seconds):8.2f} {min(seconds):8.2f} "
            f"{max(peak):8.0f} {max(output):10.0f}"
        )
    print()
    for name, against, bar in BARS:
        if found.get(name) and found.get(against):
            pairs = zip(found[name], found[against], strict=True)
            ratio = statistics.median(a[0] / b[0] for a, b in pairs)
            print(f"{name} / {against}: {ratio:.3f}, bar {bar:.3f}")


if __name__ == "__main__":
    main()
