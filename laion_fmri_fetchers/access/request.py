"""The request for access to the stimulus images: its form, and its two consents.

request_stimulus_access ─▶ _is_honoured    a valid request_id: nothing is sent
    └▶ _check_form ─▶ _ask ─▶ _confirm     at a terminal, what is missing
           └▶ _send_form ─▶ save_identity  the request_id, pending or approved
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.listings import keep_demo_apart
from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessPendingError,
    AccessRequiredError,
    AccessRevokedError,
    AccessServiceError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.messages import (
    AGREEMENT,
    ask,
    ask_agreement,
    can_ask,
    tell,
    warn,
)
from laion_fmri_fetchers.query.shared_docs import documented

from .gate import Gate, is_pending
from .identity import (
    ID_VARIABLE,
    Identity,
    cached_identity,
    id_of_environment,
    is_sendable,
    pending_text,
    save_identity,
)
from .manifest import current_terms_version
from .service import ADVICE, ask_service, raise_for_status, server_url

_QUESTIONS = {
    "name": "Full name",
    "email": "Institutional email",
    "institution": "Institution",
    "pi": "Principal investigator or supervisor (Enter for none)",
    "research_purpose": "Research purpose (20 characters or more)",
}


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
    folder = get_data_dir(data_dir)
    keep_demo_apart(folder, timeout)
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
    identity = _send_form(server, form, version, timeout)
    file = save_identity(identity, folder)
    if id_of_environment():
        warn(
            f"{ID_VARIABLE} is set and takes precedence over the new request_id in "
            f"{file}; unset it."
        )
    if identity.status == "pending":
        raise AccessPendingError(f"The form was sent. {pending_text(identity, file)}")
    tell(f"Access is granted; the request_id is kept in {file}", verbose)


def _is_honoured(data_dir: str, timeout: float, verbose: int) -> bool:
    """Return whether the cached ``request_id`` is still valid; raise if pending."""
    identity = cached_identity(data_dir)
    if identity is None:
        return False
    try:
        Gate(identity, timeout).ask()
    except (
        AccessNotFoundError,
        AccessRequiredError,
        AccessRevokedError,
        TermsOutdatedError,
    ) as error:
        tell(f"{error} The form is sent again.", verbose)
        return False
    tell(
        f"Access is granted already, by the request_id of {identity.source}; no form "
        "was sent. renew=True sends one anyway.",
        verbose,
    )
    return True


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
    """Return the error in a field of the form."""
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
    """Prompt for the missing fields of the form."""
    missing = [name for name, value in form.items() if value is None]
    for name in missing if missing != ["pi"] else []:
        complaint = ""
        while form[name] is None:
            try:
                answer = ask(f"{_QUESTIONS[name]}: ", complaint).strip()
            except EOFError:
                answer = None
            if answer is None:
                raise AccessFormError(
                    f"The access request was not sent: {name} is missing.",
                    {name: "is missing"},
                )
            problem = _problem(name, answer)
            if problem:
                complaint = f"This {problem}."
            else:
                form[name] = answer


def _confirm(server: str, version: str) -> None:
    """Ask for both consents in one question."""
    consents = (
        "Access to the stimulus images requires two consents:\n"
        f"- to accept the LAION-fMRI Data Use Agreement, version {version}, at\n"
        f"  {server}/terms\n"
        "- to acknowledge the privacy notice, at\n"
        f"  {server}/privacy"
    )
    if not ask_agreement(
        f"Type {AGREEMENT} to accept version {version} of the agreement and to "
        "acknowledge the privacy notice, or nothing to decline: ",
        consents,
    ):
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
) -> Identity:
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
    answer = ask_service(server, "/api/v1/access/request", what, body, timeout=timeout)
    raise_for_status(answer, server, what)
    request_id = answer.content.get("request_id")
    if not isinstance(request_id, str) or not is_sendable(request_id):
        request_id = None
        raise AccessServiceError(
            f"{server} took the access request but returned no request_id. {ADVICE}"
        )
    status = "pending" if is_pending(answer) else "approved"
    return Identity(request_id, server, status, form["email"])
