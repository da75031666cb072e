"""The user's account at the access service: requested, kept, reported, forgotten."""

from __future__ import annotations

import getpass
import os
import re
from typing import Any

from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.listings import keep_demo_apart
from laion_fmri_fetchers.cache.state import auth_file, official_auth_file
from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessPendingError,
    AccessRevokedError,
    InvalidQueryError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.messages import ask, ask_agreement, can_ask, tell, warn
from laion_fmri_fetchers.query.shared_docs import documented

from . import gate, service

# Field of the form -> how to ask for it, and what an answer must match.
_FIELDS = {
    "name": ("Full name", ".+"),
    "email": ("Institutional email", r"[^@\s]+@[^@\s]+\.[^@\s]+"),
    "institution": ("Institution", ".+"),
    "pi": ("Principal investigator or supervisor (Enter for none)", ".*"),
    "research_purpose": ("Research purpose (20 characters or more)", ".{20,}"),
}
_CONSENTS = ("accept_terms_version", "acknowledge_privacy")
_MISSING = "is missing"

# Answers to an id of which another may be asked for.
_FORM_AGAIN = AccessNotFoundError, AccessRevokedError, TermsOutdatedError


@documented
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

    You are prompted for missing fields. The ``request_id`` that the service returns is
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
    %(data_dir)s
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        0: silent, 1: say what was done.

    Raises
    ------
    InvalidQueryError
        If this is a demo and the data directory holds other data, or the reverse.
    AccessFormError
        If a field or a consent is missing where nobody can be asked, or is refused;
        ``fields`` names each.
    AccessPendingError
        If the service does not grant access at once; the ``request_id`` is kept, and
        the next call that needs the images asks again.
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
    At a terminal or in a notebook, you are prompted for all fields::

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
    given = {k: v.strip() if isinstance(v, str) else v for k, v in locals().items()}
    form: dict[str, Any] = {field: given[field] for field in (*_FIELDS, *_CONSENTS)}
    folder = get_data_dir(data_dir)
    keep_demo_apart(folder, timeout)
    if auth := None if renew else gate.find_auth(folder):
        try:
            gate.request_link(auth, timeout)
        except _FORM_AGAIN as error:
            tell(f"{error} The form is sent again.", verbose)
        else:
            tell(f"Access is granted by {auth.source}; no form was sent", verbose)
            return
    _check_form(form)
    server, version = service.server_url(), gate.current_terms_version(timeout=timeout)
    if form["accept_terms_version"] not in (None, version):
        raise service.outdated_error(version, f"{server}/terms")
    missing = [field for field in _FIELDS if form[field] is None]
    if missing != ["pi"]:
        form |= {field: _ask(field) for field in missing}
    if accept_terms_version is None or acknowledge_privacy is None:
        _ask_consents(server, version)
    answers = {field: form[field] for field in _FIELDS if field != "pi"}
    body = service.SecretDict(
        answers,
        pi_or_supervisor=form["pi"] or None,
        accepted_terms=True,
        acknowledged_privacy=True,
        terms_version=version,
        source="cli",
    )
    content = service.call(server, "access/request", body, timeout=timeout, tries=1)
    request_id = service.SecretText(content.get("request_id") or "")
    if not request_id:
        problem = f"{server} took the access request but returned no request_id."
        raise service.unexpected(problem)
    status = "pending" if gate.is_pending(content) else "approved"
    auth = gate.Auth(request_id, server, status, form["email"])
    file = gate.save_auth(auth, folder)
    if os.environ.get(gate.ID_VARIABLE):
        warn(f"{gate.ID_VARIABLE} is set and takes precedence over {file}; unset it.")
    if status == "pending":
        raise gate.pending_error(auth)
    tell(f"Access is granted; the request_id is kept in {file}", verbose)


def _check_form(form: dict[str, Any]) -> None:
    """Raise for fields and consents that are wrong, or missing with nobody to ask."""
    wrong = {name: _problem(name, form[name]) for name in _FIELDS}
    wrong |= {name: _MISSING for name in _CONSENTS if form[name] is None}
    if form["acknowledge_privacy"] not in (None, True):
        wrong["acknowledge_privacy"] = "is not True"
    passed = ("", _MISSING) if can_ask() else ("",)
    wrong = {name: problem for name, problem in wrong.items() if problem not in passed}
    if wrong:
        server = service.server_url()
        listing = "; ".join(f"{name} {problem}" for name, problem in wrong.items())
        raise AccessFormError(
            f"The access request was not sent: {listing}. Pass these as arguments (or "
            f"options), or call at a terminal to be asked. See {server}/terms "
            f"(current_terms_version() gives its version) and {server}/privacy",
            wrong,
        )


def _problem(name: str, value: Any) -> str:
    """Return what is wrong with a field; "" for nothing."""
    question, pattern = _FIELDS[name]
    if value is None:
        return "" if name == "pi" else _MISSING
    if isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL):
        return ""
    return f"is {value!r}, which is not valid ({question})"


def _ask(name: str) -> str:
    """Prompt for a field of the form until it is valid."""
    complaint = ""
    while True:
        try:
            answer = ask(f"{_FIELDS[name][0]}: ", complaint).strip()
        except EOFError:
            text = f"The access request was not sent: {name} {_MISSING}."
            raise AccessFormError(text, {name: _MISSING}) from None
        if not (problem := _problem(name, answer)):
            return answer
        complaint = f"This {problem}."


def _ask_consents(server: str, version: str) -> None:
    """Ask for both consents in one question."""
    is_agreed = ask_agreement(
        f"accept version {version} of the agreement and to acknowledge the privacy "
        "notice",
        "Access to the stimulus images takes two consents: to accept\n"
        f"version {version} of the Data Use Agreement, {server}/terms,\n"
        f"and to acknowledge the privacy notice, {server}/privacy",
    )
    if not is_agreed:
        raise AccessFormError(
            f"Version {version} of the Data Use Agreement and the privacy notice were "
            "declined; nothing was sent.",
            dict.fromkeys(_CONSENTS, "is declined"),
        )


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
        If it is empty, or if this is a demo and the directory holds other data, or the
        reverse.
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
                f"There is no terminal: pass request_id or set {gate.ID_VARIABLE}."
            )
        request_id = getpass.getpass("request_id (not shown): ")
    request_id = service.SecretText(str(request_id).strip())
    if not request_id:
        raise InvalidQueryError("request_id is empty; pass the whole id.")
    auth = gate.Auth(request_id, service.server_url(), "pending")
    try:
        gate.request_link(auth, timeout)
    except (AccessPendingError, TermsOutdatedError):
        gate.save_auth(auth, folder)
        raise
    files = gate.save_auth(auth._replace(status="approved"), folder)
    tell(f"The request_id is approved and kept in {files}", verbose)


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
    auth, removed = gate.read_auth(auth_file(folder)), []
    for file in (auth_file(folder), official_auth_file()):
        there = gate.read_auth(file)
        if file and auth and there and there.request_id == auth.request_id:
            file.unlink()
            removed.append(str(file))
    what = f"Removed the request_id in {' and '.join(removed)}"
    nothing = f"There is no request_id of yours in {auth_file(folder)}"
    tell(what if removed else nothing, verbose)
    if left := gate.find_auth(folder):
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
    auth = gate.find_auth(get_data_dir(data_dir))
    if auth is None:
        return dict.fromkeys(gate.Auth._fields)
    # Enough to tell ids from each other, of one too long to be guessed from it.
    end = str(auth.request_id)[-3:] if len(auth.request_id) >= 24 else ""
    return {**auth._asdict(), "request_id": f"...{end}"}
