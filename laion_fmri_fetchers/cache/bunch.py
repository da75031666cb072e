"""What fetchers return: a Bunch that is shown briefly, and texts on the dataset."""

from __future__ import annotations

import copy
from html import escape
from typing import Any, TypeVar

from sklearn.utils import Bunch

from laion_fmri_fetchers.messages import listed

_WIDE = 70
Self = TypeVar("Self", bound="Result")


class Result(Bunch):
    """A Bunch that is shown as one line per key, however much it holds.

    Examples
    --------
    >>> Result(images=["a.nii.gz", "b.nii.gz"], data_dir="/data")
    images    list of 2
    data_dir  '/data'
    >>> Result(roi="<FFA>")._repr_html_()
    '<table><tr><th>roi</th><td>&#x27;&lt;FFA&gt;&#x27;</td></tr></table>'
    """

    def copy(self: Self) -> Self:
        """Return a copy that shares its values; that of a dict would be a dict."""
        return copy.copy(self)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{k:<{width}}  {_shortly(v)}" for k, v in self.items())

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{escape(str(key))}</th><td>{escape(_shortly(value))}</td></tr>"
            for key, value in self.items()
        )
        return f"<table>{''.join(rows)}</table>"


def _shortly(value: Any) -> str:
    """Return a value as text of a line."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of {' x '.join(map(str, value.shape))}"
    if hasattr(value, "n_vertices"):
        return f"{type(value).__name__} of {value.n_vertices} vertices"
    if isinstance(value, str) and "\n" in value:
        return f"text of {value.count(chr(10))} lines"
    text = repr(value)
    if isinstance(value, (list, dict)):
        names = f": {listed(list(map(str, value)))}" if isinstance(value, dict) else ""
        text = f"{type(value).__name__} of {len(value)}{names if value else ''}"
    return text if len(text) <= _WIDE else f"{text[:_WIDE]}..."
