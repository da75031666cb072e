"""The call that made a Bunch, as source to copy and run."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.query import values
from laion_fmri_fetchers.query.filters import as_filter

_WIDTH = 84
_SPECIAL = [name for name, cls in vars(values).items() if inspect.isclass(cls)]


def as_code(query: dict[str, Any]) -> str:
    """Return the call of a query as source.

    Arguments that are None are left out. A function among the filters is not kept in a
    query, so its filter becomes a comment.

    Parameters
    ----------
    query : dict
        ``query`` of the Bunch of a fetcher.

    Examples
    --------
    >>> print(as_code({"subjects": ["sub-01"], "trial_filter": {"n_reps": 12}}))
    from laion_fmri_fetchers import ResultFilter, fetch_laion_fmri
    <BLANKLINE>
    data = fetch_laion_fmri(
        subjects=['sub-01'],
        trial_filter=ResultFilter(n_reps=12),
    )
    """
    function = "fetch_laion_fmri" + ("_ids" if "image_ids" in query else "")
    lines = [
        line
        for name, value in query.items()
        if value is not None
        for line in _argument(name, value)
    ]
    text = "\n".join(lines)
    named = [name for name in ("ResultFilter", *_SPECIAL) if f"{name}(" in text]
    names = ", ".join([*named, function])
    call = "\n".join(f"    {line}" for line in lines)
    return f"from laion_fmri_fetchers import {names}\n\ndata = {function}(\n{call}\n)"


def _argument(name: str, value: Any) -> list[str]:
    """Return the lines of an argument."""
    if name.endswith("_filter"):
        try:
            value = as_filter(value)
        except InvalidQueryError:
            return _comment(f"{name} had a function, which is not kept: {value}")
    line = f"{name}={value!r},"
    try:
        ast.parse(f"call({line})")
    except SyntaxError:
        return _comment(f"{name} is too long to show; data.query has it: {value!r}")
    if not isinstance(value, list) or len(line) <= _WIDTH:
        return [line]
    items = ", ".join(map(repr, value))
    wrapped = textwrap.wrap(
        f"{items},", _WIDTH - 4, break_long_words=False, break_on_hyphens=False
    )
    return [f"{name}=[", *(f"    {part}" for part in wrapped), "],"]


def _comment(text: str) -> list[str]:
    one_line = re.sub(r"\s+", " ", text)
    return textwrap.wrap(one_line, _WIDTH, initial_indent="# ", subsequent_indent="# ")
