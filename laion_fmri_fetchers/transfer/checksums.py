"""Checksums: ETags and SHA-256 of files, computed at once or as bytes arrive."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator

_MIB = 2**20
"""Bytes hashed at a time, and the unit of the part sizes in use."""

_MOST_HASHED = 2**35
"""Bytes hashed at most to find an unusual part size: about a minute."""


def part_sizes(size: int, n_parts: int) -> list[int]:
    """Return the part sizes, in whole MiB, with which an object has so many parts.

    Parameters
    ----------
    size : int
        Bytes of the object.
    n_parts : int
        The number at the end of its ETag.

    Returns
    -------
    list of int
        Bytes of a part: usual ones first, powers of two before others; then round
        ones. Empty where no usual size fits.

    Examples
    --------
    >>> [size // 2**20 for size in part_sizes(30 * 2**20, 3)]
    [10, 12, 14, 11, 13]
    >>> part_sizes(20 * 2**20, 7)
    []
    """
    if n_parts == 1:
        return [max(size, 1)]
    powers = [2**k * _MIB for k in range(13)]
    usual = powers + [5 * p for p in powers] + [n * _MIB for n in (15, 25, 50, 100)]
    fitting = [p for p in usual if -(-size // p) == n_parts]
    if not fitting:
        return []  # a guess would speak against files that are right
    most = max(1, _MOST_HASHED // max(size, 1))
    least, stop = -(-size // n_parts), size // max(n_parts - 1, 1) + 1
    others = range(max(1, -(-least // _MIB)) * _MIB, stop, _MIB)
    rest = [p for p in others if p not in fitting and -(-size // p) == n_parts]
    rest.sort(key=lambda p: -(p & -p))
    return fitting + rest[: max(0, most - len(fitting))]


def check_file(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    etag: str | None = None,
    sha256: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> str | None:
    """Check a file against its known size and checksums.

    Parameters
    ----------
    path : path
        The file.
    size : int, optional
        Bytes it must have.
    etag : str, optional
        ETag of its object. It is checked where it is an MD5, or that of a multi-part
        object that a usual part size fits; then others, in whole MiB, are tried too.
    sha256 : str, optional
        Hexadecimal SHA-256; where it is given, the ETag is not looked at.
    progress : callable, optional
        Called with the number of bytes after each piece that was read.

    Returns
    -------
    str or None
        What is wrong, with both values; None if nothing is.

    Raises
    ------
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as stream:
    ...     _ = stream.write(b"hello") and stream.flush()
    ...     check_file(stream.name, size=6)
    ...     check_file(stream.name, etag="5d41402abc4b2a76b9719d911017c592")
    'it has 5 bytes instead of 6'
    """
    with open(path, "rb", buffering=0) as stream:
        found = os.fstat(stream.fileno()).st_size
        if size is not None and found != size:
            return f"it has {found} bytes instead of {size}"
        wrong = None
        for chains in ways_to_check(found, etag, sha256):
            at = stream.seek(0)
            while chunk := stream.read(_MIB):
                for chain in chains:
                    chain.feed(at, chunk)
                at += len(chunk)
                if progress:
                    progress(len(chunk))
            again = mismatch(chains, etag, sha256)
            if again is None:
                return None
            wrong = wrong or again
        return wrong


class Chain:
    """The hash of bytes ``start`` to ``stop`` of a file, which are fed in order."""

    __slots__ = ("at", "busy", "hasher", "stop")

    def __init__(self, algorithm: str, start: int, stop: int):
        self.at, self.stop = start, stop
        self.hasher = hashlib.new(algorithm, usedforsecurity=False)
        self.busy = False

    def feed(self, offset: int, chunk: bytes | memoryview) -> None:
        """Take what is next for the hash from a chunk at an offset of the file."""
        begin, end = self.at - offset, min(self.stop - offset, len(chunk))
        if 0 <= begin < end:
            whole = begin == 0 and end == len(chunk)
            self.hasher.update(chunk if whole else memoryview(chunk)[begin:end])
            self.at = offset + end


def ways_to_check(
    size: int, etag: str | None, sha256: str | None
) -> Iterator[list[Chain]]:
    """Yield lists of hashes, any of which shows that a file is right."""
    if sha256:
        yield [Chain("sha256", 0, size)]
        return
    match = re.fullmatch(r"[0-9a-f]{32}(?:-([1-9]\d{0,4}))?", bare(etag or ""))
    if match and not match[1]:
        yield [Chain("md5", 0, size)]
    elif match:
        for part in part_sizes(size, int(match[1])):
            starts = range(0, max(size, 1), part)
            yield [Chain("md5", a, min(a + part, size)) for a in starts]


def mismatch(chains: list[Chain], etag: str | None, sha256: str | None) -> str | None:
    """Return the mismatch of the hashes of a whole file."""
    if not chains:
        return None
    name, expected = (
        ("SHA-256", sha256.lower()) if sha256 else ("ETag", bare(etag or ""))
    )
    if "-" in expected:
        joined = b"".join(chain.hasher.digest() for chain in chains)
        parts = hashlib.md5(joined, usedforsecurity=False).hexdigest()
        found = f"{parts}-{len(chains)}"
    else:
        found = chains[0].hasher.hexdigest()
    return None if found == expected else f"its {name} is {found} instead of {expected}"


def bare(etag: str) -> str:
    """Return an ETag without what surrounds it.

    >>> bare('W/"abc"')
    'abc'
    """
    return etag.strip().removeprefix("W/").strip('"')
