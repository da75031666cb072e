"""Content of a few objects of the bucket, and how they are served."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import pandas as pd

from laion_fmri_fetchers.betas.voxels import on_grid
from laion_fmri_fetchers.layout import trees as layout
from laion_fmri_fetchers.layout.keys import is_held_out
from laion_fmri_fetchers.layout.labels import OOD_TYPES, stimulus_fields, stimulus_value
from laion_fmri_fetchers.messages import counted, listed, readable_size
from laion_fmri_fetchers.remote import bucket
from laion_fmri_fetchers.remote.checksums import part_sizes
from laion_fmri_fetchers.remote.client import bare_etag
from laion_fmri_fetchers.volumes import Header, read_header

from .client import SMALL, NoAnswerError, Reply
from .context import Context, Record
from .points import FAILED, NOTE, Point, judged, none_of, note, ok

TRIAL_COLUMNS = ("session", "run", "beta_index", "label")
NEEDED_TRIAL_COLUMNS = ("run", "beta_index", "label")
STIMULUS_COLUMNS = (
    *("image_name", "dataset", "participant", "unique_or_shared", "n_reps"),
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
KINDS = frozenset(
    (
        *(f"unique 4 {source}" for source in ("LAION", "THINGS", "THINGS+")),
        *("shared 12 LAION", "shared 12 THINGS+", "shared 4 NSD"),
        *(f"shared 4 OOD {ood_type}" for ood_type in OOD_TYPES),
    )
)
"""Kinds of images that were published, see `_kind`."""
VOXEL_SIZE = 1.778
GRID_SHAPE = (143, 143, 143)
SPEED_BYTES = 4_000_000

_MOST_TABLE = 3_000_000
_ON_FUNCTIONAL_GRID = (
    *("roi", "brain_mask", "subject_noise_ceiling", "noise_ceiling"),
    *("mean_rsquare", "rsquare"),
)


def trial_table(context: Context) -> Iterator[Point]:
    """Compare the trial table of the session with its labels and its betas."""
    sample = context.sample
    rec = sample.of_session("trials")
    if rec is None:
        yield _nothing(f"trial table of {sample.subject}, {sample.session}")
        return
    rows = _table(_whole(context, rec), "\t")
    yield from _columns("trial table", rows, TRIAL_COLUMNS, NEEDED_TRIAL_COLUMNS)
    if "beta_index" in rows:
        numbers = rows["beta_index"].tolist()
        found = f"{len(rows)} rows, from {numbers[0]}" if numbers else "no row"
        is_right = numbers == [str(i) for i in range(len(rows))]
        yield judged(is_right, "beta_index", found)
    if "label" in rows:
        yield from _labels(rows["label"], sample.subject)
    betas = sample.of_session("betas")
    if betas:
        n_volumes = _header(context, betas).n_volumes
        found = f"{len(rows)} trials, {n_volumes} volumes"
        yield judged(n_volumes == len(rows), "trials and betas", found)


def _labels(labels: pd.Series, subject: str) -> Iterator[Point]:
    """Yield whether labels parse, and whether unique images are the subject's."""
    fields = {label: stimulus_fields(label) for label in labels.unique()}
    unknown = [label for label, f in fields.items() if f["unique_or_shared"] is None]
    label = f"{len(unknown)} of {len(fields)} not understood"
    yield none_of(unknown, "labels", label, f"{len(fields)} understood")
    owners = {
        f"{f['participant'] or 'unknown'} ({label[-7:-4]})"
        for label, f in fields.items()
        if f["unique_or_shared"] == "unique"
    }
    others = sorted(name for name in owners if not name.startswith(subject))
    found = f"of {listed(others or sorted(owners)) or 'nobody'}"
    yield judged(not others, "unique labels", found, f"all of {subject}")


def participants(context: Context) -> Iterator[Point]:
    """Read the table of participants, if it exists."""
    rec = context.sample.file(layout.PARTICIPANTS)
    if rec is None:
        yield note("participants.tsv", "missing; filters on age or sex match nothing")
        return
    rows = _table(_whole(context, rec), "\t")
    if "participant_id" not in rows:
        needed = ("participant_id",)
        yield from _columns("participants.tsv", rows, needed, needed)
        return
    names = rows["participant_id"].tolist()
    others = [c for c in rows.columns if c != "participant_id"]
    found = f"{listed(names, 9)}; columns {listed(others, 9) or 'none'}"
    yield judged(set(context.sample.subjects) <= set(names), "participants.tsv", found)


def images(context: Context) -> Iterator[Point]:
    """Compare the image of betas with the grid of masks and maps."""
    betas = context.sample.of_session("betas")
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
        f"{readable_size(betas['size'] or 0)}",
        f"{GRID_SHAPE} float32, {VOXEL_SIZE} mm",
    )
    first: dict[str, Record] = {}
    for rec in context.sample.of_type(*_ON_FUNCTIONAL_GRID):
        is_session = rec["session"] in (None, context.sample.session)
        is_mask = rec["image_type"] in ("roi", "brain_mask")
        res = layout.FUNCTIONAL_GRID if is_mask else None
        is_volume = rec["extension"] == "nii.gz" and rec["res"] == res
        if is_volume and (is_mask or is_session):
            first.setdefault(rec["image_type"], rec)
    headers = {name: _header(context, rec) for name, rec in first.items()}
    off = [
        f"{name} {other.shape}"
        for name, other in headers.items()
        if not on_grid(other.shape, other.affine, header)
    ]
    found = f"other grid: {listed(off)}" if off else f"shared by {listed([*first], 9)}"
    yield judged(not off and {"roi", "brain_mask"} <= set(first), "grid", found)


def ranges(context: Context) -> Iterator[Point]:
    """Ask for a range, with a condition, and for the date of an object."""
    rec = context.sample.of_session("betas") or _largest(context)
    if rec is None or not rec["size"]:
        yield _nothing("file to try a range on")
        return
    url = bucket.object_url(rec["key"])
    stop = min(rec["size"], 2000)
    start = stop // 2
    reply = context.client.get(url, start=start, stop=stop)
    span = reply.headers.get("Content-Range", "none")
    expected = f"bytes {start}-{stop - 1}/{rec['size']}"
    yield judged(
        reply.status == 206 and span == expected,
        "ranges",
        f"status {reply.status}, Content-Range: {span}",
        f"206, {expected}",
    )
    etag = bare_etag(reply.headers.get("ETag", ""))
    yield judged(
        etag == rec["etag"] and "Last-Modified" in reply.headers,
        "ETag and date",
        f"ETag {etag or 'none'}, {reply.headers.get('Last-Modified', 'no date')}",
        f"ETag {rec['etag']}, as listed, and a date",
    )
    wrong = {"If-Match": f'"{"0" * 32}"'}
    status = context.client.get(url, start=0, stop=1, headers=wrong).status
    yield judged(status == 412, "If-Match", f"status {status} to a wrong ETag")


def checksums(context: Context) -> Iterator[Point]:
    """Compare ETags with the MD5 of a small object and the parts of large ones."""
    rec = context.sample.of_session("trials")
    if rec and rec["etag"] and "-" not in rec["etag"]:
        digest = hashlib.md5(_whole(context, rec), usedforsecurity=False).hexdigest()
        found, expected = f"{digest} of the trial table", f"{rec['etag']}, its ETag"
        yield judged(digest == rec["etag"], "MD5", found, expected)
    sizes: Counter[int] = Counter()
    odd = []
    for rec in context.sample.records:
        if "-" not in (rec["etag"] or ""):
            continue
        parts = part_sizes(rec["size"] or 0, int(rec["etag"].rpartition("-")[2]))
        if parts:
            sizes[parts[0] // 2**20] += 1
        else:
            odd.append(rec["id"].rpartition("/")[2])
    each = [f", {n} of {size} MiB" for size, n in sorted(sizes.items())]
    right = f"{counted(sizes.total(), 'file')} in parts{''.join(each)}"
    yield none_of(odd, "parts", "not a usual size", right)


def held_out(context: Context) -> Iterator[Point]:
    """See that held-out sessions are denied, and their localizers public."""
    recs = [r for r in context.sample.records if r["session"] in layout.HELD_OUT]
    for point, group, statuses in (
        ("held-out session", [r for r in recs if is_held_out(r)], (403,)),
        ("released localizers", [r for r in recs if not is_held_out(r)], (200, 206)),
    ):
        files = [rec for rec in group if rec["size"]]
        if not files:
            found = f"none of {context.sample.subject} is listed"
            yield note(point, found)
            continue
        status = context.client.read(files[0]["key"], 0, 1).status
        found = f"{len(group)} listed; {files[0]['session']} answers {status}"
        yield judged(status in statuses, point, found)


def gated_archive(context: Context) -> Iterator[Point]:
    """See that the archive of stimulus images is gated."""
    status = context.client.read(layout.ARCHIVE, 0, 1).status
    yield judged(status == 403, "gated archive", f"status {status} without access")


def stimulus_table(context: Context) -> Iterator[Point]:
    """Compare the table of stimuli, which is public, with labels."""
    reply = context.client.read(layout.STIMULUS_TABLE, 0, _MOST_TABLE)
    is_public = reply.status in (200, 206)
    found = f"status {reply.status} without access"
    yield judged(is_public, "stimulus table", found)
    if not is_public:
        return
    rows = _table(reply.body, ",")
    yield from _columns("stimulus columns", rows, STIMULUS_COLUMNS, ("image_name",))
    if not set(STIMULUS_COLUMNS) <= set(rows.columns):
        return
    more = "" if len(reply.body) < _MOST_TABLE else "more than "
    found = f"{more}{len(rows):,} rows"
    yield judged(len(rows) == N_STIMULI, "stimuli", found, f"{N_STIMULI:,}")
    different = []
    for row in rows.to_dict("records"):
        of_label = stimulus_fields(row["image_name"])
        different += [
            f"{field} {row[field]!r} of {row['image_name']}"
            for field in ("dataset", "n_reps", "participant", "unique_or_shared")
            if stimulus_value(field, row[field]) not in (of_label[field], None)
            and not (field == "participant" and of_label[field] is None)
        ]
    values = {name: sorted(set(rows[name])) for name in ("dataset", "n_reps")}
    right = "; ".join(f"{name}: {listed(v, 6)}" for name, v in values.items())
    label = f"{len(different)} differ"
    yield none_of(different[:2], "stimuli and labels", label, right)
    kinds = {_kind(name): name for name in sorted(rows["image_name"], reverse=True)}
    new = [f"{kind}, as {kinds[kind]}" for kind in sorted({*kinds} - KINDS)]
    yield none_of(new, "kinds of images", "not known", f"{len(kinds)} kinds")


def _kind(label: str) -> str:
    """Return the kind of an image: how often it is shown to whom, and its source."""
    fields = stimulus_fields(label)
    names = ("unique_or_shared", "n_reps", "dataset", "ood_type")
    return " ".join(str(fields[name]) for name in names if fields[name])


def captions_and_masks(context: Context) -> Iterator[Point]:
    """Read the columns of captions and of segmentations."""
    for point, key, columns in (
        ("captions", layout.CAPTIONS, CAPTION_COLUMNS),
        ("segmentations", layout.SEGMENTATIONS_TABLE, SEGMENTATION_COLUMNS),
    ):
        if context.sample.file(key):
            body = _body(context.client.read(key), key).partition(b"\n")[0] + b"\n"
            yield from _columns(point, _table(body, ","), columns, ("image_name",))


def speed(context: Context) -> Iterator[Point]:
    """Measure seconds per request, and bytes per second on one connection."""
    latencies = sorted(context.client.latencies)
    if latencies:
        yield ok("latency", f"{1000 * latencies[len(latencies) // 2]:.0f} ms (median)")
    rec = context.sample.of_session("betas") or _largest(context)
    if rec is None or not rec["size"]:
        return
    stop = min(rec["size"], SPEED_BYTES)
    url = bucket.object_url(rec["key"])
    reply = context.client.get(url, start=0, stop=stop)
    rate = len(_body(reply, rec["key"])) / max(reply.seconds, 1e-6)
    yield ok(
        "speed",
        f"{readable_size(rate)}/s on one connection; at that rate the "
        f"{readable_size(rec['size'])} of {rec['id'].rpartition('/')[2]} take "
        f"{rec['size'] / rate / 60:.1f} min; fetchers use many connections",
    )


# --- Reading ---------------------------------------------------------------------


def _nothing(files: str) -> Point:
    return note("files to try", f"not checked, because the bucket lists no {files}")


def _largest(context: Context) -> Record | None:
    """Return the largest file that anybody may read."""
    public = [
        rec
        for rec in context.sample.records
        if not is_held_out(rec) and rec["id"] not in layout.GATED
    ]
    return max(public, key=lambda rec: rec["size"] or 0, default=None)


def _whole(context: Context, rec: Record) -> bytes:
    """Return a small file."""
    stop = min(rec["size"] or SMALL, _MOST_TABLE)
    return _body(context.client.read(rec["key"], 0, max(stop, 1)), rec["id"])


def _body(reply: Reply, key: str) -> bytes:
    if reply.status not in (200, 206):
        raise NoAnswerError(f"status {reply.status} for {key.rpartition('/')[2]}")
    return reply.body


def _table(body: bytes, separator: str) -> pd.DataFrame:
    """Return a table as text; a last line that is cut off is left out."""
    whole = io.BytesIO(body[: body.rfind(b"\n") + 1] or body)
    return pd.read_csv(whole, sep=separator, dtype=str, keep_default_na=False)


def _columns(
    point: str, rows: pd.DataFrame, expected: Sequence[str], needed: Sequence[str]
) -> Iterator[Point]:
    """Yield whether a table has its columns, and which it has besides."""
    names = list(rows.columns)
    lacking = [name for name in expected if name not in names]
    missing = f"missing: {listed(lacking, 9)}; " * bool(lacking)
    otherwise = FAILED if set(needed) - set(names) else NOTE
    yield judged(
        not lacking,
        point,
        f"{missing}columns {listed(names, 12)}",
        listed(list(expected), 12),
        otherwise=otherwise,
    )
    more = [name for name in names if name not in expected]
    if more and not lacking:
        yield Point(point, NOTE, f"further columns: {listed(more, 9)}")


def _header(context: Context, rec: Record) -> Header:
    """Return the header of a compressed image, from its first bytes."""
    body = _body(context.client.read(rec["key"], 0, SMALL), rec["id"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, rec["id"].rpartition("/")[2])
        file.write_bytes(body)
        return read_header(file)
