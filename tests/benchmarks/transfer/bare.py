"""Fetch a prefix with nothing but urllib3 in threads; print seconds as JSON.

python bare.py BUCKET_URL PREFIX FOLDER [--connections N]

The time is that of listing and downloading, after the imports. Nothing is verified,
resumed or tried again: this is what the rest of the package costs.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import ssl
import threading
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import urllib3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    args = parser.parse_args()
    began = time.perf_counter()
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    pool = urllib3.PoolManager(maxsize=args.connections, ssl_context=context)
    query = {"list-type": "2", "prefix": args.prefix}
    listing = ET.fromstring(pool.request("GET", f"{args.url}/", fields=query).data)
    keys: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for element in listing.iterfind("{*}Contents/{*}Key"):
        keys.put(element.text)

    def work() -> None:
        while key := keys.get():
            path = args.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            answer = pool.request("GET", f"{args.url}/{key}", preload_content=False)
            with path.open("wb") as stream:
                for chunk in answer.stream(2**18):
                    stream.write(chunk)
            answer.release_conn()

    threads = [threading.Thread(target=work) for _ in range(args.connections)]
    for thread in threads:
        keys.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
