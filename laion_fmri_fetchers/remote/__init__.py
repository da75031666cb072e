"""Bytes over HTTP: listings, documents, ranges, and files that arrive whole.

::

    bucket, download, ranges    what is asked for
        └─▶ partial             an unfinished file on disk
        └─▶ client              threads, and one HTTP client, which tries again

HTTP is touched in ``client`` alone, so that another engine could take its place.
"""
