"""Which version of a file is on disk is told by its size and time of change.

A downloaded file has the date of its object, as wget and ``aws s3 sync`` set it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from datetime import datetime, timezone
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from calls import warnings_of

from laion_fmri_fetchers import fetch_laion_fmri, verify_cache
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.layout.trees import trials_id

TABLE = trials_id({"subject": "sub-01", "session": "ses-01"})
PUBLISHED = datetime(2025, 6, 2, tzinfo=timezone.utc).timestamp()


def fetch(**query):
    return fetch_laion_fmri(**{"rois": None, "sessions": 1, "verbose": 0, **query})


def fetch_quietly(**query):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fetch(**query)


def swap_labels(table):
    """Return a table of the same size, in which two labels changed places."""
    lines = table.decode().splitlines(keepends=True)
    first = lines[1].rpartition("\t")[2]
    other = next(n for n, line in enumerate(lines) if n and not line.endswith(first))
    second = lines[other].rpartition("\t")[2]
    lines[1] = lines[1].removesuffix(first) + second
    lines[other] = lines[other].removesuffix(second) + first
    return "".join(lines).encode()


@pytest.fixture
def bucket(bucket_folder, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        yield server


def state_of(path, **options):
    return verify_cache(verbose=0, **options).set_index("id").loc[path, "status"]


def test_downloaded_files_have_the_dates_of_their_objects(bucket, data_dir):
    data = fetch()
    for meta in data.images_meta:
        date = datetime.fromisoformat(meta["last_modified"].replace("Z", "+00:00"))
        assert Path(meta["absolute_path"]).stat().st_mtime == date.timestamp()


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_table_replaced_at_its_key_with_the_same_size(
    bucket, cached, bucket_folder, is_listed
):
    old = fetch().trials
    if not is_listed:  # then a later date alone would do
        shutil.rmtree(cached / ".laion_fmri/listings")
    bucket.put(TABLE, swap_labels((bucket_folder / TABLE).read_bytes()))
    with pytest.warns(UserWarning, match="another version of 1 file.*trials"):
        again = fetch()
    assert again.trials["label"].equals(old["label"])
    assert state_of(TABLE) == "outdated"
    new = fetch(mode="overwrite")
    assert new.trials["label"][0] != old["label"][0]
    assert fetch_quietly().trials["label"].equals(new.trials["label"])


@pytest.mark.parametrize("n_bytes", [0, 100])
def test_a_file_that_was_cut_short_is_downloaded_again(
    bucket, cached, bucket_folder, n_bytes, capsys
):
    os.truncate(cached / TABLE, n_bytes)
    assert state_of(TABLE) == "truncated"
    assert fetch_quietly(verbose=1).trials.shape[0]
    said = f"Not whole on disk, and downloaded again: {TABLE}"
    assert said in capsys.readouterr().err
    assert (cached / TABLE).read_bytes() == (bucket_folder / TABLE).read_bytes()


def test_a_directory_copied_with_its_times(bucket, cached, tmp_path):
    shutil.copytree(cached, tmp_path / "copy")  # as cp -a and rsync -a copy
    assert len(fetch_quietly(data_dir=tmp_path / "copy").images) == 1
    shutil.rmtree(tmp_path / "copy/.laion_fmri/listings")
    assert len(fetch_quietly(data_dir=tmp_path / "copy").images) == 1


def test_a_directory_copied_without_its_times_is_verified_by_checksums(
    bucket, cached, tmp_path, bucket_folder
):
    options = {"data_dir": tmp_path / "copy", "online": True, "verbose": 0}
    bucket.put(TABLE, swap_labels((bucket_folder / TABLE).read_bytes()))
    shutil.copytree(cached, options["data_dir"], copy_function=shutil.copyfile)
    report = verify_cache(**options)
    assert list(report["id"][report["status"] == "altered"]) == [TABLE]
    assert set(report["status"]) == {"ok", "altered"}
    repaired = verify_cache(repair=True, **options)
    assert (repaired["status"] == "repaired").sum() == 1
    assert fetch_quietly(data_dir=options["data_dir"]).trials.shape[0]


def test_a_directory_filled_by_other_tools(bucket, data_dir, bucket_folder):
    """``aws s3 sync`` sets the date of the object, and keeps nothing else."""
    shutil.copytree(bucket_folder, data_dir, dirs_exist_ok=True)
    for file in data_dir.rglob("*"):
        os.utime(file, (PUBLISHED, PUBLISHED))
    assert not fetch_quietly().images_meta[0]["outdated"]
    assert {key for _, key, _ in bucket.requests} == {""}


def test_a_mirror_with_later_dates(bucket, cached, bucket_folder, monkeypatch):
    """The same ETag and size tell that it has the same object."""
    with serve_bucket(bucket_folder) as mirror:
        image = fetch_quietly().images_meta[0]
        for key in (image["key"], TABLE):
            mirror.put(key, (bucket_folder / key).read_bytes())
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", mirror.url)
        assert fetch_quietly().images_meta[0] == image


@pytest.mark.parametrize(("change", "state"), [(-2, "ok"), (-2.1, "outdated")])
def test_times_of_coarse_disks_and_listings_in_milliseconds(
    bucket, cached, change, state
):
    time = (cached / TABLE).stat().st_mtime + change
    os.utime(cached / TABLE, (time, time))
    assert state_of(TABLE) == state
    told = ["another version" in text for text in warnings_of(fetch)]
    assert told == [True] * (state == "outdated")


def test_without_etags_a_later_date_is_another_version(bucket, cached, bucket_folder):
    bucket.objects[TABLE] = bucket.objects[TABLE]._replace(etag="")
    fetch_quietly()
    bucket.put(TABLE, swap_labels((bucket_folder / TABLE).read_bytes()))
    bucket.objects[TABLE] = bucket.objects[TABLE]._replace(etag="")
    with pytest.warns(UserWarning, match="another version of 1 file.*trials"):
        fetch()


def test_an_object_without_a_date_is_told_by_its_size(cached, no_network):
    listings = cached / ".laion_fmri/listings"
    for file in listings.iterdir():
        listing = json.loads(file.read_text())
        listing["objects"] = [[*each[:3], None] for each in listing["objects"]]
        file.write_text(json.dumps(listing))
    os.utime(cached / TABLE, (1.0, 1.0))
    assert not fetch_quietly(mode="offline").images_meta[0]["outdated"]
    os.truncate(cached / TABLE, 10)
    assert state_of(TABLE) == "truncated"


def test_a_brain_mask_is_derived_anew_from_another_map(bucket, data_dir, bucket_folder):
    for mask in (bucket_folder / "derivatives/anatomical/sub-01").rglob(
        "*_mask.nii.gz"
    ):
        bucket.delete(mask.relative_to(bucket_folder).as_posix())
    with pytest.warns(UserWarning, match="one was derived"):
        mask = fetch().brain_masks["sub-01"]
    first = nib.load(mask).get_fdata()
    assert first.any()
    fetch_quietly()
    (r2,) = data_dir.rglob("*desc-R2mean_statmap.nii.gz")
    image = nib.load(r2)
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1], image.affine), r2)
    with pytest.warns(UserWarning, match="one was derived"):
        fetch(mode="offline")
    np.testing.assert_array_equal(nib.load(mask).get_fdata(), first[::-1])
