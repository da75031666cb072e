"""The main job on synthetic data, step by step: ``laion-fmri-fetchers demo``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import laion_fmri_fetchers as package
from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.query.arguments import user_path

from .environment import Demo


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
    from PIL import Image

    if output is None:
        output = tempfile.mkdtemp(prefix="laion_fmri_demo_")
    folder = Path(os.path.abspath(user_path(output, "output")))
    folder.mkdir(parents=True, exist_ok=True)
    rois, stimuli = folder / "rois.png", folder / "stimuli.png"
    print("Build a synthetic LAION-fMRI, and serve it by a local S3", flush=True)
    with Demo(folder / "data") as demo:
        subjects = ", ".join(package.get_subjects())
        print(f"  {len(demo.bucket.objects)} files of {subjects}: {demo.bucket.url}")

        print('\nfetch_laion_betas("sub-01", rois="FFA1")', flush=True)
        betas = package.fetch_laion_betas("sub-01", rois="FFA1")
        n_trials, n_voxels = betas.data.shape
        n_sessions = betas.trials["session"].nunique()
        print(f"  {n_trials} trials x {n_voxels} voxels of {n_sessions} sessions")

        query: dict[str, Any] = {
            "rois": ["face", "place", "body", "motion", "retinotopy"],
            "trial_filter": {"n_reps": 12},
        }
        arguments = ", ".join(f"{name}={value}" for name, value in query.items())
        print(f'\nfetch_laion_fmri("all", {arguments})', flush=True)
        demo.bucket.requests.clear()
        data = package.fetch_laion_fmri("all", **query)
        keys = {key for _, key, _ in demo.bucket.requests if key}
        n_tables = sum(key.endswith("_trials.tsv") for key in keys)
        n_others = len(keys) - n_tables
        print(f"  {len(data.images)} sessions with {len(data.trials)} trials")
        print(f"  {n_tables} trial tables and {n_others} other files downloaded")

        print('\nThe same, offline: mode="offline"', flush=True)
        again = package.fetch_laion_fmri("all", **query, mode="offline", verbose=0)
        if again.images != data.images or not again.trials.equals(data.trials):
            raise LaionFmriError("The offline reload differs from what was fetched.")
        print("  the same Bunch, without the bucket")

        print("\nDraw the ROIs on the brain: plot_rois(data)", flush=True)
        anatomy: Any = {"image_type": "anatomical", "suffix": "T1w", "res": None}
        package.fetch_laion_fmri(1, rois=None, verbose=0, **anatomy)
        canvas = Figure(figsize=(8, 6), facecolor="black")
        package.plot_rois(data, axes=canvas.add_axes((0, 0, 1, 1)))
        canvas.savefig(rois, dpi=150)

        print("\nRequest access to the stimuli, and fetch those of trials", flush=True)
        package.request_stimulus_access(
            name="Ada Example",
            email="ada@university.example",
            institution="University of Examples",
            research_purpose="See how the package works",
            accept_terms_version=demo.access.terms_version,
            acknowledge_privacy=True,
            renew=True,
            verbose=0,
        )
        fetched = package.fetch_laion_stimuli(labels=betas.trials, verbose=0)
        pictures = [*package.load_stimuli(fetched, size=160)][:8]
        Image.fromarray(np.hstack(pictures)).save(stimuli)
        print(f"  access is granted; {len(fetched.metadata)} images")

        report = package.make_report(data, "A synthetic LAION-fMRI")
        report.save_as_html(folder / "report.html")
    print(f"\nData: {folder / 'data'}\nFigures: {rois}, {stimuli}")
    print(f"Report: {folder / 'report.html'}")
    return rois
