"""Configuration of the documentation; a build needs no network."""

import sys
from pathlib import Path

import laion_fmri_fetchers

sys.path.insert(0, str(Path(__file__).parent))
from pictures import draw_all

draw_all(Path(__file__).parent / "pictures")

project = "laion_fmri_fetchers"
author = "The laion_fmri_fetchers developers"
copyright = f"2026, {author}"
version = release = laion_fmri_fetchers.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["gallery.css"]

# Names in single backticks are those of this package, and must exist.
rst_prolog = ".. currentmodule:: laion_fmri_fetchers"
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(joblib|matplotlib|nibabel|nilearn|numpy|pandas|re|sklearn)(\..+)?"),
]

copybutton_exclude = ".linenos, .gp, .go"
autosummary_generate = True
autodoc_typehints = "none"  # docstrings tell types
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Docstrings of the demo name its functions without the module.
nitpick_ignore = [
    ("py:obj", name) for name in ("CONTENT", "build_bucket", "serve_demo")
]

# Examples are run; one that fails ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("laion_fmri_fetchers",),
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
}
