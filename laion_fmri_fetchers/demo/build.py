"""A small synthetic LAION-fMRI, written in the real layout and formats.

`build_bucket` joins what a few generators yield, each ``(key, bytes)``:

    _root_files                             the dataset's own files
    per subject   roi_files                 masks of volumes and surfaces
                  anatomical_files          T1w, T2w, brain masks
                  freesurfer_files          a handful of FreeSurfer's files
                  localizer_files           contrasts and effects
                  subject_files             noise ceilings, mean R2
      per session session_files             trial table, betas, model, maps, figures
    first subject tedana_files, raw_files   two runs of one session, cut short
    stimuli_files                           images shown, and what derives from them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from laion_fmri_fetchers.query.arguments import user_path

from .anatomy import anatomical_files, freesurfer_files, roi_files
from .brain import functional_brain
from .facts import HELD_OUT, PARTICIPANTS
from .formats import Files, json_bytes, table_bytes
from .glm import session_files, subject_files
from .labels import content_category, trial_tables
from .localizers import localizer_files
from .pictures import stimuli_files
from .timeseries import raw_files, tedana_files


def build_bucket(
    folder: str | Path,
    *,
    subjects: Sequence[str] = ("sub-01", "sub-03", "sub-05"),
    n_sessions: int | Mapping[str, int] = 4,
    held_out: Sequence[str] = ("ses-31", "ses-32"),
    n_trials: int = 64,
    resolution: float = 8.0,
    seed: int = 0,
    model: Mapping[str, str] | None = None,
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
    model : dict of str to str, optional
        How ``…_model.h5`` are written: arguments ``shape``, ``layout``, ``dtype``,
        ``order`` and ``rows`` of `laion_fmri_fetchers.demo.model.model_file`, and
        ``voxels``, which of them have a row: ``"fitted"`` (R2 is not 0; the default)
        or ``"brain"`` (the anatomical brain mask).

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        When the folder holds something.
    ValueError
        When a subject is not of the dataset, a session not held out there, a session
        has no trials, or an option of the model is unknown.

    Notes
    -----
    Images shown twelve times (``n_reps`` 12) appear only in odd sessions of sub-01,
    sub-05 and sub-07, only in even ones of sub-03 and sub-06, and in none that is
    held out. Shared images shown four times are spread over the main sessions, at most
    once in each, so all repeats need four sessions. As in the real dataset, some were
    shown once less than planned: here one image per subject, where there are four
    main sessions or more (`laion_fmri_fetchers.demo.labels.MISSED`). The last main
    session of sub-01 has one trial with a label outside the grammar (``ODD_LABEL``).
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
    for names, published, kind in (
        (subjects, PARTICIPANTS, "subjects"),
        (held_out, HELD_OUT, "held-out sessions"),
    ):
        if unknown := [name for name in names if name not in published]:
            raise ValueError(f"{unknown} not among the {kind} {list(published)}.")
    if n_trials < 1:
        raise ValueError(f"n_trials={n_trials}: a session takes one trial or more.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty.")

    def write(files: Files) -> None:
        for key, data in files:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

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
            write(session_files(subject, session, labels, brain, seed, model or {}))
            shown.update(labels)
            if subject == subjects[0] and session in ("ses-01", *held_out[:1]):
                # Of a held-out session one file is enough: nobody can read it.
                n_files = None if session == "ses-01" else 1
                runs = tedana_files(subject, session, brain, seed)
                write(islice(runs, n_files))
                runs = raw_files(subject, session, labels, resolution, seed)
                write(islice(runs, n_files))
    write(stimuli_files(sorted(shown), content_category, seed=seed))
    return folder


def _root_files() -> Files:
    about = {
        "Name": "LAION-fMRI (synthetic)",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["laion_fmri_fetchers.demo"],
    }
    yield "dataset_description.json", json_bytes(about)
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
    yield "participants.tsv", table_bytes(rows)
    columns = {
        "age": {"Description": "Age at the first session", "Units": "year"},
        "sex": {"Levels": {"F": "female", "M": "male"}},
        "handedness": {"Levels": {"left": "left", "right": "right"}},
    }
    yield "participants.json", json_bytes(columns)
