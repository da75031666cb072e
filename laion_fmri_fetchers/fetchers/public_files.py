"""Names of `cache` under which other modules still import them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from laion_fmri_fetchers.cache.inventory import take_inventory_of_stimuli
from laion_fmri_fetchers.cache.obtain import fetch_public
from laion_fmri_fetchers.exceptions import DownloadError

__all__ = ["fetch_public", "needed", "take_inventory_of_stimuli"]


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Let a failed download not advise ``allow_missing`` where that does not help."""
    try:
        yield
    except DownloadError as error:
        text = str(error).replace("; allow_missing=True leaves the others out", "")
        raise DownloadError(text, failed=error.failed) from None
