"""The main job on synthetic data, step by step: ``laion-fmri-fetchers demo``."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.fetchers.betas import fetch_laion_betas
from laion_fmri_fetchers.fetchers.discovery import get_rois, get_subjects
from laion_fmri_fetchers.fetchers.fmri import fetch_laion_fmri
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.report.figures import plot_rois
from laion_fmri_fetchers.report.page import make_report

from .build import build_bucket
from .environment import demo_variables, variables
from .server import serve_bucket

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
    if output is None:
        output = tempfile.mkdtemp(prefix="laion_fmri_demo_")
    folder = Path(os.path.abspath(user_path(output, "output")))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        with _step("Build a synthetic LAION-fMRI") as say:
            bucket = build_bucket(Path(temporary) / "bucket")
            files = [path for path in bucket.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            say(f"{len(files)} files, {readable_size(size)}")
        with _step("Serve it by a local S3") as say:
            server = stack.enter_context(serve_bucket(bucket))
            say(server.url)
        settings = demo_variables(server.url, folder / "data")
        stack.enter_context(variables(settings))
        data = _fetch_and_reload(server)
        figure = folder / "rois.png"
        _decode_and_draw(data, figure)
        _stimuli(server, folder / "stimuli.png")
        report = folder / "report.html"
        with _step("Report what was fetched: make_report(data)") as say:
            make_report(data, "A synthetic LAION-fMRI").save_as_html(report)
            say(str(report))
    print(f"\nData: {folder / 'data'}\nFigures: {figure}, {folder / 'stimuli.png'}")
    print(f"Report: {report}")
    return figure


def _fetch_and_reload(server: Any) -> Any:
    with _step("Discover subjects and ROIs") as say:
        say(f"{', '.join(get_subjects())}; place: {', '.join(get_rois(1, 'place'))}")
    with _step('fetch_laion_betas("sub-01", rois="FFA1")') as say:
        betas = fetch_laion_betas("sub-01", rois="FFA1")
        n_sessions = betas.trials["session"].nunique()
        say(
            f"{betas.data.shape[0]} trials x {betas.data.shape[1]} voxels of "
            f"{n_sessions} sessions, without their images"
        )
    query: dict[str, Any] = {
        "subjects": "all",
        "rois": _CATEGORIES,
        "trial_filter": {"n_reps": 12},
    }
    call = 'fetch_laion_fmri("all", rois=[...], trial_filter={"n_reps": 12})'
    with _step(call) as say:
        server.requests.clear()
        data = fetch_laion_fmri(**query)
        keys = {key for _, key, _ in server.requests if key}
        n_tables = sum(key.endswith("_trials.tsv") for key in keys)
        say(
            f"{len(data.images)} sessions with {len(data.trials)} trials of images "
            f"shown 12 times, {len(data.rois)} ROI masks; {n_tables} tables of trials "
            f"and {len(keys) - n_tables} other files downloaded"
        )
    with _step('The same, offline: mode="offline"') as say:
        again = fetch_laion_fmri(**query, mode="offline", verbose=0)
        if again.images != data.images or not again.trials.equals(data.trials):
            raise LaionFmriError("The offline reload differs from what was fetched.")
        say("the same Bunch, without the bucket")
    return data


def _decode_and_draw(data: Any, figure: Path) -> None:
    from nilearn.maskers import NiftiMasker

    from . import content_category

    subject = data.images_meta[0]["subject"]
    with _step("NiftiMasker on the first session, its sample mask and FFA1") as say:
        face = next(
            path
            for path, meta in zip(data.rois, data.rois_meta, strict=True)
            if (meta["subject"], meta["roi"]) == (subject, "FFA1")
        )
        masker = NiftiMasker(mask_img=face, standardize=None).fit()
        betas = masker.transform(data.images[0], sample_mask=data.sample_masks[0])
        trials = data.trials[data.trials["image_index"] == 0]
        faces = (trials["label"].map(content_category) == "face").to_numpy()
        say(
            f"{betas.shape[0]} trials x {betas.shape[1]} voxels; mean beta "
            f"{betas[faces].mean():.2f} for faces, {betas[~faces].mean():.2f} for "
            "others"
        )
    with _step("Draw the ROIs on the brain") as say:
        _draw_rois(data, subject, figure)
        say(str(figure))


def _draw_rois(data: Any, subject: str, file: Path) -> None:
    from matplotlib.figure import Figure

    anatomy: Any = {"image_type": "anatomical", "suffix": "T1w", "res": None}
    fetch_laion_fmri(subject, rois=None, verbose=0, **anatomy)
    figure = Figure(figsize=(8, 6.6), facecolor="black")
    plot_rois(data, subject, axes=figure.add_axes((0, 0, 1, 0.92)))
    figure.suptitle(f"Regions of interest of {subject}", color="white")
    figure.savefig(file, dpi=150)


def _stimuli(server: Any, figure: Path) -> None:
    """Request access, fetch, and draw stimuli and responses."""
    from laion_fmri_fetchers.access.account import request_stimulus_access
    from laion_fmri_fetchers.arrays.pictures import load_stimuli
    from laion_fmri_fetchers.betas.load import load_betas
    from laion_fmri_fetchers.fetchers.stimuli import fetch_laion_stimuli

    from . import serve_access

    with (
        serve_access(server) as service,
        variables({"LAION_FMRI_ACCESS_URL": service.url}),
    ):
        with _step("Request access to the stimuli") as say:
            request_stimulus_access(
                name="Ada Example",
                email="ada@university.example",
                institution="University of Examples",
                research_purpose="See how the package works",
                accept_terms_version=service.terms_version,
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
    with _step("Draw stimuli beside the response of their trials in face areas") as say:
        betas = load_betas(
            data, rois="face", standardize="zscore", average_repeats=True, verbose=0
        )
        response = dict(
            zip(betas.trials["label"], betas.data.mean(axis=1), strict=True)
        )
        chosen = sorted(stimuli.metadata.index, key=lambda label: response[label])
        chosen = [*chosen[-4:][::-1], *chosen[:4]]
        stimuli.metadata = stimuli.metadata.loc[chosen]
        pictures = load_stimuli(stimuli, size=160)
        _draw_stimuli(pictures, [response[label] for label in chosen], figure)
        say(str(figure))


def _draw_stimuli(pictures: Any, responses: list[float], figure: Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 3.0), layout="constrained")
    axes = canvas.subplots(2, len(pictures), height_ratios=[3, 1], sharey="row")
    for column, (picture, response) in enumerate(zip(pictures, responses, strict=True)):
        axes[0, column].imshow(picture)
        axes[0, column].set_axis_off()
        axes[1, column].bar([0], [response], color="#d55e00")
        axes[1, column].axhline(0, color="black", linewidth=0.8)
        axes[1, column].set_xticks([])
    axes[1, 0].set_ylabel("beta (z)")
    canvas.suptitle("Largest and smallest responses of face areas")
    canvas.savefig(figure, dpi=150)


@contextlib.contextmanager
def _step(title: str) -> Iterator[Any]:
    """Print the title of a step, its results and how long it took."""
    results: list[str] = []
    print(f"\n{title}", flush=True)
    start = time.perf_counter()
    yield results.append
    print(f"  {' '.join(results)}  ({time.perf_counter() - start:.2f} s)", flush=True)
