"""Bytes over HTTP: listings, documents, ranges, and files that arrive whole.

::

    bucket, download, ranges    what is asked for, decided by the caller's thread
        └─▶ tasks               daemon threads that run functions, and try again
        └─▶ client              one HTTP client: proxies, certificates, redirects

HTTP is touched in ``client`` alone, so that another engine could take its place.
"""
