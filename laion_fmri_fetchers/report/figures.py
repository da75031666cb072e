"""Figures of what was fetched or loaded; nothing is fetched and no socket is opened.

Colour is never the only mark of a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.labels import SOURCES
from laion_fmri_fetchers.query.rows import table_of
from laion_fmri_fetchers.query.selection import choose_subjects, is_one_name

from .contents import (
    OTHER_SOURCE,
    Contents,
    Volume,
    contents_of,
    default_ceiling,
    read,
    roi_table,
    trial_counts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#f0e442"),
    "#8a8a8a",
)


def plot_rois(
    data: Bunch,
    subjects: str | int | None = None,
    *,
    cut_coords: int | Sequence[float] = 6,
    axes: Axes | None = None,
) -> Axes:
    """Plot the outlines of a subject's ROIs on the brain, in one colour per category.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`, with ROI masks of volumes on disk; or betas.
    subjects : str or int, optional
        One, such as ``"sub-01"``; None: the first one.
    cut_coords : int or sequence of float, default=6
        How many axial slices, or where (z, mm), three in a row.
    axes : matplotlib Axes, optional
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib Axes
        Slices with the legend below. The background is the subject's anatomy (T1w
        before T2w) where it is on disk, else the brain mask, or the voxels of betas.

    Raises
    ------
    InvalidQueryError
        If the Bunch does not have the subject, or ``cut_coords`` is empty.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    Fetch the anatomy first, to draw on it::

        fetch_laion_fmri("sub-01", rois=None, image_type="anatomical")
        plot_rois(data, "sub-01", cut_coords=[-20, -12, -4])
    """
    if subjects is not None and not is_one_name(subjects):
        raise InvalidQueryError(
            f"subjects is {subjects!r}; plot_rois draws the brain of one, such as "
            "subjects='sub-01'"
        )
    contents = contents_of(data)
    subject = next(iter(choose_subjects(subjects, contents.subjects)), "")
    axes = _axes(axes, (7.2, 5.4), facecolor="black")
    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    masks = _masks(contents, subject)
    brain = read(contents.brains[subject][1]) if subject in contents.brains else None
    if not (masks or brain):
        return _say(axes, "Neither ROIs nor the brain are on disk.", color="white")
    volume, affine = brain or next(iter(masks.values()))
    volume = volume.astype(np.float32)
    bright = np.quantile(volume, 0.99)

    # All in mm from here on, as anatomy and masks are on different grids.
    of_brain = apply_affine(affine, np.argwhere(volume > bright / 10))
    of_masks = [apply_affine(a, np.argwhere(mask)) for mask, a in masks.values()]
    cuts = np.atleast_1d(cut_coords).astype(float)
    if np.ndim(cut_coords) == 0:  # so many, evenly spread over most voxels
        heights = np.concatenate(of_masks or [of_brain])[:, 2]
        low, high = np.quantile(heights, (0.02, 0.98))
        cuts = np.linspace(low, high, max(0, int(cuts[0])) + 2)[1:-1]
    if not len(cuts):
        raise InvalidQueryError("cut_coords is empty; give 1 slice or more")
    inside = np.concatenate([of_brain, *of_masks])
    (left, back, _), (right, front, _) = inside.min(0) - 8, inside.max(0) + 8
    grid = np.arange(left, right), np.arange(front, back, -1), cuts  # right is right
    slices, (x, y, _) = _slices(volume, affine, grid), map(len, grid)
    is_mask = np.unique(volume).size <= 2
    axes.imshow(slices, "gray", vmin=0, vmax=3 if is_mask else bright)
    for i, ((category, _), mask) in enumerate(masks.items()):
        outlines, colour = _slices(*mask, grid), COLOURS[i % len(COLOURS)]
        if outlines.max() > 0.5:
            axes.contour(outlines, [0.5], colors=colour, linewidths=1.4)
        axes.plot([], [], color=colour, label=category)
    text: dict[str, Any] = {"color": "white", "size": "small", "va": "bottom"}
    for i, z in enumerate(cuts):
        axes.text(i % 3 * x + 4, (i // 3 + 1) * y - 4, f"z={z:.0f}", **text)
    axes.text(4, y / 2, "L", **text)
    axes.text(x - 4, y / 2, "R", ha="right", **text)
    axes.set_ylim(1.19 * len(slices), 0)  # with room for the legend
    if masks:
        legend: dict[str, Any] = {"labelcolor": "white", "fontsize": "small"}
        axes.legend(loc="lower center", ncols=4, frameon=False, **legend)
    return axes


def _masks(contents: Contents, subject: str) -> dict[tuple[str, bytes], Volume]:
    """Return the union of masks of each category, and of each grid."""
    masks: dict[tuple[str, bytes], Volume] = {}
    for roi in contents.rois:
        if (
            roi.subject == subject
            and roi.unit == "voxels"
            and (mask := read(roi.source))
        ):
            values, affine = mask
            if (values > 0).any():
                key = roi.category, affine.tobytes()
                union, _ = masks.setdefault(key, (values > 0, affine))
                union |= values > 0
    return masks


def _slices(
    volume: np.ndarray, affine: np.ndarray, grid: Sequence[np.ndarray]
) -> np.ndarray:
    """Return axial slices of a volume, three in a row, at the x, y and z of a grid.

    Not by nilearn's plotting, which asks pyplot whether to draw, and so fails without a
    display where its back end needs one.
    """
    from scipy.ndimage import map_coordinates

    x, y, cuts = grid
    tiles = []
    for z in cuts:
        points = np.stack(np.broadcast_arrays(x, y[:, np.newaxis], z), axis=-1)
        voxels = np.moveaxis(apply_affine(np.linalg.inv(affine), points), -1, 0)
        tiles.append(map_coordinates(volume, voxels, np.float32, order=1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 3)
    return np.block([tiles[i : i + 3] for i in range(0, len(tiles), 3)])


def plot_trials(
    data: Bunch,
    subjects: str | int | Sequence[str | int] | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Plot the number of selected trials by session, source and repetition.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`, or betas; the rows of its ``trials`` are counted.
    subjects : str, int, or several, optional
        Such as ``"sub-01"``; None or ``"all"``: those of all subjects together.
    axes : matplotlib Axes, optional
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib Axes
        One stacked bar per session: coloured by the source of the images, hatched where
        an image is shown twelve times.

    Raises
    ------
    InvalidQueryError
        If the Bunch does not have the subject, or ``trials`` lacks a column.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    ::

        plot_trials(data, "sub-01").figure.savefig("trials.png")
    """
    contents = contents_of(data)
    chosen = choose_subjects(subjects, contents.subjects)
    columns = ["subject", "session", "dataset"]
    trials = table_of(contents.trials, columns, "data.trials")
    trials = trials[trials["subject"].isin(chosen)]
    axes = _axes(axes, (6.4, 3.6))
    if trials.empty:
        return _say(axes, "No trials.")
    counts: Any = trial_counts(trials, "session")
    names = [name.removeprefix("ses-") for name in counts.columns]
    below = np.zeros(len(names))
    for (source, times), row in counts.iterrows():
        colour = COLOURS[[*SOURCES, OTHER_SOURCE].index(source)]
        hatch = "////" if times == "12 times" else None
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        axes.bar(names, row, bottom=below, label=f"{source}, {times}", **style)
        below += row.to_numpy()
    axes.set(xlabel="Session", ylabel="Trials", xlim=(-0.6, max(len(names), 3) - 0.4))
    axes.tick_params(axis="x", labelsize="small")
    return _finish(axes)


def plot_noise_ceiling(
    data: Bunch,
    subjects: str | int | Sequence[str | int] | None = None,
    *,
    noise_ceiling: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Plot the noise ceiling of each ROI: its median and quartiles over voxels.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`, with ROI masks of volumes on disk; or betas, whose
        voxels count.
    subjects : str, int, or several, optional
        Such as ``"sub-01"``; None or ``"all"``: all, a mark each.
    noise_ceiling : {"Allrep", "12rep", "4rep"}, optional
        Which map of ``noise_ceilings``; None: the first of these that ``data`` has.
    axes : matplotlib Axes, optional
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib Axes
        One row per ROI, in order of categories: median and quartiles over voxels, in
        percent of variance.

    Raises
    ------
    InvalidQueryError
        If the Bunch has no such subject or noise ceiling.
    CorruptImageError
        If a mask or map on disk is damaged.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    The ceiling of averages over *n* repeats is 100 ncsnr² / (ncsnr² + 1/*n*), with
    ncsnr the standard deviation of the signal over that of the noise [1]_; for images
    with different numbers of repeats, 1/*n* is averaged over images.

    References
    ----------
    .. [1] Allen et al. (2022). A massive 7T fMRI dataset to bridge cognitive
       neuroscience and artificial intelligence. Nature Neuroscience 25:116-126.

    Examples
    --------
    ::

        plot_noise_ceiling(data, noise_ceiling="12rep")
    """
    contents = contents_of(data)
    chosen = choose_subjects(subjects, contents.subjects)
    existing = {name for maps in contents.ceilings.values() for name in maps}
    if noise_ceiling is not None and noise_ceiling not in existing:
        hint = did_you_mean(noise_ceiling, existing)
        raise InvalidQueryError(
            f"data holds no noise ceiling {noise_ceiling!r}; {hint}"
        )
    ceiling = noise_ceiling or default_ceiling(contents)
    table = roi_table(contents, ceiling)
    return draw_noise_ceiling(table[table["subject"].isin(chosen)], ceiling, axes)


def draw_noise_ceiling(table: pd.DataFrame, ceiling: str, axes: Axes | None) -> Axes:
    """Draw the figure of `plot_noise_ceiling` from a table of `contents.roi_table`."""
    table = table.dropna(subset="median")
    names = (table["category"] + " " + table["name"]).sort_values()
    rows = names.drop_duplicates().tolist()
    axes = _axes(axes, (6.4, 1.4 + 0.22 * len(rows)))
    if table.empty:
        return _say(axes, "No noise ceiling of an ROI.")
    subjects = table["subject"].unique()
    for i, subject in enumerate(subjects):
        group = table[table["subject"] == subject]
        # Marks of several subjects lie one below the other within a row.
        shift = 0.6 * ((i + 0.5) / len(subjects) - 0.5)
        places = names[group.index].map(rows.index) + shift
        colour, marker = COLOURS[i % len(COLOURS)], "os^DvP"[i % 6]
        axes.hlines(places, group["low"], group["high"], color=colour, lw=1, alpha=0.7)
        axes.plot(group["median"], places, marker, color=colour, ms=5, label=subject)
    axes.set_yticks(range(len(rows)), rows, size="small")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"Noise ceiling {ceiling} (%)")
    axes.set_xlim(left=0)
    axes.grid(axis="y", lw=0.3)
    return _finish(axes)


def plot_states(table: pd.DataFrame, axes: Axes) -> Axes:
    """Plot the state of each session: a row per subject, a mark per session.

    Parameters
    ----------
    table : pandas.DataFrame
        ``subject``, ``session`` and ``state``, with a row at least.
    axes : matplotlib Axes
        Where to draw.
    """
    subjects = table["subject"].unique().tolist()
    numbers = table["session"].str.removeprefix("ses-").astype(int)
    for i, (state, group) in enumerate(table.groupby("state")):
        rows = group["subject"].map(subjects.index)
        marker, colour = "sDo^vx"[i % 6], COLOURS[i % len(COLOURS)]
        axes.plot(numbers[group.index], rows, marker, color=colour, label=state)
    axes.set_yticks(range(len(subjects)), subjects)
    axes.set(xlabel="Session", ylim=(len(subjects) - 0.4, -0.6))
    axes.set_xlim(0.3, max(numbers.max(), 8) + 0.7)
    axes.locator_params(axis="x", integer=True)
    return _finish(axes)


def _axes(axes: Axes | None, size: tuple[float, float], **style: Any) -> Axes:
    """Return the axes given, or those of a new figure."""
    require_extra()
    if axes is not None:
        return axes
    # Notebooks and plt.show() show figures of pyplot. A report gives axes of its own:
    # it needs no back end, which may want a display.
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=size, layout="constrained", **style)[1]


def require_extra() -> None:
    """Raise ImportError, saying how to install it, where what draws is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Figures and reports need matplotlib and jinja2: "
            "pip install 'laion_fmri_fetchers[plot]'"
        ) from error


def _say(axes: Axes, text: str, **style: Any) -> Axes:
    """Write on axes why nothing is drawn."""
    place = axes.transAxes
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=place, **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _finish(axes: Axes) -> Axes:
    """Take the frame away, and write the legend above."""
    axes.spines[["top", "right"]].set_visible(False)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    axes.legend(ncols=2, frameon=False, fontsize="small", **place)
    return axes
