"""Configuration of the documentation."""

import laion_fmri_fetchers

project = "laion_fmri_fetchers"
author = "The laion_fmri_fetchers developers"
copyright = f"2026, {author}"
version = release = laion_fmri_fetchers.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
]
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
default_role = "autolink"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
nitpicky = False
