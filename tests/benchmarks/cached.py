"""A second call with everything cached, against the offline call and the listing.

    python tests/benchmarks/cached.py

Some 2,000 files lie on disk and in a demo bucket. Medians of several calls
in one process; requests are counted.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import offline

from laion_fmri_fetchers import fetch_laion_fmri
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.remote import bucket

REPEATS = 7


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        offline.build(root)
        with serve_bucket(root) as server:
            os.environ["LAION_FMRI_BUCKET_URL"] = server.url
            how = {"data_dir": root, "verbose": 0}
            fetch_laion_fmri("all", **how)
            server.reset()
            fetch_laion_fmri("all", **how)
            n_gets = sum(bool(key) for _, key, _ in server.requests)
            queries = [query for _, key, query in server.requests if not key]
            wanted = []
            for query in queries:
                terms = dict(term.split("=", 1) for term in query.split("&"))
                prefix = terms["prefix"].replace("%2F", "/")
                wanted.append((prefix, "/" if "delimiter" in terms else ""))
            print(
                f"{len(queries)} listings of {len(set(wanted))} prefixes, {n_gets} GETs"
            )
            times: dict[str, list[float]] = {"listing": [], "offline": [], "call": []}
            for _ in range(REPEATS):
                times["listing"].append(timed(lambda: bucket.list_prefixes(wanted)))
                times["offline"].append(
                    timed(lambda: fetch_laion_fmri("all", mode="offline", **how))
                )
                times["call"].append(timed(lambda: fetch_laion_fmri("all", **how)))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<8} {value:.3f} s")
    limit = 2 * median["offline"] + median["listing"]
    print(f"call / (2 x offline + listing) = {median['call'] / limit:.2f}, bar 1")


if __name__ == "__main__":
    main()
