"""Tests replace numbers of the one policy of transfers, for as long as they run."""

from __future__ import annotations

import dataclasses

from laion_fmri_fetchers.transfer import policy


def set_policy(monkeypatch, **changes):
    """Let fields of the policy have other values until the end of a test."""
    changed = dataclasses.replace(policy.POLICY, **changes)
    monkeypatch.setattr(policy, "POLICY", changed)
