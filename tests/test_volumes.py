"""NIfTI files a volume at a time, as nibabel reads them whole."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.volumes import (
    iter_volumes,
    read_header,
    scaled,
    write_volumes,
)

SHAPE = (7, 6, 5)


def image(n=4, dtype="float32", slope=None, big_endian=False, kind=nib.Nifti1Image):
    values = np.random.default_rng(0).normal(0, 50, (*SHAPE, n)).astype(dtype)
    header = kind.header_class(endianness=">" if big_endian else "<")
    made = kind(values, np.diag([2, 2, 2, 1]), header, dtype=values.dtype)
    if slope is not None:
        made.header.set_slope_inter(slope, -3)
    return made


def read(file, wanted=None, dtype="float64"):
    header = read_header(file)
    return [
        scaled(header, volume, dtype).reshape(header.shape, order="F").copy()
        for volume in iter_volumes(header, wanted)
    ]


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float64"},
        {"dtype": "int16", "slope": 0.25},
        {"dtype": "uint8"},
        {"dtype": "int16", "slope": 2, "big_endian": True},
        {"dtype": "float32", "big_endian": True},
        {"dtype": "float32", "slope": 0.5},
        {"kind": nib.Nifti2Image},
        {"n": 1},
    ],
    ids=str,
)
def test_values_are_those_of_nibabel(tmp_path, extension, options):
    file = tmp_path / f"image.{extension}"
    nib.save(image(**options), file)
    expected = np.moveaxis(nib.load(file).get_fdata(), -1, 0)
    assert np.array_equal(read(file), expected)
    assert np.allclose(read(file, dtype="float32"), expected, rtol=1e-6)
    assert np.array_equal(read(file, [len(expected) - 1]), expected[-1:])
    header = read_header(file)
    assert header.shape == SHAPE
    assert header.n_volumes == len(expected)
    for volume in iter_volumes(header):
        assert scaled(header, volume, None).dtype.isnative


def test_a_3d_image_is_one_volume(tmp_path):
    nib.save(image().slicer[..., 2], tmp_path / "image.nii.gz")
    header = read_header(tmp_path / "image.nii.gz")
    assert (header.shape, header.n_volumes) == (SHAPE, 1)
    assert np.array_equal(read(header.file)[0], image().get_fdata()[..., 2])


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
def test_wanted_volumes_in_order(tmp_path, extension):
    file = tmp_path / f"image.{extension}"
    nib.save(image(9), file)
    expected = np.moveaxis(nib.load(file).get_fdata(), -1, 0)
    assert read(file, []) == []
    for wanted in ([0], [8], [1, 2, 6], range(9), np.array([3, 8])):
        assert np.array_equal(read(file, wanted), expected[list(wanted)])


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
def test_header_extensions_are_skipped(tmp_path, extension):
    made = image(3)
    note = nib.nifti1.Nifti1Extension("comment", b"x" * 1000)
    made.header.extensions.append(note)
    file = tmp_path / f"image.{extension}"
    nib.save(made, file)
    assert np.array_equal(read(file), np.moveaxis(made.get_fdata(), -1, 0))


def test_a_gzip_file_of_several_members(tmp_path):
    nib.save(image(9), tmp_path / "image.nii")
    content = (tmp_path / "image.nii").read_bytes()
    parts = content[:1000], content[1000:1001], content[1001:]
    members = b"".join(gzip.compress(part) for part in parts)
    (tmp_path / "image.nii.gz").write_bytes(members)
    assert np.array_equal(read(tmp_path / "image.nii.gz"), read(tmp_path / "image.nii"))


def test_reading_stops_after_the_last_volume_wanted(tmp_path):
    file = tmp_path / "image.nii.gz"
    nib.save(image(200), file)
    content = file.read_bytes()
    # What lies behind is not looked at, even where it is damaged.
    file.write_bytes(content[: len(content) // 2])
    expected = image(200).get_fdata()[..., :50]
    assert np.array_equal(read(file, range(50)), np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum", "no end", "text", ""])
def test_a_damaged_image_is_named_with_its_repair(tmp_path, damage):
    file = tmp_path / "image.nii.gz"
    nib.save(image(50), file)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    elif damage == "checksum":
        content[-8] ^= 1
    elif damage == "no end":
        del content[-8:]
    else:
        content[:] = damage.encode()
    file.write_bytes(content)
    with pytest.raises(CorruptImageError, match="verify --repair") as error:
        read(file)
    assert str(file) in str(error.value)


def test_a_checksum_far_behind_the_last_voxel(tmp_path):
    """Blocks without content may lie between; the last one is read all the same."""
    ones = nib.Nifti1Image(np.ones((64, 64, 64), "float32"), np.eye(4))
    nib.save(ones, tmp_path / "image.nii")
    content = (tmp_path / "image.nii").read_bytes()
    deflate = zlib.compressobj(wbits=-15)
    stream = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    stream += b"\x00\x00\x00\xff\xff" * 200_000 + deflate.flush()
    right = zlib.crc32(content)
    file = tmp_path / "image.nii.gz"
    head = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
    for checksum in (right, right ^ 1):
        tail = struct.pack("<II", checksum, len(content))
        file.write_bytes(head + stream + tail)
        if checksum == right:
            assert (read(file)[0] == 1).all()
    with pytest.raises(CorruptImageError, match="CRC"):
        read(file)


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
def test_an_image_shorter_than_its_header_says(tmp_path, extension):
    nib.save(image(5), tmp_path / "whole.nii")
    content = (tmp_path / "whole.nii").read_bytes()[:-4]
    file = tmp_path / f"image.{extension}"
    file.write_bytes(gzip.compress(content) if extension == "nii.gz" else content)
    with pytest.raises(CorruptImageError, match="before its last volume"):
        read(file)


def test_what_is_no_image_of_real_numbers(tmp_path):
    values = np.ones(SHAPE, dtype="complex64")
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "image.nii.gz")
    with pytest.raises(CorruptImageError, match="complex64"):
        read_header(tmp_path / "image.nii.gz")
    nib.save(nib.MGHImage(np.ones(SHAPE, "float32"), np.eye(4)), tmp_path / "image.mgz")
    with pytest.raises(CorruptImageError, match="neither"):
        read_header(tmp_path / "image.mgz")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.nii.gz")


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
def test_memory_does_not_grow_with_volumes(tmp_path, extension):
    peaks = []
    for n in (20, 400):
        nib.save(image(n), tmp_path / f"image.{extension}")
        header = read_header(tmp_path / f"image.{extension}")
        tracemalloc.start()
        assert sum(1 for _ in iter_volumes(header)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10_000


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
@pytest.mark.parametrize("big_endian", [False, True])
def test_written_images_are_read_by_nibabel(tmp_path, extension, big_endian):
    file = tmp_path / f"image.{extension}"
    made = image(3, "int16", slope=2, big_endian=big_endian)
    made.header["descrip"] = b"kept"
    volumes = np.moveaxis(np.asarray(made.dataobj), -1, 0)
    write_volumes(file, iter(volumes), made.header)
    loaded = nib.load(file)
    assert np.array_equal(loaded.get_fdata(), np.asarray(made.dataobj))
    assert np.array_equal(loaded.affine, made.affine)
    assert loaded.get_data_dtype() == made.get_data_dtype()
    assert loaded.header["descrip"] == b"kept"
    assert made.header.get_slope_inter() == (2, -3)
    assert np.array_equal(read(file), volumes)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file, header = tmp_path / "image.nii.gz", image(3).header
    volume = np.zeros(SHAPE)

    def failing():
        yield volume
        assert os.listdir(tmp_path) != ["image.nii.gz"]
        raise KeyboardInterrupt

    for volumes, error in (
        (failing(), KeyboardInterrupt),
        ([volume] * 2, ValueError),
        ([volume] * 4, ValueError),
        ([volume[1:]] * 3, ValueError),
    ):
        with pytest.raises(error):
            write_volumes(file, volumes, header)
        assert os.listdir(tmp_path) == []
    write_volumes(file, [volume] * 3, header)
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_volumes(file, failing(), header)
    assert file.read_bytes() == before
    write_volumes(file, [volume] * 3, header)
    assert file.read_bytes() == before  # the same bytes for the same content
