"""How long transfers wait, how often they try again, and in what portions they work.

All numbers of the wing are fields of `Policy`, each with its reason. They are looked up
in `POLICY` when they are needed, so that a test replaces them in one place.
"""

from __future__ import annotations

import dataclasses
import email.utils
import random
import time


@dataclasses.dataclass(frozen=True)
class Policy:
    """Tries, waits and portions of listings, downloads and the access service.

    Attributes
    ----------
    tries : int
        Requests for the same thing where the server is busy or the connection breaks:
        with doubling waits about 8 s in all, longer than S3's usual "slow down".
    tries_unreachable : int
        Connections to a server that has answered before: about a minute, in which a
        wireless network comes back or a server restarts.
    tries_unreachable_at_first : int
        Connections to a server that has never answered, as its address may be wrong.
    tries_renewed : int
        Requests with renewed presigned URLs, which may each expire in a queue.
    first_wait : float
        Seconds before the second try; each later wait is twice as long.
    longest_wait : float
        Seconds that a wait of ours takes at most, such that a server is not left idle
        for long after it is back.
    longest_wait_asked : float
        Seconds of a Retry-After that are heeded at most: a user would rather have an
        error than a silent program.
    retried : frozenset of int
        Statuses that may pass: time-outs, too many requests, and all that say that
        the server fails, but for "not implemented" and "HTTP version".
    connect_timeout : float
        Seconds for a connection; three of the retransmissions of TCP fit into it.
    redirects : int
        Redirects that are followed; S3 needs one, a mirror perhaps two.
    least_progress : int
        Bytes that must arrive within a time-out, as a hostile or broken server may
        send one now and then. 16 KiB in 30 s is slower than any usable network.
    watch_every : float
        Seconds between looks at what threads do: Ctrl-C and progress feel immediate,
        and the threads of a slow line soon get company; how busy the cores are cannot
        be told earlier.
    grace : float
        Seconds beyond a time-out until a socket is cut from outside, as its own
        time-out gives the better reason; and seconds that threads have to end.
    quiet : float
        Seconds of waiting after which a message says for what.
    service_patience : float
        Time-outs in which an answer of the access service, of a few kB, must be whole.
    range_size : int
        Bytes in a request at most: at 25 MB/s per connection 0.7 s, which hides a
        latency of 50 ms, while a file of 256 MiB still fills 16 connections. Shorter
        ones have their price where a core is the limit: with 8 MiB, twice as many
        handshakes, and threads in each other's way, took 12% longer over TLS. Whole
        parts of 1 to 16 MiB fit into it, so that each is hashed as it arrives.
    busy : float
        Share of the cores from which on they are the limit, not the line. Large files
        begin with a thread per core, and get the others as long as it is not reached:
        over TLS on two cores, 16 threads took 8% longer than two, for handshakes and
        changes of threads.
    busy_for : float
        Seconds after which large files get all threads, as something else in this
        process may be what keeps the cores busy.
    smallest_piece : int
        Bytes in a request at least where a piece of an object is cut for several
        connections: shorter ones would be mostly latency.
    small_file : int
        Bytes up to which files of a folder share a lock: the lock of a small file
        takes as long as the file.
    note_every : int
        Bytes after which the journal notes them: what a killed process loses per
        connection, for about 100 lines per second at most.
    much_progress : int
        Bytes that arrived after which a failed range has all of its tries again.
    poll, longest_poll : float
        Seconds between looks at a lock that another process holds, at first and later.
    lock_patience : float
        Seconds without a sign of life after which the holder of a lock is not waited
        for. Network file systems show changes of others with up to 60 s of delay.
    line_every : float
        Seconds between lines of progress where there is no terminal, as in the log of
        a batch job.
    join : float
        Seconds that threads have to end after Ctrl-C.
    """

    tries: int = 6
    tries_unreachable: int = 9
    tries_unreachable_at_first: int = 3
    tries_renewed: int = 6
    first_wait: float = 0.25
    longest_wait: float = 30.0
    longest_wait_asked: float = 60.0
    retried: frozenset[int] = frozenset({408, 429, *range(500, 600)}) - {501, 505}
    connect_timeout: float = 10.0
    redirects: int = 4
    least_progress: int = 2**14
    watch_every: float = 0.05
    grace: float = 1.0
    quiet: float = 3.0
    service_patience: float = 3.0
    range_size: int = 16 * 2**20
    busy: float = 0.5
    busy_for: float = 1.0
    smallest_piece: int = 4 * 2**20
    small_file: int = 2**20
    note_every: int = 2 * 2**20
    much_progress: int = 2**20
    poll: float = 0.05
    longest_poll: float = 1.0
    lock_patience: float = 120.0
    line_every: float = 10.0
    join: float = 0.8

    def wait(self, n_tried: int, asked: float | None = None) -> float:
        """Return the seconds to wait after so many tries; a server may ask for more.

        They are spread at random, so that many clients do not come back at once.
        """
        doubled = min(self.first_wait * 2.0 ** (n_tried - 1), self.longest_wait)
        asked = min(asked or 0.0, self.longest_wait_asked)
        return max(asked, doubled * random.uniform(0.5, 1.5))


POLICY = Policy()


def retry_after(value: str) -> float | None:
    """Return a Retry-After in seconds from now; None if it is unclear.

    >>> retry_after("7"), retry_after("0.5")
    (7.0, 0.5)
    >>> retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), retry_after("-1")
    (0.0, 0.0)
    >>> retry_after("soon"), retry_after("nan"), retry_after("")
    (None, None, None)
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            due = email.utils.parsedate_to_datetime(value).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None
        seconds = due - time.time()
    return max(0.0, seconds) if seconds == seconds else None
