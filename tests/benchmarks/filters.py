"""How fast `ResultFilter.mask` is, beside nilearn's filter called trial by trial.

Run ``python tests/benchmarks/filters.py``. The table of trials is synthetic and the
same at each run: as many trials and distinct labels as the dataset has. nilearn's
filter gets the same rows as dicts made beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from nilearn.datasets import neurovault

from laion_fmri_fetchers import filters

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
N_SESSIONS = 33
N_TRIALS = 172_260
N_SHARED, N_UNIQUE = 1_492, 4_712
N_RUNS = 12


def trials() -> pd.DataFrame:
    """Return a table of trials, with the columns and types of the fetched one."""
    rng = np.random.default_rng(0)
    shared = [f"shared_12rep_LAION_cluster_{i}_i0.jpg" for i in range(N_SHARED // 2)]
    shared += [
        f"shared_4rep_OOD_shape_blob_round-{i}.png" for i in range(N_SHARED // 2)
    ]
    n_in_session = N_TRIALS // (len(SUBJECTS) * N_SESSIONS)
    blocks = []
    for subject in SUBJECTS:
        number = subject[-2:]
        labels = shared + [
            f"unique_LAION_initial_cluster_{i}_i{i % 7}_p{number}.jpg"
            for i in range(N_UNIQUE)
        ]
        table = pd.DataFrame({"label": pd.Series(labels, dtype=object)})
        is_shared = table.label.str.startswith("shared")
        is_ood = table.label.str.contains("_OOD_")
        table["unique_or_shared"] = np.where(is_shared, "shared", "unique")
        table["n_reps"] = [12 if "_12rep_" in label else 4 for label in labels]
        table["n_reps"] = table["n_reps"].astype("Int64").mask(~is_shared)
        table["dataset"] = np.where(is_ood, "OOD", "LAION")
        table["ood_type"] = np.where(is_ood, "shape", None)
        table["participant"] = np.where(is_shared, None, subject)
        for session in range(1, N_SESSIONS + 1):
            chosen = rng.integers(0, len(labels), n_in_session)
            block = table.iloc[chosen].reset_index(drop=True)
            block.insert(0, "subject", subject)
            block.insert(1, "session", f"ses-{session:02}")
            block.insert(2, "run", np.arange(n_in_session) * N_RUNS // n_in_session + 1)
            block.insert(3, "beta_index", np.arange(n_in_session))
            block["image_index"] = len(blocks)
            blocks.append(block)
    frame = pd.concat(blocks, ignore_index=True)
    text = frame.columns.difference(
        ["run", "beta_index", "image_index", "n_reps"], sort=False
    )
    return frame.astype(dict.fromkeys(text, object))


def best(function: Callable[[], Any], n_repeats: int) -> float:
    """Return the shortest of several run times, in milliseconds."""
    times = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def cases(module: Any, labels: list[str]) -> list[tuple[str, int, Any]]:
    """Return what is timed: name, the ratio to reach, and the module's filter."""
    result_filter = module.ResultFilter
    pattern = module.Pattern(r"shared_.*_i0")
    two = module.IsIn("ses-01", "ses-02")
    either = result_filter(session=two).OR(result_filter(label=pattern))
    return [
        ("n_reps=12", 100, result_filter(n_reps=12)),
        ("n_reps>=4", 100, result_filter(n_reps=module.GreaterOrEqual(4))),
        ("beta_index<100", 100, result_filter(beta_index=module.LessThan(100))),
        ("session='ses-01'", 10, result_filter(session="ses-01")),
        ("label=...", 10, result_filter(label=labels[7])),
        ("session in 2", 10, result_filter(session=two)),
        ("label in 500", 10, result_filter(label=module.IsIn(*labels[:500]))),
        ("label ~ pattern", 2, result_filter(label=pattern)),
        (
            "n_reps=12 & (session in 2 | label ~ pattern)",
            8,
            result_filter(n_reps=12).AND(either),
        ),
        ("function of a trial", 0, result_filter(callable_filter=is_early)),
    ]


def is_early(trial: dict) -> bool:
    """Tell whether a trial is in the first of its session."""
    return trial["beta_index"] < trial["run"]


def main() -> None:
    """Print the table."""
    frame = trials()
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    labels = list(frame.label.unique())
    print(f"{len(frame):,} trials, {len(labels):,} labels; ms, best of several runs\n")
    print(f"{'filter':46}{'ours':>9}{'nilearn':>10}{'ratio':>9}{'bar':>7}")
    ours = cases(filters, labels)
    theirs = cases(neurovault, labels)
    for (name, bar, mine), (_, _, peer) in zip(ours, theirs, strict=True):
        agree = mine.mask(frame).tolist() == [peer(row) for row in rows]
        mine_ms = best(lambda mine=mine: mine.mask(frame), 7)
        peer_ms = best(lambda peer=peer: [peer(row) for row in rows], 3)
        print(
            f"{name:46}{mine_ms:9.3f}{peer_ms:10.1f}{peer_ms / mine_ms:8.0f}x"
            f"{bar or '':>6}{'x' if bar else ' '}{'' if agree else '  DISAGREE'}"
        )


if __name__ == "__main__":
    main()
