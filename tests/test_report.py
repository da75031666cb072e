"""The report and its figures: right numbers, escaped, and as a browser shows it."""

from __future__ import annotations

import copy
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
OFFLINE = {"mode": "offline", "verbose": 0}


@pytest.fixture(autouse=True)
def no_windows():
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fetched(cached_folder):
    """A Bunch of files that tests must not change."""
    return fetch_laion_fmri("all", ["face", "PPA"], data_dir=cached_folder, **OFFLINE)


@pytest.fixture
def data(fetched):
    return copy.deepcopy(fetched)


@pytest.fixture(scope="module")
def page(fetched):
    return make_report(fetched).html


@pytest.fixture
def nothing(cached_folder):
    return fetch_laion_fmri(
        1, rois=None, max_images=0, data_dir=cached_folder, **OFFLINE
    )


def table(page, caption):
    """Return a table of a report, or of that of a Bunch, by how its caption begins."""
    page = page if isinstance(page, str) else make_report(page).html
    found = re.search(f"<summary>{caption}.*?(<table.*?</table>)", page, re.DOTALL)
    rows = [
        [html.unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in found[1].split("<tr")[1:]
    ]
    return pd.DataFrame(rows[1:], columns=rows[0])


def values_of(file):
    return nib.load(file).get_fdata()


def test_a_report_needs_no_network_and_is_the_same_each_time(data, page, no_network):
    assert page.count("<section") == 6
    assert not re.search(r"<script|<link[^>]+https?:|@import|url\(h", page)
    assert make_report(data).html == make_report(data).html


@pytest.mark.filterwarnings("ignore:Nothing fulfils")
def test_the_call_can_be_copied(data, cached, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    often = ResultFilter(n_reps=GreaterOrEqual(12)) & ResultFilter(dataset="LAION")
    odd = often | ResultFilter(label=Pattern(r"\d'?_<i>"))
    labels = data.trials["label"].unique()[:40]
    ids = [meta["id"] for meta in data.rois_meta]
    for asked in (
        fetch_laion_fmri([1, 3], "face", trial_filter=odd, verbose=0),
        fetch_laion_fmri(trial_filter={"label": NotIn(*labels)}, verbose=0),
        fetch_laion_fmri_ids(ids, verbose=0),
    ):
        source = re.search("<code>(.*?)</code>", make_report(asked).html, re.DOTALL)
        names = {}
        exec(html.unescape(source[1]), names)
        assert names["data"].query == asked.query
        assert names["data"].images == asked.images
        assert names["data"].trials.equals(asked.trials)


def test_files_are_counted_and_listed_with_their_versions(fetched, page):
    versions = table(page, "Versions of files").set_index("id")
    for meta in [*fetched.images_meta, *fetched.rois_meta]:
        row = versions.loc[meta["id"]]
        for name in ("etag", "last_modified", "size"):
            assert row[name] == str(meta[name])
    assert table(page, "Selected")["number"].tolist() == ["8", "12", "512"]
    assert f"of {fetched.trials['label'].nunique()} stimuli" in page


def test_rois_have_their_size_and_noise_ceiling(fetched, page):
    rois = table(page, "Sizes of ROIs").set_index(["subject", "name"])
    assert len(rois) == len(fetched.rois)
    mask = values_of(fetched.roi_files["sub-03"]["FFA1"]) > 0
    ceiling = values_of(fetched.noise_ceilings["sub-03"]["Allrep"])[mask]
    row = rois.loc[("sub-03", "FFA1")]
    assert (row["category"], row["n"]) == ("face", str(mask.sum()))
    assert row[["low", "median", "high"]].astype(float).tolist() == pytest.approx(
        [*np.quantile(ceiling, (0.25, 0.5, 0.75))], abs=0.06
    )


def test_trials_are_counted(data):
    data.trials.loc[0, "dataset"] = None
    axes = plot_trials(data, "sub-03")
    heights = {bar.get_label(): sum(bar.datavalues) for bar in axes.containers}
    own = data.trials[data.trials["subject"] == "sub-03"]
    twelve = own[(own["dataset"] == "LAION") & (own["n_reps"] == 12)]
    assert sum(heights.values()) == len(own)
    highest = max(bar.get_y() + bar.get_height() for bar in axes.patches)
    assert highest == own["session"].value_counts().max()
    assert heights["LAION, 12 times"] == len(twelve) > 0
    counts = table(data, "Trials by").set_index(["source", "shown"])
    assert counts.loc[("LAION", "12 times"), "sub-03"] == str(len(twelve))
    assert counts.loc["other", "sub-01"].astype(int).sum() == 2
    del data.trials["n_reps"]
    assert set(table(data, "Trials by")["shown"]) == {"unknown times"}


# --- What changed on disk -------------------------------------------------------------


def states(data):
    """Return the state of each session in a report."""
    found = table(data, "State and size").set_index(["subject", "session"])
    return found["state"]


def test_sessions_on_disk_and_in_the_bucket(cached, server):
    options = {"rois": None, "verbose": 0}
    data = fetch_laion_fmri(1, sessions=1, **options)
    before = states(data)
    assert before.tolist()[:3] == ["selected, on disk", "on disk", "on disk"]
    assert before["sub-01", "ses-31"] == "held out"
    resampled = fetch_laion_fmri(1, sessions=1, resolution=8, **options)
    pd.testing.assert_series_equal(states(resampled), before)
    rsquare = fetch_laion_fmri(1, sessions=1, image_type="rsquare", **options)
    assert states(rsquare).tolist()[:2] == ["selected, on disk", "in the bucket"]
    both = fetch_laion_fmri(1, sessions=1, image_type=["betas", "rsquare"], **options)
    assert states(both).tolist()[:2] == ["selected, on disk", "partly on disk"]
    Path(data.images[0]).unlink()
    assert states(data)["sub-01", "ses-01"] == "selected, not on disk"
    data.failed = [{**data.images_meta[0], "reason": "the server is down"}]
    assert table(data, "Files that failed")["reason"].tolist() == ["the server is down"]
    plan = fetch_laion_fmri(1, dry_run=True, **options)
    planned = table(plan, "Files to fetch")["id"].tolist()
    assert data.images_meta[0]["id"] in planned
    for file in (cached / ".laion_fmri" / "listings").glob("*.json"):
        file.unlink()
    assert set(states(data)) == {"selected, not on disk", "on disk"}
    assert "no listing of the bucket is saved" in make_report(data).html


def test_masks_that_are_lost_empty_damaged_or_of_another_grid(cached, server):
    data = fetch_laion_fmri(
        rois="face", sessions=1, roi_filter={"res": ["1pt8", "1pt5"]}, verbose=0
    )
    assert len({meta["res"] for meta in data.rois_meta}) == 2
    assert plot_rois(data).get_legend()
    for file in data.rois[1:]:
        mask = nib.load(file)
        empty = np.zeros(mask.shape, np.uint8)
        nib.save(nib.Nifti1Image(empty, mask.affine), file)
    Path(data.rois[0]).unlink()
    data.noise_ceilings["sub-01"] = {}
    rois = table(data, "Sizes of ROIs")
    assert set(rois["n"]) == {"0", "not on disk"}
    assert set(rois["median"]) == {""}
    terms = {"roi": "FFA1", "space": "fsnative", "extension": "func.gii"}
    surface = fetch_laion_fmri(1, roi_filter=terms, max_images=0, verbose=0)
    row = table(surface, "Sizes of ROIs").set_index("name").loc["FFA1 L"]
    n_vertices = (nib.load(surface.rois[0]).darrays[0].data > 0).sum()
    assert (row["n"], row["unit"]) == (str(n_vertices), "vertices")
    Path(data.rois[1]).write_bytes(b"\x1f\x8b")
    with pytest.raises(CorruptImageError, match=Path(data.rois[1]).name):
        make_report(data)


# --- Figures --------------------------------------------------------------------------


def test_noise_ceiling_by_roi(fetched):
    axes = plot_noise_ceiling(fetched, 1, noise_ceiling="4rep")
    names = [label.get_text().split()[1] for label in axes.get_yticklabels()]
    files = fetched.roi_files["sub-01"]
    assert sorted(names) == sorted(files)
    ceiling = values_of(fetched.noise_ceilings["sub-01"]["4rep"])
    line = axes.lines[0]
    shown = dict(zip(line.get_ydata().round(), line.get_xdata(), strict=True))
    for row, name in enumerate(names):
        median = np.median(ceiling[values_of(files[name]) > 0])
        assert shown[row] == pytest.approx(median, rel=1e-5)
    assert axes.get_xlabel() == "Noise ceiling 4rep (%)"


def test_rois_are_drawn_on_the_sharpest_anatomy(cached, server):
    data = fetch_laion_fmri(1, ["face", "PPA"], **OFFLINE)
    assert "ROIs on the brain mask" in make_report(data).html
    fetch_laion_fmri(1, rois=None, image_type="anatomical", verbose=0)
    assert "ROIs on the anatomy" in make_report(data).html
    axes = plot_rois(data, cut_coords=[-20, 0, 20, 40])
    assert [t.get_text() for t in axes.texts][:4] == ["z=-20", "z=0", "z=20", "z=40"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["face", "place"]
    assert len(plot_rois(data, cut_coords=np.int64(4)).texts) == 4 + len("LR")


def test_betas_of_one_and_of_several_subjects(fetched, no_network):
    one = load_betas(fetched, 1, "face", nc_threshold=30, verbose=0)
    page = make_report(one).html
    rois = table(page, "Sizes of ROIs").set_index("name")
    assert set(rois["category"]) == {"face"}
    for name, mask in one.roi_masks.items():
        assert rois.loc[name, "n"] == str(mask.sum())
        median = np.median(one.noise_ceilings["Allrep"][mask])
        assert float(rois.loc[name, "median"]) == pytest.approx(median, abs=0.06)
    assert "ROIs on the" in page
    heights = [sum(bar.datavalues) for bar in plot_trials(one).containers]
    assert sum(heights) == len(one.data)
    assert plot_rois(one).get_legend()
    assert plot_noise_ceiling(one, noise_ceiling="4rep").lines

    both = load_betas(fetched, "all", "brain", average_repeats=True, verbose=0)
    page = make_report(both).html
    shapes = table(page, "Shape of data")
    assert shapes["subject"].tolist() == ["sub-01", "sub-03"]
    assert shapes["rows"].tolist() == [str(len(b.data)) for b in both.values()]
    assert set(table(page, "Sizes of ROIs")["name"]) >= {"FFA1", "PPA"}
    assert "several" in [t.get_text() for t in plot_trials(both).get_xticklabels()]
    assert plot_rois(both, 3).get_legend()


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_in_and_out(plot, fetched, nothing, tmp_path):
    axes = plt.figure().add_subplot()
    n_figures = len(plt.get_fignums())
    assert plot(fetched, axes=axes) is axes
    assert len(plt.get_fignums()) == n_figures
    assert plot(fetched).figure is not axes.figure
    assert len(plt.get_fignums()) == n_figures + 1, "a notebook shows it"
    nothing.brain_masks, nothing.data_dir = {}, str(tmp_path)
    assert plot(nothing).texts[0].get_text().startswith(("No", "Neither"))


# --- What is refused, escaped, kept ---------------------------------------------------


def test_arguments_that_are_refused(fetched):
    for plot, given, words in (
        (plot_trials, {"subjects": "sub-02"}, "sub-03"),
        (plot_noise_ceiling, {"noise_ceiling": "13rep"}, "12rep"),
        (plot_rois, {"subjects": [1]}, "plot_rois draws the brain of one"),
        (plot_rois, {"cut_coords": 0}, "cut_coords is empty"),
        (plot_rois, {"cut_coords": []}, "cut_coords is empty"),
    ):
        with pytest.raises(InvalidQueryError, match=words):
            plot(fetched, **given)


@pytest.mark.parametrize("function", [make_report, *PLOTS])
def test_what_does_not_fit_is_refused(function, data, monkeypatch):
    for other in (Bunch(data=np.zeros(3)), Bunch(), None, data.trials):
        with pytest.raises(InvalidQueryError, match="without subjects_meta.*fetch"):
            function(other)
    for column in ("subject", "session", "dataset") * (function is plot_trials):
        part = copy.copy(data)
        part.trials = data.trials.drop(columns=column)
        with pytest.raises(InvalidQueryError, match=f"without a column '{column}'"):
            function(part)
    for name in ("matplotlib", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r"laion_fmri_fetchers\[plot\]"):
                function(data)
    data.rois = data.rois[:1]
    with pytest.raises(InvalidQueryError, match=r"rois.* 12 "):
        function(data)


def test_metadata_are_escaped(data, monkeypatch):
    data.query["trial_filter"] = EVIL
    data.failed = [{**data.images_meta[0], "reason": EVIL}]
    data.description = f'{EVIL}\n\nhttps://x.y/"onload=alert(1)'
    data.rois[0], data.rois_meta[0]["roi"] = "mask.nii.gz", EVIL
    data.rois_meta[1]["roi_category"] = EVIL
    data.trials["dataset"] = data.trials["dataset"].astype(object)
    data.trials.loc[0, ["dataset", "label"]] = EVIL
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://mirror.example/a<b>")
    page = make_report(data, title=EVIL).html
    assert "<script" not in page
    assert "<img src=//" not in page
    assert '"onload' not in page
    assert html.unescape(re.search("<title>(.*)</title>", page)[1]) == EVIL
    assert "bucket: http://mirror.example/a&lt;b&gt;" in page


def test_a_report_is_kept_and_shown(nothing, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    report = make_report(nothing, title="Örtlich")
    report.save_as_html(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == report.html
    report.open_in_browser(tmp_path / "shown.html")
    report.open_in_browser()
    assert opened[0] == (tmp_path / "shown.html").as_uri()
    assert opened[1].startswith("file://")
    frame = report._repr_html_()
    assert html.unescape(frame.split('"')[1]) == report.get_standalone()
    assert "save_as_html" in str(report)
    assert len(str(report)) < 80
    nothing.subjects_meta = []
    assert "Nothing to show" in make_report(nothing).html


@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Debian's package chromium")
def test_as_a_browser_shows_it(fetched, cached, server, nothing, tmp_path):
    ids = [meta["id"] for meta in [*fetched.images_meta, *fetched.rois_meta]]
    Path(cached, fetched.images_meta[0]["id"]).unlink()
    reports = {
        "files": make_report(fetched),
        "betas": make_report(load_betas(fetched, "all", ["face", "PPA"], verbose=0)),
        "ids": make_report(fetch_laion_fmri_ids(ids, verbose=0)),
        "plan": make_report(fetch_laion_fmri("all", dry_run=True, verbose=0)),
        "none": make_report(nothing),
    }
    pages = []
    for name, report in reports.items():
        file = tmp_path / f"{name}.html"
        report.save_as_html(file)
        assert file.stat().st_size < 3_000_000
        pages += [(file, 1280), (file, 400)]
    notebook = tmp_path / "notebook.html"
    frame = reports["none"]._repr_html_()
    notebook.write_text(f"<!DOCTYPE html>{frame}", "utf-8")
    seen, console = browser.look(tmp_path, [*pages, (notebook, 800)])
    assert console == []
    for shown, (file, width) in zip(seen, [*pages, (notebook, 800)], strict=True):
        assert shown == {
            **dict.fromkeys(("fits", "pictures", "links"), True),
            "sections": 6,
            "requests": [],
        }, f"{file.name} at {width}"
