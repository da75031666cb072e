"""Tests replace numbers of the one retry policy, for as long as they run."""

from __future__ import annotations

from laion_fmri_fetchers.remote import client, progress, ranges, retry

PLACES = {
    "first_wait": (retry, "FIRST_WAIT"),
    "tries": (retry, "TRIES"),
    "tries_away": (retry, "TRIES_AWAY"),
    "line_every": (progress, "LINE_EVERY"),
    "quiet": (client, "QUIET"),
    "connect_timeout": (client, "CONNECT_TIMEOUT"),
    "smallest_piece": (ranges, "SMALLEST_PIECE"),
}


def set_policy(monkeypatch, **changes):
    """Let numbers of the policy have other values until the end of a test."""
    for name, value in changes.items():
        monkeypatch.setattr(*PLACES[name], value)
