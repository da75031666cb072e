"""Which voxel each row of a model file is: proved by the beta image, not assumed.

Column 0 of the model are the values of the image's first volume. Under each candidate,
a mask and the order of its voxels, rows stand for voxels; a candidate fits where all
rows looked at have the value of their voxel::

    candidates ──▶ fitting ──▶ the one that fits, or NotProvedError
    Proof.agreement            whether other rows have their values, too
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .first_volume import FirstVolume

LEAST_TELLING = 0.5
"""Share of the rows looked at whose values must tell something: finite, and not 0."""


class NotProvedError(Exception):
    """A model file whose values are not shown to be those of the image: the reason."""


class Candidate(NamedTuple):
    """A voxel for each row."""

    mask: str
    """Name of the mask whose voxels the rows are."""
    order: str
    """``"C"``: the last axis varies fastest, as in ``data[mask]``; or ``"F"``."""
    voxels: np.ndarray
    """Positions in a flat volume, the last axis varying fastest; by row."""


class Proof(NamedTuple):
    """What was proved of a model file, in a form that is small enough to keep."""

    mask: str
    order: str
    shape: tuple[int, ...]
    packed: bytes
    """The mask, packed to bits and compressed by zlib."""
    digests: np.ndarray
    """uint8 for each row, of the value in column 0; 0 for the value 0 alone."""
    is_complete: bool
    """Whether the image is 0 at all voxels without a row."""

    def voxels(self) -> np.ndarray:
        """Return the voxel of each row."""
        n_voxels = int(np.prod(self.shape))
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        mask = np.unpackbits(bits, count=n_voxels).astype(bool)
        return voxels_of(mask, self.shape, self.order)

    def agreement(self, rows: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return for each row whether it has the value in column 0 that the image has.

        Examples
        --------
        >>> values = np.array([1.5, np.nan], np.float32)
        >>> first = FirstVolume(np.array([1, 2]), values, (1, 1, 3), 9)
        >>> proof = make_proof(Candidate("a mask", "C", np.arange(3)), first)
        >>> proof.agreement(np.arange(3), np.array([0, *values])).tolist()
        [True, True, True]
        >>> proof.agreement(np.arange(2), np.array([0.25, 0], "f4")).tolist()
        [False, False]
        """
        return digests_of(column) == self.digests[rows]

    def is_zero(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row whether the image has a 0 there."""
        return self.digests[rows] == 0


def digests_of(values: np.ndarray) -> np.ndarray:
    """Return 8 bits for each float32, the same for the same value.

    A row at a wrong place passes with a chance of 1 in 255. The whole first volume,
    which would leave no chance, takes as much disk as 250 voxels of a session.
    """
    bits = np.where(np.isnan(values), np.float32("nan"), values + np.float32(0))
    spread = bits.astype(np.float32).view(np.uint32) * np.uint32(2654435761)
    digests = np.maximum(spread >> np.uint32(24), 1).astype(np.uint8)
    return np.where(values == 0, np.uint8(0), digests)


def voxels_of(mask: np.ndarray, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Return the voxels of a flat mask in an order.

    Examples
    --------
    >>> mask = np.array([True, True, True, False])
    >>> voxels_of(mask, (2, 2), "C").tolist(), voxels_of(mask, (2, 2), "F").tolist()
    ([0, 1, 2], [0, 2, 1])
    """
    if order == "C":
        return np.flatnonzero(mask)
    places = np.flatnonzero(mask.reshape(shape).ravel(order="F"))
    return np.ravel_multi_index(np.unravel_index(places, shape, order="F"), shape)


def candidates(
    n_rows: int, masks: Iterable[tuple[str, np.ndarray]], shape: tuple[int, ...]
) -> Iterator[Candidate]:
    """Yield the voxels that rows may be: of each mask with as many, in both orders."""
    for name, mask in masks:
        if np.count_nonzero(mask) == n_rows:
            for order in ("C", "F"):
                yield Candidate(name, order, voxels_of(mask, shape, order))


def fitting(
    proposed: Iterable[Candidate],
    rows: np.ndarray,
    column: np.ndarray,
    first: FirstVolume,
) -> Candidate:
    """Return the candidate under which rows have the values of their voxels.

    Parameters
    ----------
    proposed : iterable of Candidate
        What rows may be.
    rows : numpy.ndarray of int
        The rows looked at.
    column : numpy.ndarray of float32
        Their values in column 0.
    first : FirstVolume
        Of the image.

    Raises
    ------
    NotProvedError
        If none fits, several that differ fit, or the values do not tell.
    """
    fit: list[Candidate] = []
    n_proposed = 0
    for candidate in proposed:
        n_proposed += 1
        is_new = all((candidate.voxels != other.voxels).any() for other in fit)
        if is_new and _are_equal(column, first.at(candidate.voxels[rows])):
            fit.append(candidate)
    if not fit:
        raise NotProvedError(
            "its rows are not the voxels of a known mask in a known order"
            if n_proposed
            else "it has another number of rows than each known mask has voxels"
        )
    if len(fit) > 1:
        names = " and ".join(f"{c.mask} in order {c.order}" for c in fit)
        raise NotProvedError(f"its rows may be {names}")
    telling = np.isfinite(column) & (column != 0)
    if telling.mean() < LEAST_TELLING or len(np.unique(column[telling])) < 2:
        raise NotProvedError("the values of its first trial tell nothing")
    return fit[0]


def _are_equal(column: np.ndarray, values: np.ndarray) -> bool:
    """Tell whether rows have the values of an image; NaN stands for 0, too.

    GLMsingle gives NaN to voxels without a fit, of which the image has 0.
    """
    is_missing = np.isnan(column) & (np.isnan(values) | (values == 0))
    return bool(((column == values) | is_missing).all())


def make_proof(candidate: Candidate, first: FirstVolume) -> Proof:
    """Return what to keep of a candidate that fits."""
    mask = np.zeros(math.prod(first.shape), dtype=bool)
    mask[candidate.voxels] = True
    return Proof(
        candidate.mask,
        candidate.order,
        first.shape,
        zlib.compress(np.packbits(mask).tobytes(), 1),
        digests_of(first.at(candidate.voxels)),
        bool(mask[first.voxels].all()),
    )
