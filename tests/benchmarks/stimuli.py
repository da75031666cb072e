"""Extraction of 2,000 images of a 25,052-row archive, against bare h5py and writing.

    python tests/benchmarks/stimuli.py

The bare loop reads the same rows one by one and writes each to a file. The archive is
about as large as the published one (``--bytes`` an image), and both read it from the
page cache. Each figure is measured in a new process after its imports; who is first
alternates, as writing slows down under load. The median of several is shown, and how
many bytes the fetcher reads.
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

N_IMAGES, N_SELECTED = 25_052, 2_000
ARCHIVE = "stimuli/task-images_stimuli.h5"

BARE = """
import json, os, sys, time
import h5py
root, names = sys.argv[1], json.load(open(sys.argv[2]))
folder = os.path.join(root, "bare")
os.makedirs(folder)
start = time.perf_counter()
with h5py.File(os.path.join(root, "stimuli/task-images_stimuli.h5")) as file:
    images = file["images"]
    for name, row in names.items():
        with open(os.path.join(folder, name), "wb") as target:
            target.write(images[row].tobytes())
print(time.perf_counter() - start)
"""

OURS = """
import json, sys, time
import h5py
from laion_fmri_fetchers.fetchers.stimuli import fetch_laion_stimuli
root, names = sys.argv[1], json.load(open(sys.argv[2]))
how = {"mode": "offline", "data_dir": root, "verbose": 0}
fetch_laion_stimuli(max_images=0, **how)

def bytes_read():
    return int(open("/proc/self/io").readline().split()[1])

before = bytes_read()
start = time.perf_counter()
data = fetch_laion_stimuli(list(names), **how)
listed = time.perf_counter()
data = fetch_laion_stimuli(list(names), extract=True, **how)
stop = time.perf_counter()
print(stop - listed, listed - start, len(data.images), bytes_read() - before)
"""


def build(root: Path, n_bytes: int) -> dict[str, int]:
    """Write archive, metadata and id; return the selected images and their rows."""
    import h5py
    import numpy as np

    rng = random.Random(0)
    names = [f"unique_THINGS_object_{i}_p01.jpg" for i in range(N_IMAGES)]
    noise = np.random.default_rng(0).integers(0, 256, 4 * n_bytes, np.uint8)
    (root / "stimuli").mkdir()
    with h5py.File(root / ARCHIVE, "w") as file:
        rows = file.create_dataset(
            "images", (N_IMAGES,), dtype=h5py.vlen_dtype(np.uint8)
        )
        for i in range(N_IMAGES):
            start, size = rng.randrange(n_bytes), rng.randrange(n_bytes // 2, n_bytes)
            rows[i] = noise[start : start + 2 * size]
    table = "image_name,dataset,participant,unique_or_shared,n_reps\n"
    table += "".join(f"{name},THINGS,sub-01,unique,4\n" for name in names)
    (root / "stimuli/task-images_metadata.csv").write_text(table)
    (root / ".laion_fmri").mkdir()
    (root / ".laion_fmri/auth.json").write_text('{"request_id": "lfm_benchmark"}')
    chosen = rng.sample(range(N_IMAGES), N_SELECTED)
    return {names[i]: i for i in sorted(chosen)}


def run(code: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    os.sync()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bytes", type=int, default=85_000, help="half of the largest")
    parser.add_argument("--folder", help="where to write; some 7 GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        names = build(root, options.bytes)
        listing = root / "names.json"
        listing.write_text(json.dumps(names))
        archive = (root / ARCHIVE).stat().st_size
        times: dict[str, list[float]] = {"bare": [], "ours": [], "list": []}
        for i in range(2 * options.repeats):
            if i % 4 in (0, 3):
                times["bare"] += run(BARE, folder, str(listing))
                selected = sum(f.stat().st_size for f in (root / "bare").iterdir())
                clear(root / "bare")
                continue
            ours, listed, n_images, read = run(OURS, folder, str(listing))
            assert n_images == N_SELECTED
            times["ours"].append(ours)
            times["list"].append(listed)
            clear(root / "stimuli/images")
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{N_SELECTED} of {N_IMAGES} images, {selected / 1e6:.0f} MB of an archive of "
        f"{archive / 1e9:.2f} GB, medians of {options.repeats} processes\n"
    )
    print(f"bare h5py and writing   {median['bare']:.3f} s")
    print(
        f"fetch with extract      {median['ours']:.3f} s  ratio "
        f"{median['ours'] / median['bare']:.2f}  bar 1.5"
    )
    print(f"  without extract       {median['list']:.3f} s")
    print(f"read                    {read / 1e6:.0f} MB, {read / selected:.2f} of it")


if __name__ == "__main__":
    main()
