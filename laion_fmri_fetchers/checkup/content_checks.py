"""What is in a few objects of the bucket, and how they are served."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import pandas as pd

from laion_fmri_fetchers.arrays.volumes import Header
from laion_fmri_fetchers.arrays.voxels import on_grid
from laion_fmri_fetchers.layout.keys import is_held_out
from laion_fmri_fetchers.layout.labels import stimulus_fields, stimulus_value
from laion_fmri_fetchers.layout.trees import (
    ARCHIVE,
    CAPTIONS,
    FUNCTIONAL_GRID,
    GATED,
    HELD_OUT,
    PARTICIPANTS,
    SEGMENTATIONS_TABLE,
    STIMULUS_TABLE,
)
from laion_fmri_fetchers.messages import counted, listed, readable_size
from laion_fmri_fetchers.transfer import bucket
from laion_fmri_fetchers.transfer.checksums import bare, part_sizes

from .client import SMALL, NoAnswerError, Reply
from .context import Context, Record
from .points import FAILED, NOTE, Point, judged, note, ok

TRIAL_COLUMNS = ("session", "run", "beta_index", "label")
NEEDED_COLUMNS = ("run", "beta_index", "label")
STIMULUS_COLUMNS = (
    "image_name",
    "dataset",
    "participant",
    "unique_or_shared",
    "n_reps",
)
CAPTION_COLUMNS = (
    *("image_name", "caption_idx", "source", "caption", "origin_collection"),
    *("participant_id", "ai_model"),
)
SEGMENTATION_COLUMNS = (
    *("mask_row", "image_name", "noun", "instance_id", "score"),
    *("box_x0", "box_y0", "box_x1", "box_y1", "localized", "mask_file"),
)
N_STIMULI = 25_052
VOXEL_SIZE = 1.778
GRID_SHAPE = (143, 143, 143)
SPEED_BYTES = 4_000_000

_MOST_TABLE = 3_000_000
_UPDATE = "Update this package, or report this to its developers."
_RANGE_ADVICE = (
    "A proxy or mirror on the way may be at fault: large files cannot be fetched in "
    "parts. Name the bucket in NO_PROXY, or ask who runs the proxy or mirror."
)


def trial_table(context: Context) -> Iterator[Point]:
    """Compare the trial table of the session with its labels and its betas."""
    sample = context.sample
    rec = _of_session(context, "trials")
    if rec is None:
        yield _nothing(f"trial table of {sample.subject}, {sample.session}")
        return
    rows = _table(_whole(context, rec), "\t")
    yield from _columns("trial table", rows, TRIAL_COLUMNS, NEEDED_COLUMNS)
    if "beta_index" in rows:
        yield judged(
            rows["beta_index"].tolist() == [str(i) for i in range(len(rows))],
            "beta_index",
            f"{len(rows)} rows, from {rows['beta_index'].iloc[0]}"
            if len(rows)
            else "no row",
            "one number per row, in order, from 0",
            _UPDATE,
        )
    if "label" in rows:
        yield from _labels(rows["label"], sample.subject)
    betas = _of_session(context, "betas")
    if betas is None:
        return
    header = _header(context, betas)
    yield judged(
        header.n_volumes == len(rows),
        "trials and betas",
        f"{len(rows)} trials, {header.n_volumes} volumes",
        "one volume per trial",
        "Report this to the publishers of the dataset: betas cannot be told apart.",
    )


def _labels(labels: pd.Series, subject: str) -> Iterator[Point]:
    """Yield whether labels parse, and whether unique images are the subject's."""
    fields = {label: stimulus_fields(label) for label in labels.unique()}
    unknown = [label for label, f in fields.items() if f["unique_or_shared"] is None]
    yield judged(
        not unknown,
        "labels",
        f"{len(unknown)} of {len(fields)} not understood: {listed(unknown, 3)}"
        if unknown
        else f"{len(fields)} understood",
        "shared_… and unique_…, as published",
        "Their derived fields are null. " + _UPDATE,
        NOTE,
    )
    of = {
        f"{f['participant'] or 'unknown'} ({label[-7:-4]})"
        for label, f in fields.items()
        if f["unique_or_shared"] == "unique"
    }
    others = sorted(name for name in of if not name.startswith(subject))
    yield judged(
        not others,
        "unique labels",
        f"of {listed(others or sorted(of)) or 'nobody'}",
        f"all of {subject}",
        "The numbers of participants in labels are not those known. " + _UPDATE,
    )


def participants(context: Context) -> Iterator[Point]:
    """Read the table of participants, where there is one."""
    rec = _listed(context, PARTICIPANTS)
    if rec is None:
        yield note("participants.tsv", "not there; filters on age or sex find nobody")
        return
    rows = _table(_whole(context, rec), "\t")
    if "participant_id" not in rows:
        yield from _columns(
            "participants.tsv", rows, ("participant_id",), ("participant_id",)
        )
        return
    names = rows["participant_id"].tolist()
    others = [c for c in rows.columns if c != "participant_id"]
    yield judged(
        set(context.sample.subjects) <= set(names),
        "participants.tsv",
        f"{listed(names, 9)}; columns {listed(others, 9) or 'none'}",
        "each subject of the bucket",
        "Filters on participants leave out those who are missing.",
        NOTE,
    )


def images(context: Context) -> Iterator[Point]:
    """Compare the image of betas with the grid of masks and maps."""
    betas = _of_session(context, "betas")
    if betas is None:
        yield _nothing(f"betas of {context.sample.session}")
        return
    header = _header(context, betas)
    size = nib.affines.voxel_sizes(header.affine)
    is_published = header.shape == GRID_SHAPE and abs(size - VOXEL_SIZE).max() < 0.001
    yield judged(
        is_published and header.dtype == "float32",
        "betas",
        f"{header.shape} x {header.n_volumes} {header.dtype.name}, "
        f"{' x '.join(f'{s:.4g}' for s in size)} mm, "
        + readable_size(betas["size"] or 0),
        f"{GRID_SHAPE} float32, {VOXEL_SIZE} mm",
        "Another bucket than the published one?",
        NOTE,
    )
    on_same = (
        *("roi", "brain_mask", "subject_noise_ceiling", "noise_ceiling"),
        *("mean_rsquare", "rsquare"),
    )
    first: dict[str, Record] = {}
    for rec in context.sample.of_type(*on_same):
        is_volume = rec["extension"] == "nii.gz"
        is_session = rec["session"] in (None, context.sample.session)
        is_mask = rec["image_type"] in ("roi", "brain_mask")
        res = FUNCTIONAL_GRID if is_mask else None
        if is_volume and rec["res"] == res and (is_mask or is_session):
            first.setdefault(rec["image_type"], rec)
    off = []
    for name, rec in first.items():
        other = _header(context, rec)
        if not on_grid(other.shape, other.affine, header):
            off.append(f"{name} {other.shape}")
    yield judged(
        not off and {"roi", "brain_mask"} <= set(first),
        "grid",
        f"other grid: {listed(off)}" if off else f"shared by {listed(list(first), 9)}",
        "masks and maps on the grid of the betas",
        "Masks and betas cannot be combined. " + _UPDATE,
    )


def ranges(context: Context) -> Iterator[Point]:
    """Ask for a range, with a condition, and for the date of an object."""
    rec = _of_session(context, "betas") or _largest(context)
    if rec is None or not rec["size"]:
        yield _nothing("file to try a range on")
        return
    url = bucket.object_url(rec["key"])
    stop = min(rec["size"], 2000)
    start = stop // 2
    reply = context.client.get(url, start=start, stop=stop)
    told = reply.headers.get("Content-Range", "none")
    yield judged(
        reply.status == 206 and told == f"bytes {start}-{stop - 1}/{rec['size']}",
        "ranges",
        f"status {reply.status}, Content-Range: {told}",
        f"206, bytes {start}-{stop - 1}/{rec['size']}",
        _RANGE_ADVICE,
    )
    etag = bare(reply.headers.get("ETag", ""))
    yield judged(
        etag == rec["etag"] and "Last-Modified" in reply.headers,
        "ETag and date",
        f"ETag {etag or 'none'}, {reply.headers.get('Last-Modified', 'no date')}",
        f"ETag {rec['etag']}, as listed, and a date",
        "Changes of a file during a download might not be noticed. " + _RANGE_ADVICE,
        NOTE,
    )
    wrong = {"If-Match": f'"{"0" * 32}"'}
    status = context.client.get(url, start=0, stop=1, headers=wrong).status
    yield judged(
        status == 412,
        "If-Match",
        f"status {status} to a wrong ETag",
        "412",
        "Changes of a file during a download are noticed only at its end.",
        NOTE,
    )


def checksums(context: Context) -> Iterator[Point]:
    """Compare ETags with the MD5 of a small object and the parts of large ones."""
    rec = _of_session(context, "trials")
    if rec and rec["etag"] and "-" not in rec["etag"]:
        digest = hashlib.md5(_whole(context, rec), usedforsecurity=False).hexdigest()
        yield judged(
            digest == rec["etag"],
            "MD5",
            f"{digest} of the trial table",
            f"{rec['etag']}, its ETag",
            "Something on the way alters files, or the ETag is not an MD5: downloads "
            "would be refused.",
        )
    etags = [rec for rec in context.sample.records if "-" in (rec["etag"] or "")]
    sizes: dict[int, int] = {}
    odd = []
    for rec in etags:
        found = part_sizes(rec["size"] or 0, int(rec["etag"].rpartition("-")[2]))
        if found:
            sizes[found[0] // 2**20] = sizes.get(found[0] // 2**20, 0) + 1
        else:
            odd.append(rec["id"].rpartition("/")[2])
    yield judged(
        not odd,
        "parts",
        f"not a usual size: {listed(odd)}"
        if odd
        else f"{counted(len(etags), 'file')} in parts"
        + "".join(f", {n} of {size} MiB" for size, n in sorted(sizes.items())),
        "a usual part size for each",
        "Of these files only the size can be checked.",
        NOTE,
    )


def held_out(context: Context) -> Iterator[Point]:
    """See that held-out sessions are denied, and their localizers public."""
    recs = [r for r in context.sample.records if r["session"] in HELD_OUT]
    tried = {
        "held-out session": [r for r in recs if is_held_out(r)],
        "released localizers": [r for r in recs if not is_held_out(r)],
    }
    for point, group in tried.items():
        files = [rec for rec in group if rec["size"]]
        if not files:
            yield note(point, f"none of {context.sample.subject} is listed")
            continue
        reply = context.client.read(files[0]["key"], 0, 1)
        is_denied = point == "held-out session"
        yield judged(
            reply.status in ((403,) if is_denied else (200, 206)),
            point,
            f"{len(group)} listed; {files[0]['session']} answers {reply.status}",
            "403" if is_denied else "206",
            "They may have been released. " * is_denied + _UPDATE,
            NOTE if is_denied else FAILED,
        )


def gated_archive(context: Context) -> Iterator[Point]:
    """See that the archive of stimulus images is gated."""
    status = context.client.read(ARCHIVE, 0, 1).status
    yield judged(
        status == 403,
        "gated archive",
        f"status {status} without access",
        "403",
        "The images may have become public, or moved. " + _UPDATE,
        NOTE,
    )


def stimulus_table(context: Context) -> Iterator[Point]:
    """Compare the table of stimuli, which is public, with labels."""
    reply = context.client.read(STIMULUS_TABLE, 0, _MOST_TABLE)
    yield judged(
        reply.status in (200, 206),
        "stimulus table",
        f"status {reply.status} without access",
        "206",
        "Filters on stimuli need it. " + _UPDATE,
    )
    if reply.status not in (200, 206):
        return
    rows = _table(reply.body, ",")
    yield from _columns("stimulus columns", rows, STIMULUS_COLUMNS, ("image_name",))
    if not set(STIMULUS_COLUMNS) <= set(rows.columns):
        return
    is_whole = len(reply.body) < _MOST_TABLE
    yield judged(
        len(rows) == N_STIMULI,
        "stimuli",
        f"{'' if is_whole else 'more than '}{len(rows):,} rows",
        f"{N_STIMULI:,}",
        "Another bucket than the published one?",
        NOTE,
    )
    different = []
    for row in rows.to_dict("records"):
        of_label = stimulus_fields(row["image_name"])
        different += [
            f"{field} {row[field]!r} of {row['image_name']}"
            for field in ("dataset", "n_reps", "participant", "unique_or_shared")
            if stimulus_value(field, row[field]) not in (of_label[field], None)
            and not (field == "participant" and of_label[field] is None)
        ]
    spelled = {name: sorted(set(rows[name])) for name in ("dataset", "n_reps")}
    yield judged(
        not different,
        "stimuli and labels",
        f"{len(different)} differ: {listed(different, 2)}"
        if different
        else "; ".join(f"{n}: {listed(v, 6)}" for n, v in spelled.items()),
        "table and labels say the same",
        _UPDATE,
        NOTE,
    )


def captions_and_masks(context: Context) -> Iterator[Point]:
    """Read the columns of captions and of segmentations."""
    for point, key, columns in (
        ("captions", CAPTIONS, CAPTION_COLUMNS),
        ("segmentations", SEGMENTATIONS_TABLE, SEGMENTATION_COLUMNS),
    ):
        if _listed(context, key):
            body = _body(context.client.read(key), key).partition(b"\n")[0] + b"\n"
            yield from _columns(point, _table(body, ","), columns, ("image_name",))


def speed(context: Context) -> Iterator[Point]:
    """Measure seconds per request, and bytes per second on one connection."""
    latencies = sorted(context.client.latencies)
    if latencies:
        yield ok("latency", f"{1000 * latencies[len(latencies) // 2]:.0f} ms (median)")
    rec = _of_session(context, "betas") or _largest(context)
    if rec is None or not rec["size"]:
        return
    stop = min(rec["size"], SPEED_BYTES)
    url = bucket.object_url(rec["key"])
    reply = context.client.get(url, start=0, stop=stop, may_be_cut=True)
    rate = len(_body(reply, rec["key"])) / max(reply.seconds, 1e-6)
    yield ok(
        "speed",
        f"{readable_size(rate)}/s on one connection; at that rate "
        f"{readable_size(rec['size'])} of betas, a session, take "
        f"{rec['size'] / rate / 60:.1f} min; fetchers use many connections",
    )


# --- Reading ---------------------------------------------------------------------


def _nothing(what: str) -> Point:
    return note("files to try", f"not checked, because the bucket lists no {what}")


def _listed(context: Context, id_: str) -> Record | None:
    return next((rec for rec in context.sample.records if rec["id"] == id_), None)


def _of_session(context: Context, image_type: str) -> Record | None:
    """Return the first record of a kind in the session sampled."""
    recs = context.sample.of_type(image_type)
    return next((r for r in recs if r["session"] == context.sample.session), None)


def _largest(context: Context) -> Record | None:
    public = [r for r in context.sample.records if not is_held_out(r)]
    free = [rec for rec in public if rec["id"] not in GATED]
    return max(free, key=lambda rec: rec["size"] or 0, default=None)


def _whole(context: Context, rec: Record) -> bytes:
    """Return a small file."""
    stop = min(rec["size"] or SMALL, _MOST_TABLE)
    return _body(context.client.read(rec["key"], 0, max(stop, 1)), rec["id"])


def _body(reply: Reply, key: str) -> bytes:
    if reply.status not in (200, 206):
        name = key.rpartition("/")[2]
        raise NoAnswerError(f"status {reply.status} for {name}")
    return reply.body


def _table(body: bytes, separator: str) -> pd.DataFrame:
    """Return a table as text; a last line that is cut off is left out."""
    whole = body[: body.rfind(b"\n") + 1] or body
    return pd.read_csv(
        io.BytesIO(whole), sep=separator, dtype=str, keep_default_na=False
    )


def _columns(
    point: str,
    rows: pd.DataFrame,
    expected: tuple[str, ...],
    needed: tuple[str, ...],
) -> Iterator[Point]:
    """Yield whether a table has its columns, and which it has besides."""
    found = list(rows.columns)
    lacking = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    words = f"missing: {listed(lacking, 9)}; " * bool(lacking)
    yield judged(
        not lacking,
        point,
        f"{words}columns {listed(found, 12)}",
        listed(list(expected), 12),
        _UPDATE,
        FAILED if set(needed) - set(found) else NOTE,
    )
    if more and not lacking:
        yield note(point, f"further columns: {listed(more, 9)}")


def _header(context: Context, rec: Record) -> Header:
    """Return the header of a compressed image, from its first bytes."""
    body = _body(context.client.read(rec["key"], 0, SMALL), rec["id"])
    raw = zlib.decompressobj(wbits=31).decompress(body, 2**20)
    image: Any = nib.Nifti1Image.from_bytes(raw)
    proxy, shape = image.dataobj, image.shape
    return Header(
        rec["id"],
        tuple(shape[:3]),
        shape[3] if len(shape) == 4 else 1,
        image.affine,
        proxy.dtype,
        float(proxy.slope),
        float(proxy.inter),
        proxy.offset,
        image.header,
    )
