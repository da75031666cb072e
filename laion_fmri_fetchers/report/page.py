"""An HTML report of what was fetched or loaded, on one page.

Each section has pictures, tables and text; the template escapes all of them, and the
page's content policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import os
import platform
import pprint
import tempfile
import time
import webbrowser
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.files import write_atomically
from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.layout.keys import is_of_trials
from laion_fmri_fetchers.layout.trees import GLM, HELD_OUT, IMAGE_TYPES, listings_of
from laion_fmri_fetchers.messages import listed, readable_size
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.remote.bucket import bucket_url

from .contents import (
    Contents,
    contents_of,
    default_ceiling,
    parts_of,
    roi_table,
    trial_counts,
)
from .figures import (
    draw_noise_ceiling,
    plot_rois,
    plot_states,
    plot_trials,
    require_extra,
)

_SOFTWARE = (
    *("laion_fmri_fetchers", "nilearn", "nibabel", "numpy", "pandas"),
    *("scikit-learn", "matplotlib"),
)

# Address and caption of pictures; tables by caption.
Pictures = list[tuple[str, str]]
Tables = dict[str, pd.DataFrame]


class Report:
    """A page of HTML, with the methods of nilearn's reports.

    A notebook shows it as the last value of a cell.

    Parameters
    ----------
    page : str
        The whole page.

    Examples
    --------
    >>> report = Report("<!DOCTYPE html><title>Nothing</title>")
    >>> report.get_standalone()
    '<!DOCTYPE html><title>Nothing</title>'
    >>> print(report.get_iframe(height=100)[-52:])
    width="100%" height="100" frameborder="0"></iframe>
    """

    def __init__(self, page: str) -> None:
        self.html = page

    def __repr__(self) -> str:
        return f"<Report, {readable_size(len(self.html))}; save_as_html() keeps it>"

    def _repr_html_(self) -> str:
        return self.get_iframe()

    def get_standalone(self) -> str:
        """Return the page."""
        return self.html

    def get_iframe(self, width: int | str = "100%", height: int | str = 700) -> str:
        """Return the page in an inline frame, to put into another page."""
        page = html.escape(self.html)
        size = f'width="{html.escape(str(width))}" height="{html.escape(str(height))}"'
        return f'<iframe srcdoc="{page}" {size} frameborder="0"></iframe>'

    def save_as_html(self, file_name: str | os.PathLike) -> None:
        """Write the page to a file, which appears whole or not at all."""
        file = Path(user_path(file_name, "file_name"))
        write_atomically(file, self.html.encode())

    def open_in_browser(self, file_name: str | os.PathLike | None = None) -> None:
        """Write the page to a file, by default a temporary one, and show it."""
        if file_name is None:
            file_name = Path(tempfile.mkdtemp(), "laion_fmri_report.html")
        file = user_path(file_name, "file_name")
        self.save_as_html(file)
        webbrowser.open(Path(file).absolute().as_uri())


def make_report(data: Bunch, title: str | None = None) -> Report:
    """Make an HTML report of what was fetched or loaded; no socket is opened.

    It has the call as code to copy, the files with their sizes and versions, ROIs on
    the brain, trials and noise ceilings, and ends with licence, citation and software.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri` or `fetch_laion_fmri_ids`, or of a dry run of these; or
        betas, of a subject or of several, as from `fetch_laion_betas` or `load_betas`.
    title : str, optional
        Title of the page.

    Returns
    -------
    Report
        One page that needs no other file and no network: ``save_as_html(file)``,
        ``open_in_browser()``, ``get_iframe()``; in a notebook it is shown inline.

    Raises
    ------
    ImportError
        If matplotlib or jinja2 is not installed.
    InvalidQueryError
        If ``data`` is something else, or files and records do not correspond.
    CorruptImageError
        If a mask or map on disk is damaged.

    See Also
    --------
    plot_rois, plot_trials, plot_noise_ceiling : Figures alone.

    Examples
    --------
    ::

        data = fetch_laion_fmri("sub-01", rois="face")
        make_report(data).save_as_html("report.html")
    """
    require_extra()
    import jinja2
    import matplotlib as mpl

    contents, parts = contents_of(data), parts_of(data)
    first, ceiling = parts[0], default_ceiling(contents)
    is_of_files = "images" in first
    # Names in figures are shown as they are, also with $; tables show long names whole.
    with (
        mpl.rc_context({"text.parse_math": False, "font.size": 11}),
        pd.option_context("display.max_colwidth", None),
    ):
        rois = roi_table(contents, ceiling)
        heading = "Files to fetch" if "plan" in first else "Fetched files"
        methods = [part.methods() for part in parts if hasattr(part, "methods")]
        versions = [(name, importlib.metadata.version(name)) for name in _SOFTWARE]
        versions.append(("Python", platform.python_version()))
        software = pd.DataFrame(versions, columns=["software", "version"])
        sections = [
            (heading, *_files(first)) if is_of_files else ("Betas", [], _betas(parts)),
            ("ROIs", *_rois(data, contents, rois)),
            ("Trials", *_trials(data, contents.trials)),
            ("Noise ceiling", _noise_ceilings(rois, ceiling), {}),
            ("Licence and citation", [], {}),
            ("Versions", [], {"Software that made this page": software}),
        ]
        template = resources.files(__package__).joinpath("page.html")
        environment = jinja2.Environment(autoescape=True)
        queries = [part.query for part in parts if "query" in part]
        is_of_ids = any("image_ids" in query for query in queries)
        function = "fetch_laion_fmri_ids" if is_of_ids else "fetch_laion_fmri"
        page = environment.from_string(template.read_text("utf-8")).render(
            title=title or f"LAION-fMRI: {sections[0][0].lower()}",
            subjects=listed(contents.subjects),
            data_dir=first.get("data_dir"),
            bucket=bucket_url(),
            queries=[pprint.pformat(q, width=84, sort_dicts=False) for q in queries],
            function=function if is_of_files else "",
            sections=sections,
            citation="\n\n".join([*methods, first.get("description", "")]),
        )
    return Report(page)


def _files(data: Bunch) -> tuple[Pictures, Tables]:
    """Show how much was selected, what failed or is planned, versions and sessions."""
    files = {rec["id"]: rec for rec in [*data.images_meta, *data.rois_meta]}.values()
    masks = [rec for rec in files if rec["roi"]]
    n_stimuli = data.trials["label"].nunique()
    amounts = [
        ("Image files", len(data.images), _size(data.images_meta)),
        ("ROI masks", len(masks), _size(masks)),
        ("Trials", len(data.trials), f"of {n_stimuli:,} stimuli"),
    ]
    if "plan" in data:
        amounts.append(("To fetch", len(data.plan), readable_size(data.plan_size)))
    sessions, note = _sessions(data)
    height = 1.6 + 0.36 * sessions["subject"].nunique()
    draw = partial(plot_states, sessions)
    pictures = [_picture(draw, (5.6, height), note)] if len(sessions) else []
    columns = ["id", "last_modified", "etag", "size"]
    return pictures, {
        "Selected": pd.DataFrame(amounts, columns=["", "number", "size"]),
        "Files that failed": pd.DataFrame(data.failed, columns=["id", "reason"]),
        "Files to fetch, sizes in bytes": data.get("plan", pd.DataFrame()),
        "State and size of sessions": sessions,
        "Versions of files, sizes in bytes": pd.DataFrame(files, columns=columns),
    }


def _sessions(data: Bunch) -> tuple[pd.DataFrame, str]:
    """Return the state and size of each session by kept listings, and of what."""
    chosen = {rec["id"]: rec for rec in data.images_meta if is_of_trials(rec)}
    types = sorted({rec["image_type"] for rec in chosen.values()}) or ["betas"]
    trees = {IMAGE_TYPES[name] or GLM for name in types}
    subjects = [meta["subject"] for meta in data.subjects_meta]
    wanted = [each for name in subjects for each in listings_of(name, trees)]
    catalog = read_catalog(wanted, data.data_dir, mode="offline")
    known = catalog.records({*catalog.objects, *catalog.on_disk}, data.data_dir)
    # Chosen files are among them: of those that are lost, there may be no listing.
    files = {rec["id"]: rec for rec in known if is_of_trials(rec)} | chosen
    sessions: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for rec in files.values():
        if rec["image_type"] in types:
            sessions.setdefault((rec["subject"], rec["session"]), []).append(rec)
    rows = []
    for (subject, session), records in sorted(sessions.items()):
        ids = {rec["id"] for rec in records}
        on_disk, selected = ids & catalog.on_disk.keys(), ids & chosen.keys()
        if selected:
            state = f"selected, {'' if selected <= on_disk else 'not '}on disk"
        elif on_disk:
            state = "on disk" if on_disk == ids else "partly on disk"
        else:
            state = "held out" if session in HELD_OUT else "in the bucket"
        rows.append((subject, session, state, _size(records)))
    when = "no listing of the bucket is saved, so only the disk is known"
    if catalog.listed_at is not None:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(catalog.listed_at))
        when = f"the bucket as listed on {day}"
    note = f"Sessions, by files of type {listed(types, most=20)}; {when}."
    return pd.DataFrame(rows, columns=["subject", "session", "state", "size"]), note


def _betas(parts: list[Bunch]) -> Tables:
    rows = []
    for part in parts:
        subject, labels = part.trials["subject"].iloc[0], part.trials["label"]
        rows.append((subject, *part.data.shape, labels.nunique()))
    columns = ["subject", "rows", "voxels", "stimuli"]
    return {"Shape of data": pd.DataFrame(rows, columns=columns)}


def _rois(
    data: Bunch, contents: Contents, rois: pd.DataFrame
) -> tuple[Pictures, Tables]:
    pictures = []
    volumes = rois[(rois["unit"] == "voxels") & rois["n"].notna()]
    for subject, n_rois in volumes["subject"].value_counts(sort=False).items():
        what = contents.brains.get(str(subject), ["ROIs"])[0]
        caption = f"{subject}: outlines of {n_rois} ROIs on the {what}."
        draw = partial(plot_rois, data, str(subject))
        pictures.append(_picture(draw, (6, 4.5), caption, facecolor="black"))
    caption = "Sizes of ROIs, and quartiles of their noise ceilings in percent"
    counts = rois["n"].astype(object).where(rois["n"].notna(), "not on disk")
    return pictures, {caption: rois.assign(n=counts)}


def _trials(data: Bunch, trials: pd.DataFrame) -> tuple[Pictures, Tables]:
    counts = trial_counts(trials, "subject")
    pictures = []
    for subject in counts:
        caption = f"{subject}: {counts[subject].sum():,} trials by session."
        draw = partial(plot_trials, data, str(subject))
        pictures.append(_picture(draw, (5.6, 4.2), caption))
    table = counts.rename_axis(index=["source", "shown"], columns=None).reset_index()
    return pictures, {"Trials by the source of images": table}


def _noise_ceilings(rois: pd.DataFrame, ceiling: str) -> Pictures:
    rois = rois.dropna(subset="median")
    height = 1.4 + 0.22 * len(rois.groupby(["category", "name"]))
    caption = f"Map {ceiling}: median and quartiles over the voxels of each ROI."
    draw = partial(draw_noise_ceiling, rois, ceiling)
    return [] if rois.empty else [_picture(draw, (5.6, height), caption)]


def _picture(
    draw: Callable[..., Any], size: tuple[float, float], caption: str, **style: Any
) -> tuple[str, str]:
    """Return the address of a picture that holds it, and its caption."""
    from matplotlib.figure import Figure  # of pyplot, it would need a back end

    figure, out = Figure(figsize=size, layout="constrained", **style), io.BytesIO()
    draw(axes=figure.add_subplot())
    figure.savefig(out, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}", caption


def _size(records: list[dict[str, Any]]) -> str:
    return readable_size(sum(rec["size"] or 0 for rec in records))
