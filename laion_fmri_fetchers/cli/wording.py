"""Messages of the package in words of the command line."""

from __future__ import annotations

import re
from argparse import Namespace as Options
from collections.abc import Callable

from .terms import OPERATORS

PROGRAM = "laion-fmri-fetchers"

_COMMAND = rf"'{PROGRAM} [^']*'"
_WORDS: dict[str, str | Callable[[re.Match], str]] = {
    r"mode='(\w+)'": r"--mode \1",
    r"accept_terms_version='([^']*)'": r"--accept-terms-version '\1'",
    r"(?<![\w/.-])(allow_missing|renew)=True": r"--\1",
    r"\brequest_stimulus_access\(([^)]*)\)": rf"'{PROGRAM} request-access \1'",
    r"\bfetch_laion_stimuli\(([^)]*)\)": rf"'{PROGRAM} fetch-stimuli \1'",
    r"\blicense_text\(\)": f"'{PROGRAM} accept-license --show'",
    r"\baccept_license\(\)": f"'{PROGRAM} accept-license'",
    r"\bdataset_initialize\b(\(\))?": f"'{PROGRAM} initialize FOLDER'",
    r"\bpass request_id or (?=set LAION_FMRI_REQUEST_ID)": "",
    r"\bcurrent_terms_version\(\)": f"'{PROGRAM} doctor -v'",
    rf"('{PROGRAM} [a-z-]+) '": r"\1'",
    rf"({_COMMAND}) or \1": r"\1",
    r"\bResultFilter\(((?:[^()]|\([^()]*\))*)\)": r"\1",
    r"=Pattern\(pattern=('[^']*'), flags=\d+\)": r" ~ \1",
    r"\b(\w+)=(\w+)\(([^()]*)\)": lambda term: (
        f"{term[1]} {OPERATORS[term[2]]} {term[3]}" if term[2] in OPERATORS else term[0]
    ),
    r"\b(trial|stimulus|caption|segmentation)_filter\b": "--where",
    r"\bimage_filter\b": "--image-where",
    r"(?<![\w/.-])(data_dir|max_images|n_connections|ood_types)\b(?![\w/.])": r"--\1",
    r"\b(research_purpose|accept_terms_version|acknowledge_privacy)\b": r"--\1",
    r"(?<= )--[a-z_]+|^--[a-z_]+": lambda option: option[0].replace("_", "-"),
    r"\bthe same call\b": "the same command",
}
"""Python in messages of the package, and how a shell spells it; applied in order."""


def on_a_shell(message: str, options: Options) -> str:
    """Return a message of the package in words of the command line.

    A command without ``--mode`` is told of the one that downloads.

    Examples
    --------
    >>> fetch, report = Options(mode=None), Options()
    >>> on_a_shell("Download it first, with mode='download_new'.", fetch)
    'Download it first, with --mode download_new.'
    >>> on_a_shell("Download it first, with mode='download_new'.", report)
    "Download it first, with 'laion-fmri-fetchers fetch'."
    >>> on_a_shell("Request access with request_stimulus_access(renew=True).", fetch)
    "Request access with 'laion-fmri-fetchers request-access --renew'."
    """
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message)
    if not hasattr(options, "mode"):
        message = message.replace("--mode download_new", f"'{PROGRAM} fetch'")
    return message
