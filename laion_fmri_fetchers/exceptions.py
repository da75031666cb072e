"""Every error a user can meet.

All derive from `LaionFmriError` and from the builtin that fits, so that
``except LaionFmriError`` and ``except FileNotFoundError`` both catch it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LaionFmriError(Exception):
    """Base of all errors of this package."""


class InvalidQueryError(LaionFmriError, ValueError):
    """An argument, a filter term or a field name is not valid."""


class HeldOutSessionError(LaionFmriError, PermissionError):
    """A session held out for evaluation was named; the bucket denies it."""


class NotCachedError(LaionFmriError, FileNotFoundError):
    """Offline, a file that was named is not on disk."""


class BucketError(LaionFmriError, ConnectionError):
    """The bucket cannot be reached, denies listing, or answers with something else."""


class UnsafeKeyError(BucketError):
    """A key or file name would lead out of the data directory."""


class DownloadError(LaionFmriError, ConnectionError):
    """Files failed to download after all retries.

    Attributes
    ----------
    failed : list of dict
        One dict per file, with its ``id`` and the ``reason``.
    """

    def __init__(self, message: str, failed: Iterable[dict] = ()):
        super().__init__(message)
        self.failed = list(failed)


class DiskSpaceError(LaionFmriError, OSError):
    """The disk is too small for the files, or became full."""


class DataDirectoryError(LaionFmriError, PermissionError):
    """A file or folder of the data directory cannot be made, read or written.

    As with any ``OSError``, ``errno`` is the number of the operating system's error,
    and ``filename`` is the path.
    """

    def __init__(
        self, message: str, number: int | None = None, folder: str | None = None
    ):
        super().__init__(message)
        self.errno = number
        self.filename = folder

    def __str__(self) -> str:
        return str(self.args[0])


class LicenseNotAcceptedError(LaionFmriError, PermissionError):
    """The CC0 terms of the fMRI data were declined or not yet accepted."""


class StimulusAccessError(LaionFmriError, RuntimeError):
    """Base of the errors on access to the gated stimulus images."""


class AccessRequiredError(StimulusAccessError):
    """No ``request_id`` is cached."""


class AccessPendingError(StimulusAccessError):
    """The access request is not approved yet."""


class TermsOutdatedError(StimulusAccessError):
    """The terms of the Data Use Agreement changed since they were accepted.

    Attributes
    ----------
    accept_url : str or None
        Where to accept the current terms in a browser.
    terms_version : str or None
        The version to accept.
    """

    def __init__(
        self,
        message: str,
        accept_url: str | None = None,
        terms_version: str | None = None,
    ):
        super().__init__(message)
        self.accept_url = accept_url
        self.terms_version = terms_version


class AccessRevokedError(StimulusAccessError):
    """The ``request_id`` was withdrawn."""


class AccessNotFoundError(StimulusAccessError):
    """The access service does not know the ``request_id``."""


class AccessRateLimitedError(StimulusAccessError):
    """Too many requests to the access service.

    Attributes
    ----------
    retry_after : float or None
        Seconds after which to try again, where the service says so.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class AccessFormError(StimulusAccessError):
    """A field of the access request is missing or refused.

    Attributes
    ----------
    fields : dict
        Field name -> why it was refused.
    """

    def __init__(self, message: str, fields: dict[str, str] | None = None):
        super().__init__(message)
        self.fields = dict(fields or {})


class AccessServiceError(StimulusAccessError):
    """The access service cannot be reached, or its answer is not valid."""


class CorruptImageError(LaionFmriError, ValueError):
    """An image cannot be read, or disagrees with its trial table."""


_MOST_MEANT = 4


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a hint with the nearest known names, to end a message with.

    Examples
    --------
    >>> did_you_mean("FA1", ["FFA1", "FFA2", "PPA"])
    "did you mean 'FFA1'?"
    >>> did_you_mean("zzz", ["FFA1", "PPA"])
    'known are FFA1, PPA.'
    >>> did_you_mean("V1", ["V1d", "V1v", "VO1"])
    "did you mean 'V1d' or 'V1v'?"
    """
    by_folded = {str(valid).casefold(): str(valid) for valid in known}
    folded = str(name).casefold()
    nearest = [valid for valid in by_folded if folded and valid.startswith(folded)]
    if folded in by_folded:
        nearest = [folded]
    elif not nearest:
        nearest = difflib.get_close_matches(folded, by_folded, 2, cutoff=0.6)
        if nearest and difflib.SequenceMatcher(None, folded, nearest[0]).ratio() > 0.8:
            nearest = nearest[:1]
    if 0 < len(nearest) <= _MOST_MEANT:
        names = sorted(by_folded[valid] for valid in nearest)
        return f"did you mean {' or '.join(map(repr, names))}?"
    names = sorted(by_folded.values())
    return f"known are {', '.join(names)}." if names else "none are known."
