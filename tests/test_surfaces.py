"""Surfaces of a subject: what is fetched, where its vertices lie, what is projected.

The demo's geometry is written by code of its own; what is expected here is computed
from its files with nibabel, c_ras from their text, and not with the package.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import warnings

import nibabel as nib
import nilearn
import numpy as np
import pytest
from nilearn.datasets import load_fsaverage
from nilearn.surface import SurfaceImage, vol_to_surf

from laion_fmri_fetchers import (
    fetch_laion_fmri,
    fetch_laion_surfaces,
    load_betas,
    project_to_surface,
    verify_cache,
)
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    InvalidQueryError,
    LicenseNotAcceptedError,
    NotCachedError,
)

SURF = "derivatives/freesurfer/sub-01/surf"
ORIG = "derivatives/freesurfer/sub-01/mri/orig.mgz"
ROOT = {"README", "dataset_description.json", "participants.tsv", "participants.json"}
SIDES = {"left": ("lh", "L"), "right": ("rh", "R")}
SLOPES, OFFSET = np.array([0.5, -0.25, 0.125]), 7.0


def fetch(*args, **kwargs):
    return fetch_laion_surfaces(*args, **{"verbose": 0, **kwargs})


def project(*args, **kwargs):
    return project_to_surface(*args, **{"verbose": 0, **kwargs})


def gets(server):
    return {key for method, key, _ in server.requests if method == "GET" and key}


def masks_of(folder, roi_pattern):
    """The keys of the masks of ROIs on the surface of sub-01."""
    paths = (folder / "derivatives/rois/sub-01").rglob("*.func.gii")
    pattern = rf".*_hemi-[LR]_space-fsnative_label-{roi_pattern}_mask\.func\.gii"
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if re.fullmatch(pattern, path.name)
    }


def as_written(folder, name):
    """Vertices and faces as they are in a file, and c_ras as its text says it."""
    file = folder / SURF / name
    vertices, faces = nib.freesurfer.read_geometry(file)
    c_ras = re.search(rb"\ncras +=(.*)\n", file.read_bytes())[1].split()
    return vertices, faces, np.array(c_ras, float)


def without_volume_info(data):
    """A surface that does not say what volume it was made from."""
    return data[: data.index(np.array([2, 0, 20], ">i4").tobytes())]


def linear_volume(n_volumes=None):
    """An image whose values are a linear function of scanner coordinates.

    Its voxels are neither cubes nor along the axes, and it covers the whole brain.
    """
    cos, sin = np.cos(0.2), np.sin(0.2)
    affine = np.eye(4)
    affine[:3, :3] = [[-4 * cos, -5 * sin, 0], [-4 * sin, 5 * cos, 0], [0, 0, 6]]
    shape = (70, 66, 50)
    affine[:3, 3] = np.array([0, -15, 10]) - affine[:3, :3] @ np.divide(shape, 2)
    voxels = np.stack(np.indices(shape), axis=-1)
    values = nib.affines.apply_affine(affine, voxels) @ SLOPES + OFFSET
    if n_volumes:
        values = np.stack([values * (i + 1) for i in range(n_volumes)], axis=3)
    return nib.Nifti1Image(values.astype(np.float32), affine)


@pytest.fixture
def geometry(bucket_folder):
    """The keys of what is fetched of FreeSurfer's reconstruction of sub-01."""
    names = ("white", "pial", "inflated", "sphere.reg", "sulc")
    keys = {f"{SURF}/{hemi}.{name}" for hemi in ("lh", "rh") for name in names}
    keys.add("derivatives/freesurfer/sub-01/mri/transforms/talairach.xfm")
    return {key for key in keys if (bucket_folder / key).exists()}


@pytest.fixture
def surfaces(server, data_dir):
    return fetch("sub-01", rois=["face", "V1"])


@pytest.fixture
def replace(server, bucket_folder):
    """Replace objects of the bucket, None: delete; at the end they are as they were."""
    keys = []

    def replace(key, data):
        keys.append(key)
        if data is None:
            server.delete(key)
        else:
            server.put(key, data)

    yield replace
    for key in keys:
        file = bucket_folder / key
        if file.exists():
            server.put(key, file.read_bytes())
        else:
            server.delete(key)


# --- What is fetched -------------------------------------------------------------


def test_only_the_surfaces_and_masks_asked_for_are_downloaded(
    server, data_dir, bucket_folder, geometry
):
    surfaces = fetch("sub-01", rois=["face", "MT"])

    face = r"(FFA-1|FFA-2|OFA|pSTS-faces)"  # sub-01 lacks the two anterior patches
    masks = masks_of(bucket_folder, face) | masks_of(bucket_folder, "MT")
    assert len(masks) == 10
    assert gets(server) == geometry | masks | ROOT
    assert {meta["key"] for meta in surfaces.files_meta} == geometry | masks
    assert surfaces.files == [meta["absolute_path"] for meta in surfaces.files_meta]
    assert set(surfaces.roi_masks) == {"FFA1", "FFA2", "OFA", "pSTSfaces", "MT"}
    listed = {query for _, key, query in server.requests if not key}
    assert not [query for query in listed if "glmsingle" in query]
    assert "pial         PolyMesh of 2400 vertices" in repr(surfaces)


def test_files_are_downloaded_once_and_by_overwrite_again(server, data_dir, geometry):
    surfaces = fetch(1, rois=None)
    assert gets(server) == geometry | ROOT
    assert surfaces.roi_masks == {}
    assert surfaces.query == {"subjects": ["sub-01"], "rois": []}
    server.reset()
    fetch(1, rois=None)
    assert gets(server) == set()
    fetch(1, rois=None, mode="overwrite")
    assert gets(server) == geometry
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_offline_surfaces_are_the_same(server, data_dir, surfaces, no_network):
    again = fetch("sub-01", rois=["face", "V1"], mode="offline")
    for key in ("subject", "files", "files_meta", "failed", "query", "data_dir"):
        assert again[key] == surfaces[key]
    for key in ("white", "pial", "inflated", "sphere_reg"):
        for side in SIDES:
            np.testing.assert_array_equal(
                again[key].parts[side].coordinates,
                surfaces[key].parts[side].coordinates,
            )
    assert set(again.roi_masks) == set(surfaces.roi_masks)


def test_several_subjects_are_a_bunch_of_each(server, data_dir):
    for subjects in (["01", 3], "all"):
        found = fetch(subjects, rois=iter(["FFA1"]))
        assert {"sub-01", "sub-03"} <= {*found}
        for name, surfaces in found.items():
            assert surfaces.subject == name
            assert surfaces.query == {"subjects": [name], "rois": ["FFA1"]}


# --- Meshes and masks ------------------------------------------------------------


def test_white_and_pial_are_moved_by_c_ras_and_others_are_not(surfaces, bucket_folder):
    for side, (hemi, _) in SIDES.items():
        for surface in ("white", "pial", "inflated", "sphere.reg"):
            vertices, faces, c_ras = as_written(bucket_folder, f"{hemi}.{surface}")
            if surface in ("white", "pial"):
                assert np.linalg.norm(c_ras) > 10
                vertices = vertices + c_ras
            mesh = surfaces[surface.replace(".", "_")].parts[side]
            np.testing.assert_allclose(mesh.coordinates, vertices, atol=1e-9)
            np.testing.assert_array_equal(mesh.faces, faces)


def test_roi_masks_are_those_of_the_files(surfaces, bucket_folder):
    for roi, label in (("FFA1", "FFA-1"), ("V1d", "V1d"), ("V1v", "V1v")):
        image = surfaces.roi_masks[roi]
        assert isinstance(image, SurfaceImage)
        assert image.mesh is surfaces.pial
        for side, (_, letter) in SIDES.items():
            name = f"sub-01_hemi-{letter}_space-fsnative_label-{label}_mask.func.gii"
            (file,) = (bucket_folder / "derivatives/rois/sub-01").rglob(name)
            expected = nib.load(file).darrays[0].data > 0
            assert expected.any()
            assert image.data.parts[side].dtype == bool
            np.testing.assert_array_equal(image.data.parts[side], expected)


def test_a_roi_of_one_hemisphere_is_empty_in_the_other(
    server, data_dir, bucket_folder, replace
):
    (key,) = (k for k in masks_of(bucket_folder, "OFA") if "hemi-R" in k)
    replace(key, None)
    surfaces = fetch("sub-01", rois="OFA")
    parts = surfaces.roi_masks["OFA"].data.parts
    assert parts["left"].any()
    assert not parts["right"].any()
    assert len(parts["right"]) == len(surfaces.pial.parts["right"].coordinates)


def test_c_ras_comes_from_the_volume_where_surfaces_lack_it(
    server, data_dir, bucket_folder, replace
):
    expected = fetch("sub-01", rois=None)
    assert ORIG not in gets(server)
    shutil.rmtree(data_dir)
    white, pial = (
        (bucket_folder / SURF / name).read_bytes() for name in ("lh.white", "rh.pial")
    )
    replace(f"{SURF}/lh.white", without_volume_info(white))
    replace(f"{SURF}/rh.pial", pial.replace(b"valid = 1", b"valid = 0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surfaces = fetch("sub-01", rois=None)
    assert ORIG in gets(server)
    assert ORIG in {meta["id"] for meta in surfaces.files_meta}
    for surface in ("white", "pial"):
        for side in SIDES:
            np.testing.assert_allclose(
                surfaces[surface].parts[side].coordinates,
                expected[surface].parts[side].coordinates,
                atol=1e-4,
            )
    offline = fetch("sub-01", rois=None, mode="offline")
    assert offline.files == surfaces.files
    (data_dir / ORIG).unlink()
    with pytest.raises(NotCachedError, match=r"lh\.white.*c_ras.*mri/orig\.mgz"):
        fetch("sub-01", rois=None, mode="offline")


def test_without_c_ras_anywhere_it_is_an_error(
    server, data_dir, bucket_folder, replace
):
    key = f"{SURF}/rh.white"
    replace(key, without_volume_info((bucket_folder / key).read_bytes()))
    replace(ORIG, None)
    with pytest.raises(CorruptImageError, match=r"rh\.white lack c_ras.*orig\.mgz"):
        fetch("sub-01", rois=None)
    header = bytearray(gzip.decompress((bucket_folder / ORIG).read_bytes()))
    header[28:30] = b"\0\0"  # goodRASFlag
    replace(ORIG, gzip.compress(bytes(header)))
    with pytest.raises(CorruptImageError, match=r"orig\.mgz cannot be read.*lies"):
        fetch("sub-01", rois=None)


def test_a_volume_that_is_turned_turns_the_vertices(
    server, data_dir, bucket_folder, replace
):
    """FreeSurfer's own volumes are not, but its files can say so."""
    key = f"{SURF}/lh.white"
    data = (bucket_folder / key).read_bytes()
    vertices, _, c_ras = as_written(bucket_folder, "lh.white")
    # As if the head lay on its back: what FreeSurfer calls up is forward.
    turned = re.sub(rb"yras +=.*", b"yras   = 0 -1 0", data)
    replace(key, re.sub(rb"zras +=.*", b"zras   = 0 0 -1", turned))
    surfaces = fetch("sub-01", rois=None)
    x, y, z = vertices.T
    expected = np.stack([x, z, -y], axis=1) + c_ras
    mesh = surfaces.white.parts["left"]
    np.testing.assert_allclose(mesh.coordinates, expected, atol=1e-9)


# --- Projection ------------------------------------------------------------------


def test_a_linear_function_of_the_scanner_is_that_at_the_vertices(
    surfaces, bucket_folder
):
    projected = project(linear_volume(), surfaces)

    assert isinstance(projected, SurfaceImage)
    assert projected.mesh is surfaces.pial
    for side, (hemi, _) in SIDES.items():
        white, _, c_ras = as_written(bucket_folder, f"{hemi}.white")
        pial, _, _ = as_written(bucket_folder, f"{hemi}.pial")
        middle = (white + pial) / 2 + c_ras
        values = projected.data.parts[side]
        assert values.dtype == np.float32
        assert values.shape == (len(white),)
        # Linear interpolation of a linear function is exact but for rounding; without
        # c_ras it would be off by 7.
        np.testing.assert_allclose(values, middle @ SLOPES + OFFSET, atol=1e-3)
        assert abs(c_ras @ SLOPES) > 5


@pytest.mark.parametrize("kind", ["path", "loaded", "memory", "nii", "pathlib"])
def test_images_of_four_dimensions_keep_their_volumes(surfaces, tmp_path, kind):
    image = linear_volume(n_volumes=6)
    file = tmp_path / f"map.nii{'' if kind == 'nii' else '.gz'}"
    nib.save(image, file)
    given = {
        "path": str(file),
        "nii": str(file),
        "pathlib": file,
        "loaded": nib.load(file),
        "memory": image,
    }[kind]
    projected = project(given, surfaces)
    single = project(linear_volume(), surfaces)
    for side in SIDES:
        values = projected.data.parts[side]
        expected = single.data.parts[side]
        assert values.shape == (len(expected), 6)
        for i in range(6):
            np.testing.assert_allclose(values[:, i], expected * (i + 1), rtol=1e-4)
    image = image.slicer[..., :1]
    assert project(image, surfaces).data.parts["left"].shape[1:] == (1,)


def test_vertices_outside_of_the_image_are_nan(surfaces):
    """Half of the head: vertices in front of it are NaN, those in it are not."""
    image = linear_volume()
    half = image.slicer[:, :33]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projected = project(half, surfaces)
    for side in SIDES:
        vertices = surfaces.pial.parts[side].coordinates
        white = surfaces.white.parts[side].coordinates
        to_voxel = np.linalg.inv(half.affine)
        rows = [nib.affines.apply_affine(to_voxel, v)[:, 1] for v in (vertices, white)]
        values = projected.data.parts[side]
        assert np.isnan(values[np.min(rows, axis=0) > 33]).all()
        assert np.isfinite(values[np.max(rows, axis=0) < 32]).all()
        assert 100 < np.isnan(values).sum() < len(values) - 100


def test_voxels_without_a_value_do_not_count(surfaces):
    """A region of ones is 1 on the surface, however few of its voxels are near."""
    image = linear_volume()
    data = np.full(image.shape, np.nan, np.float32)
    data[::2] = 1
    projected = project(nib.Nifti1Image(data, image.affine), surfaces)
    values = np.concatenate([*projected.data.parts.values()])
    has_value = np.isfinite(values)
    assert has_value.mean() > 0.7
    np.testing.assert_allclose(values[has_value], 1, rtol=1e-5)
    data[: len(data) // 2] = np.nan  # voxels count from the right
    projected = project(nib.Nifti1Image(data, image.affine), surfaces)
    assert np.isnan(projected.data.parts["right"]).mean() > 0.7
    assert np.isfinite(projected.data.parts["left"]).mean() > 0.7


def test_of_betas_only_their_voxels_count(surfaces):
    data = fetch_laion_fmri("sub-01", rois="FFA1", sessions=1, verbose=0)
    betas = load_betas(data, verbose=0)
    values = np.full(betas.data.shape[1], 3.0)
    for rows in (values, np.stack([values, 2 * values])):
        on_cortex = project(betas.to_img(rows), surfaces).data.parts
        for hemisphere in SIDES:
            found = on_cortex[hemisphere]
            has_value = np.isfinite(found).reshape(len(found), -1).all(axis=1)
            assert 0 < has_value.sum() < len(found)
            expected = np.broadcast_to(rows.T[:1], found.shape)
            np.testing.assert_allclose(found[has_value], expected[has_value], rtol=1e-5)
    is_ffa1 = betas.to_img(betas.roi_mask("FFA1"))  # outside it is False, not unknown
    assert project(is_ffa1, surfaces).data.parts["left"].min() == 0


MOST_FREQUENT = {"interpolation": "nearest_most_frequent"}


@pytest.mark.skipif(
    tuple(map(int, nilearn.__version__.split(".")[:2])) < (0, 12),
    reason="nilearn has had the most frequent value since 0.12",
)
def test_the_most_frequent_value_is_that_of_nilearn(surfaces):
    affine = linear_volume().affine
    labels = np.random.default_rng(0).integers(0, 5, (70, 66, 50, 6)).astype("int16")
    image = nib.Nifti1Image(labels, affine)
    projected = project(image, surfaces, **MOST_FREQUENT)
    for side, values in projected.data.parts.items():
        expected = vol_to_surf(
            image,
            surfaces.pial.parts[side],
            inner_mesh=surfaces.white.parts[side],
            **MOST_FREQUENT,
        )
        assert np.array_equal(values, expected)


def test_labels_beside_a_region_do_not_count(surfaces):
    """Neither voxels without a value nor those outside of the image are a label."""
    image = linear_volume()
    data = np.full(image.shape, np.nan, np.float32)
    data[::2] = 3
    regular = nib.Nifti1Image(data, image.affine)
    filled = nib.Nifti1Image(np.nan_to_num(data, nan=1), image.affine)
    labels, cut, both = (
        np.concatenate([*project(img, surfaces, **MOST_FREQUENT).data.parts.values()])
        for img in (regular, regular.slicer[:30], filled)
    )
    assert set(labels[np.isfinite(labels)]) == {3}
    assert np.isfinite(labels).sum() > (both == 3).sum() > 0
    assert 0 < np.isfinite(cut).sum() < np.isfinite(labels).sum()


def test_labels_that_would_be_averaged_are_a_warning(surfaces, server):
    """The mean of indices is an index too, of something else."""
    data = fetch_laion_fmri("sub-01", rois="FFA1", sessions=1, verbose=0)
    index = fetch_laion_fmri("sub-01", None, 1, image_type="hrf_index", verbose=0)
    betas = load_betas(data, verbose=0)
    categories = betas.to_img(np.arange(betas.data.shape[1]) % 3)
    for img in (index.images[0], nib.load(index.images[0]), data.rois[0], categories):
        with pytest.warns(UserWarning, match="averages; 'nearest_most_frequent' keeps"):
            project(img, surfaces)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        project(data.noise_ceilings["sub-01"]["4rep"], surfaces)
        project(betas.to_img(betas.data[0]), surfaces)
        project(index.images[0], surfaces, **MOST_FREQUENT)


def test_projected_rois_lie_where_the_masks_of_vertices_do(server, data_dir):
    surfaces = fetch("sub-01", rois=["PPA", "laionventral"])
    for roi in ("PPA", "laionventral"):
        data = fetch_laion_fmri("sub-01", rois=roi, max_images=0, verbose=0)
        projected = project(data.rois[0], surfaces)
        for side in SIDES:
            inside = surfaces.roi_masks[roi].data.parts[side]
            values = projected.data.parts[side]
            assert values[inside].mean() > 0.5
            assert values[~inside].mean() < 0.01


# --- fsaverage -------------------------------------------------------------------


def nearest_by_brute_force(sphere, template):
    """Of each vertex of a template, the nearest of a subject: the largest cosine."""
    sphere = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    template = template / np.linalg.norm(template, axis=1, keepdims=True)
    return np.argmax(template @ sphere.T, axis=1)


def test_fsaverage5_takes_the_nearest_vertex_of_the_sphere(surfaces, bucket_folder):
    native = project(linear_volume(n_volumes=2), surfaces)
    projected = project(linear_volume(n_volumes=2), surfaces, target="fsaverage5")

    fsaverage = load_fsaverage("fsaverage5")
    for side, (hemi, _) in SIDES.items():
        sphere, _, _ = as_written(bucket_folder, f"{hemi}.sphere.reg")
        nearest = nearest_by_brute_force(
            sphere, fsaverage["sphere"].parts[side].coordinates
        )
        assert len(nearest) == 10242
        np.testing.assert_array_equal(
            projected.data.parts[side], native.data.parts[side][nearest]
        )
        mesh = projected.mesh.parts[side]
        pial = fsaverage["pial"].parts[side]
        np.testing.assert_array_equal(mesh.coordinates, pial.coordinates)
        np.testing.assert_array_equal(mesh.faces, pial.faces)


def write_template(folder, n_vertices, radius):
    """A template with spheres and pials of FreeSurfer's format; what it is made of."""
    (folder / "surf").mkdir(parents=True)
    rng = np.random.default_rng(n_vertices)
    made = {}
    faces = np.array([[0, 1, 2], [2, 1, 3]])
    for side, (hemi, _) in SIDES.items():
        points = rng.normal(size=(n_vertices, 3))
        points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
        made[side] = points.astype(np.float32)
        for surface in ("sphere.reg", "pial"):
            file = folder / "surf" / f"{hemi}.{surface}"
            nib.freesurfer.write_geometry(file, points, faces)
    return made


def test_other_templates_come_from_subjects_dir(
    surfaces, bucket_folder, tmp_path, monkeypatch, no_network
):
    target = "fsaverage"
    made = write_template(tmp_path / target, 300, radius=90)
    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path))
    native = project(linear_volume(), surfaces)
    projected = project(linear_volume(), surfaces, target=target, mode="offline")
    for side, (hemi, _) in SIDES.items():
        sphere, _, _ = as_written(bucket_folder, f"{hemi}.sphere.reg")
        nearest = nearest_by_brute_force(sphere, made[side])
        np.testing.assert_array_equal(
            projected.data.parts[side], native.data.parts[side][nearest]
        )
        np.testing.assert_allclose(projected.mesh.parts[side].coordinates, made[side])


def test_other_templates_come_from_what_nilearn_downloaded(
    surfaces, tmp_path, monkeypatch, no_network
):
    from nilearn.datasets import fetch_surf_fsaverage

    shipped = fetch_surf_fsaverage("fsaverage5")
    folder = tmp_path / "nilearn" / "fsaverage6"
    folder.mkdir(parents=True)
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    for kind in ("pial", "sphere"):
        for side in SIDES:
            name = f"{kind}_{side}"
            shutil.copy(shipped[name], folder / f"{name}.gii.gz")
    projected = project(linear_volume(), surfaces, target="fsaverage6", mode="offline")
    expected = project(linear_volume(), surfaces, target="fsaverage5")
    for side in SIDES:
        np.testing.assert_array_equal(
            projected.data.parts[side], expected.data.parts[side]
        )
    (folder / "sphere_left.gii.gz").write_bytes(b"not a surface")
    with pytest.raises(CorruptImageError, match=r"sphere_left.*Remove it"):
        project(linear_volume(), surfaces, target="fsaverage6", mode="offline")


def test_offline_a_template_that_is_not_here_is_an_error_that_says_how(
    surfaces, no_network, monkeypatch
):
    with pytest.raises(NotCachedError) as error:
        project(linear_volume(), surfaces, target="fsaverage6", mode="offline")
    for words in ("SUBJECTS_DIR", "fetch_surf_fsaverage('fsaverage6')", "fsaverage5"):
        assert words in str(error.value)
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    with pytest.raises(NotCachedError, match="fsaverage is not on this machine"):
        project(linear_volume(), surfaces, target="fsaverage")


def test_a_template_that_nilearn_cannot_download_is_an_error_that_says_how(
    surfaces, monkeypatch
):
    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(DownloadError, match=r"could not download fsaverage6.*SUBJECTS"):
        project(linear_volume(), surfaces, target="fsaverage6")


# --- What is wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"subjects": "sub-1a"}, "subjects holds 'sub-1a'; give 'sub-01'"),
        ({"subjects": "sub-02"}, "no subject 'sub-02'; there are sub-01, sub-03"),
        ({"subjects": []}, "subjects is empty"),
        ({"subjects": 1, "rois": "FFA3"}, "no ROI FFA3; did you mean 'FFA1' or 'FFA2'"),
        ({"subjects": 1, "rois": "AFP1"}, "sub-01 has no ROI AFP1"),
        ({"subjects": 1, "mode": "ofline"}, "did you mean 'offline'"),
    ],
)
def test_a_wrong_name_gets_the_nearest(server, data_dir, args, words):
    with pytest.raises(InvalidQueryError, match=words):
        fetch(**args)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target": "fsaverage4"}, "target is 'fsaverage4'; did you mean 'fsaverage"),
        ({"target": "fsnativ"}, "target is 'fsnativ'; did you mean 'fsnative'"),
        ({"target": "MNI"}, "target is 'MNI'; known are fsaverage, fsaverage5"),
        ({"interpolation": "lineal"}, "interpolation is 'lineal'.*'linear'"),
        ({"mode": "on"}, "mode is 'on'"),
        ({"img": "nothing.nii.gz"}, "img is 'nothing.nii.gz', which does not exist"),
        ({"img": 3}, "img is a int"),
        ({"img": nib.Nifti1Image(np.zeros((3, 3), "f4"), np.eye(4))}, "dimensions"),
        ({"img": nib.Nifti1Image(np.zeros((3, 3, 3), "c8"), np.eye(4))}, "complex"),
        ({"surfaces": {}}, "surfaces is a dict; it must be the Bunch"),
        ({"surfaces": Result(images=[])}, "must be the Bunch that fetch_laion_surf"),
    ],
)
def test_wrong_arguments_of_a_projection(surfaces, kwargs, words):
    with pytest.raises(InvalidQueryError, match=words):
        project(**{"img": linear_volume(), "surfaces": surfaces, **kwargs})


def test_an_image_of_another_subject_or_place_is_refused(surfaces, server, tmp_path):
    file = tmp_path / "sub-03_desc-mean_statmap.nii.gz"
    nib.save(linear_volume(), file)
    for given in (file, nib.load(file)):
        with pytest.raises(InvalidQueryError, match=r"an image of sub-03.*of sub-01"):
            project(given, surfaces)
    data = fetch_laion_fmri("sub-03", rois="FFA1", sessions=1, verbose=0)
    betas = load_betas(data, verbose=0)
    with pytest.raises(InvalidQueryError, match=r"an image of sub-03.*of sub-01"):
        project(betas.to_img(betas.data[0]), surfaces)
    image = linear_volume()
    far = image.affine.copy()
    far[0, 3] += 1000
    with pytest.raises(InvalidQueryError, match="no part of the cortex of sub-01"):
        project(nib.Nifti1Image(image.get_fdata(), far), surfaces)


def test_a_damaged_image_is_named(surfaces, tmp_path):
    file = tmp_path / "map.nii.gz"
    nib.save(linear_volume(n_volumes=6), file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CorruptImageError, match=r"map\.nii\.gz cannot be read"):
        project(file, surfaces)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],  # some faces are missing
        lambda data: data[:1000],  # some vertices are missing
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"<html>404</html>",
        lambda data: data[:-40],  # cut short in what is said of the volume
        lambda data: data.replace(b"cras ", b"care "),
        lambda data: data[:48] + b"\x7f\xc0\0\0" * 30 + data[168:],  # not finite
    ],
)
def test_a_damaged_surface_is_named(surfaces, data_dir, damage):
    name = "lh.white"
    file = data_dir / SURF / name
    file.write_bytes(damage(file.read_bytes()))
    match = rf"{re.escape(name)} cannot be read.*verify --repair"
    with pytest.raises(CorruptImageError, match=match):
        fetch("sub-01", rois=None, mode="offline")


def test_the_depth_of_sulci_is_an_image_on_the_mesh(server, data_dir, replace):
    white = fetch("sub-01", rois=None).white.parts
    depth = {side: np.linspace(-1, 1, len(white[side].coordinates)) for side in SIDES}
    for side, (hemi, _) in SIDES.items():
        file = data_dir / "sulc"
        nib.freesurfer.write_morph_data(file, depth[side])
        replace(f"{SURF}/{hemi}.sulc", file.read_bytes())
        file.unlink()
    surfaces = fetch("sub-01", rois=None, mode="overwrite")
    assert surfaces.sulc.mesh is surfaces.pial
    for side in SIDES:
        values = surfaces.sulc.data.parts[side]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, depth[side], atol=1e-6)
    (file,) = (file for file in surfaces.files if file.endswith("lh.sulc"))
    shutil.copy(file.replace("lh.", "rh."), file)
    with pytest.raises(CorruptImageError, match=r"lh\.sulc.* 1197 vertices"):
        fetch("sub-01", rois=None, mode="offline")
    os.unlink(file)
    with pytest.raises(NotCachedError, match=r"lh\.sulc"):
        fetch("sub-01", rois=None, mode="offline")
    for hemi in ("lh", "rh"):
        replace(f"{SURF}/{hemi}.sulc", None)
    shutil.rmtree(data_dir)
    assert fetch("sub-01", rois=None).sulc is None


def test_surfaces_and_masks_that_do_not_fit_are_named(surfaces, data_dir):
    folder = data_dir / SURF
    other = (folder / "rh.pial").read_bytes()
    original = (folder / "lh.pial").read_bytes()
    (folder / "lh.pial").write_bytes(other)
    with pytest.raises(CorruptImageError, match=r"lh\.pial has 1203 vertices.* 1197"):
        fetch("sub-01", rois=None, mode="offline")
    (folder / "lh.pial").write_bytes(original)
    left, right = sorted(data_dir.rglob("*_label-FFA1_mask.func.gii"))
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    with pytest.raises(CorruptImageError, match=r"hemi-L.*FFA1.*1197 vertices"):
        fetch("sub-01", rois="FFA1", mode="offline")
    left.write_bytes(content[:-300])
    with pytest.raises(CorruptImageError, match=r"hemi-L.*FFA1.*cannot be read"):
        fetch("sub-01", rois="FFA1", mode="offline")


def test_offline_says_which_surface_is_missing(surfaces, data_dir):
    (data_dir / SURF / "lh.sphere.reg").unlink()
    with pytest.raises(NotCachedError, match=r"lh\.sphere\.reg.*download_new"):
        fetch("sub-01", mode="offline")
    shutil.rmtree(data_dir / SURF)
    with pytest.raises(NotCachedError, match=r"lh\.white.*rh\.white.*lh\.pial"):
        fetch("sub-01", mode="offline", allow_missing=True)


def test_a_surface_that_the_bucket_lacks_is_named(server, data_dir, replace):
    replace(f"{SURF}/lh.inflated", None)
    with pytest.raises(InvalidQueryError, match=r"lacks surfaces.*lh\.inflated"):
        fetch("sub-01")
    assert not gets(server)


def test_half_of_a_roi_on_disk_is_not_a_roi(surfaces, data_dir):
    """Offline, the mask of a hemisphere that is not on disk must not look empty."""
    min(data_dir.rglob("*_hemi-R_*_label-FFA1_mask.func.gii")).unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*hemi-R.*FFA1"):
        fetch("sub-01", rois="FFA1", mode="offline")
    with pytest.warns(UserWarning, match="left out: .*FFA1 of sub-01"):
        offline = fetch("sub-01", rois="face", mode="offline", allow_missing=True)
    assert set(offline.roi_masks) == {"FFA2", "OFA", "pSTSfaces"}
    assert not [f for f in offline.files if "FFA1" in f]
    with pytest.warns(UserWarning, match="ROI masks are in the saved listing"):
        every = fetch("sub-01", mode="offline")
    assert set(every.roi_masks) == {"FFA2", "OFA", "pSTSfaces", "V1d", "V1v"}


def test_masks_that_fail_may_be_left_out_but_surfaces_may_not(
    server, data_dir, bucket_folder
):
    (mask,) = (k for k in masks_of(bucket_folder, "OFA") if "hemi-R" in k)
    surface = f"{SURF}/lh.pial"

    denied = (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    server.faults[mask] = denied
    with pytest.raises(DownloadError, match="OFA"):
        fetch("sub-01", rois="face")
    with pytest.warns(UserWarning, match="Left out.*OFA"):
        surfaces = fetch("sub-01", rois="face", allow_missing=True)
    assert set(surfaces.roi_masks) == {"FFA1", "FFA2", "pSTSfaces"}
    assert [meta["roi"] for meta in surfaces.failed] == ["OFA"]
    assert not [path for path in surfaces.files if "OFA" in path]
    shutil.rmtree(data_dir)
    server.faults[surface] = denied
    with pytest.raises(DownloadError, match=r"lh\.pial"):
        fetch("sub-01", rois=None, allow_missing=True)


def test_the_terms_are_asked_first(server, data_dir, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    with pytest.raises(LicenseNotAcceptedError):
        fetch("sub-01")
    assert not gets(server)


def test_a_bucket_that_is_gone_is_no_matter_where_all_is_on_disk(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        before = fetch("sub-01", rois="OFA")
    with pytest.warns(UserWarning, match="continuing offline"):
        after = fetch("sub-01", rois="OFA")
    assert after.files == before.files
    with pytest.raises(BucketError, match=r"Missing in .*FFA1"):
        fetch("sub-01", rois="FFA1")
