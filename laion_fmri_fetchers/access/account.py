"""The ``request_id`` in the user's hands: kept, forgotten, reported."""

from __future__ import annotations

import getpass
import os
from dataclasses import replace

from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.listings import keep_demo_apart
from laion_fmri_fetchers.cache.state import auth_file
from laion_fmri_fetchers.exceptions import (
    AccessPendingError,
    InvalidQueryError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.messages import can_ask, tell, warn
from laion_fmri_fetchers.query.shared_docs import documented

from .gate import fetch_links
from .identity import (
    ID_VARIABLE,
    Identity,
    cached_identity,
    forget_identity,
    is_sendable,
    joined,
    masked,
    pending_text,
    save_identity,
)
from .service import server_url


@documented
def login(
    request_id: str | None = None,
    data_dir: str | os.PathLike | None = None,
    *,
    timeout: float = 30.0,
    verbose: int = 1,
) -> None:
    """Keep a ``request_id`` that the access service gave earlier.

    Parameters
    ----------
    request_id : str, optional
        The id; None: prompt for it, unseen.
    %(data_dir)s
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Raises
    ------
    InvalidQueryError
        If it is empty or has control characters, or if this is a demo and the directory
        holds other data, or the reverse.
    AccessPendingError, TermsOutdatedError
        If it is not approved yet, or the terms changed; it is kept all the same.
    AccessNotFoundError, AccessRevokedError, AccessServiceError
        If the service rejects it or cannot be asked; it is not kept.
    DiskSpaceError, StimulusAccessError
        If it cannot be written down.

    Examples
    --------
    ::

        login()
    """
    folder = get_data_dir(data_dir)
    keep_demo_apart(folder, timeout)
    if request_id is None:
        if not can_ask():
            raise InvalidQueryError(
                "request_id is missing, and there is no terminal to ask at; pass it or "
                f"set {ID_VARIABLE}."
            )
        request_id = getpass.getpass("request_id (not shown): ")
    given, request_id = Identity(str(request_id).strip(), server_url(), "pending"), ""
    if not is_sendable(given.request_id):
        raise InvalidQueryError(
            "request_id is empty or has control characters; paste the whole id."
        )
    outdated: TermsOutdatedError | None = None
    try:
        fetch_links(given, timeout)
        given = replace(given, status="approved")
    except TermsOutdatedError as error:
        outdated = error
    except AccessPendingError:
        pass
    file = save_identity(given, folder)
    if outdated:
        raise outdated
    if given.status == "pending":
        raise AccessPendingError(pending_text(given, file))
    tell(f"The request_id is approved and kept in {file}", verbose)


@documented
def logout(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> None:
    """Forget the ``request_id`` kept for a data directory.

    The same id is also removed from ``~/.cache/laion-fmri/auth.json``, where it is
    shared with the dataset's own package; another id there stays.

    Parameters
    ----------
    %(data_dir)s
    verbose : int, default=1
        0: silent, 1: say what was done.

    Warns
    -----
    UserWarning
        If another id stays in force: that of ``LAION_FMRI_REQUEST_ID``, or of the
        dataset's own package.

    Examples
    --------
    >>> import tempfile
    >>> logout(tempfile.mkdtemp(), verbose=0)
    """
    folder = get_data_dir(data_dir)
    files = forget_identity(folder)
    tell(
        f"Removed the request_id in {joined(files)}"
        if files
        else f"There is no request_id of yours in {auth_file(folder)}",
        verbose,
    )
    left = cached_identity(folder)
    if left:
        warn(f"A request_id stays in force, from {left.source}.")


@documented
def access_status(data_dir: str | os.PathLike | None = None) -> dict[str, str | None]:
    """Report which ``request_id`` is in use; nothing is sent.

    Parameters
    ----------
    %(data_dir)s

    Returns
    -------
    dict
        ``request_id`` (masked), ``status`` ("pending" or "approved"), ``email``,
        ``server_url`` and ``source``, a file or the environment variable; all of them
        None without an id.

    Examples
    --------
    >>> import tempfile
    >>> access_status(tempfile.mkdtemp())["status"] is None
    True
    """
    identity = cached_identity(get_data_dir(data_dir))
    if identity is None:
        names = ("request_id", "status", "email", "server_url", "source")
        return dict.fromkeys(names)
    return {
        "request_id": masked(identity.request_id),
        "status": identity.status,
        "email": identity.email,
        "server_url": identity.server_url,
        "source": identity.source,
    }
