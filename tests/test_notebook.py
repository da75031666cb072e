"""In a notebook: a real kernel, that takes no input and has no widgets."""

from __future__ import annotations

import nbclient
import nbformat
import pytest

SET_UP = """
import os
from laion_fmri_fetchers import *
from laion_fmri_fetchers.exceptions import LicenseNotAcceptedError
os.environ.update({settings!r})
"""


@pytest.fixture
def run(server, data_dir, monkeypatch):
    """Run cells; return the outputs of each."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    settings = {
        "LAION_FMRI_BUCKET_URL": server.url,
        "LAION_FMRI_DATA_DIR": str(data_dir),
        "LAION_FMRI_LICENSE": "I AGREE",
    }

    def run(*cells):
        sources = [SET_UP.format(settings=settings), *cells]
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources]
        )
        nbclient.execute(notebook, timeout=120, kernel_name="python3")
        return [cell.outputs for cell in notebook.cells[1:]]

    return run


def kinds(outputs):
    return {kind for output in outputs for kind in output.get("data", ())}


def text(outputs, name):
    return "".join(o.text for o in outputs if o.get("name") == name)


def test_a_session_of_work(run):
    fetching, shown, report, figure = run(
        "data = fetch_laion_fmri('sub-01', rois='face', sessions=1)",
        "data",
        "make_report(data)",
        "axes = plot_trials(data)",
    )
    said = text(fetching, "stdout")
    assert said.startswith("Downloading ")
    assert "1 beta image, 4 ROI masks and 64 trials of sub-01" in said
    assert "Warning" not in said
    assert "Warning" not in text(fetching, "stderr"), "a bar of text needs no widgets"
    (result,) = shown
    assert result.data["text/plain"].count("\n") < 20
    assert "text/html" in kinds(report)
    assert "image/png" in kinds(figure), "figures are shown after a report, too"


def test_a_kernel_that_takes_no_input_is_told_what_to_do(run):
    (refused,) = run(
        "os.environ['LAION_FMRI_LICENSE'] = ''\n"
        "try:\n"
        "    fetch_laion_fmri('sub-01', rois='FFA1', sessions=1, verbose=0)\n"
        "except LicenseNotAcceptedError as error:\n"
        "    print(error)",
    )
    assert "LAION_FMRI_LICENSE='I AGREE'" in text(refused, "stdout")
