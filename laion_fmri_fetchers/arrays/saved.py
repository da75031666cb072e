"""A Bunch in one file: arrays, tables, images and plain values, without pickled code.

The file is an ``.npz``: numpy reads its arrays, and each has a checksum. Its member
``about`` is JSON, a tree of nodes: plain values are themselves, everything else is a
list of the node's kind and its parts::

    write_values ─▶ _Writer.node ─▶ _Writer.column, of tables
    read_values ──▶ _Reader.value ─▶ _Reader.column
"""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from laion_fmri_fetchers.betas.store import DAMAGED
from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DiskSpaceError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.query.arguments import user_path

_FORMAT = "laion_fmri_fetchers betas"
_VERSION = 1
_PLAIN = (bool, int, str, type(None))  # exactly: a subclass would lose its type
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_DAMAGED = (*DAMAGED, IndexError)


def write_values(file: str | os.PathLike, values: dict[str, Any]) -> None:
    """Write a dict such that the file appears whole or not at all.

    Parameters
    ----------
    file : str or path
        The file; one that exists is replaced, folders are made.
    values : dict
        Arrays, DataFrames, 3-D or 4-D images, and lists, tuples and dicts of them and
        of plain values.

    Raises
    ------
    InvalidQueryError
        If a value is something else, or ``file`` is a folder.
    DiskSpaceError
        If the disk is full.
    """
    file = user_path(file, "path")
    if os.path.isdir(file):
        raise InvalidQueryError(f"path is {file}, which is a folder; name a file in it")
    try:
        with (
            whole_file(file) as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
        ):
            writer = _Writer(archive)
            tree = [[key, writer.node(value, key)] for key, value in values.items()]
            about = {"format": _FORMAT, "version": _VERSION, "tree": tree}
            writer.write("about", np.frombuffer(json.dumps(about).encode(), np.uint8))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskSpaceError(
            error.errno, f"The disk of {file} is full; nothing was written."
        ) from error


def read_values(file: str | os.PathLike) -> dict[str, Any]:
    """Read what `write_values` wrote.

    Raises
    ------
    NotCachedError
        If there is no such file.
    CorruptImageError
        If it is damaged, or something else.
    InvalidQueryError
        If a later version of this package wrote it.
    """
    file = user_path(file, "path")
    try:
        with zipfile.ZipFile(file) as archive:
            reader = _Reader(archive)
            about = json.loads(reader.array("about").tobytes())
            if about["format"] != _FORMAT:
                raise ValueError("it holds something else")
            if about["version"] <= _VERSION:
                return {key: reader.value(node) for key, node in about["tree"]}
    except FileNotFoundError as error:
        raise NotCachedError(
            f"There is no file {file} that the method save of betas could have written."
        ) from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error) or type(error).__name__
        raise CorruptImageError(
            f"{file} cannot be read ({reason}). It is damaged, or not what the method "
            "save of betas wrote; load and save the betas again."
        ) from error
    raise InvalidQueryError(
        f"{file} was written by a later version of laion_fmri_fetchers; update the "
        "package to read it."
    )


class _Writer:
    """Writes arrays of values as members of an archive, and returns nodes."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._n_arrays = 0

    def write(self, name: str, array: np.ndarray) -> None:
        member = zipfile.ZipInfo(f"{name}.npy")
        if array.itemsize == 1:  # masks, which become far smaller
            member.compress_type = zipfile.ZIP_DEFLATED
        with self._archive.open(member, "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)

    def array(self, array: np.ndarray) -> list:
        name = f"array{self._n_arrays}"
        self._n_arrays += 1
        self.write(name, array)
        return ["array", name]

    def node(self, value: Any, name: str) -> Any:
        """Return a value as JSON has it; ``name`` is its key, for messages."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, float):
            return ["float", float(value).hex()]
        if value is pd.NA or value is pd.NaT:
            return ["null", str(value)]
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [self.node(part, name) for part in value]]
        if isinstance(value, dict):
            parts = [part for item in value.items() for part in item]
            return ["dict", [self.node(part, name) for part in parts]]
        return self._node_of_arrays(value, name)

    def _node_of_arrays(self, value: Any, name: str) -> list:
        if isinstance(value, pd.DataFrame):
            return self._frame(value, name)
        if isinstance(value, nib.Nifti1Image):
            data = self.array(np.asanyarray(value.dataobj))
            return ["image", data, self.array(value.affine)]
        if hasattr(value, "__array__") and hasattr(value, "shape"):
            array = np.asarray(value)
            if array.dtype.kind != "O":
                kind = "scalar" if isinstance(value, np.generic) else "array"
                return [kind, *self.array(array)[1:]]
            parts = [self.node(part, name) for part in array.ravel().tolist()]
            return ["objects", list(array.shape), parts]
        raise InvalidQueryError(
            f"{name!r} holds a {type(value).__name__}, which cannot be saved without "
            "pickling code; remove it, or make it an array, a table or plain values"
        )

    def _frame(self, frame: pd.DataFrame, name: str) -> list:
        if not frame.columns.is_unique or frame.index.nlevels > 1:
            raise InvalidQueryError(
                f"{name!r} has two columns of one name, or an index of several levels; "
                "such a table cannot be saved"
            )
        index = None
        if not frame.index.equals(pd.RangeIndex(len(frame))):
            index = self.column(frame.index.to_series(), f"the index of {name}")
        columns = [
            [self.node(key, name), self.column(frame[key], f"{name}[{key!r}]")]
            for key in frame.columns
        ]
        return ["frame", columns, index, frame.index.name]

    def column(self, column: pd.Series, name: str) -> list:
        """Return a column: its dtype, codes of its values, the distinct values.

        A column of an ordinary dtype of numpy has no codes.
        """
        dtype = column.dtype
        if isinstance(dtype, np.dtype) and dtype.kind in "biufcmM":
            return [str(dtype), self.array(column.to_numpy()), None]
        if isinstance(dtype, pd.CategoricalDtype):
            kind = "ordered" if dtype.ordered else "categories"
            values = self.column(dtype.categories.to_series(), name)
            return [kind, self.array(column.cat.codes.to_numpy()), values]
        codes: dict[tuple, int] = {}
        distinct: list[Any] = []
        positions = np.empty(len(column), dtype=np.int32)
        for i, value in enumerate(column.tolist()):
            node = self.node(value, name)
            key = (node,) if isinstance(node, str) else ("JSON", json.dumps(node))
            if key not in codes:
                codes[key] = len(distinct)
                distinct.append(node)
            positions[i] = codes[key]
        return [str(dtype), self.array(positions), distinct]


class _Reader:
    """Reads values from the members of an archive, and their nodes."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def array(self, name: str) -> np.ndarray:
        with self._archive.open(f"{name}.npy") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):  # to the end, where the checksum is compared
                raise ValueError(f"{name} is longer than it says")
        return array

    def value(self, node: Any) -> Any:
        """Return the value of a node."""
        if not isinstance(node, list):
            return node
        kind, *parts = node
        return self._readers()[kind](*parts)

    def _readers(self) -> dict[str, Callable]:
        """Return what makes a value of the parts of a node, by its kind."""
        return {
            "float": float.fromhex,
            "null": {"<NA>": pd.NA, "NaT": pd.NaT}.__getitem__,
            "list": self._values,
            "tuple": lambda nodes: tuple(self._values(nodes)),
            "dict": self._dict,
            "array": self.array,
            "scalar": lambda name: self.array(name)[()],
            "objects": lambda shape, nodes: _objects(self._values(nodes)).reshape(
                shape
            ),
            "image": lambda *nodes: nib.Nifti1Image(*self._values(nodes)),
            "frame": self._frame,
        }

    def _values(self, nodes: Iterable) -> list:
        return [self.value(node) for node in nodes]

    def _objects(self, shape: list, nodes: list) -> np.ndarray:
        return _objects(self._values(nodes)).reshape(shape)

    def _dict(self, nodes: list) -> dict:
        keys, values = self._values(nodes[::2]), self._values(nodes[1::2])
        return dict(zip(keys, values, strict=True))

    def _frame(self, columns: list, index: list | None, name: str | None) -> Any:
        series = {self.value(key): self.column(column) for key, column in columns}
        frame = pd.DataFrame(series)
        frame.columns = pd.Index(list(series), dtype=frame.columns.dtype)
        if index is not None:
            frame.index = pd.Index(self.column(index))
        return frame.rename_axis(index=name)

    def column(self, parts: list) -> pd.Series:
        dtype, codes, distinct = parts
        codes = self.value(codes)
        if distinct is None:
            return pd.Series(codes)
        if dtype in ("categories", "ordered"):
            categories = pd.Index(self.column(distinct))
            return pd.Series(
                pd.Categorical.from_codes(codes, categories, dtype == "ordered")
            )
        values = _objects(self._values(distinct))[codes]
        return pd.Series(values, dtype=object).astype(dtype)


def _objects(values: list) -> np.ndarray:
    """Return a list as an array, of which no part is taken for an array itself."""
    return np.fromiter(values, dtype=object, count=len(values))
