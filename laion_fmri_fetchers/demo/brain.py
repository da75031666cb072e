"""Brains of the synthetic subjects: grids, regions and what they prefer.

The T1w space of every subject stands in for MNI space: the brain is that of
nilearn's template, on coarse grids, and regions are small balls at about the
positions published for them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .facts import PARTICIPANTS
from .labels import CONTENT, CONTENT_OF, rng_of


class Roi(NamedTuple):
    """Where a region is and what it prefers."""

    category: str
    label: str  # as the bucket writes it
    centre: tuple[float, float, float]  # mm, right hemisphere
    radius: float  # mm


# Approximate positions in MNI space, rounded to what a coarse grid resolves; the left
# hemisphere mirrors the right one. Bodies, faces, objects and places after the group
# parcels of Julian et al. 2012 (NeuroImage 60:2357) and Peelen & Downing 2007 (Nat Rev
# Neurosci 8:636); the two parts of FFA and VWFA after Weiner & Grill-Spector 2012
# (Trends Cogn Sci 16:251) and Lerma-Usabiaga et al. 2018 (PNAS 115:E9981); motion after
# Dumoulin et al. 2000 (Cereb Cortex 10:454) and Huk et al. 2002 (J Neurosci 22:7195);
# retinotopic maps after Wang et al. 2015 (Cereb Cortex 25:3911), SPCS and IPCS after
# Mackey et al. 2017 (eLife 6:e22974). Without published positions are the anterior face
# patches (here along the anterior fusiform gyrus), the place region SPL (here on the
# superior parietal lobule) and the laion regions (early, ventral, lateral and dorsal
# visual cortex, and all of it). Neighbours that prefer different content are moved some
# millimetres apart, for a coarse grid to tell them apart.
ROIS = {
    "EBA": Roi("body", "EBA", (50, -76, 8), 9),
    "FBA": Roi("body", "FBA", (44, -42, -20), 7),
    "VWFA1": Roi("character", "VWFA-1", (44, -68, -12), 8),
    "VWFA2": Roi("character", "VWFA-2", (46, -56, -13), 8),
    "mfswords": Roi("character", "mfs-words", (38, -38, -19), 7),
    "pSTSwords": Roi("character", "pSTS-words", (56, -40, 6), 8),
    "FFA1": Roi("face", "FFA-1", (40, -60, -17), 8),
    "FFA2": Roi("face", "FFA-2", (40, -51, -19), 8),
    "OFA": Roi("face", "OFA", (40, -78, -12), 8),
    "pSTSfaces": Roi("face", "pSTS-faces", (52, -48, 8), 9),
    "AFP1": Roi("face", "AFP-1", (38, -24, -26), 8),
    "AFP2": Roi("face", "AFP-2", (34, -8, -36), 8),
    "laionEVC": Roi("laion", "laion-EVC", (12, -92, 0), 16),
    "laiondorsal": Roi("laion", "laion-dorsal", (26, -78, 32), 16),
    "laiongeneral": Roi("laion", "laion-general", (30, -76, 4), 34),
    "laionlateral": Roi("laion", "laion-lateral", (46, -72, 4), 16),
    "laionventral": Roi("laion", "laion-ventral", (34, -58, -14), 18),
    "MST": Roi("motion", "MST", (46, -58, 7), 7),
    "MT": Roi("motion", "MT", (46, -66, 2), 8),
    "lobjects": Roi("object", "l-objects", (44, -80, -4), 9),
    "vobjects": Roi("object", "v-objects", (33, -58, -13), 8),
    "MPA": Roi("place", "MPA", (16, -56, 12), 9),
    "OPA": Roi("place", "OPA", (34, -82, 22), 9),
    "PPA": Roi("place", "PPA", (28, -45, -8), 9),
    "SPL": Roi("place", "SPL", (20, -64, 54), 9),
    "IPCS": Roi("retinotopy", "IPCS", (44, 6, 32), 8),
    "IPS0": Roi("retinotopy", "IPS0", (26, -76, 38), 8),
    "LO1": Roi("retinotopy", "LO1", (34, -90, 8), 7),
    "LO2": Roi("retinotopy", "LO2", (40, -84, 4), 7),
    "SPCS": Roi("retinotopy", "SPCS", (28, -4, 54), 8),
    "TO1": Roi("retinotopy", "TO1", (46, -76, 4), 7),
    "TO2": Roi("retinotopy", "TO2", (48, -66, 4), 7),
    "V1d": Roi("retinotopy", "V1d", (10, -94, 5), 8),
    "V1v": Roi("retinotopy", "V1v", (10, -88, -3), 8),
    "V2d": Roi("retinotopy", "V2d", (14, -98, 13), 8),
    "V2v": Roi("retinotopy", "V2v", (14, -80, -9), 8),
    "V3A": Roi("retinotopy", "V3A", (20, -88, 29), 8),
    "V3B": Roi("retinotopy", "V3B", (31, -84, 22), 8),
    "V3d": Roi("retinotopy", "V3d", (23, -95, 18), 8),
    "V3v": Roi("retinotopy", "V3v", (23, -78, -12), 8),
    "VO1": Roi("retinotopy", "VO1", (28, -67, -11), 7),
    "VO2": Roi("retinotopy", "VO2", (27, -58, -9), 7),
    "hV4": Roi("retinotopy", "hV4", (30, -77, -15), 7),
    "EVC": Roi("retinotopy", "EVC", (0, 0, 0), 1),  # the union of V1 to V3
}
"""Every published region by its clean name."""

LACKING = {
    "sub-01": ("AFP1", "AFP2", "SPL", "EVC"),
    "sub-03": ("VWFA2",),
    "sub-05": ("AFP2", "pSTSfaces"),
    "sub-06": ("AFP1", "MST", "mfswords"),
    "sub-07": ("AFP2",),
}
"""Regions that a subject does not have."""

SELECTIVITY = 0.6  # response to what a region prefers, in units of the noise

Box = tuple[tuple[int, int, int], tuple[int, int, int]]  # its corners, mm
HEAD: Box = ((-96, -132, -78), (96, 92, 114))
FITTED: Box = ((-78, -118, -52), (78, 26, 72))
"""What the volumetric localizer fits cover: all regions, but not all of the brain."""

_N_UNFITTED = 8  # voxels at the bottom of the brain without a fit, for loss of signal


class Grid(NamedTuple):
    """A grid of voxels and the brain on it."""

    affine: np.ndarray  # (4, 4), mm
    t1: np.ndarray  # (x, y, z), 0 to 1
    mask: np.ndarray  # (x, y, z) bool

    def points(self) -> np.ndarray:
        """Return the positions (mm) of the voxels of the mask."""
        return np.argwhere(self.mask) @ self.affine[:3, :3] + self.affine[:3, 3]

    def image(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a volume of values per voxel of the mask, 0 elsewhere; and affine."""
        volume = np.zeros(self.mask.shape + values.shape[1:], values.dtype)
        volume[self.mask] = values
        return volume, self.affine


class Responses(NamedTuple):
    """Regions that points (voxels, vertices) lie in, and what they respond to."""

    rois: dict[str, np.ndarray]  # clean name -> (points,) bool
    tuning: np.ndarray  # (points, contents): to what is shown, beyond anything seen
    visual: np.ndarray  # (points,): to anything seen, 0 to 1


class Brain(NamedTuple):
    """The functional grid of a subject and what lies on it."""

    grid: Grid  # of the anatomical brain mask
    fitted: Grid  # of the voxels with a fit, those of `tuning` on
    tuning: np.ndarray  # (voxels, contents)
    visual: np.ndarray  # (voxels,), 0 to 1
    edge: np.ndarray  # indices of voxels at the mask's edge


def functional_brain(subject: str, resolution: float, seed: int) -> Brain:
    """Return the brain of a subject on the grid of its betas."""
    from scipy.ndimage import binary_erosion

    grid = brain_grid(subject, resolution)
    rois = responses(subject, grid.points()).rois
    is_small = np.any([rois[n] for n in rois if ROIS[n].category != "laion"], axis=0)
    is_edge = grid.mask & ~binary_erosion(grid.mask) & ~grid.image(is_small)[0]
    lowest = np.argwhere(is_edge)
    lowest = lowest[np.argsort(lowest[:, 2], kind="stable")[:_N_UNFITTED]]
    is_fitted = grid.mask.copy()
    is_fitted[tuple(lowest.T)] = False
    fitted = grid._replace(mask=is_fitted)

    _, tuning, visual = responses(subject, fitted.points())
    rng = rng_of(seed, subject, "tuning")
    tuning *= rng.uniform(0.7, 1.3, (len(tuning), 1))
    tuning += rng.normal(0, 0.05, tuning.shape)
    return Brain(grid, fitted, tuning, visual, np.flatnonzero(is_edge[is_fitted]))


@functools.lru_cache(maxsize=8)
def brain_grid(subject: str, resolution: float, box: Box = HEAD) -> Grid:
    """Return a grid of voxels in a box; its origin differs by subject."""
    from scipy.ndimage import binary_fill_holes

    shape = np.ceil(np.subtract(*box[::-1]) / resolution).astype(int) + 1
    shift = 0.75 * PARTICIPANTS.index(subject)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = np.add(box[0], (shift, -shift, shift))
    empty = Grid(affine, np.zeros(shape), np.zeros(shape, bool))
    t1 = resample(*_template(), empty)
    return Grid(affine, t1, binary_fill_holes(t1 > 0.2))


@functools.cache
def _template() -> tuple[np.ndarray, np.ndarray]:
    """Return the MNI brain at 3 mm and its affine."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=3)
    return image.get_fdata(dtype=np.float32), image.affine


def resample(
    volume: np.ndarray,
    affine: np.ndarray,
    target: Grid,
    order: int = 1,
    cval: float = 0,
) -> np.ndarray:
    """Return a volume on another grid."""
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(affine) @ target.affine
    shape = target.mask.shape
    return affine_transform(volume, matrix, output_shape=shape, order=order, cval=cval)


def responses(
    subject: str, points: np.ndarray, sides: Sequence[int] = (-1, 1)
) -> Responses:
    """Return regions and responses of points (n, 3), in mm, on some sides (-1 left).

    Regions overlap; what a point prefers is decided by the one whose centre is nearest.
    """
    distances = {}
    for name, roi in ROIS.items():
        centres = np.multiply(roi.centre, [(side, 1, 1) for side in sides])
        of_sides = np.linalg.norm(points - centres[:, None], axis=2)
        # A region has a point or more on each side of every grid.
        radii = np.maximum(roi.radius, of_sides.min(axis=1))
        distances[name] = (of_sides / radii[:, None]).min(axis=0)
    rois = {name: distance <= 1 for name, distance in distances.items()}
    early = [inside for name, inside in rois.items() if re.match("V[123][dv]", name)]
    rois["EVC"] = np.any(early, axis=0)
    rois = {name: rois[name] for name in rois if name not in LACKING[subject]}

    # A region of a category responds to content of its name.
    selective = [name for name in rois if ROIS[name].category in CONTENT_OF]
    nearest = np.array([distances[name] for name in selective])
    preferred = [CONTENT_OF[ROIS[name].category] for name in selective]
    contents = np.array([CONTENT.index(content) for content in preferred])
    tuning = SELECTIVITY * np.eye(len(CONTENT))[contents[nearest.argmin(axis=0)]]
    tuning *= (nearest.min(axis=0) <= 1)[:, None]
    maps = np.sum([rois[name] for name in rois if name != "EVC"], axis=0)
    return Responses(rois, tuning, np.minimum(0.1 + 0.3 * maps, 1))
