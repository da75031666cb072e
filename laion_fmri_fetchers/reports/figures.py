"""Figures of a Bunch's content; nothing is fetched and no socket is opened.

Each takes Axes to draw on, or makes a figure, and returns the Axes. Colours can be told
apart by colour-blind people, and are never the only mark of a difference.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.keys import on_one_grid
from laion_fmri_fetchers.layout.labels import SOURCES
from laion_fmri_fetchers.layout.trees import ANATOMICAL, listings_of
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.query.rows import table_of
from laion_fmri_fetchers.query.selection import is_one_name

from .summaries import (
    OTHER_SOURCE,
    default_ceiling,
    is_volume,
    read_volume,
    roi_records,
    rois,
    sessions,
    subjects_of,
    trial_counts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8a8a8a"
_CATEGORIES = {
    "face": "#d55e00",
    "place": "#009e73",
    "body": "#cc79a7",
    "character": "#e69f00",
    "motion": "#f0e442",
    "object": "#56b4e9",
    "retinotopy": "#0072b2",
    "laion": "#ffffff",
}
"""Colours of ROI categories, after Okabe and Ito."""

_SOURCES = {
    **dict(
        zip(
            SOURCES,
            ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7"),
            strict=True,
        )
    ),
    OTHER_SOURCE: _GREY,
}
"""Colours of the sources of images."""

_STATES: dict[str, dict[str, Any]] = {
    "selected, on disk": {"marker": "s", "color": "#0072b2", "mew": 1.5},
    "selected, not on disk": {"marker": "D", "color": "#d55e00", "mfc": "none"},
    "on disk": {"marker": "s", "color": "#56b4e9"},
    "partly on disk": {"marker": "s", "color": "#56b4e9", "fillstyle": "bottom"},
    "in the bucket": {"marker": "s", "color": _GREY, "mfc": "none"},
    "held out": {"marker": "x", "color": _GREY},
}
"""Marks of the states of a session, which differ in shape and filling, too."""

_SUBJECT_MARKS = (
    *(("o", "#0072b2"), ("s", "#d55e00"), ("^", "#009e73")),
    *(("D", "#cc79a7"), ("v", "#e69f00"), ("P", "#56b4e9")),
)


def plot_availability(data: Bunch, *, axes: Axes | None = None) -> Axes:
    """Plot which sessions are on disk and which the bucket holds.

    The state is that of the selected types of images, or of betas where none of these
    belongs to a session. The content of the bucket is known from saved listings.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`.
    axes : matplotlib Axes, optional
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib Axes
        One row per subject, one mark per session; at the right, the size on disk, and
        that of all sessions where listings give it, those held out left out.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    ::

        plot_availability(data).figure.savefig("availability.png")
    """
    subjects = subjects_of(data)
    table = sessions(data)
    axes = _axes(axes, (6.4, 1.5 + 0.3 * len(subjects)))
    if table.empty:
        return _say(axes, "No session is known.")
    last = table["number"].max()
    for state, marks in _STATES.items():
        group = table[table["state"] == state]
        if len(group):
            rows = group["subject"].map(subjects.index)
            size = min(10, 160 / max(last, 1))
            if "mew" in marks:  # in the ink of the page, to stand out on any ground
                marks = {**marks, "mec": axes.xaxis.label.get_color()}
            axes.plot(group["number"], rows, ls="", ms=size, label=state, **marks)
    for row, subject in enumerate(subjects):
        group = table[table["subject"] == subject]
        amount = f"{readable_size(group['on_disk'].sum())}"
        if not ((group["state"] == "in the bucket") & (group["size"] == 0)).any():
            amount += f" of\n{readable_size(group['size'].sum())}"
        place = axes.get_yaxis_transform()
        axes.text(1.02, row, amount, transform=place, va="center", fontsize="small")
    axes.set_yticks(range(len(subjects)), subjects)
    axes.set(xlabel="Session", xlim=(0.3, max(last, 8) + 0.7))
    axes.set_ylim(len(subjects) - 0.4, -0.6)
    axes.locator_params(axis="x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)
    return axes


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
        From `fetch_laion_fmri`, with ROI masks of volumes on disk.
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
        before T2w) where it is on disk, else the brain mask.

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
    subject = next(iter(subjects_of(data, subjects)), "")
    canvas = axes is None
    axes = _axes(axes, (7.2, 5.4), layout=None)
    if canvas:
        axes.figure.set_facecolor("black")
        axes.set_position((0, 0, 1, 1))
    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    masks, anatomy = _unions(data, subject), background(data, subject)
    if not masks and not anatomy:
        return _say(axes, "Neither ROIs nor the brain are on disk.", color="white")
    from matplotlib.lines import Line2D

    brain: Any = nib.load(anatomy[0]) if anatomy else _join([*masks.values()])
    _draw_slices(axes, brain, masks, _cuts([*masks.values()] or [brain], cut_coords))
    lines = [Line2D([], [], c=_CATEGORIES.get(name, _GREY), lw=2) for name in masks]
    axes.legend(
        lines,
        list(masks),
        loc="lower center",
        ncols=4,
        labelcolor="white",
        frameon=False,
    )
    return axes


def _join(masks: list[nib.Nifti1Image]) -> nib.Nifti1Image:
    """Return the union of masks on one grid."""
    inside = np.max([np.asanyarray(mask.dataobj) for mask in masks], axis=0)
    return nib.Nifti1Image(inside, masks[0].affine)


def _draw_slices(
    axes: Axes,
    brain: nib.Nifti1Image,
    masks: dict[str, nib.Nifti1Image],
    cuts: list[float],
) -> None:
    """Draw axial slices, three in a row, right is right; the legend has room below.

    Not by nilearn's plotting, which needs a backend of pyplot that works here.
    """
    from scipy.ndimage import map_coordinates

    values = np.asanyarray(brain.dataobj)
    bright = np.quantile(values, 0.99)
    inside = apply_affine(brain.affine, np.argwhere(values > bright / 10))
    (left, back, _), (right, front, _) = inside.min(0) - 8, inside.max(0) + 8
    x, y = np.arange(left, right), np.arange(front, back, -1)  # mm
    n_columns = min(3, len(cuts))
    n_rows = math.ceil(len(cuts) / n_columns)

    def side_by_side(img: nib.Nifti1Image) -> np.ndarray:
        tiles = np.zeros((n_rows * n_columns, len(y), len(x)), dtype=np.float32)
        for tile, z in zip(tiles, cuts, strict=False):
            points = np.stack(np.broadcast_arrays(x, y[:, np.newaxis], z), axis=-1)
            voxels = apply_affine(np.linalg.inv(img.affine), points)
            data = np.asanyarray(img.dataobj, dtype=np.float32)
            map_coordinates(data, np.moveaxis(voxels, -1, 0), tile, order=1)
        in_rows = tiles.reshape(n_rows, n_columns, len(y), len(x)).swapaxes(1, 2)
        return in_rows.reshape(n_rows * len(y), n_columns * len(x))

    is_mask = np.unique(values).size <= 2
    axes.imshow(side_by_side(brain), "gray", vmin=0, vmax=3 if is_mask else bright)
    for category, mask in masks.items():
        outlines = side_by_side(mask)
        if outlines.max() > 0.5:
            colour = _CATEGORIES.get(category, _GREY)
            width = 0.8 if category == "laion" else 1.4
            axes.contour(outlines, [0.5], colors=colour, linewidths=width)
    style: dict[str, Any] = {"color": "white", "size": "small", "va": "bottom"}
    for i, z in enumerate(cuts):
        row, column = divmod(i, n_columns)
        place = (column * len(x) + 4, (row + 1) * len(y) - 4)
        axes.text(*place, f"z={z:.0f}", **style)
    axes.text(4, len(y) / 2, "L", **style)
    axes.text(len(x) - 4, len(y) / 2, "R", ha="right", **style)
    axes.set_ylim(1.19 * n_rows * len(y), 0)


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
        From `fetch_laion_fmri`; its ``trials`` are counted.
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
    >>> import pandas as pd
    >>> from sklearn.utils import Bunch
    >>> trials = {"subject": ["sub-01"] * 3, "session": ["ses-01", "ses-02", "ses-02"]}
    >>> trials |= {"dataset": ["LAION", "LAION", "NSD"], "n_reps": [12, 12, 4]}
    >>> data = Bunch(subjects_meta=[{"subject": "sub-01"}])
    >>> axes = plot_trials(Bunch(**data, trials=pd.DataFrame(trials)))
    >>> axes.get_legend_handles_labels()[1]
    ['LAION, 12 times', 'NSD, 4 times']
    """
    chosen = subjects_of(data, subjects)
    trials = table_of(data.trials, ["subject", "session", "dataset"], "data.trials")
    trials = trials[trials["subject"].isin(chosen)]
    axes = _axes(axes, (6.4, 3.6))
    if trials.empty:
        return _say(axes, "No trials.")
    counts: Any = trial_counts(trials, "session")
    below = np.zeros(len(counts.columns))
    places = np.arange(len(below))
    for (source, times), row in counts.iterrows():
        axes.bar(
            places,
            row,
            bottom=below,
            color=_SOURCES[source],
            edgecolor="white",
            linewidth=0.4,
            hatch="////" if "12" in times else None,
            label=f"{source}, {times}",
        )
        below += row.to_numpy()
    step = math.ceil(len(places) / 15)
    names = [name.removeprefix("ses-") for name in counts.columns]
    axes.set_xticks(places[::step], names[::step])
    axes.set(xlabel="Session", ylabel="Trials", xlim=(-0.6, max(len(places), 3) - 0.4))
    axes.locator_params(axis="y", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)
    return axes


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
        From `fetch_laion_fmri`, with ROI masks of volumes on disk.
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
    chosen = subjects_of(data, subjects)
    names = {name for maps in data.noise_ceilings.values() for name in maps}
    if noise_ceiling is not None and noise_ceiling not in names:
        hint = did_you_mean(noise_ceiling, names)
        raise InvalidQueryError(
            f"data holds no noise ceiling {noise_ceiling!r}; {hint}"
        )
    name = noise_ceiling or default_ceiling(data)
    table = rois(data, name)
    return draw_noise_ceiling(table[table["subject"].isin(chosen)], name, axes)


def draw_noise_ceiling(table: pd.DataFrame, ceiling: str, axes: Axes | None) -> Axes:
    """Draw the figure of `plot_noise_ceiling` from a table of `summaries.rois`."""
    table = table.dropna(subset="median")
    names = sorted(set(zip(table["category"], table["name"], strict=True)))
    axes = _axes(axes, (6.4, 1.4 + 0.22 * len(names)))
    if table.empty:
        return _say(axes, "No noise ceiling of an ROI.")
    subjects = list(dict.fromkeys(table["subject"]))
    for i, subject in enumerate(subjects):
        group = table[table["subject"] == subject]
        places = zip(group["category"], group["name"], strict=True)
        shift = 0.6 * ((i + 0.5) / len(subjects) - 0.5)
        rows = np.array([names.index(place) + shift for place in places])
        marker, colour = _SUBJECT_MARKS[i % len(_SUBJECT_MARKS)]
        axes.hlines(rows, group["low"], group["high"], color=colour, lw=1, alpha=0.7)
        size = max(3, 6 - len(subjects) / 2)
        axes.plot(group["median"], rows, marker, color=colour, ms=size, label=subject)
    for row, (above, below) in enumerate(itertools.pairwise(names)):
        if above[0] != below[0]:
            axes.axhline(row + 0.5, color=_GREY, lw=0.6, ls=":")
    axes.set_yticks(range(len(names)), [name for _, name in names])
    axes.tick_params(axis="y", labelsize="small", length=0)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"Noise ceiling {ceiling} (%)")
    axes.set_xlim(left=0)
    place = axes.get_yaxis_transform()
    for category in dict.fromkeys(category for category, _ in names):
        rows_of = [row for row, name in enumerate(names) if name[0] == category]
        axes.text(
            1.02,
            sum(rows_of) / len(rows_of),
            category,
            transform=place,
            va="center",
            fontsize="small",
            color=_GREY,
        )
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)
    return axes


def require_matplotlib() -> None:
    """Raise ImportError, saying how to install it, where matplotlib is missing."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Figures and reports need matplotlib: "
            "pip install 'laion_fmri_fetchers[plot]'"
        ) from error


def _axes(
    axes: Axes | None, size: tuple[float, float], layout: str | None = "constrained"
) -> Axes:
    """Return the axes given, or those of a new figure."""
    require_matplotlib()
    if axes is not None:
        return axes
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=size, layout=layout)[1]


def _say(axes: Axes, text: str, **style: Any) -> Axes:
    """Write on axes why nothing is drawn."""
    place = axes.transAxes
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=place, **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _legend(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2 if max(map(len, labels)) > 12 else 3,
        frameon=False,
        fontsize="small",
    )


def background(data: Bunch, subject: str) -> tuple[str, str] | None:
    """Return an image to draw ROIs on: a file on disk, and its kind.

    The sharpest anatomy, T1w before T2w; else the brain mask on the functional grid.
    """
    wanted = listings_of(subject, [ANATOMICAL])
    catalog = read_catalog(wanted, data.data_dir, mode="offline")
    on_disk = catalog.records(catalog.on_disk, data.data_dir)
    anatomy = [rec for rec in on_disk if rec["image_type"] == "anatomical"]
    anatomy.sort(key=lambda rec: (rec["suffix"] != "T1w", rec["res"] is not None))
    if anatomy:
        return anatomy[0]["absolute_path"], "anatomy"
    mask = data.brain_masks.get(subject, "")
    return (mask, "brain mask") if os.path.exists(mask) else None


def _unions(data: Bunch, subject: str) -> dict[str, nib.Nifti1Image]:
    """Return one mask per category: the union of its ROIs on disk as volumes."""
    unions: dict[str, Any] = {}
    volumes = [r for r in roi_records(data) if r["subject"] == subject and is_volume(r)]
    for rec in on_one_grid(volumes):
        header, values = read_volume(rec["absolute_path"])
        _, union = unions.setdefault(rec["roi_category"], (header, values > 0))
        union |= values > 0
    order = [*_CATEGORIES, *sorted(set(unions) - set(_CATEGORIES))]
    masks = {}
    for category in order:
        if category in unions:
            header, union = unions[category]
            inside = union.reshape(header.shape, order="F").astype(np.uint8)
            masks[category] = nib.Nifti1Image(inside, header.affine)
    return masks


def _cuts(
    masks: list[nib.Nifti1Image], cut_coords: int | Sequence[float]
) -> list[float]:
    """Return heights of slices, in mm: evenly spread over most of the voxels."""
    heights = [
        np.argwhere(np.asanyarray(mask.dataobj) > 0) @ mask.affine[2, :3]
        + mask.affine[2, 3]
        for mask in masks
    ]
    inside = np.concatenate(heights)
    if not len(inside):  # masks without a voxel, as on a coarse grid
        n_slices = masks[0].shape[2]
        inside = np.arange(n_slices) * masks[0].affine[2, 2] + masks[0].affine[2, 3]
    low, high = np.quantile(inside, (0.02, 0.98))
    if isinstance(cut_coords, (int, np.integer)):
        cuts = np.linspace(low, high, max(0, int(cut_coords)) + 2)[1:-1]
    else:
        cuts = np.asarray(cut_coords, dtype=float)
    if not len(cuts):
        raise InvalidQueryError("cut_coords is empty; give 1 slice or more")
    return cuts.tolist()
