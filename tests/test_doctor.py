"""The check-up: a bucket and a service as they should be, and each point broken."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import conftest
import pytest

from laion_fmri_fetchers import doctor
from laion_fmri_fetchers.cli import main
from laion_fmri_fetchers.demo import serve_access, serve_bucket

reachable = conftest.reachable

DENIED = re.compile(
    r"^(?!derivatives/localizers/)(.*/)?ses-3[1-4]/|^stimuli/task-images_stimuli\.h5$"
)
GLM = "derivatives/glmsingle-tedana/sub-01"
SESSION = f"{GLM}/ses-01/func/sub-01_ses-01_task-images"
TRIALS = f"{SESSION}_desc-SingletrialBetas_trials.tsv"
BETAS = f"{SESSION}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
ROI = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-{}_label-FFA-1_mask.nii.gz"
BRAIN = (
    "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/"
    "sub-01_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
)
LOCALIZER = (
    "derivatives/localizers/sub-01/ses-31/func/sub-01_ses-31_task-oloc_space-T1w_"
    "res-1pt8_contrast-objectVsScrambled_stat-z_statmap.nii.gz"
)
ARCHIVE = "stimuli/task-images_stimuli.h5"
TABLE = "stimuli/task-images_metadata.csv"
STIMULI = b"""image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03,shared,4rep
unique_THINGS_air_pump_p03.jpg,THINGS,sub-05,unique,4rep
"""
SEGMENTATIONS = b"""mask_row,image_name,noun,instance_id,score,box_x0,box_y0,box_x1,\
box_y1,localized,mask_file
"""


@pytest.fixture(scope="module")
def whole_bucket(bucket_folder):
    """A bucket in which what a check-up looks at is as published."""
    with serve_bucket(bucket_folder, denied=DENIED) as server:
        brain = (bucket_folder / BRAIN).read_bytes()
        for res in ("1pt8", "1pt5"):
            server.put(ROI.format(res), brain)
        server.put(LOCALIZER, brain)
        server.put(TABLE, STIMULI)
        server.put("stimuli/task-images_desc-segmentations_metadata.csv", SEGMENTATIONS)
        for model in ("CLIP", "DINOv2", "PEcore", "SigLIP2"):
            name = f"task-images_desc-{model}_embeddings.h5"
            server.put(f"archive/embeddings/v1/{name}", b"first")
        yield server


@pytest.fixture
def bucket(whole_bucket, monkeypatch, data_dir):
    """The bucket in force; it is as it was when a test ends."""
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", whole_bucket.url)
    whole_bucket.reset()
    data_dir.mkdir()
    yield whole_bucket
    whole_bucket.reset()
    whole_bucket.denied = DENIED


@pytest.fixture
def service(bucket, bucket_folder, monkeypatch):
    """The access service in force, with a manifest as published."""
    archive = (bucket_folder / ARCHIVE).read_bytes()
    with serve_access(bucket) as server:
        server.manifest = {
            "dataset": "laion-fmri",
            "current_terms_version": "2026-05-12",
            "versions": ["v1"],
            "files": [
                {
                    "name": "task-images_stimuli.h5",
                    "size": len(archive),
                    "sha256": hashlib.sha256(archive).hexdigest(),
                }
            ],
        }
        server.answers["/api/v1/manifest"] = lambda _: (200, {}, server.manifest)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", server.url)
        bucket.faults.clear()
        yield server


def by_name(points, state=None):
    return {p["point"]: p for p in points if state in (None, p["state"])}


def failures(**how):
    return set(by_name(doctor(**how), "failed"))


def replaced(bucket_folder, bucket, key, old, new):
    """Let the bucket answer with another content, of a listed size and ETag."""
    data = (bucket_folder / key).read_bytes()
    assert old in data
    return put_for_now(bucket, key, data.replace(old, new), data)


@contextlib.contextmanager
def put_for_now(bucket, key, data, before):
    bucket.put(key, data)
    try:
        yield
    finally:
        bucket.put(key, before)


# --- As it should be -------------------------------------------------------------


def test_all_is_as_it_should_be(service, data_dir, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    print(out); assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^\d+ points: \d+ ok, \d+ notes, 0 failed\.$", out, re.MULTILINE)
    assert list(data_dir.iterdir()) == []
