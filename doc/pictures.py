"""Draws the pictures of the guide, from the synthetic dataset; needs no network.

    python doc/pictures.py FOLDER

A build of the documentation draws them into ``doc/pictures``. The one of README.rst is
kept beside this file: ``overview.png``, reduced to 256 colours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from nilearn.glm.first_level import glover_hrf

import laion_fmri_fetchers
from laion_fmri_fetchers import (
    fetch_laion_fmri,
    load_betas,
    plot_noise_ceiling,
    plot_rois,
)
from laion_fmri_fetchers.demo import content_category, serve_demo

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
BLUE, ORANGE, GREEN, PINK, YELLOW, GREY = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#b5b5b5"),
)
CATEGORIES = ["face", "place", "body", "character", "motion", "object", "retinotopy"]


def draw_all(folder: Path) -> None:
    """Draw all pictures, unless they are newer than the code that draws them."""
    package = Path(laion_fmri_fetchers.__file__).parent
    code = [Path(__file__), *package.rglob("*.py")]
    drawn = [folder / f"{name}.png" for name in PICTURES]
    if all(file.exists() for file in drawn) and min(map(_time, drawn)) > max(
        map(_time, code)
    ):
        return
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    with (
        mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}),
        serve_demo(subjects=["sub-01", "sub-03"], n_sessions=8, resolution=6),
    ):
        data = fetch_laion_fmri("all", rois=CATEGORIES, verbose=0)
        anatomy: Any = {"image_type": "anatomical", "suffix": "T1w", "res": None}
        fetch_laion_fmri("sub-01", rois=None, verbose=0, **anatomy)
        for name, draw in PICTURES.items():
            figure = draw(data)
            figure.savefig(folder / f"{name}.png", dpi=144)
            plt.close(figure)


def _time(file: Path) -> float:
    return os.path.getmtime(file)


def images(_: Any) -> plt.Figure:
    """Draw who sees which images: the numbers of LAION-fMRI."""
    figure, ax = plt.subplots(figsize=(7.2, 2.6), layout="constrained")
    kinds = [
        ("shared, shown 12 times: 881", 881, BLUE),
        ("shared, 4 times: 240", 240, GREEN),
        ("shared, out of distribution, 4 times: 371", 371, ORANGE),
        ("unique to the subject, 4 times: 4,712", 4712, GREY),
    ]
    for row, subject in enumerate(SUBJECTS):
        left = 0
        for name, number, colour in kinds:
            options = {"color": colour, "edgecolor": "white", "linewidth": 0.6}
            label = name if row == 0 else None
            ax.barh(row, number, left=left, height=0.8, label=label, **options)
            left += number
        ax.text(1492 + 4712 / 2, row, f"only {subject}", ha="center", va="center")
    ax.set_yticks(range(len(SUBJECTS)), SUBJECTS)
    ax.set(xlabel="Images seen by a subject (6,204)", xlim=(0, 6204), ylim=(4.5, -0.5))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure


def sessions(_: Any) -> plt.Figure:
    """Draw the sessions of a subject: the numbers of LAION-fMRI."""
    figure, ax = plt.subplots(figsize=(7.2, 1.9), layout="constrained")
    for number in range(1, 35):
        is_public = number <= 30
        style = {"facecolor": BLUE if is_public else "white", "edgecolor": BLUE}
        hatch = None if is_public else "////"
        ax.add_patch(Rectangle((number - 0.42, 0), 0.84, 0.9, hatch=hatch, **style))
    for place, name in ((36, "category"), (39.4, "motion")):
        ax.add_patch(Rectangle((place, 0), 2.6, 0.9, facecolor=ORANGE))
        ax.text(place + 1.3, -0.1, name, ha="center", va="top", fontsize="small")
    notes = ((15.5, "30 public sessions: betas of 1,044 or 1,066 trials each", BLUE),)
    for place, text, colour in notes:
        ax.text(place, 1.05, text, ha="center", va="bottom", color=colour)
    ax.text(32.5, 1.05, "31-34\nheld out", ha="center", va="bottom", color=BLUE)
    ax.text(39, 1.05, "localizers", ha="center", va="bottom", color=ORANGE)
    ticks = [1, 5, 10, 15, 20, 25, 30, 34]
    for tick in ticks:
        ax.text(tick, -0.1, str(tick), ha="center", va="top", fontsize="small")
    ax.text(15.5, -0.55, "image-viewing session, 12 runs each", ha="center", va="top")
    ax.set(xlim=(0, 42.5), ylim=(-1, 1.9))
    ax.set_axis_off()
    return figure


def repeats(data: Any) -> plt.Figure:
    """Draw in which sessions an image is shown again, in the synthetic data."""
    trials = data.trials[data.trials["subject"] == "sub-01"]
    counts = trials.groupby(["label", "session"]).size().unstack(fill_value=0)
    fields = trials.drop_duplicates("label").set_index("label")
    fields = fields.loc[counts.index]
    rows = []
    for reps, kind, most in ((12, "shared", 3), (4, "shared", 13), (4, "unique", 16)):
        chosen = (fields["n_reps"] == reps) & (fields["unique_or_shared"] == kind)
        rows += [(f"{kind}, {reps}", label) for label in counts.index[chosen][:most]]
    table = counts.loc[[label for _, label in rows]].to_numpy()
    figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=table.max())
    for row, column in np.argwhere(table > 0):
        number = table[row, column]
        colour = "white" if number > 0.6 * table.max() else "black"
        options = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
        ax.text(column, row, number, **options)
    groups = [name for name, _ in rows]
    for name in dict.fromkeys(groups):
        first, number = groups.index(name), groups.count(name)
        ax.axhline(first - 0.5, color="black", lw=0.6)
        text = f"{name} times"
        ax.text(-0.7, first + (number - 1) / 2, text, ha="right", va="center")
    ax.set_xticks(range(table.shape[1]), range(1, table.shape[1] + 1))
    ax.set(xlabel="Session of the synthetic sub-01", yticks=[])
    ax.set_title("Showings of an image per session", fontsize="medium")
    return figure


def beta(data: Any) -> plt.Figure:
    """Draw a beta: how strongly a voxel responded to one trial."""
    figure, (above, below, table) = plt.subplots(
        1, 3, figsize=(9, 2.9), layout="constrained", width_ratios=[1.3, 1, 1.3]
    )
    amplitudes = np.array([1.0, 0.3, 0.8, -0.2, 1.3, 0.5])
    colours = [ORANGE, GREEN, ORANGE, GREY, ORANGE, GREEN]
    onsets = np.arange(len(amplitudes)) * 4.0 + 2
    time = np.arange(0, 40, 0.1)
    response = glover_hrf(0.1, oversampling=1, time_length=32)
    response /= response.max()
    total = np.zeros(len(time))
    for onset, amplitude, colour in zip(onsets, amplitudes, colours, strict=True):
        impulse = np.where(np.isclose(time, onset), amplitude, 0)
        one = np.convolve(impulse, response)[: len(time)]
        total += one
        above.plot(time, one, color=colour, lw=1)
        above.axvline(onset, ymax=0.06, color="black", lw=2)
    noise = np.random.default_rng(0).normal(0, 0.12, len(time[::10]))
    above.plot(time[::10], total[::10] + noise, color="black", lw=0.8, marker=".", ms=3)
    above.set(xlabel="Time", ylabel="Signal of a voxel", xticks=[], yticks=[])
    above.set_title("Responses to trials add up", fontsize="medium")
    below.bar(np.arange(1, 7), amplitudes, color=colours)
    below.axhline(0, color="black", lw=0.8)
    below.set(xlabel="Trial", ylabel="Beta", yticks=[0])
    below.set_title("one beta per trial", fontsize="medium")
    betas = load_betas(data, "sub-01", ["FFA1", "OFA", "PPA", "OPA"], verbose=0)
    kinds = betas.trials["label"].map(content_category)
    chosen = np.flatnonzero(kinds.isin(["face", "place"]).to_numpy())
    order = chosen[np.argsort(kinds.iloc[chosen], kind="stable")]
    best = np.argsort(-betas.data[order].var(axis=0))[:60]
    masks = betas.roi_masks
    is_face = masks["FFA1"] | masks["OFA"]
    columns = np.concatenate([best[is_face[best]], best[~is_face[best]]])
    values = betas.data[np.ix_(order, columns)]
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    options = {"aspect": "auto", "cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5}
    table.imshow(values, interpolation="nearest", **options)
    n_faces = (kinds.iloc[order] == "face").sum()
    table.axhline(n_faces - 0.5, color="black", lw=0.8)
    table.axvline(is_face[columns].sum() - 0.5, color="black", lw=0.8)
    table.set(
        xlabel="Voxels: face areas | place areas",
        ylabel="Trials: places | faces",
        xticks=[],
        yticks=[],
    )
    table.set_title("load_betas: trials x voxels", fontsize="medium")
    return figure


def rois(data: Any) -> plt.Figure:
    """Draw ROIs on the brain."""
    figure = plt.figure(figsize=(7.2, 5.4), facecolor="black")
    plot_rois(data, "sub-01", axes=figure.add_axes((0, 0, 1, 1)))
    return figure


def noise_ceiling(_: Any) -> plt.Figure:
    """Draw the noise ceiling of averages, and by ROI in the synthetic data."""
    figure, (curves, regions) = plt.subplots(
        1, 2, figsize=(7.2, 3.6), layout="constrained"
    )
    n_repeats = np.arange(1, 17)
    for ncsnr, colour, mark in ((1.0, GREEN, "s"), (0.5, BLUE, "o"), (0.25, PINK, "^")):
        ceiling = 100 * ncsnr**2 / (ncsnr**2 + 1 / n_repeats)
        options = {"color": colour, "marker": mark, "ms": 3}
        curves.plot(n_repeats, ceiling, **options)
        curves.text(9, ceiling[8] + 5, f"ncsnr {ncsnr:g}", color=colour, ha="center")
    for n, name in ((4, "4rep"), (12, "12rep")):
        curves.axvline(n, color="black", lw=0.6, ls=":")
        curves.text(n + 0.15, 2, name, fontsize="small")
    curves.set(
        xlabel="Repeats averaged",
        ylabel="Noise ceiling (%)",
        ylim=(0, 100),
        xticks=[1, 4, 8, 12, 16],
    )
    names = ["FFA1", "OFA", "PPA", "EBA", "V1v", "hV4"]
    part = fetch_laion_fmri("all", names, max_images=0, mode="offline", verbose=0)
    plot_noise_ceiling(part, noise_ceiling="4rep", axes=regions)
    return figure


def overview(data: Any) -> plt.Figure:
    """Draw the results: ROIs, trials x voxels, noise ceilings."""
    figure = plt.figure(figsize=(10.4, 3.4))
    brain = figure.add_axes((0.005, 0.06, 0.4, 0.84))
    categories = ["face", "place", "body", "motion"]
    part = fetch_laion_fmri(1, categories, max_images=0, mode="offline", verbose=0)
    plot_rois(part, axes=brain, cut_coords=[-16, -6, 6])
    brain.set_title("plot_rois(data)", fontsize=10, family="monospace")
    betas = load_betas(data, "sub-01", "face", standardize="zscore", verbose=0)
    order = np.argsort(betas.data.mean(axis=1))
    ax = figure.add_axes((0.44, 0.14, 0.23, 0.76))
    options = {"aspect": "auto", "cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5}
    ax.imshow(betas.data[order], interpolation="nearest", **options)
    ax.set(xlabel="voxels", ylabel="trials", xticks=[], yticks=[])
    ax.set_title("load_betas(data, rois='face')", fontsize=10, family="monospace")
    ax = figure.add_axes((0.73, 0.14, 0.19, 0.76))
    names = ["FFA1", "OFA", "PPA", "EBA", "V1v", "hV4"]
    part = fetch_laion_fmri(1, names, max_images=0, mode="offline", verbose=0)
    plot_noise_ceiling(part, noise_ceiling="4rep", axes=ax)
    ax.get_legend().remove()
    ax.set_title("plot_noise_ceiling(data)", fontsize=10, family="monospace")
    return figure


PICTURES: dict[str, Callable[[Any], plt.Figure]] = {
    "images": images,
    "sessions": sessions,
    "repeats": repeats,
    "beta": beta,
    "rois": rois,
    "noise_ceiling": noise_ceiling,
    "overview": overview,
}

if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
