"""Bytes of the file formats that the dataset uses, without a time of writing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Files = Iterator[tuple[str, Any]]
"""Keys of the bucket, each with what `encode` makes its file of."""


def with_sidecar(stem: str, image: Any, **fields: Any) -> Files:
    """Yield an image and its sidecar."""
    yield f"{stem}.nii.gz", image
    yield f"{stem}.json", fields


def json_bytes(value: Any) -> bytes:
    """Return a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def table_bytes(rows: Iterable[Sequence[object]], delimiter: str = "\t") -> bytes:
    """Return a table, separated by tabs unless told otherwise."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def nifti_bytes(data: np.ndarray, affine: np.ndarray, tr: float | None = None) -> bytes:
    """Return a compressed NIfTI; `tr` is the time per volume in seconds."""
    import nibabel

    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if tr is not None:
        image.header["pixdim"][4] = tr
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def gifti_bytes(values: np.ndarray) -> bytes:
    """Return one float32 map on a surface."""
    import nibabel

    array = nibabel.gifti.GiftiDataArray(
        values.astype(np.float32), intent="NIFTI_INTENT_SHAPE"
    )
    return nibabel.GiftiImage(darrays=[array]).to_bytes()


def hdf5_bytes(arrays: Mapping[str, Any], **options: Any) -> bytes:
    """Return an HDF5 file of arrays; options are those of ``create_dataset``."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
    return buffer.getvalue()


def freesurfer_label(subject: str, vertices: np.ndarray, inside: np.ndarray) -> bytes:
    """Return a FreeSurfer label: the vertices inside and their positions."""
    lines = [f"#!ascii label  , from subject {subject} vox2ras=TkReg"]
    lines.append(str(int(inside.sum())))
    for i in np.flatnonzero(inside):
        x, y, z = vertices[i]
        lines.append(f"{i}  {x:.3f}  {y:.3f}  {z:.3f} 1.0000000000")
    return ("\n".join(lines) + "\n").encode()


def freesurfer_surface(vertices: np.ndarray, faces: np.ndarray, volume: Any) -> bytes:
    """Return a FreeSurfer triangle file, with the geometry of an MGHImage."""
    from nibabel.freesurfer import write_geometry

    header = volume.header
    about = {
        "head": [2, 0, 20],
        "valid": "1  # volume info valid",
        "filename": "../mri/orig.mgz",
        "volume": header["dims"][:3],
        "voxelsize": header["delta"],
        **dict(zip(("xras", "yras", "zras"), header["Mdc"], strict=True)),
        "cras": header["Pxyz_c"],
    }
    stamp = "created by laion_fmri_fetchers.demo"
    with tempfile.TemporaryDirectory() as folder:  # nibabel writes to files only
        file = Path(folder, "surface")
        write_geometry(file, vertices, faces, stamp, about)
        return file.read_bytes()


def encode(key: str, value: Any) -> bytes:
    """Return the content of a file in the format that its name tells.

    Volumes are tuples, arguments of `nifti_bytes`; bytes are taken as they are.
    """
    if isinstance(value, bytes):
        return value
    if key.endswith(".nii.gz"):
        return nifti_bytes(*value)
    if key.endswith(".csv"):
        return table_bytes(value, ",")
    if key.endswith(".tsv"):
        return table_bytes(value)
    if key.endswith(".json"):
        return json_bytes(value)
    return gifti_bytes(value) if key.endswith(".gii") else hdf5_bytes(value)
