"""A small synthetic LAION-fMRI, written in the real layout and formats.

`build_bucket` writes what a few generators yield, each with its key, which tells the
format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from laion_fmri_fetchers.query.arguments import user_path

from .anatomy import anatomical_files, freesurfer_files, roi_files
from .brain import functional_brain
from .facts import HELD_OUT, PARTICIPANTS
from .formats import Files, encode
from .glm import session_files, subject_files
from .labels import trial_tables
from .runs import localizer_files, raw_files, tedana_files
from .stimuli import stimuli_files


def build_bucket(
    folder: str | Path,
    *,
    subjects: Sequence[str] = ("sub-01", "sub-03", "sub-05"),
    n_sessions: int | Mapping[str, int] = 4,
    held_out: Sequence[str] = ("ses-31", "ses-32"),
    n_trials: int = 64,
    resolution: float = 8.0,
    seed: int = 0,
) -> Path:
    """Write a small synthetic LAION-fMRI.

    The path of a file below the folder is its key in the bucket. The same
    arguments give the same bytes, and the files of a subject and session do not
    depend on which others are built, but for the runs of the first subject.

    Parameters
    ----------
    folder : path
        Where to write; made if missing, empty otherwise.
    subjects : sequence of str, default=("sub-01", "sub-03", "sub-05")
        Subjects, of the five of the dataset. ``participants.tsv`` lists all five.
        The first one has raw and preprocessed runs.
    n_sessions : int or dict of str to int, default=4
        Main sessions, from ``ses-01`` on; a dict gives them by subject.
    held_out : sequence of str, default=("ses-31", "ses-32")
        Held-out sessions, of ``ses-31`` to ``ses-34``.
    n_trials : int, default=64
        Trials per main session, in four runs; a held-out one has a quarter. From 64
        on, labels of every kind appear.
    resolution : float, default=8.0
        Voxel size of the functional grid in mm; that of the localizer fits is smaller
        as 1.5 mm are than 1.778 mm.
    seed : int, default=0
        Seed of everything random.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        When the folder holds something.
    ValueError
        When a subject is not of the dataset, a session not held out there, or a session
        has no trials.

    Notes
    -----
    Images shown twelve times (``n_reps`` 12) appear only in odd sessions of sub-01,
    sub-05 and sub-07, only in even ones of sub-03 and sub-06, and in none that is
    held out. Shared images shown four times are spread over the main sessions, at most
    once in each, so all repeats need four sessions. As in the real dataset, some were
    shown once less than planned: here one image per subject, where there are four
    main sessions or more. The last main session of sub-01 has one trial with a label
    outside the grammar (``ODD_LABEL``).
    Which regions a subject lacks is in `laion_fmri_fetchers.demo.brain.LACKING`.

    Localizers have the effects of their first two runs. The runs of the first subject
    are two of ``ses-01``, of a few volumes each, and one of the first held-out session.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bucket = build_bucket(folder, subjects=["sub-01"], n_sessions=1)
    ...     sessions = (bucket / "derivatives/glmsingle-tedana/sub-01").glob("ses-*")
    ...     print(sorted(path.name for path in sessions))
    ['ses-01', 'ses-31', 'ses-32']
    """
    folder = Path(user_path(folder, "folder"))
    if unknown := {*subjects, *held_out}.difference(PARTICIPANTS, HELD_OUT):
        raise ValueError(
            f"{sorted(unknown)} not among the subjects {PARTICIPANTS} and the held-out "
            f"sessions {HELD_OUT}."
        )
    if n_trials < 1:
        raise ValueError(f"n_trials={n_trials}: a session takes one trial or more.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty.")

    def write(files: Files) -> None:
        for key, value in files:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(key, value))

    write(_root_files())
    shown: set[str] = set()
    for subject in subjects:
        n_main = n_sessions if isinstance(n_sessions, int) else n_sessions[subject]
        tables = trial_tables(subject, n_main, held_out, n_trials, seed)
        brain = functional_brain(subject, resolution, seed)
        write(roi_files(subject, brain, resolution))
        write(anatomical_files(subject, brain, resolution))
        write(freesurfer_files(subject, brain))
        write(localizer_files(subject, brain, resolution, seed))
        write(subject_files(subject, brain, list(tables), seed))
        for session, labels in tables.items():
            write(session_files(subject, session, labels, brain, seed))
            shown.update(labels)
            if subject == subjects[0] and session in ("ses-01", *held_out[:1]):
                # Of a held-out session one file is enough: nobody can read it.
                n_files = None if session == "ses-01" else 1
                runs = tedana_files(subject, session, brain, seed)
                write(islice(runs, n_files))
                runs = raw_files(subject, session, labels, resolution)
                write(islice(runs, n_files))
    write(stimuli_files(sorted(shown), seed))
    return folder


def _root_files() -> Files:
    about = {"BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}
    about["Name"] = "LAION-fMRI (synthetic)"
    yield "dataset_description.json", about
    yield "DEMO", b"Synthetic data: not to be mixed with those of LAION-fMRI.\n"
    yield "README", b"A synthetic stand-in for LAION-fMRI; nothing was measured.\n"
    rows = [
        ("participant_id", "age", "sex", "handedness"),
        ("sub-01", "24", "F", "right"),
        ("sub-03", "31", "M", "n/a"),
        ("sub-05", "n/a", "F", "right"),
        ("sub-06", "27.5", "M", "left"),
        ("sub-07", "22", "F", "right"),
    ]
    yield "participants.tsv", rows
    yield "participants.json", {"age": {"Units": "year"}}
