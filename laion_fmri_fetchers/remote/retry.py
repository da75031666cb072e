"""When a request is tried again, how often, and after how long."""

from __future__ import annotations

import random

# Tries where a server is busy or a connection breaks. With doubling waits these take
# about 8 s, which is longer than S3's usual "slow down".
TRIES = 6
# Tries to reach a server that has answered before: about a minute, in which a wireless
# network comes back or a server restarts.
TRIES_AWAY = 9
# Tries to reach a server that has never answered: its address may be wrong, or this
# machine may have no network.
TRIES_NEVER_SEEN = 2
# Seconds before the second try, doubled each time, up to the longest.
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
# Seconds of a Retry-After that are heeded at most: a user would rather have an error
# than a program that says nothing.
LONGEST_WAIT_ASKED = 60.0
# Bytes after which a request that breaks has all of its tries again. This is what lets
# a slow, unreliable line finish.
PROGRESS = 2**20
# Statuses that may pass: time-outs, too many requests, and all that say the server
# fails, but for "not implemented" and "HTTP version".
RETRIED = frozenset({408, 429, *range(500, 600)}) - {501, 505}


def wait_before(n_tried: int, asked: float = 0.0) -> float:
    """Return the seconds to wait after so many tries; a server may ask for more.

    They are spread at random, so that many clients do not come back at once.
    """
    doubled = min(FIRST_WAIT * 2.0 ** (n_tried - 1), LONGEST_WAIT)
    return max(min(asked, LONGEST_WAIT_ASKED), doubled * random.uniform(0.5, 1.5))


def retry_after(value: str | None) -> float | None:
    """Return a Retry-After header in seconds; None where it is a date, or unclear.

    >>> retry_after("7"), retry_after("soon"), retry_after(None)
    (7.0, None, None)
    """
    return float(value) if value and value.strip().isdecimal() else None
