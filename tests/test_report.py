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
    load_betas,
    make_report,
    plot_noise_ceiling,
    plot_rois,
    plot_trials,
)
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError

PLOTS = (plot_rois, plot_trials, plot_noise_ceiling)
EVIL = "<script>alert('x')</script>&\"<img src=//x.y>$_^$"


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


def table(data, caption):
    """Return a table of the report of a Bunch, by what its caption begins with."""
    page = make_report(data).html
    found = re.search(f"<summary>{caption}.*?(<table.*?</table>)", page, re.DOTALL)
    rows = found[1].split("<tr")[1:] if found else []
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return pd.DataFrame(
        [[html.unescape(c) for c in row] for row in cells[1:]], columns=cells[0]
    )


def test_a_report_needs_no_network_and_is_the_same_each_time(data, no_network):
    page = make_report(data).html
    assert page.count("<section") == 6
    assert not re.search(r"<script|<link[^>]+https?:|@import|url\(h", page)
    assert make_report(data).html == page


@pytest.mark.filterwarnings("ignore:Nothing fulfils")
def test_the_call_can_be_copied(cached, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    often = ResultFilter(n_reps=GreaterOrEqual(12)) & ResultFilter(dataset="LAION")
    asked = often | ResultFilter(label=Pattern(r"\d'?_<i>"))
    data = fetch_laion_fmri([1, 3], "face", trial_filter=asked, verbose=0)
    labels = data.trials["label"].unique()[:40]
    ids = [meta["id"] for meta in data.rois_meta]
    for asked in (
        data,
        fetch_laion_fmri(trial_filter={"label": NotIn(*labels)}, verbose=0),
        fetch_laion_fmri_ids(ids, verbose=0),
    ):
        source = re.search("<code>(.*?)</code>", make_report(asked).html, re.DOTALL)
        names = {}
        exec(html.unescape(source[1]), names)
        assert names["data"].query == asked.query
        assert names["data"].images == asked.images
        assert names["data"].trials.equals(asked.trials)


def test_files_are_listed_with_their_versions(data):
    versions = table(data, "Versions of files").set_index("id")
    for meta in [*data.images_meta, *data.rois_meta]:
        row = versions.loc[meta["id"]]
        assert row["etag"] == meta["etag"]
        assert row["last_modified"] == meta["last_modified"]
        assert row["size"] == str(meta["size"])
    selected = table(data, "Selected")
    assert selected["number"].tolist() == ["8", "12", "512"]
    assert f"of {data.trials['label'].nunique()} stimuli" in make_report(data).html


def test_failed_and_planned_files_are_listed(data, server):
    data.failed = [{**data.images_meta[0], "reason": "the server is down"}]
    assert table(data, "Files that failed")["reason"].tolist() == ["the server is down"]
    Path(data.images[0]).unlink()
    plan = fetch_laion_fmri("all", "face", dry_run=True, verbose=0)
    assert data.images_meta[0]["id"] in table(plan, "Files to fetch")["id"].tolist()


def test_the_bucket_is_named(data, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://mirror.example/laion-fmri")
    assert "bucket: http://mirror.example/laion-fmri" in make_report(data).html


def states(data):
    """Return the state of each session in a report."""
    found = table(data, "State and size").set_index(["subject", "session"])
    return found["state"]


def test_sessions_on_disk_and_in_the_bucket(data):
    assert states(data)["sub-01", "ses-01"] == "selected, on disk"
    assert states(data)["sub-01", "ses-31"] == "held out"
    Path(data.images[0]).unlink()
    assert states(data)["sub-01", "ses-01"] == "selected, not on disk"
    one = fetch_laion_fmri(1, sessions=2, mode="offline", verbose=0)
    assert states(one).loc["sub-01"].tolist()[:3] == [
        "in the bucket",
        "selected, on disk",
        "on disk",
    ]


def test_a_session_of_which_one_type_is_on_disk(cached, server):
    options = {"rois": None, "verbose": 0}
    rsquare = fetch_laion_fmri(1, sessions=1, image_type="rsquare", **options)
    assert states(rsquare)["sub-01", "ses-02"] == "in the bucket"
    both = fetch_laion_fmri(1, sessions=1, image_type=["betas", "rsquare"], **options)
    assert states(both)["sub-01", "ses-01"] == "selected, on disk"
    assert states(both)["sub-01", "ses-02"] == "partly on disk"


def test_resampled_images_do_not_count(cached):
    options = {"rois": None, "mode": "offline", "verbose": 0}
    before = states(fetch_laion_fmri(1, sessions=1, **options))
    data = fetch_laion_fmri(1, sessions=1, resolution=8, **options)
    pd.testing.assert_series_equal(states(data), before)


def test_without_any_listing_only_the_disk_is_known(data):
    for file in Path(data.data_dir, ".laion_fmri", "listings").glob("*.json"):
        file.unlink()
    assert set(states(data)) == {"selected, on disk"}
    assert "no listing of the bucket is saved" in make_report(data).html


def test_rois_have_their_size_and_noise_ceiling(data):
    data.noise_ceilings["sub-01"] = {}
    rois = table(data, "Sizes of ROIs").set_index(["subject", "name"])
    assert len(rois) == len(data.rois)
    mask = nib.load(data.roi_files["sub-03"]["FFA1"]).get_fdata() > 0
    values = nib.load(data.noise_ceilings["sub-03"]["Allrep"]).get_fdata()[mask]
    row = rois.loc[("sub-03", "FFA1")]
    assert (row["category"], row["n"]) == ("face", str(mask.sum()))
    quartiles = row[["low", "median", "high"]].astype(float)
    np.testing.assert_allclose(
        quartiles, np.quantile(values, (0.25, 0.5, 0.75)), atol=0.06
    )
    assert rois.loc[("sub-01", "FFA1"), "median"] == ""
    Path(data.roi_files["sub-01"]["FFA1"]).unlink()
    rois = table(data, "Sizes of ROIs").set_index(["subject", "name"])
    assert rois.loc[("sub-01", "FFA1"), "n"] == "not on disk"


def test_masks_of_surfaces_have_vertices(cached, server):
    terms = {"roi": "FFA1", "space": "fsnative", "extension": "func.gii"}
    data = fetch_laion_fmri(1, roi_filter=terms, max_images=0, verbose=0)
    rois = table(data, "Sizes of ROIs").set_index("name")
    surface = nib.load(data.rois[0]).darrays[0].data
    assert rois.loc["FFA1 L", "n"] == str((surface > 0).sum())
    assert set(rois["unit"]) == {"vertices"}


def test_masks_of_both_grids_and_masks_without_voxels(cached, server):
    data = fetch_laion_fmri(
        rois="face", sessions=1, roi_filter={"res": ["1pt8", "1pt5"]}, verbose=0
    )
    assert len({meta["res"] for meta in data.rois_meta}) == 2
    assert plot_rois(data).get_legend()
    for file in data.rois:
        mask = nib.load(file)
        empty = np.zeros(mask.shape, np.uint8)
        nib.save(nib.Nifti1Image(empty, mask.affine), file)
    assert set(table(data, "Sizes of ROIs")["n"]) == {"0"}
    Path(data.rois[0]).write_bytes(b"\x1f\x8b")
    with pytest.raises(CorruptImageError, match=Path(data.rois[0]).name):
        make_report(data)


def test_trials_are_counted(data):
    data.trials.loc[0, "dataset"] = None
    axes = plot_trials(data, "sub-03")
    heights = {bar.get_label(): sum(bar.datavalues) for bar in axes.containers}
    own = data.trials[data.trials["subject"] == "sub-03"]
    assert sum(heights.values()) == len(own)
    twelve = own[(own["dataset"] == "LAION") & (own["n_reps"] == 12)]
    assert heights["LAION, 12 times"] == len(twelve) > 0
    counts = table(data, "Trials by").set_index(["source", "shown"])
    assert counts.loc[("LAION", "12 times"), "sub-03"] == str(len(twelve))
    assert counts.loc["other", "sub-01"].astype(int).sum() == 2
    del data.trials["n_reps"]
    assert set(table(data, "Trials by")["shown"]) == {"unknown times"}


def test_noise_ceiling_by_roi(data):
    axes = plot_noise_ceiling(data, 1, noise_ceiling="4rep")
    names = [label.get_text() for label in axes.get_yticklabels()]
    expected = sorted(data.roi_files["sub-01"])
    assert sorted(name.split()[1] for name in names) == expected
    values = nib.load(data.noise_ceilings["sub-01"]["4rep"]).get_fdata()
    medians = {
        name: np.median(values[nib.load(mask).get_fdata() > 0])
        for name, mask in data.roi_files["sub-01"].items()
    }
    shown = dict(
        zip(axes.lines[0].get_ydata().round(), axes.lines[0].get_xdata(), strict=True)
    )
    for row, name in enumerate(names):
        assert shown[row] == pytest.approx(medians[name.split()[1]], rel=1e-5)
    assert axes.get_xlabel() == "Noise ceiling 4rep (%)"


def test_rois_are_drawn_on_the_sharpest_anatomy(data, server):
    assert "ROIs on the brain mask" in make_report(data).html
    fetch_laion_fmri(1, rois=None, image_type="anatomical", verbose=0)
    assert "ROIs on the anatomy" in make_report(data).html
    axes = plot_rois(data, cut_coords=[-20, 0, 20, 40])
    assert [t.get_text() for t in axes.texts][:4] == ["z=-20", "z=0", "z=20", "z=40"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["face", "place"]
    assert len(plot_rois(data, cut_coords=np.int64(4)).texts) == 4 + len("LR")
    data.brain_masks = {}
    assert plot_rois(data, 3).get_legend()
    assert "on the ROIs" in make_report(data).html


def test_betas_of_one_and_of_several_subjects(data, no_network):
    one = load_betas(data, 1, "face", nc_threshold=30, verbose=0)
    rois = table(one, "Sizes of ROIs").set_index("name")
    assert set(rois["category"]) == {"face"}
    for name, mask in one.roi_masks.items():
        assert rois.loc[name, "n"] == str(mask.sum())
        median = np.median(one.noise_ceilings["Allrep"][mask])
        assert float(rois.loc[name, "median"]) == pytest.approx(median, abs=0.06)
    assert "ROIs on the" in make_report(one).html
    heights = [sum(bar.datavalues) for bar in plot_trials(one).containers]
    assert sum(heights) == len(one.data)
    assert plot_rois(one).get_legend()
    assert plot_noise_ceiling(one, noise_ceiling="4rep").lines

    both = load_betas(data, "all", "brain", average_repeats=True, verbose=0)
    shapes = table(both, "Shape of data")
    assert shapes["subject"].tolist() == ["sub-01", "sub-03"]
    assert shapes["rows"].tolist() == [str(len(b.data)) for b in both.values()]
    assert set(table(both, "Sizes of ROIs")["name"]) >= {"FFA1", "PPA"}
    assert "several" in [t.get_text() for t in plot_trials(both).get_xticklabels()]
    assert plot_rois(both, 3).get_legend()


def test_metadata_are_escaped(data):
    data.query["trial_filter"] = EVIL
    data.failed = [{**data.images_meta[0], "reason": EVIL}]
    data.description = f'{EVIL}\n\nhttps://x.y/"onload=alert(1)'
    data.rois[0], data.rois_meta[0]["roi"] = "mask.nii.gz", EVIL
    data.rois_meta[1]["roi_category"] = EVIL
    data.trials["dataset"] = data.trials["dataset"].astype(object)
    data.trials.loc[0, ["dataset", "label"]] = EVIL
    page = make_report(data, title=EVIL).html
    assert "<script" not in page
    assert "<img src=//" not in page
    assert '"onload' not in page
    assert html.unescape(re.search("<title>(.*)</title>", page)[1]) == EVIL


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_in_and_out(plot, data):
    axes = plt.figure().add_subplot()
    n_figures = len(plt.get_fignums())
    assert plot(data, axes=axes) is axes
    assert len(plt.get_fignums()) == n_figures
    assert plot(data).figure is not axes.figure
    assert len(plt.get_fignums()) == n_figures + 1, "a notebook shows it"


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_to_draw_is_said(plot, nothing, tmp_path):
    nothing.brain_masks, nothing.data_dir = {}, str(tmp_path)
    assert plot(nothing).texts[0].get_text().startswith(("No", "Neither"))
    nothing.subjects_meta = []
    assert "Nothing to show" in make_report(nothing).html


def test_what_is_not_there_is_refused(data):
    with pytest.raises(InvalidQueryError, match="sub-03"):
        plot_trials(data, "sub-02")
    with pytest.raises(InvalidQueryError, match="12rep"):
        plot_noise_ceiling(data, noise_ceiling="13rep")
    with pytest.raises(InvalidQueryError, match="plot_rois draws the brain of one"):
        plot_rois(data, [1])
    for cuts in (0, -3, []):
        with pytest.raises(InvalidQueryError, match="cut_coords is empty"):
            plot_rois(data, cut_coords=cuts)
    for column in ("subject", "session", "dataset"):
        part = data.copy()
        part.trials = data.trials.drop(columns=column)
        with pytest.raises(InvalidQueryError, match=f"without a column '{column}'"):
            plot_trials(part)


@pytest.mark.parametrize("function", [make_report, *PLOTS])
def test_what_does_not_fit_is_refused(function, data):
    for other in (Bunch(data=np.zeros(3)), Bunch(), None, data.trials):
        with pytest.raises(InvalidQueryError, match="without subjects_meta.*fetch"):
            function(other)
    data.rois = data.rois[:1]
    with pytest.raises(InvalidQueryError, match=r"rois.* 12 "):
        function(data)


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_what_to_install_is_said(data, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    for call in (make_report, *PLOTS):
        with pytest.raises(ImportError, match=r"laion_fmri_fetchers\[plot\]"):
            call(data)


def test_a_report_is_kept_and_shown(nothing, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    report = make_report(nothing, title="Örtlich")
    report.save_as_html(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == report.html
    report.open_in_browser(tmp_path / "shown.html")
    assert opened == [(tmp_path / "shown.html").as_uri()]
    report.open_in_browser()
    assert opened[1].startswith("file://")
    frame = report._repr_html_()
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
    """Return what reports must do for: all, a plan, ids, betas, none."""
    fetch_laion_fmri(1, rois=None, image_type="anatomical", verbose=0)
    data = fetch_laion_fmri("all", verbose=0)
    yield "all", data
    yield "betas", load_betas(data, "all", ["face", "V1"], verbose=0)
    ids = [meta["id"] for meta in [*data.images_meta, *data.rois_meta]]
    yield "ids", fetch_laion_fmri_ids(ids, verbose=0)
    Path(data.images[0]).unlink()
    yield "plan", fetch_laion_fmri("all", "face", dry_run=True, verbose=0)
    yield "none", fetch_laion_fmri(1, rois=None, max_images=0, verbose=0)


FITS = "return document.scrollingElement.scrollWidth <= innerWidth"
PICTURES = "[...document.images].every(i => i.complete && i.naturalWidth && i.alt)"


def test_as_a_browser_shows_it(chromium, cached, server, tmp_path):
    for name, data in bunches(server):
        file = tmp_path / f"{name}.html"
        make_report(data).save_as_html(file)
        assert file.stat().st_size < 3_000_000
        for width in (1280, 400):
            chromium.open(file.as_uri(), width)
            assert chromium.script(FITS), f"{name} at {width}"
            chromium.script("document.querySelectorAll('details').forEach(e=>e.open=1)")
            assert chromium.script(FITS), f"{name} at {width} with details"
            assert chromium.script(f"return {PICTURES}")
            assert not chromium.console()
            requests = chromium.requests()
            assert requests[0] == file.as_uri()
            assert all(url.startswith("data:") for url in requests[1:])
        links = "[...document.querySelectorAll('nav a')]"
        assert chromium.script(
            f"return {links}.every(a => document.querySelector(a.hash))"
        )


def test_in_the_frame_of_a_notebook(chromium, nothing, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(f"<!DOCTYPE html>{make_report(nothing)._repr_html_()}", "utf-8")
    chromium.open(file.as_uri(), 800)
    inside = "return document.querySelector('iframe').contentDocument"
    assert chromium.script(f"{inside}.querySelectorAll('section').length") == 6
    assert not chromium.console()
