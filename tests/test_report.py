"""The report and its figures: right numbers, escaped, and as a browser shows it."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

import browser
import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from sklearn.utils import Bunch

from laion_fmri_fetchers import (
    GreaterOrEqual,
    NotIn,
    Pattern,
    ResultFilter,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
)
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.reports.figures import (
    background,
    plot_availability,
    plot_noise_ceiling,
    plot_rois,
    plot_trials,
)
from laion_fmri_fetchers.reports.report import make_report
from laion_fmri_fetchers.reports.summaries import rois, sessions

SECTIONS = (
    *("query", "content", "contours", "trials"),
    *("noise-ceiling", "rois", "dataset", "versions"),
)
PLOTS = (plot_availability, plot_rois, plot_trials, plot_noise_ceiling)


@pytest.fixture(autouse=True)
def no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture
def data(cached):
    return fetch_laion_fmri("all", ["face", "PPA"], mode="offline", verbose=0)


@pytest.fixture
def nothing(cached):
    return fetch_laion_fmri(1, rois=None, max_images=0, mode="offline", verbose=0)


def section(page, name):
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def rows(text):
    """Return the cells of each row of the tables in a piece of HTML."""
    cells = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)
    found = (cells.findall(row) for row in text.split("<tr>")[1:])
    return [[html.unescape(cell) for cell in row] for row in found]


def test_report_needs_no_network(data, no_network):
    page = make_report(data).html
    assert len(page) < 3_000_000
    for name in SECTIONS:
        assert section(page, name)
    assert not re.search(r"<script|<link[^>]+https?:|@import|url\(h", page)
    assert make_report(data).html == page


def code_of(data):
    """Return the source in the report of a Bunch."""
    text = section(make_report(data).html, "query")
    return html.unescape(re.search("<code>(.*?)</code>", text, re.DOTALL)[1])


def run(source, monkeypatch):
    """Return the Bunch that a source makes offline."""
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    names = {}
    exec(source, names)
    return names["data"]


def test_the_call_can_be_copied(cached, monkeypatch):
    often = ResultFilter(n_reps=GreaterOrEqual(12)) & ResultFilter(dataset="LAION")
    asked = often | ResultFilter(label=Pattern(r"\d'?_<i>"))
    data = fetch_laion_fmri(
        [1, 3], "face", trial_filter=asked, mode="offline", verbose=0
    )
    again = run(code_of(data), monkeypatch)
    assert again.query == data.query
    assert again.images == data.images
    assert again.trials.equals(data.trials)


def test_a_long_list_of_ids_can_be_copied(cached, monkeypatch):
    masks = fetch_laion_fmri("all", mode="offline", verbose=0).rois_meta
    ids = [meta["id"] for meta in masks]
    data = fetch_laion_fmri_ids(ids, mode="offline", verbose=0)
    assert run(code_of(data), monkeypatch).images == data.images
    assert rois(data, "Allrep")["n"].notna().all()


def test_long_filters_are_a_comment_in_the_code(cached):
    labels = [f"{i}.jpg" for i in range(80)]
    data = fetch_laion_fmri(mode="offline", trial_filter={"label": NotIn(*labels)})
    code = code_of(data)
    compile(code, "copied", "exec")
    assert "trial_filter is too long to show" in code


def test_masks_of_both_grids_and_masks_without_voxels(cached, server):
    data = fetch_laion_fmri(
        rois="face", sessions=1, roi_filter={"res": ["1pt8", "1pt5"]}, verbose=0
    )
    assert len({meta["res"] for meta in data.rois_meta}) == 2
    make_report(data)
    for file in data.rois:
        mask = nib.load(file)
        empty = np.zeros(mask.shape, np.uint8)
        nib.save(nib.Nifti1Image(empty, mask.affine), file)
    make_report(data)
    plot_rois(data, cut_coords=np.int64(4))
    del data.trials["n_reps"]
    make_report(data)


def test_functions_of_a_query_are_not_in_its_code(cached, monkeypatch):
    data = fetch_laion_fmri(1, trial_filter=bool, mode="offline", verbose=0)
    source = code_of(data)
    assert "# trial_filter had a function, which is not kept: " in source
    assert run(source, monkeypatch).images == data.images


def test_versions_of_files(data):
    text = section(make_report(data).html, "content")
    versions = {row[0]: row for row in rows(text.partition("Versions of ")[2])}
    for meta in [*data.images_meta, *data.rois_meta]:
        _, date, etag, size = versions[meta["id"]]
        assert date == meta["last_modified"][:19].replace("T", " ")
        assert etag == meta["etag"].strip('"')
        assert size.endswith("B")
    assert "Beta images" in text
    assert f"{data.trials['label'].nunique()} stimuli shown" in text


def test_the_bucket_is_named(data, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://mirror.example/laion-fmri")
    assert "bucket: http://mirror.example/laion-fmri" in make_report(data).html


def test_many_rois_are_drawn_in_two_figures(cached):
    data = fetch_laion_fmri(1, mode="offline", verbose=0)
    page = make_report(data).html
    figures = section(page, "noise-ceiling").split("<figure>")[1:]
    names = [set(re.findall(">([A-Za-z0-9]+)</text>", text)) for text in figures]
    assert len(figures) == 2
    assert "FFA1" in names[0] - names[1]
    assert "hV4" in names[1] - names[0]
    assert "face" in names[0], "categories are named"
    assert section(page, "rois").count("<table>") == 2


def test_resampled_images_do_not_count(cached):
    options = {"rois": None, "mode": "offline", "verbose": 0}
    before = sessions(fetch_laion_fmri(1, sessions=1, **options))
    data = fetch_laion_fmri(1, sessions=1, resolution=8, **options)
    pd.testing.assert_frame_equal(sessions(data), before)


@pytest.mark.parametrize("function", [make_report, *PLOTS])
def test_the_bunch_of_another_function(function):
    with pytest.raises(InvalidQueryError, match="Bunch without subjects_meta.*fetch"):
        function(Bunch(data=np.zeros(3)))


def test_metadata_is_escaped(data):
    evil = "<script>alert('x')</script>&\"<img src=//x.y>"
    data.query["trial_filter"] = evil
    data.failed = [{**data.images_meta[0], "reason": evil}]
    data.description = f"{evil}\n\nMore"
    data.rois[0], data.rois_meta[0]["roi"] = "mask.nii.gz", evil
    data.trials["dataset"] = data.trials["dataset"].astype(object)
    data.trials.loc[0, ["dataset", "label"]] = evil
    page = make_report(data, title=evil).html
    assert "<script" not in page
    assert "<img src=//" not in page
    assert f"<h1>{html.escape(evil)}</h1>" in page


def test_sessions_on_disk_and_in_the_bucket(data):
    lost = Path(data.images[0])
    size = data.images_meta[0]["size"]
    whole = sessions(data).set_index(["subject", "session"])
    assert whole.loc[("sub-01", "ses-01"), "state"] == "selected, on disk"
    assert whole.loc[("sub-01", "ses-31"), "state"] == "held out"
    assert whole.loc[("sub-01", "ses-01"), ["on_disk", "size"]].tolist() == [size] * 2
    lost.unlink()
    after = sessions(data).set_index(["subject", "session"])
    assert after.loc[("sub-01", "ses-01"), "state"] == "selected, not on disk"
    assert after.loc[("sub-01", "ses-01"), ["on_disk", "size"]].tolist() == [0, size]
    one = fetch_laion_fmri(1, sessions=2, mode="offline", verbose=0)
    states = sessions(one).set_index("session")["state"]
    assert states["ses-01"] == "in the bucket"
    assert states["ses-02"] == "selected, on disk"
    assert states["ses-03"] == "on disk"
    page = section(make_report(data).html, "content")
    (row,) = [row for row in rows(page) if row[0] == "sub-01"]
    assert [row[1], row[3]] == ["3", "4"], "held-out sessions do not count"
    assert "sub-01: 3 of 4 sessions on disk" in page


def test_session_partly_on_disk(cached, server):
    data = fetch_laion_fmri(1, sessions=1, image_type="rsquare", rois=None, verbose=0)
    types = ["betas", "rsquare"]
    both = fetch_laion_fmri(
        1, sessions=1, rois=None, image_type=types, mode="offline", verbose=0
    )
    states = sessions(both).set_index("session")["state"]
    assert states["ses-01"] == "selected, on disk"
    assert states["ses-02"] == "partly on disk"
    states = sessions(data).set_index("session")["state"]
    assert states["ses-02"] == "in the bucket"


def test_without_any_listing(data):
    for file in Path(data.data_dir, ".laion_fmri", "listings").glob("*.json"):
        file.unlink()
    table = sessions(data)
    assert set(table["state"]) == {"selected, on disk"}
    assert (table["size"] == table["on_disk"]).all()
    assert "no listing of the bucket is saved" in make_report(data).html


def test_table_of_rois(data):
    found = rois(data, "12rep")
    assert len(found) == len(data.rois)
    where = zip(data.rois, data.rois_meta, strict=True)
    path = next(p for p, m in where if (m["subject"], m["roi"]) == ("sub-03", "FFA1"))
    mask = nib.load(path).get_fdata() > 0
    values = nib.load(data.noise_ceilings["sub-03"]["12rep"]).get_fdata()[mask]
    row = found[(found["subject"] == "sub-03") & (found["name"] == "FFA1")].iloc[0]
    assert row["n"] == mask.sum()
    quartiles = row[["low", "median", "high"]].to_numpy(dtype=float)
    expected = np.nanquantile(values, (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quartiles, expected, rtol=1e-5)
    cells = {r[0]: r for r in rows(section(make_report(data).html, "rois"))}
    assert cells["FFA1\nface"][2].startswith(f"{mask.sum()}\n")
    assert cells["AFP1\nface"][1] == "-"


def test_surface_masks_count_vertices(cached, server):
    terms = {"roi": "FFA1", "space": "fsnative", "extension": "func.gii"}
    data = fetch_laion_fmri(1, roi_filter=terms, max_images=0, verbose=0)
    table = rois(data, "Allrep").set_index("name")
    surface = nib.load(data.rois[0]).darrays[0].data
    assert table.loc["FFA1 L", "n"] == (surface > 0).sum()
    assert set(table["unit"]) == {"vertices"}
    page = make_report(data).html
    assert "FFA1 L, vertices" in section(page, "rois")
    assert "No volumetric ROI mask" in section(page, "contours")


def test_trials_are_counted(data):
    axes = plot_trials(data, "sub-03")
    heights = {bar.get_label(): sum(bar.datavalues) for bar in axes.containers}
    own = data.trials[data.trials["subject"] == "sub-03"]
    assert sum(heights.values()) == len(own)
    twelve = own[(own["dataset"] == "LAION") & (own["n_reps"] == 12)]
    assert heights["LAION, 12 times"] == len(twelve) > 0
    page = section(make_report(data).html, "trials")
    total = next(row for row in rows(page) if row[0] == "all")
    assert total[2:] == ["256", "256"]
    odd = next(row for row in rows(page) if row[0] == "other")
    assert odd[1:] == ["unknown times", "1", "0"]


def test_noise_ceiling_by_roi(data):
    axes = plot_noise_ceiling(data, 1, noise_ceiling="4rep")
    table = rois(data, "4rep")
    own = table[table["subject"] == "sub-01"].sort_values(["category", "name"])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == own["name"].tolist()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), own["median"])
    assert axes.get_xlabel() == "Noise ceiling 4rep (%)"
    written = {text.get_text() for text in axes.texts}
    assert written == {"face", "place"}, "categories are named"


def test_rois_on_the_sharpest_anatomy(data, server):
    assert background(data, "sub-01")[1] == "brain mask"
    hint = "fetch_laion_fmri(&quot;sub-01&quot;, rois=None, image_type=&quot;anatom"
    assert hint in make_report(data).html
    fetch_laion_fmri(1, rois=None, image_type="anatomical", verbose=0)
    assert hint not in make_report(data).html
    path, what = background(data, "sub-01")
    assert what == "anatomy"
    assert path.endswith("_space-T1w_T1w.nii.gz")
    axes = plot_rois(data, cut_coords=[-20, 0, 20, 40])
    assert [t.get_text() for t in axes.texts][:4] == ["z=-20", "z=0", "z=20", "z=40"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["face", "place"]


def test_rois_without_a_brain(data):
    data.brain_masks = {}
    assert plot_rois(data, 3).get_legend()
    assert "on the ROIs of sub-03" in make_report(data).html


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_in_and_out(plot, data):
    axes = plt.figure().add_subplot()
    n_figures = len(plt.get_fignums())
    assert plot(data, axes=axes) is axes
    assert len(plt.get_fignums()) == n_figures
    assert plot(data).figure is not axes.figure


@pytest.mark.parametrize("plot", PLOTS[1:])
def test_nothing_to_draw_is_said(plot, nothing, tmp_path):
    nothing.brain_masks, nothing.data_dir = {}, str(tmp_path)
    axes = plot(nothing)
    assert axes.texts[0].get_text().startswith(("No", "Neither"))


def test_no_session_is_said(nothing, tmp_path):
    nothing.subjects_meta, nothing.data_dir = [], str(tmp_path)
    assert "No session" in plot_availability(nothing).texts[0].get_text()
    assert "No session is known" in make_report(nothing).html


def test_what_is_not_there_is_refused(data):
    with pytest.raises(InvalidQueryError, match="sub-03"):
        plot_trials(data, "sub-02")
    with pytest.raises(InvalidQueryError, match="12rep"):
        plot_noise_ceiling(data, noise_ceiling="13rep")
    with pytest.raises(InvalidQueryError, match="plot_rois draws the brain of one"):
        plot_rois(data, [1])


def test_without_matplotlib_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (make_report, *PLOTS):
        with pytest.raises(ImportError, match=r"laion_fmri_fetchers\[plot\]"):
            call(data)


def test_report_is_kept_and_shown(nothing, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    report = make_report(nothing, title="Örtlich")
    report.save_as_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == report.html
    report.open_in_browser(tmp_path / "shown.html")
    assert opened == [(tmp_path / "shown.html").as_uri()]
    report.open_in_browser()
    assert opened[1].startswith("file://")
    frame = report._repr_html_()
    assert frame == report.get_iframe()
    assert html.unescape(frame.split('"')[1]) == report.get_standalone()
    assert "save_as_html" in str(report)
    assert len(str(report)) < 80


@pytest.fixture(scope="module")
def chromium():
    if not (browser.DRIVER and browser.CHROMIUM):
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    with browser.run_browser() as running:
        yield running


def bunches(server):
    """Return what reports must do for: all, a part with anatomy, a plan, ids, none."""
    fetch_laion_fmri(1, rois=None, image_type="anatomical", verbose=0)
    yield "all", fetch_laion_fmri("all", verbose=0)
    yield "part", fetch_laion_fmri(1, "face", trial_filter={"n_reps": 12}, verbose=0)
    Path(fetch_laion_fmri(3, verbose=0).images[0]).unlink()
    yield "plan", fetch_laion_fmri("all", dry_run=True, verbose=0)
    part = fetch_laion_fmri(1, "place", sessions=1, verbose=0)
    ids = [meta["id"] for meta in [*part.images_meta, *part.rois_meta]]
    yield "ids", fetch_laion_fmri_ids(ids, verbose=0)
    yield "none", fetch_laion_fmri(1, rois=None, max_images=0, verbose=0)


def test_as_a_browser_shows_it(chromium, cached, server, tmp_path):
    for name, data in bunches(server):
        file = tmp_path / f"{name}.html"
        make_report(data).save_as_html(file)
        assert file.stat().st_size < 3_000_000
        for width in (1280, 400):
            chromium.open(file.as_uri(), width)
            check_page(chromium, width)
            chromium.script("document.querySelectorAll('details').forEach(e=>e.open=1)")
            assert chromium.script(FITS), f"{name} at {width} with details"
            chromium.screenshot(tmp_path / f"{name}-{width}.png")
            assert not chromium.console()
            requests = chromium.requests()
            assert requests[0] == file.as_uri()
            assert all(url.startswith("data:") for url in requests[1:])


FITS = "return document.scrollingElement.scrollWidth <= innerWidth"


def check_page(page, width):
    assert page.script("return innerWidth") == width
    assert page.script(FITS)
    for name in SECTIONS:
        text = page.script(f"return document.getElementById('{name}').innerText")
        assert len(text.splitlines()) > 1, name
    assert page.script(
        "return [...document.images].every(i => i.complete && i.naturalWidth && i.alt)"
    )
    assert page.script(
        "return [...document.querySelectorAll('figure > svg')].every("
        "s => s.getAttribute('aria-label') && s.getBoundingClientRect().width > 200)"
    )
    assert page.script(
        "return [...document.querySelectorAll('th')].every(t => t.scope)"
    )
    ids = page.script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    small = page.script(
        "return Math.min(99, ...[...document.querySelectorAll('svg text')].map("
        "t => parseFloat(getComputedStyle(t).fontSize) "
        "* Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert small > 8


def test_in_the_frame_of_a_notebook(chromium, nothing, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(f"<!DOCTYPE html>{make_report(nothing)._repr_html_()}", "utf-8")
    chromium.open(file.as_uri(), 800)
    inside = "return document.querySelector('iframe').contentDocument"
    assert chromium.script(f"{inside}.querySelectorAll('section').length") == 8
    assert not chromium.console()


def test_ink_follows_the_colour_scheme(chromium, data, tmp_path):
    file = tmp_path / "report.html"
    make_report(data).save_as_html(file)
    inks = []
    for scheme in ("light", "dark"):
        chromium.open(file.as_uri(), 1280, scheme=scheme)
        inks.append(
            chromium.script(
                "return getComputedStyle(document.querySelector('svg text')).fill"
            )
        )
    assert inks == ["rgb(27, 31, 36)", "rgb(230, 233, 237)"]


@pytest.mark.parametrize("column", ["subject", "session", "dataset"])
def test_trials_without_a_column_are_refused(column, data):
    data.trials = data.trials.drop(columns=column)
    with pytest.raises(InvalidQueryError, match=f"without a column '{column}'"):
        plot_trials(data)


@pytest.mark.parametrize("cuts", [0, -3, []])
def test_no_slice_is_refused(cuts, data):
    with pytest.raises(InvalidQueryError, match="cut_coords is empty"):
        plot_rois(data, cut_coords=cuts)


@pytest.mark.parametrize("function", [plot_rois, plot_noise_ceiling, make_report])
def test_masks_chosen_without_their_metadata_are_refused(function, data):
    data.rois = data.rois[:1]
    with pytest.raises(InvalidQueryError, match=r"rois.* 12 "):
        function(data)
