"""A small synthetic LAION-fMRI in the real layout, and a local S3 that serves it.

`build_bucket` writes the dataset, `serve_bucket` offers it over HTTP, and
`serve_access` is the service that grants access to its stimuli:

>>> from laion_fmri_fetchers.demo import build_bucket, serve_bucket
>>> with serve_bucket(build_bucket("demo_bucket")) as server:  # doctest: +SKIP
...     print(server.url)
http://127.0.0.1:40123/laion-fmri

`serve_demo` does all of that in one call, and lets the package's calls go there.
"""

from .access import AccessServer, serve_access
from .bucket import build_bucket
from .environment import Demo, serve_demo
from .labels import CONTENT, content_category
from .model import model_file
from .server import Server, serve_bucket

__all__ = [
    "CONTENT",
    "AccessServer",
    "Demo",
    "Server",
    "build_bucket",
    "content_category",
    "model_file",
    "serve_access",
    "serve_bucket",
    "serve_demo",
]
