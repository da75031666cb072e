"""Arguments that many functions share, documented once.

A docstring names one by a line such as ``%(data_dir)s``, as in nilearn.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_ARGUMENTS = {
    "mode": """\
mode : {"download_new", "overwrite", "offline"}, optional
    ``"download_new"`` (the default) downloads files that are not on disk;
    ``"overwrite"`` downloads selected files again, and replaces those on disk only
    when the new ones are whole; ``"offline"`` opens no socket. None: ``"offline"``
    where ``LAION_FMRI_OFFLINE=1`` is set, else ``"download_new"``.""",
    "data_dir": """\
data_dir : str or path, optional
    The data directory, see `.get_data_dir`.""",
    "n_connections": """\
n_connections : int, default=64
    HTTP connections at once.""",
    "timeout": """\
timeout : float, default=30.0
    Seconds without progress after which a connection is given up.""",
    "labels": """\
labels : str, iterable of str, or DataFrame, optional
    Labels of images, as in ``trials["label"]`` of `fetch_laion_fmri`, or ``trials``
    itself. None: all images.""",
    "stimulus_filter": """\
stimulus_filter : dict, `ResultFilter` or callable, optional
    Which rows of ``metadata`` to keep, each as a dict with ``image_name``.""",
    "stimulus_terms": """\
**stimulus_terms
    Terms on columns of ``metadata``, as in ``unique_or_shared="shared"``.""",
    "files_meta": """\
- ``files_meta``: list of dict, the record of each file on disk: ``size`` in bytes,
  ``etag``, ``last_modified``, ``outdated`` (whether there is a newer version) and
  others.""",
    "verbose": """\
verbose : int, default=1
    0: silent, 1: summary and progress bar, 2: one line per file, 3: debug.""",
}


def documented(function: Function) -> Function:
    """Fill the docstring of a function with the text of shared arguments.

    Raises
    ------
    KeyError
        If a line names an argument that is not shared.

    Examples
    --------
    >>> @documented
    ... def fetch(timeout=30.0):
    ...     '''Fetch.
    ...
    ...     Parameters
    ...     ----------
    ...     %(timeout)s
    ...     '''
    >>> "Seconds without progress" in fetch.__doc__
    True
    """

    def text(line: re.Match[str]) -> str:
        return textwrap.indent(_ARGUMENTS[line[2]], line[1])

    if function.__doc__:  # None under python -OO
        line = r"^( *)%\((\w+)\)s$"
        function.__doc__ = re.sub(line, text, function.__doc__, flags=re.MULTILINE)
    return function
