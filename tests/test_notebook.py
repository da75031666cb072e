"""In a notebook: a real kernel, that takes no input and has no widgets."""

from __future__ import annotations

import nbclient
import nbformat


def test_a_session_of_work(server, data_dir, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("LAION_FMRI_LICENSE", "")
    cells = (
        "from laion_fmri_fetchers import *\n"
        "from laion_fmri_fetchers.exceptions import LicenseNotAcceptedError",
        "try:\n"
        "    fetch_laion_fmri('sub-01', rois='FFA1', sessions=1, verbose=0)\n"
        "except LicenseNotAcceptedError as error:\n"
        "    print(error)",
        "import os; os.environ['LAION_FMRI_LICENSE'] = 'I AGREE'\n"
        "data = fetch_laion_fmri('sub-01', rois='face', sessions=1)",
        *("data", "make_report(data)", "axes = plot_trials(data)"),
    )
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.execute(notebook, timeout=240, kernel_name="python3")

    def shown(i, kind):
        found = [each.get("data", {}).get(kind) for each in notebook.cells[i].outputs]
        return "".join(filter(None, found))

    def said(i, stream):
        outputs = notebook.cells[i].outputs
        return "".join(each.text for each in outputs if each.get("name") == stream)

    assert "LAION_FMRI_LICENSE='I AGREE'" in said(1, "stdout")
    text = said(2, "stdout")
    assert text.startswith("Downloading ")
    assert "1 beta image, 4 ROI masks and 64 trials of sub-01" in text
    assert "Warning" not in text + said(2, "stderr"), "a bar of text needs no widgets"
    assert 0 < shown(3, "text/plain").count("\n") < 20
    assert shown(4, "text/html")
    assert shown(5, "image/png"), "figures are shown after a report, too"
