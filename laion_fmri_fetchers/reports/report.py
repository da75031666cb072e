"""An HTML report of a Bunch: the call, the files, and figures of both.

Everything is read from the disk and from listings saved earlier; no socket is opened.
The report is one page that needs no other file: `report.html` is filled with one
fragment per section, and figures are part of the page. Metadata are escaped, and the
page's content policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import contextlib
import html
import importlib.metadata
import io
import os
import platform
import re
import string
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.betas.rows import trials_of
from laion_fmri_fetchers.messages import counted, listed, readable_size
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.remote.bucket import bucket_url

from . import summaries
from .code import as_code
from .figures import (
    background,
    draw_noise_ceiling,
    plot_availability,
    plot_rois,
    plot_trials,
    require_matplotlib,
)
from .summaries import subjects_of

_INK = "#010203"
"""Colour of text in figures; in the page it becomes the page's own."""

_LINK = r'<a href="\1">\1</a>'
_MOST_ROWS = 14
"""Rows of a figure of noise ceilings, beyond which it is drawn in two."""

_MOST_SUBJECTS = 3
"""Subjects in tables that fit side by side."""

_SVG_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color"), _INK
    ),
    "ytick.color": _INK,
}


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
        """Write the page to a file."""
        Path(user_path(file_name, "file_name")).write_text(self.html, "utf-8")

    def open_in_browser(self, file_name: str | os.PathLike | None = None) -> None:
        """Write the page to a file, by default a temporary one, and show it."""
        if file_name is None:
            file_name = Path(tempfile.mkdtemp(), "laion_fmri_report.html")
        file = user_path(file_name, "file_name")
        self.save_as_html(file)
        webbrowser.open(Path(file).absolute().as_uri())


def make_report(data: Bunch, title: str | None = None) -> Report:
    """Make an HTML report of a fetched Bunch; no socket is opened.

    It has the call as code to copy, the files with their sizes and versions, ROIs on
    the brain, trials and noise ceilings, and ends with licence, citation and software.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri` or `fetch_laion_fmri_ids`, or of a dry run of these.
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
        If matplotlib is not installed.
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
    require_matplotlib()
    from laion_fmri_fetchers import __version__

    subjects = subjects_of(data)
    trials_of(data)
    heading = "Files to fetch" if "plan" in data else "Fetched files"
    ceiling = summaries.default_ceiling(data)
    rois = summaries.rois(data, ceiling)
    template = resources.files(__package__).joinpath("report.html")
    page = string.Template(template.read_text("utf-8")).substitute(
        title=html.escape(title or f"LAION-fMRI: {heading.lower()}"),
        content_heading=heading,
        subtitle=html.escape(
            f"{listed(subjects) or 'No subject'} in {data.data_dir}; bucket: "
            f"{bucket_url()}"
        ),
        code=html.escape(as_code(data.query)),
        content=_content(data),
        contours=_contours(data, rois),
        trials=_trials(data),
        noise_ceiling=_noise_ceiling(rois, ceiling),
        rois=_rois(rois, ceiling),
        description=_prose(data.description),
        versions=_versions(__version__),
        footer=html.escape(f"Made by laion_fmri_fetchers {__version__}."),
    )
    return Report(page)


def _content(data: Bunch) -> str:
    """Show amounts, files that failed or are planned, versions, and sessions."""
    masks = summaries.roi_records(data)
    n_stimuli = data.trials["label"].nunique()
    is_betas = {meta["image_type"] for meta in data.images_meta} <= {"betas"}
    tiles = [
        ("Subjects", len(data.subjects_meta), ""),
        (
            "Beta images" if is_betas else "Image files",
            len(data.images),
            _total(data.images_meta),
        ),
        ("ROI masks", len(masks), _total(masks)),
        (
            "Trials",
            len(data.trials),
            f"{n_stimuli:,} {'stimulus' if n_stimuli == 1 else 'stimuli'} shown",
        ),
    ]
    if data.failed:
        tiles.append(("Failed", len(data.failed), _total(data.failed)))
    if "plan" in data:
        tiles.append(
            ("Would be fetched", len(data.plan), readable_size(data.plan_size))
        )
    parts = ["<dl class='tiles'>"]
    for name, number, size in tiles:
        small = f"<small>{html.escape(size)}</small>" if size else ""
        parts.append(f"<div><dt>{name}</dt><dd>{number:,}{small}</dd></div>")
    parts.append("</dl>")
    if data.failed:
        failed = [(rec["id"], rec["reason"]) for rec in data.failed]
        parts.append(_table(("File", "Reason"), failed, "Files that failed"))
    if "plan" in data and len(data.plan):
        planned = [(p.id, p.reason, _size(p.size)) for p in data.plan.itertuples()]
        plan = _table(("File", "Reason", "Size"), planned, "Files to fetch", numbers=1)
        parts.append(_folded("Files to fetch", plan))
    return "".join(parts) + _versions_of_files(data) + _sessions(data)


def _versions_of_files(data: Bunch) -> str:
    """Show each file with its version in the bucket."""
    files = {rec["id"]: rec for rec in [*data.images_meta, *data.rois_meta]}
    if not files:
        return ""
    rows = [
        (
            rec["id"],
            (rec["last_modified"] or "")[:19].replace("T", " "),
            (rec["etag"] or "").strip('"'),
            _size(rec["size"] or 0),
        )
        for rec in files.values()
    ]
    header = ("File", "Date (UTC)", "ETag", "Size")
    table = _table(header, rows, "Versions of images and ROI masks", numbers=1)
    return _folded(f"Versions of {counted(len(rows), 'file')}", table)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _side_by_side(*parts: str) -> str:
    return f"<div class='grid'>{''.join(parts)}</div>"


def _sessions(data: Bunch) -> str:
    """Show subjects and sessions: on disk, in the bucket, with sizes."""
    table = summaries.sessions(data)
    if table.empty:
        return "<p>No session is known.</p>"
    rows, cells, says = [], {}, []
    for subject, group in table.groupby("subject"):
        n_disk = int((group["on_disk"] > 0).sum())
        n_all = int((group["state"] != "held out").sum())
        on_disk, size = float(group["on_disk"].sum()), float(group["size"].sum())
        rows.append((subject, n_disk, _size(on_disk), n_all, _size(size)))
        says.append(f"{subject}: {n_disk} of {n_all} sessions on disk")
    for row in table.to_dict("records"):
        amount = f"{_size(row['size'])}\n" if row["size"] else ""
        cells[row["session"], row["subject"]] = f"{amount}{row['state']}"
    figure = _svg(
        partial(plot_availability, data),
        (4.8, 1.6 + 0.36 * len(rows)),
        f"Sessions on disk and in the bucket. {'; '.join(says)}.",
    )
    subjects = sorted(table["subject"].unique())
    each = [
        (session, *(cells.get((session, subject), "") for subject in subjects))
        for session in sorted(table["session"].unique())
    ]
    when = summaries.listed_at(data)
    date = "no listing of the bucket is saved, so only the disk is known"
    if when is not None:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))
        date = f"the bucket as listed on {day}"
    return (
        f"<h3>Subjects and sessions</h3><p class='note'>Files of type "
        f"{html.escape(listed(summaries.session_types(data), most=20))}; {date}. "
        "Sessions that are held out are not counted.</p>"
        + _side_by_side(
            _figure(
                figure,
                "One mark per session; right: size on disk, and of all sessions.",
            ),
            _table(
                ("Subject", "On disk", "Size", "In the bucket", "Size"),
                rows,
                "Sessions on disk and in the bucket",
                numbers=4,
            ),
        )
        + _folded(
            "Each session",
            _table(("Session", *subjects), each, "Size and state of each session"),
        )
    )


def _contours(data: Bunch, rois: pd.DataFrame) -> str:
    """Show the outlines of ROIs, one picture per subject."""
    volumes = rois[(rois["unit"] == "voxels") & rois["n"].notna()]
    if volumes.empty:
        return "<p>No volumetric ROI mask is on disk.</p>"
    pictures = []
    subjects = list(dict.fromkeys(volumes["subject"]))
    shape = (11, 6.2) if len(subjects) == 1 else (6.4, 4.8)
    for subject, group in volumes.groupby("subject"):
        image = background(data, str(subject))
        on = f"the {image[1]} of {subject}" if image else f"the ROIs of {subject}"
        alt = (
            f"Axial slices of {on} with outlines of {len(group)} ROIs in the "
            f"categories {', '.join(group['category'].unique())}"
        )
        caption = f"{subject}: {len(group)} ROIs on {on}."
        if not image or image[1] != "anatomy":
            caption += (
                f' To draw them on the anatomy: fetch_laion_fmri("{subject}", '
                'rois=None, image_type="anatomical"), then make the report again.'
            )
        picture = _png(partial(plot_rois, data, str(subject)), alt, shape)
        pictures.append(_figure(picture, caption))
    return _side_by_side(*pictures)


def _trials(data: Bunch) -> str:
    """Show trials by session, source and repetition, one figure per subject."""
    trials = data.trials
    if trials.empty:
        return "<p>No trials are selected.</p>"
    counts: Any = summaries.trial_counts(trials, "subject")
    figures = []
    for subject in counts.columns:
        n_trials = int(counts[subject].sum())
        kinds = counts[subject][counts[subject] > 0].items()
        alt = ", ".join(f"{n} of {kind[0]} shown {kind[1]}" for kind, n in kinds)
        figure = _svg(
            partial(plot_trials, data, subject),
            (4.8, 3.6),
            f"Trials of {subject} by session: {alt}",
        )
        figures.append(_figure(figure, f"{subject}: {n_trials:,} trials."))
    rows = [(*kind, *(f"{n:,}" for n in row)) for kind, row in counts.iterrows()]
    rows.append(("all", "", *(f"{n:,}" for n in counts.sum())))
    return _side_by_side(
        *figures,
        _table(
            ("Source", "Shown", *counts.columns),
            rows,
            "Trials by the source of images and the times each is shown in all "
            "sessions",
            numbers=len(counts.columns),
        ),
    )


def _noise_ceiling(rois: pd.DataFrame, ceiling: str) -> str:
    """Show the noise ceiling by ROI; of many ROIs, in two figures side by side."""
    measured = rois.dropna(subset="median")
    if measured.empty:
        return "<p>No noise ceiling of an ROI is on disk.</p>"
    best = measured.iloc[int(measured["median"].argmax())]
    figures = []
    for part in _halves(measured):
        n_rows = len(part.groupby(["category", "name"]))
        figure = _svg(
            partial(_draw_part, part, ceiling, 1.05 * measured["high"].max()),
            (4.8, 1.2 + 0.21 * n_rows),
            f"Median noise ceiling of {n_rows} ROIs of the categories "
            f"{', '.join(part['category'].unique())}. The table of ROIs has all "
            "values.",
        )
        figures.append(
            _figure(
                figure,
                f"Map {ceiling}, percent of variance: median and quartiles over the "
                "voxels of each ROI.",
            )
        )
    highest = f"{best['median']:.0f} % in {best['name']} of {best['subject']}"
    note = f"<p class='note'>The highest median is {html.escape(highest)}.</p>"
    return note + _side_by_side(*figures)


def _halves(measured: pd.DataFrame) -> list[pd.DataFrame]:
    """Return ROIs in one part or two, cut between categories."""
    numbers = measured.groupby("category")["name"].nunique()
    if numbers.sum() <= _MOST_ROWS or len(numbers) == 1:
        return [measured]
    first = numbers.index[numbers.cumsum() - numbers / 2 < numbers.sum() / 2]
    is_first = measured["category"].isin(first)
    return [measured[is_first], measured[~is_first]]


def _draw_part(part: pd.DataFrame, ceiling: str, highest: float, *, axes: Any) -> None:
    draw_noise_ceiling(part, ceiling, axes).set_xlim(0, min(100, highest))


def _rois(rois: pd.DataFrame, ceiling: str) -> str:
    """Show a table of ROIs: voxels, and the median noise ceiling."""
    if rois.empty:
        return "<p>No ROIs are selected.</p>"
    subjects = list(dict.fromkeys(rois["subject"]))
    rows = []
    for (category, name, unit), group in rois.groupby(["category", "name", "unit"]):
        cells = []
        for subject in subjects:
            masks = group[group["subject"] == subject].itertuples()
            cells.append("\n".join(_mask(mask) for mask in masks) or "-")
        unit = "" if unit == "voxels" else f", {unit}"
        rows.append((f"{name}{unit}\n{category}", *cells))
    half = -(-len(rows) // 2)
    columns = [rows[:half], rows[half:]] if len(subjects) <= _MOST_SUBJECTS else [rows]
    tables = [
        _table(
            ("ROI", *subjects),
            column,
            f"Voxels of each ROI; below, the median noise ceiling ({ceiling}) of these",
            numbers=len(subjects),
        )
        for column in columns
        if column
    ]
    return _folded(f"Voxels of {counted(len(rows), 'ROI')}", _side_by_side(*tables))


def _mask(mask: Any) -> str:
    if pd.isna(mask.n):
        return "not on disk"
    return f"{mask.n:,}" + (f"\n{mask.median:.1f} %" if mask.median >= 0 else "")


def _prose(text: str) -> str:
    """Show a description in reStructuredText; only markup that ours have."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith(".. _"):
            continue
        if len(lines) > 1 and re.fullmatch(r"=+|-+", lines[1]):
            parts.append(f"<h3>{html.escape(lines[0])}</h3>")
            lines = lines[2:]
        if lines:
            text = " ".join(map(str.strip, lines)).removeprefix(".. ")
            escaped = html.escape(re.sub(r"(\[\d+\])_", r"\1", text))
            escaped = re.sub(r"``(.+?)``", r"<code>\1</code>", escaped)
            links = r"(https://[\w./-]*[\w/])"
            parts.append(f"<p>{re.sub(links, _LINK, escaped)}</p>")
    return "".join(parts)


def _versions(version: str) -> str:
    names = ("nilearn", "nibabel", "numpy", "pandas", "scikit-learn", "matplotlib")
    rows = [
        ("laion_fmri_fetchers", version),
        *((name, importlib.metadata.version(name)) for name in names),
        ("Python", platform.python_version()),
    ]
    return _table(("Software", "Version"), rows, "Software that made this page")


def _table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, numbers: int = 0
) -> str:
    """Return a table; the last columns may be numbers. Everything is escaped."""
    kinds = ["text"] * (len(header) - numbers) + ["number"] * numbers
    heads = (
        f'<th scope="col" class="{kind}">{html.escape(name)}</th>'
        for kind, name in zip(kinds, header, strict=True)
    )
    body = []
    for row in rows:
        first, *cells = (html.escape(str(value)) for value in row)
        others = (
            f'<td class="{kind}">{cell}</td>'
            for kind, cell in zip(kinds[1:], cells, strict=True)
        )
        body.append(f'<tr><th scope="row">{first}</th>{"".join(others)}</tr>')
    caption = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><caption>{caption}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(picture: str, caption: str) -> str:
    caption = html.escape(caption)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _svg(draw: Callable[..., Any], size: tuple[float, float], alt: str) -> str:
    """Draw to SVG that takes its ink from the page."""
    from matplotlib.figure import Figure

    out = io.StringIO()
    with _style({**_SVG_STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(axes=figure.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub('<g id="[^"]*"', "<g", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _png(draw: Callable[..., Any], alt: str, size: tuple[float, float]) -> str:
    """Draw to PNG, on black, with a palette: a fraction of the size."""
    from matplotlib.figure import Figure
    from PIL import Image

    drawn, out = io.BytesIO(), io.BytesIO()
    with _style({"text.parse_math": False, "font.size": 13}):
        figure = Figure(figsize=size, facecolor="black")
        draw(axes=figure.add_axes((0, 0, 1, 1)))
        figure.savefig(drawn, format="png", dpi=130)
    picture = Image.open(drawn).convert("RGB")
    octree = Image.Quantize.FASTOCTREE  # others merge the colours of thin lines
    picture.quantize(256, octree).save(out, "PNG", optimize=True)
    content = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{content}">'


@contextlib.contextmanager
def _style(settings: dict[Any, Any]) -> Iterator[None]:
    """Draw with settings; a notebook's backend that starts meanwhile stays on."""
    import matplotlib as mpl

    with mpl.rc_context(settings):
        yield
        interactive = mpl.is_interactive()
    mpl.interactive(interactive)


def _total(recs: list[dict[str, Any]]) -> str:
    return _size(sum(rec["size"] or 0 for rec in recs))


def _size(n_bytes: float) -> str:
    return "" if pd.isna(n_bytes) else readable_size(n_bytes)
