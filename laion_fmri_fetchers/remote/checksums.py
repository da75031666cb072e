"""Checksums of files: SHA-256, and the ETags that S3 gives to its objects.

The ETag of an object put in one part is its MD5. Of one put in N parts it is
``md5(md5(part 1) … md5(part N))-N``, and the size of the parts is not published: it is
found by trying.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

_MIB = 2**20
# Bytes hashed at most to find an unusual part size: about a minute.
_MOST_HASHED = 2**35


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
        ones. Empty where no usual size fits, since a guess would speak against files
        that are right.

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
        return []
    smallest, largest = size // n_parts // _MIB, size // (n_parts - 1) // _MIB
    others = [n * _MIB for n in range(max(1, smallest), largest + 1)]
    rest = [p for p in others if p not in fitting and -(-size // p) == n_parts]
    rest.sort(key=lambda p: -(p & -p))
    return fitting + rest[: max(0, _MOST_HASHED // max(size, 1) - len(fitting))]


def n_parts_of(etag: str | None) -> int:
    """Return the parts of which an ETag is; 0 where it is no checksum.

    >>> n_parts_of(32 * "a"), n_parts_of(32 * "a" + "-7"), n_parts_of("opaque")
    (1, 7, 0)
    """
    match = re.fullmatch(r"[0-9a-f]{32}(?:-([1-9]\d{0,4}))?", etag or "")
    return int(match[1] or 1) if match else 0


def etag_of(digests: Sequence[bytes], *, is_multipart: bool) -> str:
    """Return the ETag of an object with these MD5 digests of its parts."""
    if not is_multipart:
        return digests[0].hex()
    joined = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{joined}-{len(digests)}"


def check_file(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    etag: str | None = None,
    sha256: str | None = None,
    progress: Callable[[int], object] = lambda _: None,
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

        def digest(algorithm: str, start: int, stop: int) -> Any:
            hasher = hashlib.new(algorithm, usedforsecurity=False)
            stream.seek(start)
            while start < stop and (chunk := stream.read(min(_MIB, stop - start))):
                hasher.update(chunk)
                start += len(chunk)
                progress(len(chunk))
            return hasher

        if sha256:
            got = digest("sha256", 0, found).hexdigest()
            is_right = got == sha256.lower()
            return None if is_right else f"its SHA-256 is {got} instead of {sha256}"
        wrong, n_parts = None, n_parts_of(etag)
        for part in part_sizes(found, n_parts) if n_parts else ():
            starts = range(0, max(found, 1), part)
            parts = [digest("md5", a, min(a + part, found)).digest() for a in starts]
            got = etag_of(parts, is_multipart="-" in str(etag))
            if got == etag:
                return None
            wrong = wrong or f"its ETag is {got} instead of {etag}"
        return wrong
