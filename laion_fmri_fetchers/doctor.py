"""`doctor`: what calls need of bucket, access service and machine, point by point.

Everything is met by the client and the readers that calls use, on a sample: a subject
in every tree, and one of its sessions. A check is a function that yields points, and
stands in one of three tuples above `doctor`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import requests

from . import __version__
from .access.account import access_status
from .access.gate import ID_VARIABLE, current_terms_version, published_archive
from .access.service import hide_secrets, server_url
from .betas.model import ModelError, describe_model
from .betas.sources import remote_object
from .cache.data_dir import get_data_dir
from .cache.files import local_path, write_atomically
from .cache.settings import Settings
from .cache.state import auth_file, official_auth_file, state_path
from .cache.tables import read_trial_table
from .exceptions import DownloadError, did_you_mean
from .layout import trees as layout
from .layout.keys import Record, is_held_out, record_of
from .layout.labels import OOD_TYPES, stimulus_fields
from .layout.names import ROI_CATEGORIES, SUBJECTS, subjects_among
from .messages import counted, listed, readable_size
from .query.arguments import check_mode, check_timeout
from .remote.bucket import bucket_url, list_prefixes
from .remote.checksums import check_file, n_parts_of, part_sizes
from .remote.client import CA_VARIABLES, Client, Fault, Threads
from .remote.disks import existing_parent, try_lock, unlock
from .remote.ranges import RangeReader
from .splits import as_split, read_files, sources
from .volumes import read_header

OK, NOTE, FAILED = "ok", "note", "failed"

UPDATE = "Update this package, or report this to its developers."
ADDRESS = "Check LAION_FMRI_BUCKET_URL, if you set it, and the network."
CERTIFICATES = (
    "If your institute signs connections with a CA of its own, name its certificates "
    "by REQUESTS_CA_BUNDLE ({}). Otherwise, check the clock of this machine."
)
PROXY = (
    "Check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY. Ask your institute to let the proxy "
    "pass the bucket, or name the bucket in NO_PROXY where it can be reached without."
)
# What is in the reason of a request that failed -> the point that fails, and advice.
REASONS = {
    "TLS fails": ("TLS", CERTIFICATES),
    "which cannot be used": ("TLS", CERTIFICATES),
    "the proxy": ("proxy", PROXY),
    "cannot be resolved": ("name", ADDRESS),
    "": ("connection", ADDRESS),
}

PACKAGES = "numpy nibabel h5py requests urllib3 nilearn pandas filelock".split()
VARIABLES = {
    f"LAION_FMRI_{name}" for name in ("DATA_DIR", "BUCKET_URL", "ACCESS_URL", "LICENSE")
} | {ID_VARIABLE, "LAION_FMRI_OFFLINE", "LAION_FMRI_SPLITS", "LAION_FMRI_SPLITS_URL"}
# What no analysis can do without.
NEEDED_TREES = [layout.GLM, layout.ROIS, layout.ANATOMICAL]
NEEDED_TYPES = {"betas", "trials", "roi", "brain_mask"}
# Trees of which one session is listed, not all of the subject.
SESSION_TREES = (layout.GLM, layout.TEDANA, layout.RAW)
# The columns of tables that calls need; those of trials are looked at by their reader.
COLUMNS = {
    layout.STIMULUS_TABLE: "image_name dataset participant unique_or_shared n_reps",
    layout.CAPTIONS: "image_name caption_idx source caption",
    layout.SEGMENTATIONS_TABLE: "mask_row image_name noun instance_id score",
}
STIMULUS_FILES = {
    *(layout.ARCHIVE, layout.SEGMENTATIONS, *COLUMNS),
    *map(layout.embeddings_id, layout.EMBEDDING_MODELS),
}
# Repeats, source and OOD type of the images that were published.
KINDS = {
    *("unique 4 LAION", "unique 4 THINGS", "unique 4 THINGS+"),
    *("shared 12 LAION", "shared 12 THINGS+", "shared 4 NSD"),
    *(f"shared 4 OOD {ood_type}" for ood_type in OOD_TYPES),
}
SUBJECT_BYTES = 41_400_000_000  # of all betas of a subject

# Bytes of the beginning of a file, and of a small file at most.
_HEAD, _MOST = 2**16, 6_000_000
_N_AT_ONCE = 8

# Run by another process, as NFS gives a process any lock that it has already.
_TRY_LOCK = (
    "import sys; from laion_fmri_fetchers.remote.disks import try_lock\n"
    "sys.exit(3 if try_lock(*sys.argv[1:]) is None else 0)"
)


class Point(NamedTuple):
    """A finding; ``state`` is "ok", "note" or "failed"."""

    point: str
    state: str
    found: str
    expected: str = ""
    advice: str = ""


def expect(
    point: str,
    is_met: bool,
    found: str,
    expected: str,
    advice: str = UPDATE,
    otherwise: str = NOTE,
) -> Point:
    """Return a point that is "ok" if an expectation is met; else with advice."""
    state = OK if is_met else otherwise
    return Point(point, state, found, expected, "" if is_met else advice)


# Of what calls need.
need = functools.partial(expect, otherwise=FAILED)


@dataclasses.dataclass
class Context:
    """What checks look at: this machine, and what `listing` found in the bucket."""

    data_dir: str | os.PathLike | None
    timeout: float
    reader: RangeReader
    folder: str  # temporary, laid out as a data directory
    n_bytes: list[int]  # of each answer so far
    trees: list[str] = dataclasses.field(default_factory=list)
    subjects: tuple[str, ...] = ()
    subject: str = SUBJECTS[0]
    sessions: list[str] = dataclasses.field(default_factory=list)
    session: str = "ses-01"
    records: list[Record] = dataclasses.field(default_factory=list)

    def find(self, **fields: str) -> Record | None:
        """Return the first file listed that has these metadata."""
        found = (rec for rec in self.records if fields.items() <= rec.items())
        return next(found, None)

    def of_session(self, *image_types: str) -> list[Record | None]:
        """Return a file of each type of the session."""
        return [self.find(image_type=t, session=self.session) for t in image_types]

    def read(self, record: Record, n_bytes: int = _MOST) -> bytes:
        """Return the beginning of a file."""
        stop = min(n_bytes, record["size"])
        return bytes(self.reader.read_bytes(remote_object(record), 0, stop))

    def save(self, record: Record, n_bytes: int = _MOST) -> str:
        """Write the beginning of a file to the temporary folder; return its path."""
        path = local_path(self.folder, record["id"])
        write_atomically(Path(path), self.read(record, n_bytes))
        return path

    def status_of(self, record: Record) -> int:
        """Return the status with which the bucket answers a request for a byte."""
        try:
            self.read(record, 1)
        except Fault as fault:
            if fault.status is None:
                raise
            return fault.status
        return 206


# --- The machine ----------------------------------------------------------------------


def versions(_: Context) -> Iterator[Point]:
    """Name the versions of this package, of Python, and of dependencies."""
    names = [f"{__version__} on Python {platform.python_version()}"]
    names += [platform.platform(), *(f"{name} {version(name)}" for name in PACKAGES)]
    yield Point("versions", OK, ", ".join(names))


def settings(_: Context) -> Iterator[Point]:
    """Name the variables of the environment that change what calls do."""
    given = {n: v for n, v in os.environ.items() if n.startswith("LAION_FMRI_") and v}
    shown = [n if n == ID_VARIABLE else f"{n}={given[n]}" for n in sorted(given)]
    unknown = sorted(given.keys() - VARIABLES)
    advice = [f"{n} has no effect: {did_you_mean(n, VARIABLES)}" for n in unknown]
    found = listed(shown, 9) or "no variable LAION_FMRI_… is set"
    yield expect("settings", not unknown, found, "known variables", " ".join(advice))


def data_directory(context: Context) -> Iterator[Point]:
    """Write, rename and lock a file where data and state are kept."""
    folder = get_data_dir(context.data_dir)
    place = existing_parent(folder)
    name = f".laion-fmri-doctor-{secrets.token_hex(4)}"
    for parent in {place, existing_parent(str(state_path(folder)))}:
        probe = Path(parent, name)
        write_atomically(probe, bytes(_HEAD))
        probe.unlink()
    yield Point("data directory", OK, f"{folder} can be written")
    lock = try_lock(place, name)
    command = [sys.executable, "-c", _TRY_LOCK, place, name]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if lock:
        unlock(lock)
    found = "work" if done.returncode == 3 else "do not keep another process off"
    advice = "Processes that fetch the same files do some work twice; no harm."
    yield expect("file locks", done.returncode == 3, found, "work", advice)
    free = shutil.disk_usage(place).free
    expected = f"{readable_size(SUBJECT_BYTES)}, the betas of a subject"
    advice = "A quota may leave less. Make space, or name another data_dir."
    is_met = free >= SUBJECT_BYTES
    yield expect("free space", is_met, readable_size(free), expected, advice)


def request_id(context: Context) -> Iterator[Point]:
    """Report whether a request_id is kept, and whether others can read it."""
    status = access_status(context.data_dir)["status"]
    files = (auth_file(get_data_dir(context.data_dir)), official_auth_file())
    found = [str(file) for file in files if file and file.exists()]
    is_open = os.name == "posix" and any(os.stat(f).st_mode & 0o077 for f in found)
    text = f"{status} {listed(found)}" if status else "none, for stimulus images"
    advice = f"chmod 600 {' '.join(found)}"
    yield need("request_id", not is_open, text, "a file that is yours alone", advice)


# --- The bucket: the way to it, and what it lists -------------------------------------


def bucket(context: Context) -> Iterator[Point]:
    """Ask the bucket for anything: name, proxy, TLS."""
    url = bucket_url()
    proxies = requests.utils.get_environ_proxies(url)
    proxy = requests.utils.select_proxy(url, proxies) or ""
    proxy = proxy.rpartition("://")[2].rpartition("@")[2]
    by = f"by the proxy {proxy}" if proxy else "without a proxy"
    yield Point("bucket", OK, f"{url}, {by}")
    try:
        with Client(1, context.timeout) as client:
            page = f"{url}/?list-type=2&max-keys=1"
            answer = client.retrying(client.fetch, page, _HEAD)
        is_refused = proxy and answer.status >= 400 and b"<Error>" not in answer.body
        reason = f"the proxy answers with status {answer.status}" if is_refused else ""
    except Fault as fault:
        reason = fault.reason
    if reason:
        point, advice = next(REASONS[part] for part in REASONS if part in reason)
        named = next(filter(os.environ.get, CA_VARIABLES), "none") + " is set"
        yield Point(point, FAILED, reason, "an answer", advice.format(named))
    else:
        tls = ", its certificate is trusted" if url.startswith("https:") else ""
        yield Point("connection", OK, f"it answers{tls}")


def listing(context: Context) -> Iterator[Point]:
    """List a subject in every tree, and one session of trees that have many."""
    objects: dict[str, tuple] = {}

    def folders_in(*wanted: tuple[str, str]) -> list[str]:
        """Keep the objects below prefixes; return the folders."""
        listings = list_prefixes(wanted, timeout=context.timeout, verbose=0)
        for each in listings:
            context.n_bytes.append(each["n_bytes"])
            objects.update((found.key, found) for found in each["objects"])
        return [folder for each in listings for folder in each["prefixes"]]

    top = folders_in(("", "/"), (layout.DERIVATIVES, "/"), (layout.STIMULI, "/"))
    context.trees = [name for name in top if not name.startswith("sub-")]
    context.subjects = subjects_among(folders_in((layout.GLM, "/")))
    context.subject = subject = (*context.subjects, SUBJECTS[0])[0]
    below = folders_in(
        *((f"{t}{subject}/", "/" if t in SESSION_TREES else "") for t in layout.TREES)
    )
    glm = f"{layout.GLM}{subject}/"
    names = [f.removeprefix(glm)[:-1] for f in below if f.startswith(f"{glm}ses-")]
    held_out = [name for name in names if name in layout.HELD_OUT]
    context.sessions = names
    context.session = next((n for n in names if n not in held_out), "ses-01")
    sample = [context.session, *held_out[:1]]
    folders_in(*((f"{t}{subject}/{n}/", "") for t in SESSION_TREES for n in sample))
    context.records = [record_of(*objects[key]) for key in sorted(objects)]
    found = f"{counted(len(objects), 'file')} of {subject} and {context.session}"
    yield Point("listing", OK, found)


def trees(context: Context) -> Iterator[Point]:
    """Look at the folders of the top and of derivatives."""
    missing = [tree for tree in NEEDED_TREES if tree not in context.trees]
    found = f"missing: {listed(missing)}" if missing else listed(context.trees, 9)
    advice = "Check that LAION_FMRI_BUCKET_URL names the whole dataset."
    yield need("trees", not missing, found, listed(NEEDED_TREES), advice)
    top = (layout.DERIVATIVES, layout.STIMULI, layout.ARCHIVED)
    new = sorted({*context.trees} - {*layout.TREES, *top})
    advice = f"fetch_laion_fmri_ids fetches files below their prefix. {UPDATE}"
    yield expect("new trees", not new, listed(new, 9) or "none", "none", advice)


def subjects(context: Context) -> Iterator[Point]:
    """Compare subjects, and the sessions of one, with the published ones."""
    names, n_sessions = [*context.subjects], len(context.sessions)
    check = expect if names else need
    found = listed(names, 9) or "none"
    yield check("subjects", names == [*SUBJECTS], found, listed([*SUBJECTS]))
    check = expect if n_sessions else need
    yield check("sessions", n_sessions == 34, str(n_sessions), "34")


def keys(context: Context) -> Iterator[Point]:
    """Look for files that no rule explains, and for types of image that are needed."""
    known = STIMULUS_FILES | layout.ROOT_FILES
    odd = [
        rec["id"].rpartition("/")[2]
        for rec in context.records
        if rec["image_type"] == "other" and rec["id"] not in known
    ]
    found = f"{len(odd)} of {counted(len(context.records), 'file')}: {listed(odd, 9)}"
    yield expect("unknown files", not odd, found, "none")
    missing = NEEDED_TYPES - {rec["image_type"] for rec in context.records}
    found = f"missing: {listed(sorted(missing))}" if missing else "none is missing"
    yield need("image types", not missing, found, listed(sorted(NEEDED_TYPES)))


def rois(context: Context) -> Iterator[Point]:
    """Compare names and grids of ROI masks with the published ones."""
    masks = [rec for rec in context.records if rec["image_type"] == "roi"]
    found = {f"{rec['roi_category']}/{rec['roi']}" for rec in masks}
    known = {f"{c}/{name}" for c, names in ROI_CATEGORIES.items() for name in names}
    new = sorted(found - known)
    text = listed(new, 9) or f"{len(found)} known names"
    yield expect("ROI names", not new, text, "names that were published")
    grids = {rec["res"] or "none" for rec in masks if rec["extension"] == "nii.gz"}
    text, is_met = f"res- {listed(sorted(grids))}", layout.FUNCTIONAL_GRID in grids
    yield need("ROI masks", is_met, text, f"res- {layout.FUNCTIONAL_GRID}, of betas")


def stimulus_files(context: Context) -> Iterator[Point]:
    """Look for the files of the stimuli, and for the columns of their tables."""
    records = {rec["id"]: rec for rec in context.records}
    missing = sorted(STIMULUS_FILES - records.keys())
    found = f"missing: {listed(missing, 9)}" if missing else "all of them"
    yield need("stimulus files", not missing, found, listed(sorted(STIMULUS_FILES), 9))
    missing = []
    for name, needed in COLUMNS.items():
        if name in records:
            head = context.read(records[name], _HEAD).decode("utf-8-sig", "replace")
            columns = head.splitlines()[0].replace('"', "").split(",")
            missing += [f"{c} of {name}" for c in needed.split() if c not in columns]
    found = f"missing: {listed(missing, 9)}" if missing else "all of them"
    yield need("columns", not missing, found, "; ".join(COLUMNS.values()))


# --- The bucket: what files hold, and how they are served -----------------------------


def trials(context: Context) -> Iterator[Point]:
    """Compare the trial table of the session with its labels and its betas."""
    table, betas = context.of_session("trials", "betas")
    if table is None or betas is None:
        return
    context.save(table)
    found = read_trial_table(context.folder, table["id"])
    fields = {label: stimulus_fields(label) for label in found.label}
    unknown = [label for label, f in fields.items() if not f["unique_or_shared"]]
    text = listed(unknown, 9) or f"{len(fields)} parse"
    yield expect("labels", not unknown, text, "shared_… and unique_…, as published")
    unique = [f for f in fields.values() if f["unique_or_shared"] == "unique"]
    owners = {str(f["participant"]) for f in unique}
    text, is_met = listed(sorted(owners)) or "none", owners <= {context.subject}
    yield need("unique labels", is_met, text, f"{context.subject}, by their p<NN>")
    n_volumes = read_header(context.save(betas, _HEAD)).n_volumes
    text = f"{len(found.beta_index)} trials, {n_volumes} volumes"
    is_met = found.beta_index == [*range(n_volumes)]
    advice = "Report this to the dataset's authors: betas cannot be told apart."
    yield need("trials and betas", is_met, text, "a trial for each volume", advice)


def grids(context: Context) -> Iterator[Point]:
    """Compare the grid of the betas with that of masks and maps."""
    betas, *images = context.of_session("betas", "noise_ceiling", "rsquare")
    if betas is None:
        return
    for kind in ("roi", "brain_mask"):
        mask = {"image_type": kind, "extension": "nii.gz"}
        images.append(context.find(**mask, res=layout.FUNCTIONAL_GRID))
    header = read_header(context.save(betas, _HEAD))
    different = []
    for record in filter(None, images):
        other = read_header(context.save(record, _HEAD))
        is_same = other.shape == header.shape
        if not (is_same and np.allclose(other.affine, header.affine, atol=1e-3)):
            different.append(record["image_type"])
    found = f"{header.shape}" + f", but not of {listed(different)}" * bool(different)
    yield need("grid", not different, found, "the same of betas, masks and maps")


def ranges(context: Context) -> Iterator[Point]:
    """Read a range of an image, and one of a version of it that does not exist."""
    for record in filter(None, context.of_session("betas")):
        status = context.status_of(record)
        advice = (
            "A proxy or mirror on the way may be at fault: large files cannot be "
            "fetched in parts. Name the bucket in NO_PROXY, or ask who runs the proxy."
        )
        yield need("ranges", status == 206, f"status {status}", "206", advice)
        status = context.status_of({**record, "etag": 32 * "0"})
        advice = "Changes of a file during a download are noticed only at its end."
        yield expect("If-Match", status == 412, f"status {status}", "412", advice)


def checksums(context: Context) -> Iterator[Point]:
    """Compare a table with its ETag, and sizes of files with usual part sizes."""
    for record in filter(None, context.of_session("trials")):
        file, size = context.save(record), record["size"]
        wrong = check_file(file, size=size, etag=record["etag"])
        advice = "Something on the way alters files: downloads will be refused."
        found = wrong or "that of the trial table"
        yield need("ETag", not wrong, found, "the MD5 of the file", advice)
    n_parts = {rec["id"]: n_parts_of(rec["etag"]) for rec in context.records}
    large = [rec for rec in context.records if n_parts[rec["id"]] > 1]
    odd = [r["id"] for r in large if not part_sizes(r["size"], n_parts[r["id"]])]
    found = listed(odd, 9) or f"usual ones of {counted(len(large), 'file')}"
    advice = "Of these files only the size can be checked."
    yield expect("part sizes", not odd, found, "usual ones", advice)


def denied(context: Context) -> Iterator[Point]:
    """See whether held-out sessions and the archive of images are still denied."""
    released = (
        "It was released: time for a new version of this package. Until then, a call "
        "that names such sessions, as sessions=31, fetches them."
    )
    held_out = next(filter(is_held_out, context.records), None)
    for point, record, advice in (
        ("held-out session", held_out, released),
        ("gated archive", context.find(id=layout.ARCHIVE), UPDATE),
    ):
        if record:
            status = context.status_of(record)
            found = f"{record['id'].rpartition('/')[2]} answers {status}"
            yield expect(point, status == 403, found, "403", advice)


def stimuli(context: Context) -> Iterator[Point]:
    """Look for images of a kind that is not known in the table of stimuli."""
    record = context.find(id=layout.STIMULUS_TABLE)
    if record is None:
        return
    table = pd.read_csv(context.save(record), dtype=str)
    kinds = {}
    for label in table["image_name"]:
        fields = stimulus_fields(label)
        names = ("unique_or_shared", "n_reps", "dataset", "ood_type")
        kind = " ".join(str(fields[name]) for name in names if fields[name])
        kinds[kind or "no known label"] = label
    new = [f"{kind}, as {kinds[kind]}" for kind in sorted({*kinds} - KINDS)]
    found = listed(new, 9) or f"{len(kinds)} of {counted(len(table), 'image')}"
    yield expect("kinds of images", not new, found, "kinds that were published")


def model_file(context: Context) -> Iterator[Point]:
    """Prove which voxel each row of the session's model file is."""
    betas, model, rsquare = context.of_session("betas", "model", "rsquare")
    if betas is None or model is None:
        return
    mask = context.find(image_type="brain_mask", res=layout.FUNCTIONAL_GRID)
    expected = "contiguous float32, its rows the voxels of the image in a known order"
    try:
        found, rows = describe_model(
            context.reader,
            remote_object(model),
            remote_object(betas),
            brain_mask=remote_object(mask) if mask else None,
            rsquare=remote_object(rsquare) if rsquare else None,
        )
        yield Point("model file", OK, f"{found}; {rows}", expected)
    except ModelError as error:
        advice = "fetch_laion_betas takes the images of such sessions, which is slow."
        yield Point("model file", NOTE, str(error), expected, f"{advice} {UPDATE}")


# --- Other services -------------------------------------------------------------------


def access_service(context: Context) -> Iterator[Point]:
    """Read the fields of the manifest; compare the archive with that of the bucket."""
    terms = current_terms_version(timeout=context.timeout)
    archive = published_archive(context.timeout, tries=1)
    yield Point("access service", OK, f"{server_url()}, terms of version {terms}")
    if record := context.find(id=layout.ARCHIVE):
        found = f"{archive.size} bytes by the service, {record['size']} in the bucket"
        advice = "They are of different versions; downloads of images may be refused."
        is_met = archive.size == record["size"]
        yield need("size of the archive", is_met, found, "the same", advice)


def splits(context: Context) -> Iterator[Point]:
    """Read two splits from where a call would read them, unless they are kept."""
    places, how = [*sources()], Settings("download_new", "", 1, context.timeout, 0)
    try:
        for source in places:
            place = source.place
            files = read_files(source, "shared", ["tau"], how)
            files |= read_files(source, SUBJECTS[0], ["random_0"], how)
            if "tau" in files:
                break
        tau = as_split(files.get("tau"), "tau")
        yield Point("splits", OK, f"{tau} from {place}")
        if "random_0" in files:  # of a demo, the subject may be missing
            params = as_split(files["random_0"], "random_0").params
            revision = params.get("revision")
            is_met, found = revision == 2, f"revision {revision} from {place}"
            advice = f"With a former one, duplicates leak into test images. {UPDATE}"
            yield expect("random splits", is_met, found, "revision 2", advice)
    except (DownloadError, ValueError) as error:
        advice = "Install laion_fmri, or name a folder or archive by LAION_FMRI_SPLITS."
        yield Point("splits", NOTE, f"{place}: {error}", "train/test splits", advice)


MACHINE_CHECKS = (versions, settings, data_directory, request_id)
BUCKET_CHECKS = (
    *(trees, subjects, keys, rois, stimulus_files, trials, grids, ranges, checksums),
    *(denied, stimuli, model_file),
)
SERVICE_CHECKS = (access_service, splits)


def doctor(
    *, data_dir: str | os.PathLike | None = None, timeout: float = 30.0
) -> list[dict[str, str]]:
    """Compare bucket, access service and this machine with expectations.

    A sample is looked at: one subject and one session. At most 20 MB are read, nothing
    is downloaded into the data directory, and no licence is asked for. The result holds
    no secret, and can be part of a bug report.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`. A file is written to it for a moment, to
        see whether that works.
    timeout : float, default=30.0
        Seconds without an answer after which a server is given up.

    Returns
    -------
    list of dict
        One per point, each with the texts ``point`` (its name), ``state`` ("ok",
        "note": worth knowing, or "failed": something that calls need is not as
        expected), ``found``, ``expected`` and ``advice``.

    See Also
    --------
    verify_cache : Check the files on disk.
    status : Print what is configured, accepted and cached.

    Examples
    --------
    Needs the bucket and the access service::

        >>> points = doctor()  # doctest: +SKIP
        >>> [p["point"] for p in points if p["state"] == "failed"]  # doctest: +SKIP
        []
    """
    timeout = check_timeout(timeout)
    n_bytes: list[int] = []
    stages = (MACHINE_CHECKS, (bucket,), (listing,), BUCKET_CHECKS, SERVICE_CHECKS)
    is_offline = check_mode(None) == "offline"
    points: list[Point] = []
    with (
        Threads(_N_AT_ONCE) as threads,
        RangeReader(_N_AT_ONCE, timeout, n_bytes.append) as reader,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        context = Context(data_dir, timeout, reader, folder, n_bytes)
        for checks in stages[:1] if is_offline else stages:
            needs_bucket = checks in ((listing,), BUCKET_CHECKS)
            if needs_bucket and points[-1].state == FAILED:
                continue
            futures = [threads.submit(_points_of, check, context) for check in checks]
            points += [point for future in futures for point in future.result()]
    if is_offline:
        text = "not checked, because LAION_FMRI_OFFLINE is set"
        points.append(Point("bucket", NOTE, text))
    else:
        read = readable_size(sum(n_bytes))
        points.append(Point("traffic", OK, f"{read} of the bucket"))
    return [*map(_as_dict, points)]


def _points_of(
    check: Callable[[Context], Iterator[Point]], context: Context
) -> list[Point]:
    """Return the points of a check; an error that it raises is the last of them."""
    points: list[Point] = []
    try:
        points.extend(check(context))
        return points
    except Exception as error:
        # What is not as expected may break a check in any way; the others go on.
        reason = str(getattr(error, "reason", error)).replace(f"{context.folder}/", "")
        found = f"{reason} ({type(error).__name__})"
    name = check.__name__.replace("_", " ")
    advice = f"If it stays so: {UPDATE[0].lower()}{UPDATE[1:]}"
    return [*points, Point(name, FAILED, found, "no error", advice)]


def _as_dict(point: Point) -> dict[str, str]:
    """Return a point without what servers may have put into their messages."""
    secret = os.environ.get(ID_VARIABLE, "").strip().strip("'\"")
    return {name: hide_secrets(text, secret) for name, text in point._asdict().items()}
