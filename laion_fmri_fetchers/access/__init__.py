"""Access: the licence of the fMRI data, and the gate of the stimulus images.

licence     accept_license                the CC0 terms, once per data directory
request     request_stimulus_access       the form and its two consents ─▶ request_id
account     login, logout, access_status  an existing request_id
gate        open_gate ─▶ Gate.url         request_id ─▶ presigned URLs
manifest    fetch_manifest, current_terms_version, saved_manifest
identity    cached_identity, save_identity    the request_id in auth.json
service     ask_service, raise_for_status     the service over HTTP

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

import lazy_loader as _lazy

# Not imported at once, since an offline call does without an HTTP client.
__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submod_attrs={"account": ["logout"], "licence": ["license_text"]}
)
