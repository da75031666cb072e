"""The package as a whole: lazy import, public names, typed marker."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import laion_fmri_fetchers

HEAVY = {"requests", "numpy", "pandas", "nibabel", "sklearn", "nilearn", "h5py", "tqdm"}


def imported_by(code):
    code += "\nimport sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import laion_fmri_fetchers",
        "from laion_fmri_fetchers import ResultFilter, IsIn, LaionFmriError\n"
        "ResultFilter(n_reps=12)",
        "import laion_fmri_fetchers.cli.main as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass",
        "import laion_fmri_fetchers.cli.main as c\n"
        "try: c.main(['fetch', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_import_is_lazy(code):
    assert not imported_by(code) & HEAVY


def test_a_module_does_not_hide_the_function_of_its_name():
    imported_by(
        "import laion_fmri_fetchers.doctor\n"
        "from laion_fmri_fetchers import doctor\n"
        "assert doctor.__doc__.startswith('Compare')"
    )


def test_every_public_name_is_there():
    stub = Path(laion_fmri_fetchers.__file__).with_suffix(".pyi").read_text()
    names = [
        alias.asname
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(names) == len(set(names)) > 40
    for name in names:
        assert getattr(laion_fmri_fetchers, name).__doc__, name
        assert name in dir(laion_fmri_fetchers)
    with pytest.raises(AttributeError):
        laion_fmri_fetchers.no_such_name  # noqa: B018


def test_what_few_need_is_not_at_the_top():
    elsewhere = {
        "access": ["license_text", "logout"],
        "query": ["basic_image_terms", "basic_roi_terms"],
        "splits": ["StimulusSplit"],
        "exceptions": ["InvalidQueryError", "NotCachedError", "StimulusAccessError"],
    }
    for module, names in elsewhere.items():
        found = importlib.import_module(f"laion_fmri_fetchers.{module}")
        for name in names:
            assert getattr(found, name).__doc__
            assert not hasattr(laion_fmri_fetchers, name)


def test_api_pages_have_every_public_name():
    pages = (Path(__file__).parents[1] / "doc").glob("api_*.rst")
    listed = {name for page in pages for name in page.read_text().split()}
    missing = {n for n in laion_fmri_fetchers.__all__ if not n.startswith("_")} - listed
    assert missing == set()


def public_names():
    return [name for name in laion_fmri_fetchers.__all__ if not name.startswith("_")]


@pytest.mark.parametrize("name", public_names())
def test_docstring_follows_numpydoc(name):
    from numpydoc.validate import validate

    is_error = name.endswith("Error")
    allowed = {"ES01", "GL01", "SA01"} | ({"EX01", "PR01"} if is_error else set())
    module = getattr(laion_fmri_fetchers, name).__module__
    found = validate(f"{module}.{name}")["errors"]
    assert [error for error in found if error[0] not in allowed] == []


def test_version_and_typed_marker():
    version = importlib.metadata.version("laion_fmri_fetchers")
    assert version == laion_fmri_fetchers.__version__
    assert Path(laion_fmri_fetchers.__file__).with_name("py.typed").exists()


def test_an_offline_call_does_without_an_http_client(cached):
    names = imported_by(
        "from laion_fmri_fetchers import fetch_laion_fmri\n"
        "assert len(fetch_laion_fmri(mode='offline', verbose=0).images) == 4"
    )
    assert not names & {"requests", "urllib3"}


def test_regions_offline_do_without_an_http_client(cached):
    names = imported_by(
        "from laion_fmri_fetchers import fetch_laion_betas, pack_betas\n"
        "how = {'mode': 'offline', 'verbose': 0}\n"
        "assert fetch_laion_betas(rois='FFA1', sessions=1, **how).data.size"
    )
    assert not names & {"requests", "urllib3"}
