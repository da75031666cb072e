"""The guide is true: its code runs, and its figures follow from each other.

The blocks of a page run one after the other in one namespace, on the demo dataset;
blocks with prompts must print what they show, those of class ``not-run`` cannot run.
"""

from __future__ import annotations

import doctest
import re
import shlex
import textwrap
import warnings
from pathlib import Path

import pytest

from laion_fmri_fetchers import ResultFilter, fetch_laion_fmri
from laion_fmri_fetchers.cli import main as cli
from laion_fmri_fetchers.demo import serve_demo

DOC = Path(__file__).parents[1] / "doc"
BLOCK = re.compile(
    r"(?m)^( *)\.\. code-block:: (python|bash)\n((?:\1 +:.*\n)*)\n((?:(?:\1 +.*)?\n)+)"
)
FIELDS = {"label", "n_reps", "dataset", "run", "session", "unique_or_shared"}
COMMAND = re.compile(r"(?m)^laion-fmri-fetchers (.*)")


def blocks(page):
    text = page.read_text("utf-8") + "\n"
    return [
        (found[2], text.count("\n", 0, found.start(4)), textwrap.dedent(found[4]))
        for found in BLOCK.finditer(text)
        if "not-run" not in found[3]
    ]


def run(language, line, code, names, page):
    if language == "bash":
        for command in COMMAND.findall(code.replace("\\\n", "")):
            assert cli.main(shlex.split(command, comments=True)) == 0, command
    elif ">>>" in code:
        test = doctest.DocTestParser().get_doctest(code, names, page, page, line)
        runner = doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        runner.run(test, clear_globs=False)
        names.update(test.globs)
    else:
        exec(compile("\n" * line + code, page, "exec"), names)


@pytest.fixture(scope="module")
def demo():
    with serve_demo(subjects=["sub-01", "sub-03"], n_sessions=10) as running:
        yield running


@pytest.mark.parametrize("page", sorted(p.name for p in DOC.glob("*.rst") if blocks(p)))
def test_code_of_the_guide_runs(page, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", demo.bucket.url)
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", demo.access.url)
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", demo.splits.url)
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        # Each term of a filter in an example selects something.
        for words in ("Nothing passes", "Nothing fulfils", ".*match nothing"):
            warnings.filterwarnings("error", words)
        for block in blocks(DOC / page):
            run(*block, names, page)
        for name, value in names.items():
            is_terms = isinstance(value, dict) and value and value.keys() <= FIELDS
            if is_terms or isinstance(value, ResultFilter):
                data = fetch_laion_fmri("all", None, trial_filter=value, dry_run=True)
                assert len(data.trials), name


def test_download_times_follow_from_sizes():
    """Two digits of GB * 8000 Mbit / (Mbit/s) / 60, in the tables of the dataset."""
    page = (DOC / "dataset.rst").read_text("utf-8")
    number = r"(< 0\.1|[\d,.]+)"
    table = re.compile(rf"(?m) ([\d.]+) +{number} +{number} +{number}$")
    found = table.findall(page.partition("Sizes and times\n")[2])
    assert len(found) == 17
    for size, *minutes in found:
        for rate, shown in zip((10, 100, 1000), minutes, strict=True):
            exact = float(size) * 8000 / rate / 60
            if exact < 0.1:
                assert shown == "< 0.1", (size, rate)
            else:
                assert shown == f"{float(f'{exact:.2g}'):,g}", (size, rate)
