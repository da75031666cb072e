"""The stimulus access service: the request, the cached ``request_id``, fresh URLs.

The way to the gated files::

    request_stimulus_access    the form -> request_id -> auth.json (pending, approved)
    login, logout              a request_id that somebody has already
    open_gate -> Gate          cached request_id, or AccessRequiredError
                └ url(file)    refresh -> presigned URLs, again when they expire

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import cache, layout
from .access_service import (
    ADVICE,
    DEFAULT_ACCESS_URL,
    PREFIX,
    URL_VARIABLE,
    Answer,
    SecretText,
    call,
    is_same_server,
    raise_for_status,
    refuse_plain,
    server_url,
)
from .exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessPendingError,
    AccessRequiredError,
    AccessRevokedError,
    AccessServiceError,
    InvalidQueryError,
    StimulusAccessError,
    TermsOutdatedError,
)
from .messages import AGREEMENT, can_ask, listed, tell, warn

_ID_VARIABLE = "LAION_FMRI_REQUEST_ID"
_TRIES = 3

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
        If the service cannot be reached, or answers what it should not.

    Examples
    --------
    ::

        version = current_terms_version()
    """
    server = server_url()
    what = "the version of the terms"
    answer = call(server, "/api/v1/manifest", what, timeout=timeout, tries=_TRIES)
    raise_for_status(answer, server, what)
    version = answer.content.get("current_terms_version")
    if not isinstance(version, str) or not version:
        raise AccessServiceError(
            f"{server} does not say which version of the terms is in force. {ADVICE}"
        )
    return str(version)


def request_stimulus_access(
    *,
    name: str | None = None,
    email: str | None = None,
    institution: str | None = None,
    pi: str | None = None,
    research_purpose: str | None = None,
    accept_terms_version: str | None = None,
    renew: bool = False,
    data_dir: str | os.PathLike | None = None,
    timeout: float = 30.0,
    verbose: int = 1,
) -> None:
    """Request access to the stimulus images, which a Data Use Agreement gates.

    What is not given is asked for. The ``request_id`` that the service gives is kept
    in the data directory, readable by its owner alone. Where one is kept already that
    the service still honours, nothing is sent.

    Parameters
    ----------
    name : str, optional
        Full name.
    email : str, optional
        Institutional email address.
    institution : str, optional
        Institution.
    pi : str, optional
        Principal investigator or supervisor; there need not be one.
    research_purpose : str, optional
        What the images are for, 20 characters or more.
    accept_terms_version : str, optional
        The version of the Data Use Agreement that you have read and accept, see
        `current_terms_version`. It is at https://laion-fmri.hebartlab.com/terms for
        you to read.
    renew : bool, default=False
        Send the form even if a kept ``request_id`` is still honoured.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Raises
    ------
    AccessFormError
        If a field is missing where nobody can be asked, or is refused.
    AccessPendingError
        If the request waits for approval; the ``request_id`` is kept, and the next
        call that needs the images goes through once it is approved.
    TermsOutdatedError
        If another version than ``accept_terms_version`` is in force.
    AccessRateLimitedError
        If too many requests were sent.
    AccessServiceError
        If the service cannot be reached, or answers what it should not.

    See Also
    --------
    fetch_laion_stimuli : Fetch the images.

    Examples
    --------
    At a terminal or in a notebook, all is asked for::

        request_stimulus_access()

    In a script::

        request_stimulus_access(
            name="Ada Example",
            email="ada@university.example",
            institution="University of Examples",
            research_purpose="Encoding models of natural images",
            accept_terms_version="1.0",
        )
    """
    folder = cache.get_data_dir(data_dir)
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
    _check_form(form, accept_terms_version)
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
    if accept_terms_version is None:
        _confirm(server, version)
    auth = _send_form(server, form, version, timeout)
    file = _save(auth, folder)
    if os.environ.get(_ID_VARIABLE, "").strip():
        warn(
            f"{_ID_VARIABLE} is set and comes before the new request_id in {file}; "
            "unset it."
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
        If it is no ``request_id``.
    AccessPendingError, TermsOutdatedError
        If it is not approved yet, or the terms changed; it is kept all the same.
    AccessNotFoundError, AccessRevokedError, AccessServiceError
        If the service does not honour it or cannot be asked; it is not kept.

    Examples
    --------
    ::

        login()
    """
    folder = cache.get_data_dir(data_dir)
    if request_id is None:
        if not can_ask():
            raise InvalidQueryError(
                "request_id is missing, and there is no terminal to ask at; pass it or "
                f"set {_ID_VARIABLE}."
            )
        request_id = getpass.getpass("request_id (not shown): ")
    given, request_id = Auth(str(request_id).strip(), server_url(), "pending"), ""
    if not given.request_id.startswith(PREFIX) or " " in given.request_id:
        raise InvalidQueryError(
            f"What was given is no request_id; one begins with {PREFIX}"
        )
    problem: StimulusAccessError | None = None
    try:
        _refresh(given, timeout)
        given = replace(given, status="approved")
    except (AccessPendingError, TermsOutdatedError) as error:
        problem = error
    file = _save(given, folder)
    if problem:
        raise problem
    tell(f"The request_id is approved and kept in {file}", verbose)


def logout(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> None:
    """Forget the ``request_id`` kept for a data directory.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Warns
    -----
    UserWarning
        If another one stays in force: that of ``LAION_FMRI_REQUEST_ID``, or of the
        dataset's own package.

    Examples
    --------
    >>> import tempfile
    >>> logout(tempfile.mkdtemp(), verbose=0)
    """
    folder = cache.get_data_dir(data_dir)
    file = cache.auth_file(folder)
    there = file.exists()
    file.unlink(missing_ok=True)
    tell(f"{'Removed' if there else 'There is no'} request_id in {file}", verbose)
    left = _cached(folder)
    if left:
        warn(f"A request_id stays in force, from {left.source}.")


def access_status(data_dir: str | os.PathLike | None = None) -> dict[str, str | None]:
    """Tell which ``request_id`` is in force; nothing is sent.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.

    Returns
    -------
    dict
        ``request_id`` (masked), ``status`` ("pending" or "approved"), ``email``,
        ``server_url`` and ``source``, a file or the environment variable; all of them
        None where there is no id.

    Examples
    --------
    >>> import tempfile
    >>> access_status(tempfile.mkdtemp())["status"] is None
    True
    """
    auth = _cached(cache.get_data_dir(data_dir))
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


# --- The gate --------------------------------------------------------------------


class GatedFile(NamedTuple):
    """What the service says of a gated file, beside its URL."""

    size: int
    sha256: str


class Gate:
    """Access to the gated files: presigned URLs, asked for when first needed.

    Made by `open_gate`. Its methods may be called from several threads.
    """

    def __init__(self, auth: Auth, timeout: float):
        self._auth, self._timeout = auth, timeout
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}

    def file(self, one: str) -> GatedFile:
        """Return size in bytes and SHA-256 of a gated file, by its ``id``."""
        with self._lock:
            return self._link(one).file

    def url(self, one: str) -> Callable[[bool], str]:
        """Return a function of the current URL; called with True, it is renewed."""

        def current(renew: bool) -> str:
            with self._lock:
                if renew:
                    self._renew()
                return self._link(one).url

        return current

    def ask(self) -> None:
        """Ask the service for URLs now."""
        with self._lock:
            self._renew()

    def _link(self, one: str) -> _Link:
        if not self._links:
            self._renew()
        return self._links[one]

    def _renew(self) -> None:
        links = _refresh(self._auth, self._timeout)
        for one, before in self._links.items():
            if links[one].file != before.file:
                raise AccessServiceError(
                    f"{one} changed on the server in mid-download. Call again to fetch "
                    "the new version."
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
        What else the service answers about a pending one.
    """
    auth = _cached(data_dir)
    if auth is None:
        raise AccessRequiredError(
            "The stimulus images are gated by a Data Use Agreement, and no request_id "
            f"is cached for {data_dir}. Request access with request_stimulus_access() "
            "or 'laion-fmri-fetchers request-access'; with a request_id already, use "
            f"'laion-fmri-fetchers login' or set {_ID_VARIABLE}."
        )
    gate = Gate(auth, timeout)
    if auth.status == "pending":
        if offline:
            raise AccessPendingError(
                f"{_pending_text(auth, auth.source)} Offline, it cannot be asked about."
            )
        gate.ask()
    return gate


# --- The cached request_id -------------------------------------------------------


@dataclass(frozen=True)
class Auth:
    """A ``request_id``, where it came from and what is known of it."""

    request_id: str
    server_url: str
    status: str
    email: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_id", SecretText(self.request_id))


def _cached(data_dir: str) -> Auth | None:
    """Return the ``request_id`` in force, that of the server asked for if any."""
    files = (cache.auth_file(data_dir), cache.official_auth_file())
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
    """Read an ``auth.json``; None where there is none that this user may read."""
    try:
        text = file.read_text("utf-8")
    except OSError:
        return None
    content: Any = None
    with contextlib.suppress(ValueError):
        content = json.loads(text)
    found = content.get("request_id") if isinstance(content, dict) else None
    if not isinstance(found, str) or not found.strip():
        warn(f"{file} holds no request_id and is passed over; delete it.")
        return None
    email, server = content.get("email"), content.get("server_url")
    return Auth(
        found.strip(),
        server if isinstance(server, str) and server else DEFAULT_ACCESS_URL,
        "pending" if content.get("status") == "pending" else "approved",
        email if isinstance(email, str) else None,
        str(file),
    )


def _save(auth: Auth, data_dir: str) -> str:
    """Keep a ``request_id``; return the file.

    It goes to the data directory, or to the user's own cache where somebody else's id
    is in the way or nothing can be written.
    """
    file = cache.auth_file(data_dir)
    taken = file.exists() and not os.access(file, os.R_OK)
    if taken or not cache.is_writable(file.parent):
        file = cache.official_auth_file()
    _write(file, auth)
    return str(file)


def _update(auth: Auth) -> None:
    """Note a new status where the ``request_id`` is kept, if that is a file."""
    if auth.source not in ("", _ID_VARIABLE):
        with contextlib.suppress(OSError):
            _write(Path(auth.source), auth)


def _write(file: Path, auth: Auth) -> None:
    content = {
        "server_url": auth.server_url,
        "request_id": auth.request_id,
        "email": auth.email,
        "saved_at": dt.datetime.now(dt.timezone.utc).isoformat(),
        "status": auth.status,
    }
    cache.write_atomically(file, (json.dumps(content, indent=2) + "\n").encode(), 0o600)


def _is_honoured(data_dir: str, timeout: float, verbose: int) -> bool:
    """Tell whether the service honours the cached ``request_id``; raise if pending."""
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
        "sent. renew=True sends one all the same.",
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


def _check_form(form: Mapping[str, Any], accept_terms_version: str | None) -> None:
    """Raise AccessFormError for fields that are wrong, or missing with no terminal."""
    wrong = {}
    for name, value in form.items():
        if value is not None and (problem := _problem(name, value)):
            wrong[name] = problem
    if not can_ask():
        given = {**form, "accept_terms_version": accept_terms_version}
        wrong |= {n: "is missing" for n, v in given.items() if v is None and n != "pi"}
    if wrong:
        raise AccessFormError(
            "The access request was not sent: "
            + "; ".join(f"{name} {problem}" for name, problem in wrong.items())
            + ". Pass them as arguments, or call at a terminal to be asked; "
            f"current_terms_version() says which terms to read at {server_url()}/terms",
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
        return "is no email address"
    if name == "research_purpose" and len(value) < 20:
        return f"has {len(value)} characters instead of 20 or more"
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
    """Ask for the acceptance of the Data Use Agreement."""
    print(
        f"The stimulus images are subject to the LAION-fMRI Data Use Agreement, "
        f"version {version}:\n{server}/terms"
    )
    try:
        answer = input(f"Type {AGREEMENT} to accept version {version}: ")
    except EOFError:
        answer = ""
    if answer.strip().strip("'\"").upper() not in (AGREEMENT, "YES"):
        raise AccessFormError(
            f"Version {version} of the Data Use Agreement was declined; nothing was "
            "sent.",
            {"accept_terms_version": "is declined"},
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
        "terms_version": version,
        "source": "cli",
    }
    answer = call(server, "/api/v1/access/request", what, body, timeout=timeout)
    raise_for_status(answer, server, what)
    request_id = answer.content.get("request_id")
    if not isinstance(request_id, str) or not request_id.startswith(PREFIX):
        request_id = None
        raise AccessServiceError(
            f"{server} took the access request but gave no request_id. Look for it in "
            "your email and keep it with 'laion-fmri-fetchers login'."
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
        raise AccessPendingError(_pending_text(auth, auth.source or "not yet"))
    return _links(answer, server)


def _is_pending(answer: Answer) -> bool:
    return (
        answer.status == 202
        or answer.content.get("status") == "pending"
        or not answer.content.get("files")
    )


def _links(answer: Answer, server: str) -> dict[str, _Link]:
    """Return what an answer says of the gated files; raise where it does not."""
    found = {}
    files = answer.content["files"]
    for one in files if isinstance(files, list) else []:
        link = _link(one)
        if link:
            found[layout.STIMULI + one["name"]] = link
    lacking = sorted(layout.GATED - set(found))
    if lacking:
        raise AccessServiceError(
            f"{server} grants access but names no url, size and sha256 of "
            f"{listed(lacking)}. {ADVICE}"
        )
    for link in found.values():
        refuse_plain(link.url, "The URL of a stimulus file")
    return found


def _link(one: Any) -> _Link | None:
    if not isinstance(one, dict):
        return None
    url, size, digest = (one.get(name) for name in ("url", "size", "sha256"))
    if (
        layout.STIMULI + str(one.get("name")) not in layout.GATED
        or not isinstance(url, str)
        or not isinstance(size, int)
        or not re.fullmatch(r"[0-9a-fA-F]{64}", str(digest))
    ):
        return None
    return _Link(SecretText(url), GatedFile(size, str(digest).lower()))
