"""LaionDataset in a loader of batches, against a bare dataset of the same arrays.

    python tests/benchmarks/batches.py

10,000 trials at 2,000 voxels with an embedding of 1,024 features, a caption, label,
subject, session and repetition. The bare dataset slices the same arrays and lists. Both
go through the same loader with 4 workers: torch's where torch is installed, else
processes of multiprocessing that stack items to batches. They take turns, and the
medians of several epochs are compared, after one that is not counted. Memory is the
unique memory (USS) that the workers of our dataset add from the first tenth of an epoch
to its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import psutil
from sklearn.utils import Bunch

from laion_fmri_fetchers import LaionDataset

N_TRIALS, N_VOXELS, N_FEATURES = 10_000, 2_000, 1_024
N_IMAGES, N_WORKERS, BATCH = 2_500, 4, 64


class Bare:
    """The same items, sliced from the same arrays."""

    def __init__(self, betas: Bunch, embeddings: Bunch, captions: Bunch):
        self.betas = betas.data
        self.embeddings = embeddings.embeddings["CLIP"]
        self.captions = captions.captions["caption"].tolist()
        self.labels = betas.trials["label"].tolist()
        rows = {name: i for i, name in enumerate(embeddings.image_names)}
        self.rows = [rows[label] for label in self.labels]
        self.subjects = betas.trials["subject"].tolist()
        self.sessions = betas.trials["session"].tolist()
        self.repetitions = betas.trials["repetition"].tolist()

    def __len__(self) -> int:
        return len(self.betas)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "betas": self.betas[i],
            "embedding": self.embeddings[self.rows[i]],
            "caption": self.captions[self.rows[i]],
            "label": self.labels[i],
            "subject": self.subjects[i],
            "session": self.sessions[i],
            "repetition": self.repetitions[i],
        }


def make_sources() -> tuple[Bunch, Bunch, Bunch]:
    rng = np.random.default_rng(0)
    names = [f"unique_THINGS_object_{i}_p01.jpg" for i in range(N_IMAGES)]
    trials = pd.DataFrame(
        {
            "subject": "sub-01",
            "session": [f"ses-{1 + i // 1000:02d}" for i in range(N_TRIALS)],
            "label": rng.choice(names, N_TRIALS),
            "repetition": pd.array([1] * N_TRIALS, dtype="Int64"),
        }
    )
    data = rng.standard_normal((N_TRIALS, N_VOXELS), dtype=np.float32)
    vectors = rng.standard_normal((N_IMAGES, N_FEATURES)).astype(np.float16)
    embeddings = Bunch(
        embeddings={"CLIP": vectors},
        valid={"CLIP": np.ones(N_IMAGES, dtype=bool)},
        image_names=names,
    )
    text = "a photograph of an object on a table, seen from above"
    table = pd.DataFrame({"image_name": names, "source": "human", "caption": text})
    captions = Bunch(captions=table, image_names=names)
    return Bunch(data=data, trials=trials), embeddings, captions


def stacked(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch, as torch's default is without torch."""
    arrays = ("betas", "embedding", "image", "repetition")
    return {
        name: np.stack([item[name] for item in items])
        if name in arrays
        else [item[name] for item in items]
        for name in items[0]
    }


_dataset: Any = None


def _set(dataset: Any) -> None:
    global _dataset
    _dataset = dataset


def _batch(start: int) -> dict[str, Any]:
    stop = min(start + BATCH, len(_dataset))
    return stacked([_dataset[i] for i in range(start, stop)])


def batches(dataset: Any) -> Iterator[Any]:
    """Yield batches by torch's loader, else by processes of multiprocessing."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        context = multiprocessing.get_context("fork")
        with context.Pool(N_WORKERS, _set, (dataset,)) as pool:
            yield from pool.imap(_batch, range(0, len(dataset), BATCH))
    else:
        yield from DataLoader(dataset, batch_size=BATCH, num_workers=N_WORKERS)


def epoch(dataset: Any) -> float:
    start = time.perf_counter()
    n_items = sum(len(batch["label"]) for batch in batches(dataset))
    assert n_items == len(dataset)
    return time.perf_counter() - start


def memory_added(dataset: Any) -> float:
    """Return MB that workers add from a tenth of an epoch to its end."""
    n_batches = -(-len(dataset) // BATCH)
    sizes = []
    for number, _ in enumerate(batches(dataset)):
        if number in (n_batches // 10, n_batches - N_WORKERS - 1):
            workers = psutil.Process().children(recursive=True)
            sizes.append(sum(worker.memory_full_info().uss for worker in workers))
    return (sizes[-1] - sizes[0]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    betas, embeddings, captions = make_sources()
    datasets = {
        "bare": Bare(betas, embeddings, captions),
        "ours": LaionDataset(betas, embeddings=embeddings, captions=captions),
    }
    times: dict[str, list[float]] = {name: [] for name in datasets}
    for repeat in range(options.repeats + 1):
        for name in sorted(datasets, reverse=bool(repeat % 2)):
            times[name].append(epoch(datasets[name]))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratio = median["ours"] / median["bare"]
    print(f"{N_TRIALS} items, {N_WORKERS} workers, medians of {options.repeats} epochs")
    print(f"bare     {median['bare']:.2f} s")
    print(f"ours     {median['ours']:.2f} s  ratio {ratio:.2f}  bar 1.2")
    print(f"memory   {memory_added(datasets['ours']):+.1f} MB over an epoch")


if __name__ == "__main__":
    main()
