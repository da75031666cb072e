"""NIfTI files a volume at a time: betas are what nibabel reads of them whole."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from checks import fails
from made_betas import BRAIN, INSIDE, SHAPE, image, load, make, noise
from nilearn.maskers import NiftiMasker

from laion_fmri_fetchers.exceptions import CorruptImageError
from laion_fmri_fetchers.volumes import write_volumes

FORMS = {
    "first axis last": {"order": "F"},
    "float64": {"dtype": "float64"},
    "uint8": {"dtype": "uint8"},
    "scaled": {"scaling": (0.37, -2)},
    "integers": {"dtype": "int16", "scaling": (0.25, -3)},
    "other byte order": {"endianness": ">"},
    "swapped": {"dtype": "int16", "endianness": ">", "scaling": (2, 1)},
    "NIfTI-2": {"kind": nib.Nifti2Image},
    "extended": {"extension": b"<AFNI_attributes>" + bytes(1000)},
}


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_nibabel_and_of_nilearn(tmp_path, suffix, form):
    form = {"scaling": (1, 0), "extension": b"", **FORMS[form]}
    scaling, comment = form.pop("scaling"), form.pop("extension")
    betas = noise(7, **form)
    betas.header.set_slope_inter(*scaling)
    if comment:
        comment = nib.nifti1.Nifti1Extension("afni", comment)
        betas.header.extensions.append(comment)
    data = make(tmp_path, [betas])
    data.images = [str(tmp_path / f"betas.{suffix}")]
    nib.save(betas, data.images[0])
    whole = nib.load(data.images[0]).get_fdata()[INSIDE].T
    trials = data.trials
    for volumes in ([1, 5, 2], range(7)):
        data.trials = trials.iloc[volumes]
        exact = load(data, rois="brain", dtype="f8").data
        assert np.array_equal(exact, whole[volumes])
    single = load(data, rois="brain").data
    assert single.dtype == np.float32
    masker = NiftiMasker(image(BRAIN), standardize=None, dtype="float32").fit()
    assert np.allclose(single, masker.transform(data.images[0]), rtol=1e-5)


def test_a_gzip_file_of_several_members(tmp_path):
    data = make(tmp_path, [noise(9)])
    expected = load(data, rois="brain").data
    content = gzip.decompress(Path(data.images[0]).read_bytes())
    parts = content[:1000], content[1000:1001], content[1001:]
    Path(data.images[0]).write_bytes(b"".join(map(gzip.compress, parts)))
    assert np.array_equal(load(data, rois="brain").data, expected)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content.replace(content[9999:10_030], bytes(31)),
    "wrong checksum": lambda content: content[:-8] + bytes(4) + content[-4:],
    "no checksum": lambda content: content[:-8],
    "fewer values": lambda content: gzip.compress(gzip.decompress(content)[:-4]),
    "text": lambda content: b"text",
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_named_with_its_repair(tmp_path, damage):
    data = make(tmp_path, [noise(30), noise(30)])
    file = Path(data.images[1])
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    for n_jobs in (1, 2):
        call = {"rois": "brain", "n_jobs": n_jobs}
        error = fails(CorruptImageError, "verify --repair", load, data, **call)
        assert str(file) in str(error)


def test_what_is_no_image_of_real_numbers(tmp_path):
    data = make(tmp_path, [noise(4)])
    for name, betas, words in (
        ("short.nii", noise(4), "before its last volume"),
        ("complex.nii.gz", image(np.ones((*SHAPE, 4), "complex64")), "complex64"),
        ("betas.mgz", nib.MGHImage(np.ones(SHAPE, "float32"), np.eye(4)), "neither"),
    ):
        data.images = [str(tmp_path / name)]
        nib.save(betas, data.images[0])
        if name == "short.nii":
            os.truncate(data.images[0], os.path.getsize(data.images[0]) - 4)
        fails(CorruptImageError, f"{name}.*{words}", load, data, rois="brain")


def test_what_lies_behind_the_last_trial_is_not_read(tmp_path):
    """Even where it is damaged; unless statistics over the session need it."""
    data = make(tmp_path, [noise(30)])
    whole = load(data, rois="brain").data
    os.truncate(data.images[0], os.path.getsize(data.images[0]) // 2)
    data.trials = data.trials.iloc[[4, 2]]
    assert np.array_equal(load(data, rois="brain").data, whole[[4, 2]])
    zscored = {"rois": "brain", "standardize": "zscore"}
    fails(CorruptImageError, "verify --repair", load, data, **zscored)


def test_a_checksum_far_behind_the_last_voxel(tmp_path):
    """Blocks without content may lie between; the last one is read all the same."""
    data = make(tmp_path, [noise(3)])
    expected = load(data, rois="brain").data
    content = gzip.decompress(Path(data.images[0]).read_bytes())
    deflate, right = zlib.compressobj(wbits=-15), zlib.crc32(content)
    stream = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
    stream += deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    stream += b"\x00\x00\x00\xff\xff" * 200_000 + deflate.flush()
    for checksum in (right, right ^ 1):
        tail = struct.pack("<II", checksum, len(content))
        Path(data.images[0]).write_bytes(stream + tail)
        if checksum == right:
            assert np.array_equal(load(data, rois="brain").data, expected)
    fails(CorruptImageError, "CRC", load, data, rois="brain")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_memory_is_constant_in_the_number_of_volumes(tmp_path, suffix):
    load(make(tmp_path, [noise(3)]), rois="brain")  # imports
    for options in ({}, {"standardize": "zscore", "average_repeats": True}):
        added = []
        for n in (20, 220):
            data = make(tmp_path, [noise(n)])
            data.images = [str(tmp_path / f"betas.{suffix}")]
            nib.save(noise(n), data.images[0])
            peaks = []
            for _ in range(2):  # what other threads of the tests take is counted, too
                tracemalloc.start()
                betas = load(data, rois="brain", **options)
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            added.append(min(peaks) - betas.data.nbytes)
        # A trial costs its row in tables and plans, far less than its volume.
        assert added[1] - added[0] < 200 * 500 < 200 * BRAIN.size


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_written_images_are_whole_and_read_by_nibabel(tmp_path, suffix):
    """As resampled ones are written."""
    file = tmp_path / f"image.{suffix}"
    made = noise(3, dtype="int16", endianness=">")
    made.header.set_slope_inter(2, -3)
    made.header["descrip"] = b"kept"
    values = np.asarray(made.dataobj)
    volumes = [*np.moveaxis(values, -1, 0)]

    def interrupted():
        yield volumes[0]
        raise KeyboardInterrupt

    write_volumes(file, iter(volumes), made.header)
    before, written = file.read_bytes(), nib.load(file)
    assert suffix == "nii" or before[4:8] == bytes(4)  # in gzip, no time of writing
    assert np.array_equal(written.get_fdata(), values)
    assert np.array_equal(written.affine, made.affine)
    assert written.get_data_dtype() == made.get_data_dtype()
    assert written.header["descrip"] == b"kept"
    write_volumes(file, volumes, made.header)  # the same bytes for the same content
    with pytest.raises(KeyboardInterrupt):
        write_volumes(file, interrupted(), made.header)
    for wrong in (volumes[:2], [*volumes, volumes[0]], [v[1:] for v in volumes]):
        fails(ValueError, "the header says", write_volumes, file, wrong, made.header)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]
