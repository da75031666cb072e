"""fetch_laion_betas at real size, against bare ranges, curl and the images.

    python tests/benchmarks/betas/ranges.py [--folder FOLDER] [--only WORD ...]

FOLDER keeps the bucket (2.4 GB, made once in some minutes): a subject of 30 sessions of
1,044 trials at 272,213 voxels. Each session has a model file as GLMsingle writes it and
a beta image of the same values, which are noise and so compress like real betas (1.16
GB); all sessions are hard links of the first. Masks, noise ceilings and trial tables
have the real sizes and names. ``transfer/server.py`` offers it from a process of its
own, 50 ms after each request.

Regions are pieces of a folded sheet, some voxels thick, in both hemispheres: where a
smooth random field is near 0, the voxels nearest to a point of each hemisphere. FFA1
has 222 voxels; OFA has 280, half of them FFA1's; laiongeneral has 20,000.

Each case is a process of its own, timed after its imports. ``bare`` repeats the ranges
that were asked for, as the log of the server has them, by urllib3 in as many threads
as there were connections. Memory is RssAnon, which the parent reads from /proc while
the call runs, at its peak and less the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
N, N_VOXELS, N_TRIALS, N_SESSIONS = 143, 272_213, 1044, 30
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
SUBJECT = "sub-01"
GLM = f"derivatives/glmsingle-tedana/{SUBJECT}"
MASKS = {
    "FFA-1": ("face", 222),
    "OFA": ("face", 280),
    "laion-general": ("laion", 20000),
}
LATENCY, CONNECTIONS = 0.05, 64


# --- The bucket --------------------------------------------------------------------


def build(bucket: Path) -> None:
    """Make all files of the bucket; the first session's are those of all."""
    rng = np.random.default_rng(0)
    brain, cortex = anatomy(rng)
    write_image(
        bucket / f"derivatives/anatomical/{SUBJECT}/ses-PrismaAnat/anat/{SUBJECT}"
        "_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz",
        brain.astype(np.uint8),
    )
    for roi, (category, n) in MASKS.items():
        write_image(
            bucket / f"derivatives/rois/{SUBJECT}/{category}/{SUBJECT}_space-T1w_"
            f"res-1pt8_label-{roi}_mask.nii.gz",
            region(cortex, n, 3 if roi == "OFA" else 0).astype(np.uint8),
        )
    for name in ("4rep", "12rep", "Allrep"):
        write_image(
            bucket / f"{GLM}/{SUBJECT}_task-images_space-T1w_desc-Noiseceiling{name}"
            "_statmap.nii.gz",
            np.where(brain, rng.uniform(0, 80, brain.shape), 0).astype(np.float32),
        )
    for i in range(N_SESSIONS):
        session = f"ses-{i + 1:02d}"
        folder = bucket / GLM / session / "func"
        folder.mkdir(parents=True)
        stem = f"{SUBJECT}_{session}_task-images"
        (folder / f"{stem}_desc-SingletrialBetas_trials.tsv").write_text(table(i))
        for name in ("desc-SingletrialBetas_trials", "desc-GLMsingle_summary"):
            (folder / f"{stem}_{name}.json").write_text("{}")
        first = bucket / GLM / "ses-01" / "func"
        model = f"{SUBJECT}_%s_task-images_space-T1w_desc-GLMsingle_model.h5"
        image = f"{SUBJECT}_%s_task-images_space-T1w_stat-effect_desc-"
        image += "SingletrialBetas_statmap.nii.gz"
        rsquare = f"{SUBJECT}_%s_task-images_space-T1w_stat-rsquare_desc-R2"
        rsquare += "_statmap.nii.gz"
        if i == 0:
            r2 = np.where(brain, rng.uniform(1, 80, brain.shape), 0)
            write_image(folder / (rsquare % session), r2.astype(np.float32))
            betas = write_model(folder / (model % session), rng)
            write_betas(folder / (image % session), betas, brain)
        else:
            for name in (model, image, rsquare):
                os.link(first / (name % "ses-01"), folder / (name % session))


def anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a brain with an uneven edge, and a folded sheet within it."""
    from scipy.ndimage import gaussian_filter

    axes = np.ogrid[-1:1:143j, -1:1:143j, -1:1:143j]
    distance = sum((a / s) ** 2 for a, s in zip(axes, (0.55, 0.75, 0.6), strict=True))
    uneven = gaussian_filter(rng.standard_normal((N, N, N)), 3)
    distance = distance + 0.1 * uneven / uneven.std()
    brain = np.zeros(N**3, dtype=bool)
    brain[np.argsort(distance.ravel())[:N_VOXELS]] = True
    folds = np.abs(gaussian_filter(rng.standard_normal((N, N, N)), 3)).ravel()
    cortex = brain & (folds <= np.quantile(folds[brain], 0.4))
    return brain.reshape(N, N, N), cortex.reshape(N, N, N)


def region(cortex: np.ndarray, n_voxels: int, shift: int) -> np.ndarray:
    """Return the voxels of a sheet nearest to a point of each hemisphere."""
    places = np.argwhere(cortex)
    mask = np.zeros(cortex.shape, dtype=bool)
    for x in (45, 97):
        is_here = (places[:, 0] < N // 2) == (x < N // 2)
        own = places[is_here]
        distance = ((own - (x, 50 + shift, 55)) ** 2).sum(1)
        nearest = own[np.argsort(distance, kind="stable")[: n_voxels // 2]]
        mask[tuple(nearest.T)] = True
    return mask


def write_image(file: Path, values: np.ndarray) -> None:
    import nibabel as nib

    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), file)


def table(session: int) -> str:
    """Return a trial table; images are shown up to three times."""
    rng = np.random.default_rng(session)
    images = np.sort(rng.integers(0, 770, N_TRIALS))
    lines = ["session\trun\tbeta_index\tlabel"]
    for i, image in enumerate(rng.permutation(images).tolist()):
        label = f"unique_LAION_initial_cluster_{session}{image:03d}_i1_p01.jpg"
        lines.append(f"ses-{session + 1:02d}\t{i // 87 + 1}\t{i}\t{label}")
    return "\n".join(lines) + "\n"


def write_model(file: Path, rng: np.random.Generator) -> np.ndarray:
    """Write the arrays of GLMsingle's last stage, as it does; return the betas."""
    import h5py

    betas = rng.standard_normal((N_VOXELS, N_TRIALS), dtype=np.float32)
    small = rng.standard_normal((N_VOXELS, 20), dtype=np.float32)
    with h5py.File(file, "w") as stream:
        for name in ("HRFindex", "FRACvalue", "R2", "meanvol", "noisepool"):
            stream.create_dataset(name, data=small[:, 0])
        for name in ("glmbadness", "rrbadness"):
            stream.create_dataset(name, data=small)
        stream.create_dataset("betasmd", data=betas)
        stream.create_dataset("R2run", data=small[:, :12])
    return betas


def write_betas(file: Path, betas: np.ndarray, brain: np.ndarray) -> None:
    """Write the image of the same values, quickly."""
    import nibabel as nib
    from isal import igzip

    header = nib.Nifti1Header()
    header.set_data_shape((N, N, N, N_TRIALS))
    header.set_data_dtype(np.float32)
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    axes = np.unravel_index(np.flatnonzero(brain), brain.shape)
    places = np.ravel_multi_index(axes, brain.shape, order="F")
    volume = np.zeros(N**3, dtype=np.float32)
    with igzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for start in range(0, N_TRIALS, 58):
            for column in betas[:, start : start + 58].T.copy():
                volume[places] = column
                stream.write(volume)


# --- A case, in a process of its own ------------------------------------------------


def call(options: dict[str, Any]) -> None:
    """Call fetch_laion_betas or load_betas; print what it took."""
    import h5py  # noqa: F401
    import requests  # noqa: F401
    import urllib3  # noqa: F401

    from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, load_betas

    if options.pop("only_load", False):
        data = fetch_laion_fmri(SUBJECT, dry_run=True, verbose=0, **options)
        rois = options["rois"]

        def run() -> Any:
            return load_betas(data, rois=rois, verbose=0)
    else:

        def run() -> Any:
            return fetch_laion_betas(SUBJECT, verbose=0, **options)

    take_memory()
    before = anonymous(os.getpid())
    print("ready", flush=True)
    start = time.perf_counter()
    betas = run()
    seconds = time.perf_counter() - start
    about = seconds, before, betas.data.nbytes, betas.data.shape, checksum(betas.data)
    print(json.dumps(about))


def take_memory() -> None:
    """Use some memory, and give it back.

    A virtual machine may get pages from its host when they are first written, which
    takes ten times as long as to write them: 1.1 GB took 0.1 s or 1.2 to 2 s.
    """
    np.ones(3 * 2**30, np.uint8)


def checksum(data: np.ndarray) -> float:
    """Return a number that the same values have."""
    return float(data[::97].sum(dtype=np.float64))


def replay(base: str, ranges: list[tuple[str, int, int]], n_threads: int) -> None:
    """Ask for ranges again, and throw away what arrives; print seconds."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=n_threads, retries=False)
    todo: queue.SimpleQueue[tuple[str, int, int]] = queue.SimpleQueue()
    for item in ranges:
        todo.put(item)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                key, start, stop = todo.get_nowait()
                headers = {"Range": f"bytes={start}-{stop - 1}"}
                got = pool.request("GET", f"{base}/{key}", headers=headers)
                if len(got.data) != stop - start:
                    raise SystemExit(f"{key}: {got.status}")

    start = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(time.perf_counter() - start))


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process, in bytes; 0 after its end."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


# --- The cases ----------------------------------------------------------------------


class Figures(NamedTuple):
    """What a call took."""

    seconds: float
    before: int
    """Bytes of anonymous memory after imports."""
    result: int
    """Bytes of the result."""
    shape: list[int]
    checksum: float
    peak: int
    """Bytes of anonymous memory at the peak."""
    ranges: list[tuple[str, int, int]]
    """What was sent of model files and images."""
    n_sent: int
    """Bytes sent of all files."""

    @property
    def n_ranges(self) -> int:
        """Bytes sent of model files and images."""
        return sum(stop - start for _, start, stop in self.ranges)

    def __str__(self) -> str:
        wire = f"{self.n_sent / 1e6:.1f} MB in {len(self.ranges)} ranges"
        added = (self.peak - self.result) / 1e6
        return (
            f"{self.seconds:7.2f} s, {wire}, memory beyond the result {added:.0f} MB, "
            f"{self.before / 1e6:.0f} MB of them at the start; {self.shape}"
        )


class Server:
    """The bucket, offered."""

    def __init__(self, bucket: Path, log: Path, latency: float):
        self.log = log
        self.process = subprocess.Popen(
            [
                *(sys.executable, HERE.parent / "transfer" / "server.py", bucket),
                *("--latency", str(latency), "--log", log),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}/bucket"

    def sent(self) -> list[tuple[str, int, int]]:
        """Return what was sent since the last call."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        rows = [line.rsplit(" ", 2) for line in lines]
        return [(key, int(start), int(stop)) for key, start, stop in rows]


class Bench:
    """What the cases share."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder

    def call(self, **options: Any) -> Figures:
        """Call in a new process."""
        self.server.sent()
        process = self.start("call", json.dumps(options))
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous(process.pid))

        watcher = threading.Thread(target=watch)
        assert process.stdout
        process.stdout.readline()
        watcher.start()
        output, _ = process.communicate()
        done.set()
        watcher.join()
        if process.returncode:
            raise SystemExit(f"the call failed: {options}")
        sent = self.server.sent()
        ranges = [
            row for row in sent if row[0].endswith(("_model.h5", "s_statmap.nii.gz"))
        ]
        n_sent = sum(stop - start for _, start, stop in sent)
        return Figures(*json.loads(output.splitlines()[-1]), peak, ranges, n_sent)

    def bare(self, ranges: list[tuple[str, int, int]], n_threads: int) -> float:
        """Return the seconds that the ranges alone take."""
        file = self.folder / "ranges.json"
        file.write_text(json.dumps([self.server.url, ranges, n_threads]))
        output, _ = self.start("replay", str(file)).communicate()
        return float(json.loads(output))

    def curl(self, key: str, n_bytes: int) -> float:
        """Return the seconds of a curl of so many bytes of an object, into a file."""
        file = self.folder / "curl"
        url = f"{self.server.url}/{key}"
        take_memory()
        command = ["curl", "-sS", "-r", f"0-{n_bytes - 1}", "-o", file, url]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        file.unlink()
        return seconds

    def start(self, *arguments: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "LAION_FMRI_BUCKET_URL": self.server.url,
            "LAION_FMRI_LICENSE": "I AGREE",
        }
        return subprocess.Popen(
            [sys.executable, __file__, "--child", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def data_dir(self, name: str) -> str:
        """Return a new data directory."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return str(folder)


MODEL = (
    f"{GLM}/ses-01/func/{SUBJECT}_ses-01_task-images_space-T1w_desc-GLMsingle_model.h5"
)


def region_cases(bench: Bench, image: Path | None) -> None:
    """Print the figures of a region of 30 sessions."""
    where = {"data_dir": bench.data_dir("regions"), "n_connections": CONNECTIONS}
    first = bench.call(rois="FFA1", **where)
    show("FFA1, 30 sessions, first call", first)
    bare = bench.bare(first.ranges, CONNECTIONS)
    ratio("bare ranges", first.seconds, bare, 2.5)
    print(f"    {first.n_sent / 1e6:.1f} MB on the wire, bar 120")
    stored = bench.call(rois="FFA1", **where)
    show("the same again", stored)
    offline = bench.call(rois="FFA1", mode="offline", **where)
    show("the same, offline", offline)
    print("    bar 0.5 s")
    overlap = bench.call(rois="OFA", **where)
    show("OFA, half of it in FFA1", overlap)
    ratio("bare ranges", overlap.seconds, bench.bare(overlap.ranges, CONNECTIONS), 2.5)
    n_own = 140 * N_TRIALS * 4 * N_SESSIONS
    print(f"    {overlap.n_ranges / n_own:.2f} x the bytes of the voxels that lack")
    if image:
        one_session(bench, where, offline, image)


def one_session(bench: Bench, where: dict, offline: Figures, image: Path) -> None:
    """Print the figures of a region against the image."""
    session = {"rois": "FFA1", "sessions": 1}
    stored = bench.call(only_load=True, **session, data_dir=where["data_dir"])
    show("load_betas, a session, store", stored)
    folder = bench.data_dir("image")
    bench.call(**session, data_dir=folder)
    shutil.rmtree(Path(folder) / ".laion_fmri/voxels")
    target = Path(folder) / image.relative_to(bench.folder / "bucket")
    os.link(image, target)
    read = bench.call(only_load=True, **session, data_dir=folder)
    show("load_betas, a session, image", read)
    assert read.checksum == stored.checksum
    ratio = read.seconds / stored.seconds
    print(f"    {ratio:.0f} times faster from the store, bar 100")
    ratio = 30 * read.seconds / offline.seconds
    print(f"    30 sessions: {ratio:.0f} times faster from the store, bar 300")


def session_cases(bench: Bench, name: str, rois: str, bar: float, more: float) -> None:
    """Print the figures of many voxels of a session."""
    where = {"data_dir": bench.data_dir(rois), "n_connections": CONNECTIONS}
    figures = bench.call(rois=rois, sessions=1, source="model", **where)
    show(name, figures)
    curl = bench.curl(MODEL, figures.n_ranges)
    ratio("curl", figures.seconds - more, curl, bar)
    few = {"data_dir": bench.data_dir(rois), "n_connections": 8}
    show(
        f"{name}, 8 connections",
        bench.call(rois=rois, sessions=1, source="model", **few),
    )
    where["mode"] = "offline"
    show(f"{name}, from the store", bench.call(rois=rois, sessions=1, **where))


def show(name: str, figures: Figures) -> None:
    print(f"{name:34} {figures}", flush=True)


def ratio(name: str, seconds: float, reference: float, bar: float) -> None:
    print(
        f"    {name} {reference:.2f} s: {seconds / reference:.2f}, bar {bar}",
        flush=True,
    )


CASES = {
    "region": lambda bench, image: region_cases(bench, image),
    "wire": lambda bench, _: region_cases(bench, None),
    "voxels": lambda bench, _: session_cases(
        bench, "20,000 voxels, a session", "laiongeneral", 1.5, 0.5
    ),
    "brain": lambda bench, _: session_cases(
        bench, "whole brain, a session", "brain", 1.3, 0
    ),
}


@contextlib.contextmanager
def served(bucket: Path, folder: Path) -> Iterator[Server]:
    server = Server(bucket, folder / "server.log", LATENCY)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(tempfile.gettempdir()) / "laion-fmri-ranges"
    parser.add_argument("--folder", type=Path, default=default, help="is kept")
    parser.add_argument(
        "--only", nargs="+", choices=CASES, default=["region", "voxels", "brain"]
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task, argument = args.child
        if task == "call":
            call(json.loads(argument))
        else:
            replay(*json.loads(Path(argument).read_text()))
        return
    bucket = args.folder / "bucket"
    if not bucket.exists():
        shutil.rmtree(args.folder / "making", ignore_errors=True)
        build(args.folder / "making")
        (args.folder / "making").rename(bucket)
    (image,) = (bucket / GLM / "ses-01" / "func").glob("*Betas_statmap.nii.gz")
    for file in (bucket / MODEL, image):  # warms the page cache
        with open(file, "rb") as stream:
            while stream.read(2**24):
                pass
    with served(bucket, args.folder) as server:
        bench = Bench(server, args.folder)
        for name in args.only:
            CASES[name](bench, image)


if __name__ == "__main__":
    main()
