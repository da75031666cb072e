"""A small synthetic LAION-fMRI in the real layout, and local servers that offer it.

    run_demo            a walk through the package on synthetic data     walkthrough
    serve_demo          calls of the package go there for a while        environment
      ├▶ build_bucket   the dataset as files: anatomy, glm, runs, stimuli      build
      │                 of what is in                         brain, labels, facts
      ├▶ serve_bucket   an S3 server                                          server
      ├▶ serve_access   the access service                                   service
      └▶ serve_splits   train/test splits of the images                       splits

>>> from laion_fmri_fetchers.demo import build_bucket, serve_bucket
>>> with serve_bucket(build_bucket("demo_bucket")) as server:  # doctest: +SKIP
...     print(server.url)
http://127.0.0.1:40123/laion-fmri

Nothing in the library imports this.
"""

from .build import build_bucket
from .environment import Demo, serve_demo
from .labels import CONTENT, content_category
from .server import Server, serve_bucket
from .service import AccessServer, serve_access
from .splits import SplitServer, serve_splits

__all__ = [
    "CONTENT",
    "AccessServer",
    "Demo",
    "Server",
    "SplitServer",
    "build_bucket",
    "content_category",
    "serve_access",
    "serve_bucket",
    "serve_demo",
    "serve_splits",
]
