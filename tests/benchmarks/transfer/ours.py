"""Fetch a prefix with this package; print seconds and memory as JSON.

python ours.py BUCKET_URL PREFIX FOLDER [--connections N]

The time is that of listing and downloading in a process that has imported the package;
the memory is the peak above that after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import tqdm.auto  # noqa: F401

from laion_fmri_fetchers.remote import bucket, download


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    line = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(line.split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    args = parser.parse_args()
    os.environ["LAION_FMRI_BUCKET_URL"] = args.url
    before = peak_memory()
    began = time.perf_counter()
    downloads = [
        download.Download(
            one.key,
            bucket.object_url(one.key),
            args.folder / one.key,
            one.size,
            one.etag,
            last_modified=bucket.timestamp(one.last_modified),
        )
        for one in bucket.list_prefixes([(args.prefix, "")], verbose=0)[0]["objects"]
    ]
    failed = download.download_files(
        downloads,
        partial_dir=args.folder / ".partial",
        n_connections=args.connections,
        verbose=0,
    )
    seconds = time.perf_counter() - began
    if failed or not downloads:
        raise SystemExit(f"failed: {failed}")
    print(json.dumps({"seconds": seconds, "memory": peak_memory() - before}))


if __name__ == "__main__":
    main()
