"""The licence of the fMRI data, and access to the stimulus images.

licence   accept_license                          the CC0 terms, once per directory
account   request_stimulus_access, login, logout  the user's request_id
gate      find_auth ─▶ open_gate ─▶ Gate.url      auth.json ─▶ presigned URLs
service   call                                    the access service over HTTP

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

import lazy_loader as _lazy

# Not imported at once, since an offline call does without an HTTP client.
__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submod_attrs={"account": ["logout"], "licence": ["license_text"]}
)
