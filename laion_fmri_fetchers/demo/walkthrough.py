"""The main job on synthetic data, step by step: ``laion-fmri-fetchers demo``."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from laion_fmri_fetchers import (
    fetch_laion_betas,
    fetch_laion_fmri,
    fetch_laion_stimuli,
    get_rois,
    get_subjects,
    load_betas,
    load_stimuli,
    make_report,
    plot_rois,
    request_stimulus_access,
)
from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.query.arguments import user_path

from .environment import Demo
from .labels import content_category

_CATEGORIES = ["face", "place", "body", "character", "motion", "object", "retinotopy"]


def run_demo(output: str | os.PathLike | None = None) -> Path:
    """Walk through the main job on a synthetic LAION-fMRI, served by a local S3.

    Needs neither the network nor a terminal. The terms of the real data are not
    touched: what is fetched is made up.

    Parameters
    ----------
    output : str or path, optional
        Folder for the fetched data, the figures and the report; a new temporary one
        by default.

    Returns
    -------
    Path
        The figure ``rois.png``, ROIs on the brain; the others are beside it.

    Raises
    ------
    ImportError
        If the extra ``demo`` is not installed.
    LaionFmriError
        If a step does not give what it should.
    """
    from matplotlib.figure import Figure

    if output is None:
        output = tempfile.mkdtemp(prefix="laion_fmri_demo_")
    folder = Path(os.path.abspath(user_path(output, "output")))
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "rois.png", folder / "stimuli.png"
    with contextlib.ExitStack() as stack:
        with _step("Build a synthetic LAION-fMRI, and serve it by a local S3") as say:
            demo = stack.enter_context(Demo(folder / "data"))
            sizes = [len(stored.value) for stored in demo.bucket.objects.values()]
            say(f"{len(sizes)} files, {readable_size(sum(sizes))}: {demo.bucket.url}")
        data = _fetch_and_reload(demo)
        with _step("Draw the ROIs on the brain") as say:
            subject = data.images_meta[0]["subject"]
            anatomy: Any = {"image_type": "anatomical", "suffix": "T1w", "res": None}
            fetch_laion_fmri(subject, rois=None, verbose=0, **anatomy)
            canvas = Figure(figsize=(8, 6), facecolor="black")
            plot_rois(data, subject, axes=canvas.add_axes((0, 0, 1, 1)))
            canvas.savefig(figures[0], dpi=150)
            say(str(figures[0]))
        _fetch_and_draw_stimuli(demo, figures[1])
        report = folder / "report.html"
        with _step("Report what was fetched: make_report(data)") as say:
            make_report(data, "A synthetic LAION-fMRI").save_as_html(report)
            say(str(report))
    print(f"\nData: {folder / 'data'}\nFigures: {figures[0]}, {figures[1]}")
    print(f"Report: {report}")
    return figures[0]


def _fetch_and_reload(demo: Demo) -> Any:
    with _step("Discover subjects and ROIs") as say:
        say(f"{', '.join(get_subjects())}; place: {', '.join(get_rois(1, 'place'))}")
    with _step('fetch_laion_betas("sub-01", rois="FFA1")') as say:
        betas = fetch_laion_betas("sub-01", rois="FFA1")
        n_trials, n_voxels = betas.data.shape
        n_sessions = betas.trials["session"].nunique()
        say(f"{n_trials} trials x {n_voxels} voxels of {n_sessions} sessions, ")
        faces = (betas.trials["label"].map(content_category) == "face").to_numpy()
        say(f"mean beta {betas.data[faces].mean():.2f} for faces, ")
        say(f"{betas.data[~faces].mean():.2f} for others")
    query: dict[str, Any] = {
        "subjects": "all",
        "rois": _CATEGORIES,
        "trial_filter": {"n_reps": 12},
    }
    call = 'fetch_laion_fmri("all", rois=[...], trial_filter={"n_reps": 12})'
    with _step(call) as say:
        demo.bucket.requests.clear()
        data = fetch_laion_fmri(**query)
        keys = {key for _, key, _ in demo.bucket.requests if key}
        n_tables = sum(key.endswith("_trials.tsv") for key in keys)
        say(f"{len(data.images)} sessions with {len(data.trials)} trials of images ")
        say(f"shown 12 times, {len(data.rois)} ROI masks; {n_tables} tables of trials ")
        say(f"and {len(keys) - n_tables} other files downloaded")
    with _step('The same, offline: mode="offline"') as say:
        again = fetch_laion_fmri(**query, mode="offline", verbose=0)
        if again.images != data.images or not again.trials.equals(data.trials):
            raise LaionFmriError("The offline reload differs from what was fetched.")
        say("the same Bunch, without the bucket")
    return data


def _fetch_and_draw_stimuli(demo: Demo, file: Path) -> None:
    from matplotlib.figure import Figure

    with _step("Request access to the stimuli") as say:
        request_stimulus_access(
            name="Ada Example",
            email="ada@university.example",
            institution="University of Examples",
            research_purpose="See how the package works",
            accept_terms_version=demo.access.terms_version,
            acknowledge_privacy=True,
            renew=True,
            verbose=0,
        )
        say("access is granted; the request_id is kept in auth.json")
    with _step("Fetch the stimuli of trials") as say:
        shared = {"unique_or_shared": "shared"}
        data = fetch_laion_fmri(rois="face", trial_filter=shared, verbose=0)
        stimuli = fetch_laion_stimuli(labels=data.trials, verbose=0)
        say(f"{len(stimuli.metadata)} images in {stimuli.archive}")
    with _step("Draw stimuli by the response of their trials in face areas") as say:
        betas = load_betas(
            data, rois="face", standardize="zscore", average_repeats=True, verbose=0
        )
        responses = pd.Series(betas.data.mean(axis=1), betas.trials["label"])
        responses = responses[stimuli.metadata.index].sort_values(ascending=False)
        chosen = pd.concat([responses[:4], responses[-4:]])
        stimuli.metadata = stimuli.metadata.loc[chosen.index]
        canvas = Figure(figsize=(12, 2.2), layout="constrained")
        pictures = zip(
            canvas.subplots(1, 8), load_stimuli(stimuli, size=160), chosen, strict=True
        )
        for axes, picture, response in pictures:
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(f"{response:.2f}")
        canvas.suptitle("Largest and smallest mean beta (z) of face areas")
        canvas.savefig(file, dpi=150)
        say(str(file))


@contextlib.contextmanager
def _step(title: str) -> Iterator[Callable[[str], None]]:
    """Print the title of a step, its results and how long it took."""
    results: list[str] = []
    print(f"\n{title}", flush=True)
    start = time.perf_counter()
    yield results.append
    print(f"  {''.join(results)}  ({time.perf_counter() - start:.2f} s)", flush=True)
