"""NIfTI images, read and written a volume at a time.

A session of betas is ten times larger than the memory of many machines. Reading passes
once through a buffer of one volume, which the next volume overwrites::

    header = read_header(file)
    for volume in iter_volumes(header, [0, 5]):
        values = scaled(header, volume[voxels], "float32")
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

from laion_fmri_fetchers.cache.files import readable, unreadable, whole_file
from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.layout.keys import is_nifti_name

# Bytes decompressed at once. The stream decompresses into bytes of its own and copies
# them, which costs a sixth of the time; so few are still in the processor's cache.
# igzip_threaded was no faster.
_CHUNK = 2**18

_DAMAGED: tuple[Any, ...] = (
    isal_zlib.error,
    zlib.error,
    EOFError,
    OverflowError,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


class Header(NamedTuple):
    """What is needed of a NIfTI file to read its volumes."""

    file: str
    shape: tuple[int, int, int]
    """Voxels of a volume."""
    n_volumes: int
    """1 for a 3-D image."""
    affine: np.ndarray
    dtype: np.dtype
    """As on disk, with its byte order."""
    slope: float
    inter: float
    offset: int
    """Bytes before the first volume."""
    nifti: nib.Nifti1Header
    """The whole header."""


def read_header(file: str | os.PathLike) -> Header:
    """Read the header of a NIfTI file.

    Parameters
    ----------
    file : str or path
        A ``.nii.gz`` or ``.nii`` file.

    Returns
    -------
    Header
        With scaling and byte order as nibabel understands them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorruptImageError
        If it is damaged, or holds anything but 3-D or 4-D real numbers.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np
    >>> file = tempfile.mkdtemp() + "/image.nii.gz"
    >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 7), "float32"), np.eye(4)), file)
    >>> header = read_header(file)
    >>> header.shape, header.n_volumes, str(header.dtype)
    ((4, 5, 6), 7, 'float32')
    """
    file = os.fspath(file)
    with _errors_named(file):
        image = nib.load(file, mmap=False)
    if not isinstance(image, nib.Nifti1Image) or not is_nifti_name(file):
        raise _corrupt_image(file, "it is neither .nii nor .nii.gz")
    proxy: Any = image.dataobj
    shape = image.shape
    if len(shape) not in (3, 4) or proxy.dtype.kind not in "iuf":
        raise _corrupt_image(file, f"it is {proxy.dtype} of shape {shape}")
    if proxy.offset < image.header.sizeof_hdr:
        # Some tools leave 0 there; nibabel then reads the header as values.
        raise _corrupt_image(
            file, f"its values begin at byte {proxy.offset}, in its header"
        )
    return Header(
        file,
        (shape[0], shape[1], shape[2]),
        shape[3] if len(shape) == 4 else 1,
        image.affine,
        proxy.dtype,
        float(proxy.slope),
        float(proxy.inter),
        proxy.offset,
        image.header,
    )


def iter_volumes(
    header: Header, indices: Sequence[int] | np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Read volumes of an image, each into the memory of the one before.

    Parameters
    ----------
    header : Header
        The header of the file.
    indices : sequence of int, optional
        The volumes, increasing; None: all. Nothing after the last of them is read.

    Yields
    ------
    numpy.ndarray, shape (n_voxels,)
        A volume's values as on disk, the first axis varying fastest; see `scaled`.
        It is valid until the next volume is read.

    Raises
    ------
    CorruptImageError
        If the file is damaged or too short; if the last volume is read, also if its
        checksum does not match.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np
    >>> file = tempfile.mkdtemp() + "/image.nii.gz"
    >>> values = np.arange(24, dtype="int16").reshape(2, 2, 2, 3)
    >>> nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    >>> [volume.tolist() for volume in iter_volumes(read_header(file), [1])]
    [[1, 13, 7, 19, 4, 16, 10, 22]]
    """
    if indices is None:
        indices = range(header.n_volumes)
    n_voxels = math.prod(header.shape)
    with _errors_named(header.file):
        if header.file.endswith(".gz"):
            yield from _decompress(header, indices, n_voxels)
            return
        size = n_voxels * header.dtype.itemsize
        if os.path.getsize(header.file) < header.offset + header.n_volumes * size:
            raise EOFError("it ends before its last volume")
        for index in indices:
            # A map of the file: what is not looked at is not read from the disk.
            offset = header.offset + int(index) * size
            yield np.memmap(header.file, header.dtype, "r", offset, (n_voxels,))


def _decompress(
    header: Header, indices: Iterable[int], n_voxels: int
) -> Iterator[np.ndarray]:
    """Read volumes out of a gzip stream; those in between are overwritten unseen."""
    volume = np.empty(n_voxels, dtype=header.dtype)
    buffer = volume.view(np.uint8).data
    next_volume = 0
    with igzip.open(header.file) as stream:
        stream.read(header.offset)
        for index in indices:
            for _ in range(next_volume, index + 1):
                done = 0
                while done < len(buffer):
                    n_bytes = stream.readinto(buffer[done : done + _CHUNK])
                    if not n_bytes:
                        raise EOFError("it ends before its last volume")
                    done += n_bytes
            next_volume = index + 1
            yield volume
        if next_volume == header.n_volumes:
            # The stream compares the checksum at its end, which may be megabytes away.
            while stream.read(_CHUNK):
                pass


def scaled(header: Header, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Return values of `iter_volumes` as the header scales them.

    Parameters
    ----------
    header : Header
        The header of their file.
    values : numpy.ndarray
        As on disk: a volume, or some of its voxels.
    dtype : dtype or None
        A floating point type; None: the type on disk, or float64 if there is scaling.

    Returns
    -------
    numpy.ndarray
        Of that type, in the machine's byte order; it may be ``values`` itself.
    """
    if (header.slope, header.inter) == (1, 0):
        return values.astype(dtype or header.dtype.newbyteorder("="), copy=False)
    exact = values.astype(float)
    exact *= header.slope
    exact += header.inter
    return exact.astype(dtype or float, copy=False)


def write_volumes(
    file: str | os.PathLike,
    volumes: Iterable[np.ndarray],
    header: nib.Nifti1Header,
) -> None:
    """Write an image a volume at a time; it appears whole or not at all.

    Parameters
    ----------
    file : str or path
        A ``.nii.gz`` or ``.nii`` file; one that exists is replaced.
    volumes : iterable of numpy.ndarray
        As many volumes as the header says, each of its shape.
    header : nibabel.Nifti1Header
        Shape, affine and data type of the image; values are written unscaled.

    Raises
    ------
    ValueError
        If volumes are fewer or of another shape.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np
    >>> file = tempfile.mkdtemp() + "/image.nii.gz"
    >>> header = nib.Nifti1Header()
    >>> header.set_data_shape((2, 2, 2, 3))
    >>> header.set_data_dtype("float32")
    >>> write_volumes(file, (np.full((2, 2, 2), i) for i in range(3)), header)
    >>> nib.load(file).get_fdata()[0, 0, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    file = os.fspath(file)
    header = header.copy()
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(whole_file(file))
        if file.endswith(".gz"):
            # Without a time: the same values are the same bytes.
            gzipped = igzip.IGzipFile("", "wb", 1, stream, mtime=0)
            stream = stack.enter_context(gzipped)
        stream.write(header.binaryblock)
        stream.write(bytes(header.single_vox_offset - len(header.binaryblock)))
        n_volumes = 0
        for volume in volumes:
            if volume.shape != shape[:3]:
                raise ValueError(f"a volume is {volume.shape}, the header says {shape}")
            ordered = np.asarray(volume, dtype=dtype).ravel(order="F")
            stream.write(ordered.view(np.uint8).data)
            n_volumes += 1
        if n_volumes != math.prod(shape[3:]):
            raise ValueError(f"{n_volumes} volumes, the header says {shape}")


@contextlib.contextmanager
def _errors_named(file: str) -> Iterator[None]:
    """Let errors of a damaged file name it, and say what to do."""
    try:
        with readable():
            yield
    except FileNotFoundError:
        raise
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        # nibabel calls a file that disappears while it is opened no image.
        if not os.path.exists(file):
            code = errno.ENOENT
            raise FileNotFoundError(code, os.strerror(code), file) from error
        if not os.access(file, os.R_OK):
            raise unreadable(file) from error
        raise _corrupt_image(file, error) from error


def _corrupt_image(file: str, reason: object) -> CorruptImageError:
    return CorruptImageError(
        f"The image {file} cannot be read: {reason}. If it is damaged, "
        "`laion-fmri-fetchers verify --repair` fetches it again."
    )
