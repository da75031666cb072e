"""The package as a whole: lazy import, public names, typed marker."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from numpydoc.validate import validate

import laion_fmri_fetchers as package

HEAVY = {"requests", "numpy", "pandas", "nibabel", "sklearn", "nilearn", "h5py", "tqdm"}
HTTP = {"requests", "urllib3"}
HELP = (
    "import laion_fmri_fetchers.cli.main as c\ntry: c.main({})\nexcept SystemExit: pass"
)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import laion_fmri_fetchers", HEAVY),
        ("from laion_fmri_fetchers import ResultFilter as F\nF(n_reps=12)", HEAVY),
        (HELP.format(["--help"]), HEAVY),
        (HELP.format(["fetch", "--help"]), HEAVY),
        (
            "from laion_fmri_fetchers import fetch_laion_fmri, fetch_laion_betas\n"
            "how = {'mode': 'offline', 'verbose': 0}\n"
            "assert len(fetch_laion_fmri(**how).images) == 4\n"
            "assert fetch_laion_betas(rois='FFA1', sessions=1, **how).data.size",
            HTTP,
        ),
    ],
    ids=["import", "filter", "help", "help of fetch", "offline"],
)
def test_what_is_not_used_is_not_imported(code, unwanted, cached):
    code += "\nimport sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    imported = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert not {*imported.split()} & unwanted


def test_a_module_does_not_hide_the_function_of_its_name():
    code = (
        "import laion_fmri_fetchers.doctor as _; from laion_fmri_fetchers import doctor"
    )
    subprocess.check_call([sys.executable, "-c", f"{code}; assert callable(doctor)"])


NAMES = [name for name in package.__all__ if not name.startswith("_")]


def test_every_public_name_is_there_and_on_the_api_pages():
    pages = (Path(__file__).parents[1] / "doc").glob("api_*.rst")
    listed = {name for page in pages for name in page.read_text().split()}
    assert len(NAMES) == len({*NAMES}) > 40
    assert {*NAMES} - {*dir(package)} == {*NAMES} - listed == set()
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018
    for module, names in {
        "access": ["license_text", "logout"],
        "query": ["basic_image_terms", "basic_roi_terms"],
        "splits": ["StimulusSplit"],
        "exceptions": ["InvalidQueryError", "NotCachedError", "StimulusAccessError"],
    }.items():  # which few need
        found = importlib.import_module(f"laion_fmri_fetchers.{module}")
        for name in names:
            assert getattr(found, name).__doc__
            assert not hasattr(package, name)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_follows_numpydoc(name):
    is_error = name.endswith("Error")
    allowed = {"ES01", "GL01", "SA01"} | ({"EX01", "PR01"} if is_error else set())
    module = getattr(package, name).__module__
    found = validate(f"{module}.{name}")["errors"]
    assert [error for error in found if error[0] not in allowed] == []


def test_version_and_typed_marker():
    version = importlib.metadata.version("laion_fmri_fetchers")
    assert version == package.__version__
    assert Path(package.__file__).with_name("py.typed").exists()
