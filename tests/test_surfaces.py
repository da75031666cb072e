"""Surfaces of a subject: what is fetched, where its vertices lie, what is projected.

The demo's geometry is written by code of its own; what is expected here is computed
from its files with nibabel, c_ras from their text, and not with the package.
"""

from __future__ import annotations

import copy
import gzip
import re
import shutil

import nibabel as nib
import nilearn
import numpy as np
import pytest
from checks import fails, no_warnings, warned
from nilearn.datasets import fetch_surf_fsaverage, load_fsaverage
from nilearn.surface import SurfaceImage, vol_to_surf

import laion_fmri_fetchers as package
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers import load_betas, project_to_surface, verify_cache
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError

SURF = "derivatives/freesurfer/sub-01/surf"
ORIG = "derivatives/freesurfer/sub-01/mri/orig.mgz"
ROOT = {"README", "dataset_description.json", "participants.tsv", "participants.json"}
SIDES = {"left": ("lh", "L"), "right": ("rh", "R")}
ROIS = ["face", "V1", "PPA", "laionventral"]
SLOPES, OFFSET = np.array([0.5, -0.25, 0.125]), 7.0


def fetch(*args, **kwargs):
    return package.fetch_laion_surfaces(*args, **{"verbose": 0, **kwargs})


def bare(**kwargs):
    return fetch("sub-01", rois=None, **kwargs)


def project(*args, **kwargs):
    """Return values by hemisphere."""
    projected = project_to_surface(*args, **{"verbose": 0, **kwargs})
    return projected.data.parts


def gets(server):
    return {key for method, key, _ in server.requests if method == "GET" and key}


def masks_of(folder, roi_pattern):
    """The keys of the masks of ROIs on the surface of sub-01."""
    paths = (folder / "derivatives/rois/sub-01").rglob("*.func.gii")
    pattern = rf".*_hemi-[LR]_space-fsnative_label-{roi_pattern}_mask\.func\.gii"
    keys = {path.relative_to(folder).as_posix() for path in paths}
    return {key for key in keys if re.fullmatch(pattern, key)}


def as_written(folder, name):
    """Vertices and faces as they are in a file, and c_ras as its text says it."""
    file = folder / SURF / name
    vertices, faces = nib.freesurfer.read_geometry(file)
    c_ras = re.search(rb"\ncras +=(.*)\n", file.read_bytes())[1].split()
    return vertices, faces, np.array(c_ras, float)


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


@pytest.fixture(scope="session")
def geometry(bucket_folder):
    """The keys of what is fetched of FreeSurfer's reconstruction of sub-01."""
    names = ("white", "pial", "inflated", "sphere.reg", "sulc")
    keys = {f"{SURF}/{hemi}.{name}" for hemi in ("lh", "rh") for name in names}
    keys.add("derivatives/freesurfer/sub-01/mri/transforms/talairach.xfm")
    return {key for key in keys if (bucket_folder / key).exists()}


@pytest.fixture(scope="module")
def fetched(shared_server, tmp_path_factory):
    """Surfaces of sub-01 and their folder, which tests must not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_LICENSE", "I AGREE")
        folder = tmp_path_factory.mktemp("surfaces") / "laion_fmri"
        return fetch("sub-01", rois=ROIS, data_dir=folder), folder


@pytest.fixture
def surfaces(fetched):
    return copy.copy(fetched[0])


@pytest.fixture
def on_disk(fetched, data_dir):
    """A copy of these surfaces as the data directory in force."""
    return shutil.copytree(fetched[1], data_dir)


@pytest.fixture
def replace(server, bucket_folder):
    """Replace objects of the bucket, None: delete; at the end they are as they were."""
    keys = []

    def replace(key, data):
        keys.append(key)
        server.put(key, data) if data is not None else server.delete(key)

    yield replace
    for key in keys:
        file = bucket_folder / key
        if file.exists():
            server.put(key, file.read_bytes())
        else:
            server.delete(key)


# --- What is fetched -------------------------------------------------------------


def test_what_is_downloaded_once(server, data_dir, bucket_folder, geometry):
    surfaces = fetch(1, rois=None)
    assert gets(server) == geometry | ROOT
    assert surfaces.roi_masks == {}
    assert surfaces.query == {"subjects": ["sub-01"], "rois": []}
    server.reset()
    face = r"(FFA-1|FFA-2|OFA|pSTS-faces)"  # sub-01 lacks the two anterior patches
    masks = masks_of(bucket_folder, face) | masks_of(bucket_folder, "MT")
    for _ in range(2):
        surfaces = fetch("sub-01", rois=["face", "MT"])
        assert gets(server) == masks
    assert len(masks) == 10
    assert {meta["key"] for meta in surfaces.files_meta} == geometry | masks
    assert surfaces.files == [meta["absolute_path"] for meta in surfaces.files_meta]
    assert set(surfaces.roi_masks) == {"FFA1", "FFA2", "OFA", "pSTSfaces", "MT"}
    assert not [query for _, key, query in server.requests if "glmsingle" in query]
    assert "pial         PolyMesh of 2400 vertices" in repr(surfaces)
    server.reset()
    fetch(1, rois=None, mode="overwrite")
    assert gets(server) == geometry
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_offline_surfaces_are_the_same(fetched, no_network):
    surfaces, folder = fetched
    again = fetch("sub-01", rois=ROIS, mode="offline", data_dir=folder)
    for key in ("subject", "files", "files_meta", "failed", "query", "data_dir"):
        assert again[key] == surfaces[key]
    for key in ("white", "pial", "inflated", "sphere_reg"):
        for side, mesh in surfaces[key].parts.items():
            found = again[key].parts[side].coordinates
            np.testing.assert_array_equal(found, mesh.coordinates)
    assert set(again.roi_masks) == set(surfaces.roi_masks)


def test_several_subjects_are_a_bunch_of_each(server, data_dir):
    found = fetch(["01", 3], rois=iter(["FFA1"]))
    assert list(found) == ["sub-01", "sub-03"] == [s.subject for s in found.values()]
    assert found["sub-03"].query == {"subjects": ["sub-03"], "rois": ["FFA1"]}


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


def test_roi_masks(surfaces, server, data_dir, bucket_folder, replace):
    for roi in ("FFA1", "V1d", "V1v"):
        found = surfaces.roi_masks[roi]
        assert isinstance(found, SurfaceImage)
        assert found.mesh is surfaces.pial
        for side, (_, letter) in SIDES.items():
            name = f"hemi-{letter}_space-fsnative_label-{roi}_mask.func.gii"
            (file,) = (path for path in surfaces.files if path.endswith(name))
            expected = nib.load(file).agg_data() > 0
            assert expected.any()
            assert found.data.parts[side].dtype == bool
            np.testing.assert_array_equal(found.data.parts[side], expected)
    # One of one hemisphere is empty in the other.
    (key,) = (k for k in masks_of(bucket_folder, "OFA") if "hemi-R" in k)
    replace(key, None)
    parts = fetch("sub-01", rois="OFA", data_dir=data_dir).roi_masks["OFA"].data.parts
    assert parts["left"].any()
    assert parts["right"].tolist() == [False] * 1203


def test_c_ras_of_the_volume(server, surfaces, data_dir, bucket_folder, replace):
    """It is taken where surfaces do not tell."""
    white = (bucket_folder / SURF / "lh.white").read_bytes()
    # Without what is said of the volume.
    volume = np.array([2, 0, 20], ">i4").tobytes()
    replace(f"{SURF}/lh.white", white[: white.index(volume)])
    pial = (bucket_folder / SURF / "rh.pial").read_bytes()
    replace(f"{SURF}/rh.pial", pial.replace(b"valid = 1", b"valid = 0"))
    with no_warnings():
        found = bare()
    assert ORIG in gets(server) & {meta["id"] for meta in found.files_meta}
    for surface in ("white", "pial"):
        for side, mesh in surfaces[surface].parts.items():
            vertices = found[surface].parts[side].coordinates
            np.testing.assert_allclose(vertices, mesh.coordinates, atol=1e-4)
    assert bare(mode="offline").files == found.files
    (data_dir / ORIG).unlink()
    words = r"lh\.white.*c_ras.*mri/orig\.mgz"
    fails(errors.NotCachedError, words, bare, mode="offline")
    header = bytearray(gzip.decompress((bucket_folder / ORIG).read_bytes()))
    header[28:30] = b"\0\0"  # goodRASFlag
    replace(ORIG, gzip.compress(header))
    words = r"orig\.mgz cannot be read.*lies"
    fails(CorruptImageError, words, bare, mode="overwrite")
    replace(ORIG, None)
    words = r"lh\.white.*lack c_ras.*orig\.mgz"
    fails(CorruptImageError, words, bare, data_dir=data_dir / "other")


def test_the_depth_of_sulci(server, data_dir, tmp_path, replace):
    depths = {"lh": np.linspace(-1, 1, 1197), "rh": np.linspace(1, 2, 1203)}
    for hemi, depth in depths.items():
        nib.freesurfer.write_morph_data(tmp_path / "sulc", depth)
        replace(f"{SURF}/{hemi}.sulc", (tmp_path / "sulc").read_bytes())
    found = bare()
    assert found.sulc.mesh is found.pial
    for side, (hemi, _) in SIDES.items():
        values = found.sulc.data.parts[side]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, depths[hemi], atol=1e-6)
    file = data_dir / SURF / "lh.sulc"
    shutil.copy(file.with_name("rh.sulc"), file)
    fails(CorruptImageError, r"lh\.sulc.* 1197 vertices", bare, mode="offline")
    file.unlink()
    fails(errors.NotCachedError, r"lh\.sulc", bare, mode="offline")
    for hemi in depths:
        replace(f"{SURF}/{hemi}.sulc", None)
    assert bare(data_dir=tmp_path / "other").sulc is None


# --- Projection ------------------------------------------------------------------


def test_a_linear_function_stays_one(surfaces, bucket_folder, tmp_path):
    projected = project_to_surface(linear_volume(), surfaces, verbose=0)
    assert isinstance(projected, SurfaceImage)
    assert projected.mesh is surfaces.pial
    for side, (hemi, _) in SIDES.items():
        white, _, c_ras = as_written(bucket_folder, f"{hemi}.white")
        pial, _, _ = as_written(bucket_folder, f"{hemi}.pial")
        middle = (white + pial) / 2 + c_ras
        values = projected.data.parts[side]
        assert values.dtype == np.float32
        # Linear interpolation of a linear function is exact but for rounding; without
        # c_ras it would be off by 7.
        np.testing.assert_allclose(values, middle @ SLOPES + OFFSET, atol=1e-3)
        assert abs(c_ras @ SLOPES) > 5
    image = linear_volume(n_volumes=4)
    for name in ("map.nii", "map.nii.gz"):
        nib.save(image, tmp_path / name)
    file = tmp_path / "map.nii.gz"
    for given in (image, tmp_path / "map.nii", file, str(file), nib.load(file)):
        for side, values in project(given, surfaces).items():
            expected = projected.data.parts[side][:, None] * [1, 2, 3, 4]
            np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert project(image.slicer[..., :1], surfaces)["left"].shape[1:] == (1,)
    file.write_bytes(file.read_bytes()[:-2000])
    fails(CorruptImageError, r"map\.nii\.gz cannot be read", project, file, surfaces)


def test_vertices_outside_of_the_image_are_nan(surfaces):
    """Half of the head: vertices in front of it are NaN, those in it are not."""
    half = linear_volume().slicer[:, :33]
    with no_warnings():
        projected = project(half, surfaces)
    to_voxel = np.linalg.inv(half.affine)
    for side, values in projected.items():
        rows = [
            nib.affines.apply_affine(to_voxel, mesh.parts[side].coordinates)[:, 1]
            for mesh in (surfaces.pial, surfaces.white)
        ]
        assert np.isnan(values[np.min(rows, axis=0) > 33]).all()
        assert np.isfinite(values[np.max(rows, axis=0) < 32]).all()
        assert 100 < np.isnan(values).sum() < len(values) - 100


def test_voxels_without_a_value_do_not_count(surfaces):
    """A region of ones is 1 on the surface, however few of its voxels are near."""
    image = linear_volume()
    data = np.full(image.shape, np.nan, np.float32)
    data[::2] = 1
    projected = project(nib.Nifti1Image(data, image.affine), surfaces)
    values = np.concatenate([*projected.values()])
    has_value = np.isfinite(values)
    assert has_value.mean() > 0.7
    np.testing.assert_allclose(values[has_value], 1, rtol=1e-5)
    data[: len(data) // 2] = np.nan  # voxels count from the right
    projected = project(nib.Nifti1Image(data, image.affine), surfaces)
    assert np.isnan(projected["right"]).mean() > 0.7
    assert np.isfinite(projected["left"]).mean() > 0.7


MOST_FREQUENT = {"interpolation": "nearest_most_frequent"}


def test_betas_and_labels(surfaces, cached_folder):
    """Of betas, only their voxels count; labels are not averaged unawares."""
    here = {"data_dir": cached_folder, "mode": "offline", "verbose": 0}
    data = package.fetch_laion_fmri("sub-01", ["FFA1", "PPA"], 1, **here)
    betas = load_betas(data, verbose=0)
    values = np.full(betas.data.shape[1], 3.0)
    for rows in (values, np.stack([values, 2 * values])):
        for found in project(betas.to_img(rows), surfaces).values():
            has_value = np.isfinite(found).reshape(len(found), -1).all(axis=1)
            assert 0 < has_value.sum() < len(found)
            expected = np.broadcast_to(rows.T[:1], found.shape)
            np.testing.assert_allclose(found[has_value], expected[has_value], rtol=1e-5)
    is_ffa1 = betas.to_img(betas.roi_mask("FFA1"))  # outside it is False, not unknown
    assert project(is_ffa1, surfaces)["left"].min() == 0
    # The mean of indices is an index too, of something else.
    categories = betas.to_img(np.arange(betas.data.shape[1]) % 3)
    for img in (data.rois[0], nib.load(data.rois[0]), categories):
        warned("averages; 'nearest_most_frequent' keeps", project, img, surfaces)
    with no_warnings():
        project(data.noise_ceilings["sub-01"]["4rep"], surfaces)
        project(betas.to_img(betas.data[0]), surfaces)
        project(data.rois[0], surfaces, **MOST_FREQUENT)
    other = load_betas(package.fetch_laion_fmri("sub-03", "FFA1", 1, **here), verbose=0)
    words = r"an image of sub-03.*of sub-01"
    fails(InvalidQueryError, words, project, other.to_img(other.data[0]), surfaces)


def test_projected_rois_lie_where_the_masks_of_vertices_do(surfaces, cached_folder):
    here = {"data_dir": cached_folder, "mode": "offline", "verbose": 0}
    rois = ["PPA", "laionventral"]
    data = package.fetch_laion_fmri("sub-01", rois, max_images=0, **here)
    for roi, mask in data.roi_files["sub-01"].items():
        for side, values in project(mask, surfaces).items():
            inside = surfaces.roi_masks[roi].data.parts[side]
            assert values[inside].mean() > 0.4
            assert values[~inside].mean() < 0.01


@pytest.mark.skipif(
    tuple(map(int, nilearn.__version__.split(".")[:2])) < (0, 12),
    reason="nilearn has had the most frequent value since 0.12",
)
def test_the_most_frequent_value_is_that_of_nilearn(surfaces):
    image = linear_volume()
    labels = np.random.default_rng(0).integers(0, 5, (*image.shape, 3)).astype("int16")
    labels = nib.Nifti1Image(labels, image.affine)
    for side, values in project(labels, surfaces, **MOST_FREQUENT).items():
        outer, inner = (mesh.parts[side] for mesh in (surfaces.pial, surfaces.white))
        expected = vol_to_surf(labels, outer, inner_mesh=inner, **MOST_FREQUENT)
        assert np.array_equal(values, expected)
    # Neither voxels without a value nor those outside of the image are a label.
    data = np.full(image.shape, np.nan, np.float32)
    data[::2] = 3
    regular, n_valid = nib.Nifti1Image(data, image.affine), []
    for given in (regular, regular.slicer[:30]):
        values = [*project(given, surfaces, **MOST_FREQUENT).values()]
        values = np.concatenate(values)
        assert set(values[np.isfinite(values)]) == {3}
        n_valid.append(np.isfinite(values).sum())
    assert 0.6 * len(values) < n_valid[0] > n_valid[1] > 0


# --- fsaverage -------------------------------------------------------------------


@pytest.mark.parametrize("target", ["fsaverage5", "fsaverage6", "fsaverage"])
def test_nearest_vertex(surfaces, bucket_folder, tmp_path, monkeypatch, target):
    """Nilearn ships fsaverage5; others are those of SUBJECTS_DIR, or it has them."""
    image, shipped = linear_volume(n_volumes=2), fetch_surf_fsaverage("fsaverage5")
    fsaverage, folder = load_fsaverage("fsaverage5"), tmp_path / target
    (folder / "surf").mkdir(parents=True)
    for side, (hemi, _) in SIDES.items():
        for kind, name in (("pial", "pial"), ("sphere", "sphere.reg")):
            if target == "fsaverage6":
                file = folder / f"{kind}_{side}.gii.gz"
                shutil.copy(shipped[f"{kind}_{side}"], file)
            else:
                mesh = fsaverage[kind].parts[side]
                file = folder / "surf" / f"{hemi}.{name}"
                nib.freesurfer.write_geometry(file, mesh.coordinates, mesh.faces)
    holder = "NILEARN_DATA" if target == "fsaverage6" else "SUBJECTS_DIR"
    monkeypatch.setenv(holder, str(tmp_path))
    options = {"target": target, "mode": "offline", "verbose": 0}
    native = project(image, surfaces)
    projected = project_to_surface(image, surfaces, **options)
    for side, (hemi, _) in SIDES.items():
        sphere, _, _ = as_written(bucket_folder, f"{hemi}.sphere.reg")
        sphere, template = (
            points / np.linalg.norm(points, axis=1, keepdims=True)
            for points in (sphere, fsaverage["sphere"].parts[side].coordinates)
        )
        nearest = np.argmax(template @ sphere.T, axis=1)  # the largest cosine
        found = projected.data.parts[side]
        assert len(found) == 10242
        np.testing.assert_array_equal(found, native[side][nearest])
        mesh, pial = projected.mesh.parts[side], fsaverage["pial"].parts[side]
        np.testing.assert_allclose(mesh.coordinates, pial.coordinates)
        np.testing.assert_array_equal(mesh.faces, pial.faces)
    if target != "fsaverage5":
        file.write_bytes(b"not a surface")
        words = "(Remove it|copy it from FreeSurfer)"
        fails(CorruptImageError, words, project, image, surfaces, **options)


def test_a_template_that_is_not_here(surfaces, monkeypatch):
    def call(target, **options):
        project(linear_volume(), surfaces, target=target, **options)

    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    words = r"could not download fsaverage6.*SUBJECTS"
    fails(errors.DownloadError, words, call, "fsaverage6")
    words = r"SUBJECTS_DIR.*fetch_surf_fsaverage\('fsaverage6'\).*fsaverage5"
    fails(errors.NotCachedError, words, call, "fsaverage6", mode="offline")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    fails(errors.NotCachedError, "fsaverage is not on this", call, "fsaverage")


# --- What is wrong ---------------------------------------------------------------


def test_a_wrong_name_gets_the_nearest(server, data_dir):
    for args, words in (
        ({"subjects": "sub-1a"}, "subjects holds 'sub-1a'; give 'sub-01'"),
        ({"subjects": "sub-02"}, "no subject 'sub-02'; there are sub-01, sub-03"),
        ({"subjects": []}, "subjects is empty"),
        ({"subjects": 1, "rois": "FFA3"}, "no ROI FFA3; did you mean 'FFA1' or 'FFA2'"),
        ({"subjects": 1, "rois": "AFP1"}, "sub-01 has no ROI AFP1"),
        ({"subjects": 1, "mode": "ofline"}, "did you mean 'offline'"),
    ):
        fails(InvalidQueryError, words, fetch, **args)


def test_wrong_arguments_of_a_projection(surfaces, tmp_path):
    image = linear_volume()
    flat, complex_values = (
        nib.Nifti1Image(np.zeros(shape, kind), np.eye(4))
        for shape, kind in (((3, 3), "f4"), ((3, 3, 3), "c8"))
    )
    affine = image.affine.copy()
    affine[0, 3] += 1000
    file = tmp_path / "sub-03_desc-mean_statmap.nii.gz"
    nib.save(linear_volume(), file)
    for wrong, words in (
        ({"target": "fsaverage4"}, "target is 'fsaverage4'; did you mean 'fsaverage"),
        ({"target": "MNI"}, "target is 'MNI'; known are fsaverage, fsaverage5"),
        ({"interpolation": "lineal"}, "interpolation is 'lineal'.*'linear'"),
        ({"mode": "on"}, "mode is 'on'"),
        ({"img": "nothing.nii.gz"}, "img is 'nothing.nii.gz', which does not exist"),
        ({"img": 3}, "img is a int"),
        *(({"img": flat}, "dimensions"), ({"img": complex_values}, "complex")),
        ({"img": nib.Nifti1Image(image.dataobj, affine)}, "no part of the cortex of s"),
        ({"img": file}, r"an image of sub-03.*of sub-01"),
        ({"img": nib.load(file)}, r"an image of sub-03.*of sub-01"),
        ({"surfaces": {}}, "surfaces is a dict; it must be the Bunch"),
        ({"surfaces": Result(images=[])}, "must be the Bunch that fetch_laion_surf"),
    ):
        given = {"img": image, "surfaces": surfaces, **wrong}
        fails(InvalidQueryError, words, project, **given)


DAMAGES = {
    "faces are missing": lambda data: data[: len(data) // 2],
    "vertices are missing": lambda data: data[:1000],
    "nothing": lambda data: b"",
    "a web page": lambda data: b"<html>404</html>",
    "cut in what is said of the volume": lambda data: data[:-40],
    "another word there": lambda data: data.replace(b"cras ", b"care "),
    "not finite": lambda data: data[:48] + b"\x7f\xc0\0\0" * 30 + data[168:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_surface_is_named(on_disk, damage):
    file = on_disk / SURF / "lh.white"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    words = r"lh\.white cannot be read.*verify --repair"
    fails(CorruptImageError, words, bare, mode="offline")


def test_surfaces_and_masks_that_do_not_fit_are_named(on_disk):
    left, right = sorted(on_disk.rglob("*_label-FFA1_mask.func.gii"))
    content = left.read_bytes()
    for file, bad, words in (
        (left, right.read_bytes(), r"hemi-L.*FFA1.*1197 vertices"),
        (left, content[:-300], r"hemi-L.*FFA1.*cannot be read"),
        (
            on_disk / SURF / "lh.pial",
            (on_disk / SURF / "rh.pial").read_bytes(),
            r"lh\.pial has 1203 vertices.* 1197",
        ),
    ):
        file.write_bytes(bad)
        fails(CorruptImageError, words, fetch, "sub-01", rois="FFA1", mode="offline")


def test_what_is_missing_offline_is_named(on_disk):
    def call(**options):
        return fetch("sub-01", mode="offline", **options)

    # The mask of a hemisphere that is not on disk must not look empty.
    min(on_disk.rglob("*_hemi-R_*_label-FFA1_mask.func.gii")).unlink()
    missing = errors.NotCachedError
    fails(missing, r"1 file .*hemi-R.*FFA1", call, rois="FFA1")
    words = "left out: .*FFA1 of sub-01"
    offline = warned(words, call, rois="face", allow_missing=True)
    assert set(offline.roi_masks) == {"FFA2", "OFA", "pSTSfaces"}
    assert not [f for f in offline.files if "FFA1" in f]
    every = warned("ROI masks are in the saved listing", call)
    others = {"V1d", "V1v", "PPA", "laionventral"}
    assert set(every.roi_masks) == {"FFA2", "OFA", "pSTSfaces", *others}
    (on_disk / SURF / "lh.sphere.reg").unlink()
    fails(missing, r"lh\.sphere\.reg.*download_new", call)
    shutil.rmtree(on_disk / SURF)
    words = r"lh\.white.*rh\.white.*lh\.pial"
    fails(missing, words, call, allow_missing=True)


def test_files_that_fail(server, data_dir, bucket_folder, replace, monkeypatch):
    """Masks may be left out, surfaces may not."""
    (mask,) = (k for k in masks_of(bucket_folder, "OFA") if "hemi-R" in k)
    denied = (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    server.faults[mask] = server.faults[f"{SURF}/lh.pial"] = denied
    fails(errors.DownloadError, r"lh\.pial", bare, allow_missing=True)
    del server.faults[f"{SURF}/lh.pial"]
    face = {"subjects": "sub-01", "rois": "face"}
    fails(errors.DownloadError, "OFA", fetch, **face)
    surfaces = warned("Left out.*OFA", fetch, allow_missing=True, **face)
    assert set(surfaces.roi_masks) == {"FFA1", "FFA2", "pSTSfaces"}
    assert [meta["roi"] for meta in surfaces.failed] == ["OFA"]
    assert not [path for path in surfaces.files if "OFA" in path]
    replace(f"{SURF}/lh.inflated", None)
    server.requests.clear()
    other = {"data_dir": data_dir / "other"}
    fails(InvalidQueryError, r"lacks surfaces.*lh\.inflated", bare, **other)
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    fails(errors.LicenseNotAcceptedError, "CC0 terms", fetch, "sub-03", **other)
    assert not gets(server) - ROOT


def test_a_bucket_that_is_gone(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        before = fetch("sub-01", rois="OFA")
    after = warned("continuing offline", fetch, "sub-01", rois="OFA")
    assert after.files == before.files
    fails(errors.BucketError, r"Missing in .*PPA", fetch, "sub-01", rois="PPA")
