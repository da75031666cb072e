"""A bucket of 500,000 objects listed, against the bare requests and their parsing.

    python tests/benchmarks/listing.py

The pages, as S3 sends them, are served by a process of its own. Each figure is
measured in a new process, after its imports; the median of several is shown. Memory is
the peak above that after the imports. The listing is saved to disk, which is part of
the time, and a later call reads it offline.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

N_SUBJECTS, N_SESSIONS, N_RUNS, N_ECHOES = 5, 34, 12, 3
PARTS = ("mag", "phase")
KINDS = ("bold.nii.gz", "bold.json", "sbref.nii.gz", "sbref.json")
PAGE = 1000
EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

MEASURE = """
import sys, time
from pathlib import Path
def peak():
    line = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(line.split()[0]) / 1000
"""

BARE = (
    MEASURE
    + """
import requests
from xml.etree import ElementTree as ET
query, before, start = {"list-type": "2", "prefix": ""}, peak(), time.perf_counter()
n_keys = 0
with requests.Session() as session:
    while True:
        answer = session.get(sys.argv[1], params=query)
        page = ET.fromstring(answer.content)
        n_keys += int(page.findtext("{*}KeyCount"))
        if page.findtext("{*}IsTruncated") != "true":
            break
        query["continuation-token"] = page.findtext("{*}NextContinuationToken")
print(time.perf_counter() - start, peak() - before, n_keys)
"""
)

OURS = (
    MEASURE
    + """
import requests
from laion_fmri_fetchers.cache.listings import read_catalog
before, start = peak(), time.perf_counter()
found = read_catalog([("", "")], sys.argv[2], mode=sys.argv[3], verbose=0)
print(time.perf_counter() - start, peak() - before, len(found.objects))
"""
)


def keys(n: int) -> list[str]:
    """Return keys as of the raw data, in the order of S3; pilots make them enough."""
    found: list[str] = []
    for number in range(1, 1000):
        for session in range(1, N_SESSIONS + 1):
            place = f"sub-{number:03d}/ses-{session:02d}"
            name = f"{place}/func/sub-{number:03d}_ses-{session:02d}_task-images_run-"
            found += [
                f"{name}{run:02d}_echo-{echo}_part-{part}_{kind}"
                for run in range(1, N_RUNS + 1)
                for echo in range(1, N_ECHOES + 1)
                for part in PARTS
                for kind in KINDS
            ]
        if len(found) >= n:
            return sorted(found[:n])
    raise ValueError(f"too many: {n}")


def pages(n: int) -> list[bytes]:
    """Return the pages of a listing; the token of each is its number."""
    rng, names = random.Random(0), keys(n)
    rendered = []
    for number, at in enumerate(range(0, n, PAGE), 1):
        is_last = at + PAGE >= n
        token = (
            ""
            if is_last
            else f"<NextContinuationToken>{number}</NextContinuationToken>"
        )
        contents = "".join(_contents(name, rng) for name in names[at : at + PAGE])
        rendered.append(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>laion-fmri</Name><Prefix></Prefix>{token}"
            f"<KeyCount>{len(names[at : at + PAGE])}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(not is_last).lower()}</IsTruncated>"
            f"{contents}</ListBucketResult>".encode()
        )
    return rendered


def _contents(key: str, rng: random.Random) -> str:
    size = rng.randrange(1000, 200_000_000)
    parts = f"-{size // 2**23 + 1}" if size >= 2**23 else ""
    etag = hashlib.md5(key.encode()).hexdigest() + parts
    date = datetime(2026, 5, 1) + timedelta(seconds=rng.randrange(20 * 86400))
    return (
        f"<Contents><Key>{key}</Key><LastModified>{date:%Y-%m-%dT%H:%M:%S}.000Z"
        f"</LastModified><ETag>&quot;{etag}&quot;</ETag>"
        "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def serve(n: int, ready) -> None:
    """Send the pages to whoever asks."""
    rendered = pages(n)
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_answer, args=(client, rendered), daemon=True).start()


def _answer(client: socket.socket, rendered: list[bytes]) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, client.makefile("rb") as stream:
        while first := stream.readline():
            while stream.readline().strip():
                pass
            query = parse_qs(urlsplit(first.split()[1].decode()).query)
            page = rendered[int(query.get("continuation-token", ["0"])[0])]
            if "delimiter" in query:  # the top level, by which a demo is told
                page = EMPTY
            head = (
                "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\n"
                f"Content-Length: {len(page)}\r\n\r\n"
            )
            client.sendall(head.encode() + page)


def run(code: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=serve, args=(args.keys, sender))
    server.start()
    results: dict[str, list[list[float]]] = {"bare": [], "listed": [], "offline": []}
    try:
        url = os.environ["LAION_FMRI_BUCKET_URL"] = (
            f"http://127.0.0.1:{receiver.recv()}"
        )
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                results["bare"].append(run(BARE, url))
                results["listed"].append(run(OURS, url, folder, "download_new"))
                results["offline"].append(run(OURS, url, folder, "offline"))
    finally:
        server.terminate()
        server.join()
    for values in results.values():
        assert {n_keys for _, _, n_keys in values} == {args.keys}
    seconds = {k: statistics.median(v[0] for v in vs) for k, vs in results.items()}
    memory = {k: max(v[1] for v in vs) for k, vs in results.items()}
    print(f"{args.keys} keys, medians of {args.repeats} processes")
    for name in results:
        ratio = seconds[name] / seconds["bare"]
        print(
            f"{name:<8} {seconds[name]:6.2f} s  {memory[name]:5.0f} MB  "
            f"ratio {ratio:.2f}"
        )
    print("bars: listed at most 1.3 times bare; 400 MB, listed or read offline")


if __name__ == "__main__":
    main()
