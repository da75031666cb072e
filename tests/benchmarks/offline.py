"""Offline calls on a cache of the whole dataset's shape, against the bare disk.

    python tests/benchmarks/offline.py

Each figure is measured in a new process, after its imports; the median of several is
shown. Every call reads 150 trial tables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
N_SESSIONS, N_TRIALS = 30, 1044

SESSION_FILES = """desc-GLMsingle_summary.json desc-SingletrialBetas_trials.json
space-T1w_desc-GLMsingle_model.h5 space-T1w_desc-GLMsingle_model.json
space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz
space-T1w_stat-effect_desc-SingletrialBetas_statmap.json
space-T1w_stat-rsquare_desc-R2_statmap.nii.gz
space-T1w_stat-rsquare_desc-R2_statmap.json
space-T1w_desc-Noiseceiling_statmap.nii.gz
space-T1w_desc-HRFindex_dseg.nii.gz space-T1w_desc-Fracridge_statmap.nii.gz""".split()
SUBJECT_FILES = """desc-GLMsingle_summary.json
space-T1w_desc-Noiseceiling4rep_statmap.nii.gz
space-T1w_desc-Noiseceiling12rep_statmap.nii.gz
space-T1w_desc-NoiseceilingAllrep_statmap.nii.gz
space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz""".split()

BARE = """
import os, sys, time
import pandas as pd
root, with_tables = sys.argv[1], sys.argv[2] == "tables"
start = time.perf_counter()
for folder, folders, files in os.walk(root):
    for name in files:
        os.stat(os.path.join(folder, name))
walked = time.perf_counter()
if with_tables:
    for folder, folders, files in os.walk(root):
        for name in files:
            if name.endswith("_trials.tsv"):
                pd.read_csv(os.path.join(folder, name), sep="\\t")
print(walked - start, time.perf_counter() - walked)
"""

OURS = """
import json, sys, time
from laion_fmri_fetchers import fetch_laion_fmri
query = json.loads(sys.argv[2])
start = time.perf_counter()
data = fetch_laion_fmri("all", mode="offline", data_dir=sys.argv[1], verbose=0, **query)
print(time.perf_counter() - start, len(data.images), len(data.trials))
"""


def build(root: Path) -> None:
    """Write files of the real names; those of images are tiny."""
    from laion_fmri_fetchers.layout.names import ROI_CATEGORIES

    rng = random.Random(0)
    shared = [f"shared_12rep_LAION_cluster_{i}_i0.jpg" for i in range(700)]
    shared += [f"shared_4rep_NSD_special1000_{i}.jpg" for i in range(792)]
    rois = [(c, name) for c, names in ROI_CATEGORIES.items() for name in names]
    for subject in SUBJECTS:
        number = subject[-2:]
        unique = [f"unique_THINGS_object_{i}_p{number}.jpg" for i in range(4712)]
        glm = root / "derivatives/glmsingle-tedana" / subject
        for n in range(1, N_SESSIONS + 1):
            session = f"ses-{n:02d}"
            func = glm / session / "func"
            func.mkdir(parents=True)
            prefix = f"{subject}_{session}_task-images_"
            for name in SESSION_FILES:
                (func / f"{prefix}{name}").write_bytes(b"tiny")
            labels = rng.choices(shared + unique, k=N_TRIALS)
            rows = [
                f"{session}\t{i // 87 + 1}\t{i}\t{label}"
                for i, label in enumerate(labels)
            ]
            table = func / f"{prefix}desc-SingletrialBetas_trials.tsv"
            table.write_text("session\trun\tbeta_index\tlabel\n" + "\n".join(rows))
        for name in SUBJECT_FILES:
            (glm / f"{subject}_task-images_{name}").write_bytes(b"tiny")
        extra = [("face", "aTLfaces")] if subject != "sub-01" else []
        for category, name in [*rois, *extra]:
            folder = root / "derivatives/rois" / subject / category
            folder.mkdir(parents=True, exist_ok=True)
            mask = f"{subject}_space-T1w_res-1pt8_label-{name}_mask.nii.gz"
            (folder / mask).write_bytes(b"tiny")
        anat = root / "derivatives/anatomical" / subject / "ses-PrismaAnat" / "anat"
        anat.mkdir(parents=True)
        name = f"{subject}_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
        (anat / name).write_bytes(b"tiny")


def run(code: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        build(root)
        n_files = sum(len(files) for _, _, files in os.walk(root))
        print(f"{n_files} files, medians of {repeats} processes, seconds\n")
        times: dict[str, list[float]] = {}
        for _ in range(repeats):
            walk, tables = run(BARE, str(root), "tables")
            times.setdefault("walk", []).append(walk)
            times.setdefault("walk and tables", []).append(walk + tables)
            call, n_images, n_trials = run(OURS, str(root), "{}")
            assert (n_images, n_trials) == (150, 150 * N_TRIALS)
            times.setdefault("with tables", []).append(call)
            query = json.dumps({"image_type": "rsquare"})
            maps, n_images, _ = run(OURS, str(root), query)
            assert n_images == 150
            times.setdefault("maps without trials", []).append(maps)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, against, bar in (
        ("with tables", "walk and tables", 3.0),
        ("maps without trials", "walk", 4.0),
    ):
        ratio = median[name] / median[against]
        print(
            f"{name:<20} {median[name]:.4f}  {against:<16} {median[against]:.4f}  "
            f"ratio {ratio:.2f}  bar {bar}"
        )


if __name__ == "__main__":
    main()
