"""Calls of the package go to a synthetic dataset on this machine, for a while."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from laion_fmri_fetchers.cache.listings import read_catalog

from .build import build_bucket
from .facts import STIMULUS_TABLE
from .server import serve_bucket
from .service import serve_access
from .splits import serve_splits


class Demo:
    """A synthetic LAION-fMRI that calls of the package go to; see `serve_demo`.

    Attributes
    ----------
    data_dir : str
        The data directory of the calls.
    bucket : Server
        The local S3; its ``requests`` record what was asked of it.
    access : AccessServer
        The local service that grants access to the stimuli.
    splits : SplitServer
        The local server of train/test splits.
    variables : dict
        Environment variables under which calls go to it; they are set.
    """

    def __init__(self, data_dir: str | Path | None = None, **options: Any) -> None:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            files = build_bucket(folder / "bucket", **options)
            self.data_dir = str(data_dir or folder / "laion_fmri")
            self.bucket = stack.enter_context(serve_bucket(files))
            self.access = stack.enter_context(serve_access(self.bucket))
            labels = pd.read_csv(files / STIMULUS_TABLE)["image_name"]
            self.splits = stack.enter_context(serve_splits(labels))
            # The terms of the real data are not touched: what is fetched is made up.
            self.variables = {
                "LAION_FMRI_BUCKET_URL": self.bucket.url,
                "LAION_FMRI_DATA_DIR": self.data_dir,
                "LAION_FMRI_LICENSE": "I AGREE",
                "LAION_FMRI_REQUEST_ID": "",
                "LAION_FMRI_ACCESS_URL": self.access.url,
                "LAION_FMRI_SPLITS": "",
                "LAION_FMRI_SPLITS_URL": self.splits.url,
            }
            for name in self.variables:
                stack.callback(_restore, name, os.environ.get(name))
            os.environ.update(self.variables)
            read_catalog((), self.data_dir)  # marks the directory as that of a demo
            self.bucket.requests.clear()
            self._stack = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Demo {self.bucket.url}, data in {self.data_dir}>"

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the servers, remove the data and restore the environment."""
        self._stack.close()


def serve_demo(
    *,
    subjects: Sequence[str] = ("sub-01", "sub-03", "sub-05"),
    n_sessions: int | Mapping[str, int] = 4,
    held_out: Sequence[str] = ("ses-31", "ses-32"),
    n_trials: int = 64,
    resolution: float = 8.0,
    seed: int = 0,
) -> Demo:
    """Let calls of the package go to a synthetic LAION-fMRI on this machine.

    A bucket is built and served, with the service that grants access to its stimuli and
    train/test splits of these, and the package's environment variables name them and a
    temporary data directory.
    Nothing reaches the network, and the data directories in use are left alone.

    Parameters
    ----------
    subjects : sequence of str, default=("sub-01", "sub-03", "sub-05")
        Subjects, of the five of the dataset.
    n_sessions : int or dict of str to int, default=4
        Main sessions, from ``ses-01`` on; a dict gives them by subject.
    held_out : sequence of str, default=("ses-31", "ses-32")
        Held-out sessions, of ``ses-31`` to ``ses-34``: listed, but denied.
    n_trials : int, default=64
        Trials per main session. From 64 on, images of every kind appear.
    resolution : float, default=8.0
        Voxel size of the functional grid in mm.
    seed : int, default=0
        Seed of everything random.

    Returns
    -------
    Demo
        What runs, until its ``stop()`` or the end of a ``with`` block.

    Raises
    ------
    ValueError
        When a subject or a held-out session is not of the dataset, or a session has no
        trials.

    Examples
    --------
    >>> from laion_fmri_fetchers import get_subjects
    >>> with serve_demo(subjects=["sub-01", "sub-03"], n_sessions=1):
    ...     get_subjects()
    ['sub-01', 'sub-03']
    """
    return Demo(
        subjects=subjects,
        n_sessions=n_sessions,
        held_out=held_out,
        n_trials=n_trials,
        resolution=resolution,
        seed=seed,
    )


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def serve_until_stopped(**options: Any) -> None:
    """Serve a synthetic LAION-fMRI until ``Ctrl-C`` or SIGTERM.

    The lines that a shell must evaluate for calls to go to it, and nothing else, are
    printed to stdout.

    Parameters
    ----------
    **options
        Arguments of `serve_demo`.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Job schedulers end a process by SIGTERM.
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        print("Building a synthetic LAION-fMRI ...", file=sys.stderr)
        with serve_demo(**options) as demo:
            print("\nIn another terminal, send calls to it by:\n", file=sys.stderr)
            for name, value in sorted(demo.variables.items()):
                print(f"export {name}={shlex.quote(value)}")
            sys.stdout.flush()
            print("\nCtrl-C ends it and removes its data.", file=sys.stderr)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
