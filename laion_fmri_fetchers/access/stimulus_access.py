"""The stimulus access service: the request, the cached ``request_id``, fresh URLs.

The way to the gated archive::

    request_stimulus_access    the form -> request_id -> auth.json (pending, approved)
    login, logout              a request_id that somebody has already
    open_gate -> Gate          cached request_id, or AccessRequiredError
                └ url(file)    refresh -> presigned URLs, again when they expire
    fetch_manifest             public: sizes and sha256 of the files now
    saved_manifest             those of the files on disk, as they were fetched

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import getpass
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessPendingError,
    AccessRequiredError,
    AccessRevokedError,
    AccessServiceError,
    DiskSpaceError,
    InvalidQueryError,
    StimulusAccessError,
    TermsOutdatedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.layout.keys import clean_key
from laion_fmri_fetchers.layout.trees import GATED, STIMULI
from laion_fmri_fetchers.messages import AGREEMENT, can_ask, listed, tell, warn
from laion_fmri_fetchers.storage.data_dir import get_data_dir, is_writable
from laion_fmri_fetchers.storage.files import write_atomically
from laion_fmri_fetchers.storage.state import auth_file, official_auth_file, state_path

from .service import (
    ADVICE,
    DEFAULT_ACCESS_URL,
    PREFIX,
    URL_VARIABLE,
    Answer,
    SecretBytes,
    SecretText,
    call,
    is_same_server,
    raise_for_status,
    refuse_plain,
    server_url,
)

_ID_VARIABLE = "LAION_FMRI_REQUEST_ID"
_TRIES = 3
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_MANIFEST = "the manifest of the stimulus files"

_QUESTIONS = {
    "name": "Full name",
    "email": "Institutional email",
    "institution": "Institution",
    "pi": "Principal investigator or supervisor (Enter for none)",
    "research_purpose": "Research purpose (20 characters or more)",
}


# --- What the user calls ---------------------------------------------------------


def current_terms_version(*, timeout: float = 30.0) -> str:
    """Ask the access service which version of the Data Use Agreement is in force.

    Parameters
    ----------
    timeout : float, default=30.0
        Seconds without an answer.

    Returns
    -------
    str
        The version, as ``accept_terms_version`` of `request_stimulus_access` takes it.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.

    Examples
    --------
    ::

        version = current_terms_version()
    """
    server = server_url()
    content = _manifest_content(server, timeout, _TRIES)
    return _text_of(content, "current_terms_version", server)


def request_stimulus_access(
    *,
    name: str | None = None,
    email: str | None = None,
    institution: str | None = None,
    pi: str | None = None,
    research_purpose: str | None = None,
    accept_terms_version: str | None = None,
    acknowledge_privacy: bool | None = None,
    renew: bool = False,
    data_dir: str | os.PathLike | None = None,
    timeout: float = 30.0,
    verbose: int = 1,
) -> None:
    """Request access to the stimulus images, which a Data Use Agreement gates.

    Whatever is not given is asked for. The ``request_id`` that the service returns is
    kept in the data directory and, for the dataset's own package and for other data
    directories, in ``~/.cache/laion-fmri/auth.json``, readable by its owner alone.
    Nothing is sent if a kept one is still valid.

    Parameters
    ----------
    name : str, optional
        Full name.
    email : str, optional
        Institutional email address.
    institution : str, optional
        Institution.
    pi : str, optional
        Principal investigator or supervisor, if any.
    research_purpose : str, optional
        How the images will be used, 20 characters or more.
    accept_terms_version : str, optional
        The version of the Data Use Agreement, https://laion-fmri.hebartlab.com/terms,
        that you have read and accept; see `current_terms_version`.
    acknowledge_privacy : bool, optional
        True: you have read the privacy notice,
        https://laion-fmri.hebartlab.com/privacy, and acknowledge it. A script has to
        give both consents; at a terminal or in a notebook, one question asks for both
        where either is missing.
    renew : bool, default=False
        Send the form even if a kept ``request_id`` is still valid.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Raises
    ------
    AccessFormError
        If a field or a consent is missing where nobody can be asked, or is refused;
        ``fields`` names each.
    AccessPendingError
        If the request waits for approval; the ``request_id`` is kept, and the next
        call that needs the images goes through once it is approved.
    TermsOutdatedError
        If another version than ``accept_terms_version`` is in force.
    AccessRateLimitedError
        If too many requests were sent.
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.
    DiskSpaceError, StimulusAccessError
        If the ``request_id`` cannot be written down.

    See Also
    --------
    fetch_laion_stimuli : Fetch the images.

    Examples
    --------
    At a terminal or in a notebook, you are asked for everything::

        request_stimulus_access()

    In a script::

        request_stimulus_access(
            name="Ada Example",
            email="ada@university.example",
            institution="University of Examples",
            research_purpose="Encoding models of natural images",
            accept_terms_version="2026-05-12",
            acknowledge_privacy=True,
        )
    """
    folder = get_data_dir(data_dir)
    if not renew and _is_honoured(folder, timeout, verbose):
        return
    form = {
        "name": name,
        "email": email,
        "institution": institution,
        "pi": pi,
        "research_purpose": research_purpose,
    }
    form = {k: v.strip() if isinstance(v, str) else v for k, v in form.items()}
    _check_form(form, accept_terms_version, acknowledge_privacy)
    server = server_url()
    version = current_terms_version(timeout=timeout)
    if accept_terms_version not in (None, version):
        raise TermsOutdatedError(
            f"You accept version {accept_terms_version!r} of the Data Use Agreement, "
            f"but version {version!r} is in force. Read it at {server}/terms and pass "
            f"accept_terms_version={version!r}.",
            accept_url=f"{server}/terms",
            terms_version=version,
        )
    _ask(form)
    if accept_terms_version is None or acknowledge_privacy is None:
        _confirm(server, version)
    auth = _send_form(server, form, version, timeout)
    file = _save(auth, folder)
    if os.environ.get(_ID_VARIABLE, "").strip():
        warn(
            f"{_ID_VARIABLE} is set and takes precedence over the new request_id in "
            f"{file}; unset it."
        )
    if auth.status == "pending":
        raise AccessPendingError(f"The form was sent. {_pending_text(auth, file)}")
    tell(f"Access is granted; the request_id is kept in {file}", verbose)


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
        The id, which begins with ``lfm_``; None: ask for it, without showing it.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Raises
    ------
    InvalidQueryError
        If it is not a ``request_id``.
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
    if request_id is None:
        if not can_ask():
            raise InvalidQueryError(
                "request_id is missing, and there is no terminal to ask at; pass it or "
                f"set {_ID_VARIABLE}."
            )
        request_id = getpass.getpass("request_id (not shown): ")
    given, request_id = Auth(str(request_id).strip(), server_url(), "pending"), ""
    if not given.request_id.startswith(PREFIX) or " " in given.request_id:
        raise InvalidQueryError(f"Not a valid request_id (they begin with {PREFIX}).")
    outdated: TermsOutdatedError | None = None
    try:
        _refresh(given, timeout)
        given = replace(given, status="approved")
    except TermsOutdatedError as error:
        outdated = error
    except AccessPendingError:
        pass
    file = _save(given, folder)
    if outdated:
        raise outdated
    if given.status == "pending":
        raise AccessPendingError(_pending_text(given, file))
    tell(f"The request_id is approved and kept in {file}", verbose)


def logout(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> None:
    """Forget the ``request_id`` kept for a data directory.

    The same id is also removed from ``~/.cache/laion-fmri/auth.json``, where it is
    shared with the dataset's own package; another id there stays.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
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
    file, shared = auth_file(folder), official_auth_file()
    files = [file] if file.exists() and not _is_of_others(file) else []
    if files and _holds_same_id(shared, _read(file)):
        files.append(shared)
    for kept in files:
        kept.unlink(missing_ok=True)
    tell(
        f"Removed the request_id in {_names(files)}"
        if files
        else f"There is no request_id of yours in {file}",
        verbose,
    )
    left = _cached(folder)
    if left:
        warn(f"A request_id stays in force, from {left.source}.")


def access_status(data_dir: str | os.PathLike | None = None) -> dict[str, str | None]:
    """Report which ``request_id`` is in force; nothing is sent.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.

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
    auth = _cached(get_data_dir(data_dir))
    if auth is None:
        names = ("request_id", "status", "email", "server_url", "source")
        return dict.fromkeys(names)
    return {
        "request_id": _masked(auth.request_id),
        "status": auth.status,
        "email": auth.email,
        "server_url": auth.server_url,
        "source": auth.source,
    }


# --- The manifest ----------------------------------------------------------------


class GatedFile(NamedTuple):
    """A file of the access service: size in bytes and SHA-256, in lower case."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """The access service's public account of its files, by ``id``."""

    dataset: str
    terms_version: str
    versions: tuple[str, ...]
    files: dict[str, GatedFile]


def fetch_manifest(timeout: float = 30.0, *, tries: int = _TRIES) -> Manifest:
    """Ask the access service for its manifest, which needs no ``request_id``.

    Parameters
    ----------
    timeout : float, default=30.0
        Seconds without an answer.
    tries : int, default=3
        How often to ask a service that is busy or does not answer.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or a field of the manifest is missing or is
        not as documented; the message names the field.
    """
    server = server_url()
    content = _manifest_content(server, timeout, tries)
    versions, files = content.get("versions"), content.get("files")
    if not isinstance(versions, list) or not all(isinstance(v, str) for v in versions):
        _raise_bad_manifest(server, "versions")
    if not isinstance(files, list):
        _raise_bad_manifest(server, "files")
    found = [_manifest_entry(entry, i, server) for i, entry in enumerate(files)]
    by_id = dict(found)
    if len(by_id) < len(found) or not by_id.keys() >= GATED:
        _raise_bad_manifest(server, "files")
    return Manifest(
        _text_of(content, "dataset", server),
        _text_of(content, "current_terms_version", server),
        tuple(map(str, versions)),
        by_id,
    )


def saved_manifest(data_dir: str) -> dict[str, GatedFile]:
    """Return size and SHA-256 of the gated files as they were when fetched, by ``id``.

    Empty where none was fetched here; entries that are not well-formed are left out.
    """
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(_manifest_file(data_dir).read_bytes())
    entries = content if isinstance(content, dict) else {}
    files = {name: _gated_file(entries.get(name)) for name in GATED}
    return {name: file for name, file in files.items() if file}


def save_manifest(data_dir: str, files: Mapping[str, GatedFile]) -> None:
    """Keep size and SHA-256 of files that were fetched; without, if not possible."""
    content = {name: file._asdict() for name, file in files.items()}
    with contextlib.suppress(OSError):
        write_atomically(
            _manifest_file(data_dir), (json.dumps(content, indent=2) + "\n").encode()
        )


def _manifest_file(data_dir: str) -> Path:
    return state_path(data_dir, "manifest.json")


def _manifest_content(server: str, timeout: float, tries: int) -> dict[str, Any]:
    answer = call(server, "/api/v1/manifest", _MANIFEST, timeout=timeout, tries=tries)
    raise_for_status(answer, server, _MANIFEST)
    return answer.content


def _manifest_entry(entry: Any, index: int, server: str) -> tuple[str, GatedFile]:
    """Return the ``id`` of a file and what the manifest says of it."""
    name = entry.get("name") if isinstance(entry, dict) else None
    file_id, file = f"{STIMULI}{name}", _gated_file(entry)
    try:
        is_safe = isinstance(name, str) and clean_key(file_id) == file_id
    except UnsafeKeyError:
        is_safe = False
    if not is_safe or "/" in str(name):
        _raise_bad_manifest(server, f"files[{index}].name")
    if file is None:
        _raise_bad_manifest(server, f"files[{index}].size or .sha256")
    return file_id, file


def _gated_file(entry: Any) -> GatedFile | None:
    """Return size and SHA-256 of a file; None where they are not valid."""
    if not isinstance(entry, dict):
        return None
    size, digest = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        return None
    return GatedFile(size, str(digest).lower())


def _text_of(content: Mapping[str, Any], field: str, server: str) -> str:
    """Return a text of the manifest, of a length and characters fit to be shown."""
    text = content.get(field)
    if not isinstance(text, str) or not 0 < len(text) <= 100 or not text.isprintable():
        _raise_bad_manifest(server, field)
    return str(text)


def _raise_bad_manifest(server: str, field: str) -> NoReturn:
    raise AccessServiceError(
        f"The manifest of {server} is not valid: its field {field!r} is missing or not "
        f"as documented. {ADVICE}"
    )


# --- The gate --------------------------------------------------------------------


class Gate:
    """Access to the gated files: presigned URLs, asked for when first needed.

    Made by `open_gate`. Its methods may be called from several threads.
    """

    def __init__(self, auth: Auth, timeout: float):
        self._auth, self._timeout = auth, timeout
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}

    def file(self, file_id: str) -> GatedFile:
        """Return size in bytes and SHA-256 of a gated file, by its ``id``."""
        with self._lock:
            return self._link(file_id).file

    def url(self, file_id: str) -> Callable[[bool], str]:
        """Return a function of the current URL; called with True, it is renewed."""

        def current(renew: bool) -> str:
            with self._lock:
                if renew:
                    self._renew()
                return self._link(file_id).url

        return current

    def ask(self) -> None:
        """Ask the service for URLs now."""
        with self._lock:
            self._renew()

    def _link(self, file_id: str) -> _Link:
        if not self._links:
            self._renew()
        return self._links[file_id]

    def _renew(self) -> None:
        links = _refresh(self._auth, self._timeout)
        for file_id, before in self._links.items():
            if links[file_id].file != before.file:
                raise AccessServiceError(
                    f"{file_id} changed on the server during the download. Call again "
                    "to fetch the new version."
                )
        self._links = links
        if self._auth.status == "pending":
            self._auth = replace(self._auth, status="approved")
            _update(self._auth)


def open_gate(data_dir: str, *, offline: bool, timeout: float = 30.0) -> Gate:
    """Return access to the gated files by the cached ``request_id``.

    Nothing is sent unless the id was pending when the service was last asked.

    Parameters
    ----------
    data_dir : str
        The data directory.
    offline : bool
        Whether no socket may be opened.
    timeout : float, default=30.0
        Seconds without an answer.

    Raises
    ------
    AccessRequiredError
        If no ``request_id`` is cached.
    AccessPendingError
        If it is not approved yet.
    StimulusAccessError
        If the service rejects a pending id in another way.
    """
    auth = _cached(data_dir)
    if auth is None:
        raise AccessRequiredError(
            "The stimulus images are gated by a Data Use Agreement, and no request_id "
            f"is cached for {data_dir}. Request access with request_stimulus_access() "
            "or 'laion-fmri-fetchers request-access'. If you already have a "
            f"request_id, use 'laion-fmri-fetchers login' or set {_ID_VARIABLE}."
        )
    gate = Gate(auth, timeout)
    if auth.status == "pending":
        if offline:
            raise AccessPendingError(
                f"{_pending_text(auth, auth.source)} Offline, the service cannot be "
                "asked whether it was approved meanwhile."
            )
        gate.ask()
    return gate


# --- The cached request_id -------------------------------------------------------


@dataclass(frozen=True)
class Auth:
    """A ``request_id``, its source and its state."""

    request_id: str
    server_url: str
    status: str
    email: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_id", SecretText(self.request_id))


def _cached(data_dir: str) -> Auth | None:
    """Return the ``request_id`` in force, that of the server asked for if any."""
    files = (auth_file(data_dir), official_auth_file())
    found = [auth for auth in map(_read, files) if auth]
    given = os.environ.get(_ID_VARIABLE, "").strip()
    wanted = os.environ.get(URL_VARIABLE)
    if given:
        found = [auth for auth in found if auth.request_id == given]
        server = wanted or DEFAULT_ACCESS_URL
        found.append(Auth(given, server, "approved", source=_ID_VARIABLE))
    for auth in found:
        if not wanted or is_same_server(auth.server_url, wanted):
            return auth
    return found[0] if found else None


def _read(file: Path) -> Auth | None:
    """Read an ``auth.json``; None if there is none that this user may read."""
    try:
        content = _content(file)
    except OSError:
        return None
    request_id = content.get("request_id")
    if not isinstance(request_id, str) or not request_id.strip():
        warn(f"{file} does not hold a request_id and is ignored; delete it.")
        return None
    email, server = content.get("email"), content.get("server_url")
    return Auth(
        request_id.strip(),
        server if isinstance(server, str) and server else DEFAULT_ACCESS_URL,
        "pending" if content.get("status") == "pending" else "approved",
        email if isinstance(email, str) else None,
        str(file),
    )


def _content(file: Path) -> dict[str, Any]:
    """Return the fields of an ``auth.json``; none if it is broken.

    An editor may have saved it in another encoding: JSON tells UTF-16 by itself.
    """
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(file.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _save(auth: Auth, data_dir: str) -> str:
    """Keep a ``request_id``; return the files it is in, as text.

    It goes to the data directory. The dataset's own package, and other data
    directories, look into the user's cache: an id of the dataset's own service goes
    there too, unless that holds the id of somebody else or of another service.
    Where the data directory is not to be written, the user's cache alone keeps it.
    """
    file, shared = auth_file(data_dir), official_auth_file()
    files, reasons = [], []
    before = None
    if not _is_of_others(file) and is_writable(file.parent):
        before = _read(file) if file.exists() else None
        files.append(file)
    is_of_dataset = is_same_server(auth.server_url, DEFAULT_ACCESS_URL)
    if (is_of_dataset or not files) and _may_replace(shared, auth, before):
        files.append(shared)
    kept = []
    for target in files:
        error = _write(target, auth)
        if error:
            reasons.append(error)
        else:
            kept.append(target)
    if kept:
        return _names(kept)
    if any(number in _FULL for number, _ in reasons):
        raise DiskSpaceError(
            errno.ENOSPC,
            f"The request_id cannot be kept, as the disk is full ({_names(files)}). "
            "Free some space, then call request_stimulus_access(renew=True)",
        )
    why = "; ".join(text for _, text in reasons)
    raise StimulusAccessError(
        f"The request_id cannot be kept: {file} cannot be written, and {shared} "
        f"{f'cannot either ({why})' if shared in files else 'holds another id'}. Name "
        "a data_dir that you may write to, then call "
        "request_stimulus_access(renew=True)."
    )


def _is_of_others(file: Path) -> bool:
    """Tell whether a file that is there may not be read: it is somebody else's."""
    return file.exists() and not os.access(file, os.R_OK)


def _may_replace(shared: Path, auth: Auth, before: Auth | None) -> bool:
    """Tell whether the shared file is free, or holds an id of the same person.

    Parameters
    ----------
    shared : Path
        The file that is shared with the dataset's own package.
    auth : Auth
        The new id.
    before : Auth or None
        The id that it replaces in the data directory.
    """
    if not shared.exists():
        return True
    if _is_of_others(shared):
        return False
    kept = _read(shared)
    if kept is None:
        return True
    same_ids = {auth.request_id, before.request_id if before else auth.request_id}
    return is_same_server(kept.server_url, auth.server_url) and (
        kept.request_id in same_ids or kept.email == auth.email is not None
    )


def _holds_same_id(file: Path, auth: Auth | None) -> bool:
    """Tell whether an ``auth.json`` that is there holds an id."""
    kept = _read(file) if auth and file.exists() else None
    return bool(auth and kept and kept.request_id == auth.request_id)


def _names(files: Iterable[Path]) -> str:
    return " and ".join(map(str, files))


def _update(auth: Auth) -> None:
    """Note a new status in the files that keep the ``request_id``."""
    if auth.source in ("", _ID_VARIABLE):
        return
    for file in {Path(auth.source), official_auth_file()}:
        if _holds_same_id(file, auth):
            _write(file, auth)


def _write(file: Path, auth: Auth) -> tuple[int, str] | None:
    """Write an ``auth.json``; return number and reason of the error, if any.

    The error itself ends here: its traceback would hold what was to be written.
    """
    content = {
        "server_url": auth.server_url,
        "request_id": auth.request_id,
        "email": auth.email,
        "saved_at": dt.datetime.now(dt.timezone.utc).isoformat(),
        "status": auth.status,
    }
    encoded = SecretBytes((json.dumps(content, indent=2) + "\n").encode())
    try:
        write_atomically(file, encoded, 0o600)
    except OSError as error:
        number = error.errno or 0
        return number, f"{file}: {os.strerror(number) if number else 'error'}"
    return None


def _is_honoured(data_dir: str, timeout: float, verbose: int) -> bool:
    """Tell whether the cached ``request_id`` is still valid; raise if pending."""
    auth = _cached(data_dir)
    if auth is None:
        return False
    try:
        Gate(auth, timeout).ask()
    except (
        AccessNotFoundError,
        AccessRequiredError,
        AccessRevokedError,
        TermsOutdatedError,
    ) as error:
        tell(f"{error} The form is sent again.", verbose)
        return False
    tell(
        f"Access is granted already, by the request_id of {auth.source}; no form was "
        "sent. renew=True sends one anyway.",
        verbose,
    )
    return True


def _masked(request_id: str) -> str:
    """Return an id such that it can be told from others, but not used.

    >>> _masked("lfm_0123456789abcdefghijklmn")
    'lfm_...lmn'
    """
    return f"{PREFIX}...{request_id[-3:] if len(request_id) >= 24 else ''}"


def _pending_text(auth: Auth, file: str) -> str:
    return (
        f"The access request waits for approval by {auth.server_url}. Its request_id "
        f"is kept ({file}): call again later, no new form is needed."
    )


# --- The form --------------------------------------------------------------------


def _check_form(
    form: Mapping[str, Any],
    accept_terms_version: str | None,
    acknowledge_privacy: bool | None,
) -> None:
    """Raise AccessFormError for fields that are wrong, or missing with no terminal."""
    wrong = {}
    for name, value in form.items():
        if value is not None and (problem := _problem(name, value)):
            wrong[name] = problem
    if acknowledge_privacy not in (None, True):
        wrong["acknowledge_privacy"] = (
            f"is {acknowledge_privacy!r}, but access is granted only to those who "
            "acknowledge the privacy notice"
        )
    if not can_ask():
        consents = {
            "accept_terms_version": accept_terms_version,
            "acknowledge_privacy": acknowledge_privacy,
        }
        given = {**form, **consents}
        wrong |= {n: "is missing" for n, v in given.items() if v is None and n != "pi"}
    if wrong:
        raise AccessFormError(
            "The access request was not sent: "
            + "; ".join(f"{name} {problem}" for name, problem in wrong.items())
            + ". Pass these as arguments (or options), or call at a terminal to be "
            f"asked. Read the terms at {server_url()}/terms (current_terms_version() "
            f"returns their version) and the privacy notice at {server_url()}/privacy",
            wrong,
        )


def _problem(name: str, value: Any) -> str | None:
    """Return what is wrong with a field of the form."""
    if not isinstance(value, str):
        return f"is {value!r} and must be text"
    if name == "pi":
        return None
    if not value:
        return "is empty"
    if name == "email" and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value):
        return "is not a valid email address"
    if name == "research_purpose" and len(value) < 20:
        return f"has {len(value)} characters; 20 or more are required"
    return None


def _ask(form: dict[str, Any]) -> None:
    """Ask at the terminal for what is missing."""
    missing = [name for name, value in form.items() if value is None]
    for name in missing if missing != ["pi"] else []:
        while form[name] is None:
            try:
                answer = input(f"{_QUESTIONS[name]}: ").strip()
            except EOFError:
                answer = None
            if answer is None:
                raise AccessFormError(
                    f"The access request was not sent: {name} is missing.",
                    {name: "is missing"},
                )
            problem = _problem(name, answer)
            if problem:
                print(f"This {problem}.")
            else:
                form[name] = answer


def _confirm(server: str, version: str) -> None:
    """Ask for both consents in one question."""
    print(
        "Access to the stimulus images requires two consents:\n"
        f"- to accept the LAION-fMRI Data Use Agreement, version {version}, at\n"
        f"  {server}/terms\n"
        "- to acknowledge the privacy notice, at\n"
        f"  {server}/privacy"
    )
    try:
        answer = input(
            f"Type {AGREEMENT} to accept version {version} of the agreement and to "
            "acknowledge the privacy notice: "
        )
    except EOFError:
        answer = ""
    if answer.strip().strip("'\"").upper() not in (AGREEMENT, "YES"):
        raise AccessFormError(
            f"Version {version} of the Data Use Agreement and the privacy notice were "
            "declined; nothing was sent.",
            {
                "accept_terms_version": "is declined",
                "acknowledge_privacy": "is declined",
            },
        )


def _send_form(
    server: str, form: Mapping[str, Any], version: str, timeout: float
) -> Auth:
    what = "the access request"
    body = {
        "name": form["name"],
        "email": form["email"],
        "institution": form["institution"],
        "pi_or_supervisor": form["pi"] or None,
        "research_purpose": form["research_purpose"],
        "accepted_terms": True,
        "acknowledged_privacy": True,
        "terms_version": version,
        "source": "cli",
    }
    answer = call(server, "/api/v1/access/request", what, body, timeout=timeout)
    raise_for_status(answer, server, what)
    request_id = answer.content.get("request_id")
    if not isinstance(request_id, str) or not request_id.startswith(PREFIX):
        request_id = None
        raise AccessServiceError(
            f"{server} took the access request but returned no request_id. Look for it "
            "in your email and keep it with 'laion-fmri-fetchers login'."
        )
    status = "pending" if _is_pending(answer) else "approved"
    return Auth(request_id, server, status, form["email"])


# --- Presigned URLs --------------------------------------------------------------


class _Link(NamedTuple):
    """A presigned URL and the file behind it."""

    url: SecretText
    file: GatedFile


def _refresh(auth: Auth, timeout: float) -> dict[str, _Link]:
    """Return fresh URLs of the gated files, by ``id``."""
    wanted = os.environ.get(URL_VARIABLE)
    if wanted and not is_same_server(auth.server_url, wanted):
        raise AccessRequiredError(
            f"The request_id of {auth.source} comes from {auth.server_url} and is sent "
            f"nowhere else, but {URL_VARIABLE} is {wanted}. Request access there with "
            "request_stimulus_access(renew=True), or unset the variable."
        )
    server, what = auth.server_url.rstrip("/"), "fresh URLs of the stimulus files"
    answer = call(
        server,
        "/api/v1/refresh",
        what,
        {"request_id": auth.request_id, "dataset_version": "v1"},
        timeout=timeout,
        tries=_TRIES,
    )
    raise_for_status(answer, server, what, auth.request_id)
    if _is_pending(answer):
        raise AccessPendingError(_pending_text(auth, auth.source))
    return _links(answer, server)


def _is_pending(answer: Answer) -> bool:
    return (
        answer.status == 202
        or answer.content.get("status") == "pending"
        or not answer.content.get("files")
    )


def _links(answer: Answer, server: str) -> dict[str, _Link]:
    """Return URL, size and SHA-256 of the gated files; raise if any is missing."""
    found = {}
    files = answer.content["files"]
    for entry in files if isinstance(files, list) else []:
        link = _link(entry)
        if link:
            found[STIMULI + entry["name"]] = link
    lacking = sorted(GATED - set(found))
    if lacking:
        raise AccessServiceError(
            f"{server} grants access but does not return url, size and sha256 of "
            f"{listed(lacking)}. {ADVICE}"
        )
    for link in found.values():
        refuse_plain(link.url, "The URL of a stimulus file")
    return found


def _link(entry: Any) -> _Link | None:
    file = _gated_file(entry)
    if file is None or not isinstance(entry.get("url"), str):
        return None
    if STIMULI + str(entry.get("name")) not in GATED:
        return None
    return _Link(SecretText(entry["url"]), file)
