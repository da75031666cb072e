"""The licence of the fMRI data, CC0 1.0: accepted once per data directory."""

from __future__ import annotations

import os
from importlib import resources

from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.files import write_atomically
from laion_fmri_fetchers.cache.listings import keep_demo_apart
from laion_fmri_fetchers.cache.state import license_marker
from laion_fmri_fetchers.exceptions import LicenseNotAcceptedError
from laion_fmri_fetchers.messages import AGREEMENT, agrees, ask_agreement, can_ask
from laion_fmri_fetchers.query.shared_docs import documented

_VARIABLE = "LAION_FMRI_LICENSE"


def license_text() -> str:
    """Return the terms that `.accept_license` shows.

    Returns
    -------
    str
        The terms of the fMRI data, several lines.

    Examples
    --------
    >>> "CC0 1.0" in license_text()
    True
    """
    return resources.files(__package__).joinpath("license.rst").read_text()


@documented
def accept_license(data_dir: str | os.PathLike | None = None) -> None:
    """Show the CC0 terms of the fMRI data and ask to accept them.

    Acceptance is remembered in the data directory, in a file that the dataset's own
    package recognises too. If the environment variable ``LAION_FMRI_LICENSE`` is
    ``I AGREE``, the terms are accepted without a prompt, as batch jobs need.

    Parameters
    ----------
    %(data_dir)s

    Raises
    ------
    LicenseNotAcceptedError
        If the terms are declined, or there is no terminal to ask at.
    InvalidQueryError
        If this is a demo and the directory holds other data, or the reverse.
    DataDirectoryError, DiskSpaceError
        If the acceptance cannot be saved.

    See Also
    --------
    access.license_text : The terms.

    Examples
    --------
    >>> import os, tempfile
    >>> os.environ["LAION_FMRI_LICENSE"] = "I AGREE"
    >>> accept_license(tempfile.mkdtemp())
    """
    folder = get_data_dir(data_dir)
    marker = license_marker(folder)
    if os.path.exists(marker):
        return
    keep_demo_apart(folder)
    if not is_accepted_ahead():
        if not can_ask():
            given = os.environ.get(_VARIABLE)
            raise LicenseNotAcceptedError(
                f"The CC0 terms of the fMRI data are not accepted for {folder}, and "
                "there is no terminal to ask at. Read them with license_text() or "
                "'laion-fmri-fetchers accept-license --show', then set the environment "
                f"variable {_VARIABLE}='{AGREEMENT}'"
                f"{f', which is {given!r}' if given else ''}, or run "
                "'laion-fmri-fetchers accept-license' once at a terminal."
            )
        if not ask_agreement("accept these terms", license_text()):
            raise LicenseNotAcceptedError(
                "The CC0 terms were declined; no image was downloaded. Call "
                f"accept_license() and type {AGREEMENT} to accept them."
            )
    write_atomically(marker, b"")


def is_accepted_ahead() -> bool:
    """Return whether the environment accepts the terms, for any directory."""
    return agrees(os.environ.get(_VARIABLE, ""))
