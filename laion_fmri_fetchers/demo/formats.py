"""Bytes of the file formats that the dataset uses, without a time of writing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np


def with_sidecar(
    stem: str, data: bytes, sidecar: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield an image and its sidecar, each ``(key, bytes)``."""
    yield f"{stem}.nii.gz", data
    yield f"{stem}.json", json_bytes(sidecar)


def json_bytes(value: Any) -> bytes:
    """Return a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def tsv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return a tab-separated table."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return a comma-separated table."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def nifti_bytes(data: np.ndarray, affine: np.ndarray, tr: float | None = None) -> bytes:
    """Return a compressed NIfTI; `tr` is the time per volume in seconds."""
    import nibabel

    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if tr is not None:
        image.header["pixdim"][4] = tr
    return _gzip(image.to_bytes())


def mgz_bytes(data: np.ndarray, affine: np.ndarray) -> bytes:
    """Return a volume in FreeSurfer's format."""
    import nibabel

    return _gzip(nibabel.MGHImage(data, affine).to_bytes())


def gifti_bytes(values: np.ndarray) -> bytes:
    """Return one float32 map on a surface."""
    import nibabel

    array = nibabel.gifti.GiftiDataArray(
        values.astype(np.float32), intent="NIFTI_INTENT_SHAPE"
    )
    return nibabel.GiftiImage(darrays=[array]).to_bytes()


def freesurfer_label(subject: str, vertices: np.ndarray, inside: np.ndarray) -> bytes:
    """Return a FreeSurfer label: the vertices inside and their positions."""
    lines = [f"#!ascii label  , from subject {subject} vox2ras=TkReg"]
    lines.append(str(int(inside.sum())))
    for i in np.flatnonzero(inside):
        x, y, z = vertices[i]
        lines.append(f"{i}  {x:.3f}  {y:.3f}  {z:.3f} 1.0000000000")
    return ("\n".join(lines) + "\n").encode()


def freesurfer_surface(
    vertices: np.ndarray, faces: np.ndarray, volume: np.ndarray, affine: np.ndarray
) -> bytes:
    """Return a FreeSurfer triangle file: its magic number, stamp, sizes, arrays.

    Behind them it tells of the volume that the surface was made from: its shape, size
    of voxels, directions of its axes, and the position of its centre (mm).
    """
    head = b"\xff\xff\xfecreated by laion_fmri_fetchers.demo\n\n"
    sizes = np.array([len(vertices), len(faces)], ">i4").tobytes()
    arrays = vertices.astype(">f4").tobytes() + faces.astype(">i4").tobytes()
    tags = np.array([2, 0, 20], ">i4").tobytes()
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    centre = affine[:3, :3] @ np.divide(volume.shape, 2) + affine[:3, 3]
    rows = [
        "valid = 1  # volume info valid",
        "filename = ../mri/orig.mgz",
        f"volume = {' '.join(map(str, volume.shape))}",
        f"voxelsize = {_numbers(zooms)}",
        *(
            f"{axis}ras   = {_numbers(affine[:3, i] / zooms[i])}"
            for i, axis in enumerate("xyz")
        ),
        f"cras   = {_numbers(centre)}",
    ]
    text = "\n".join(rows) + "\n"
    return head + sizes + arrays + tags + text.encode()


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.15e}" for value in values)


def png_bytes(values: np.ndarray) -> bytes:
    """Return a picture of a slice of percentages, four pixels per voxel."""
    from PIL import Image

    grey = np.clip(values * 2.5, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).resize((4 * grey.shape[1], 4 * grey.shape[0])).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)
