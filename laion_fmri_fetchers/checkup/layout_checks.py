"""Names in the bucket against `layout`: trees, subjects, sessions, keys, ROIs."""

from __future__ import annotations

from collections.abc import Iterator

from laion_fmri_fetchers.layout.keys import place_of
from laion_fmri_fetchers.layout.names import ROI_CATEGORIES, SUBJECTS
from laion_fmri_fetchers.layout.trees import (
    ANATOMICAL,
    ARCHIVE,
    ARCHIVED,
    CAPTIONS,
    EMBEDDING_MODELS,
    FUNCTIONAL_GRID,
    GLM,
    HELD_OUT,
    IMAGE_TYPES,
    LOCALIZER_GRID,
    RAW,
    ROIS,
    ROOT_FILES,
    SEGMENTATIONS,
    SEGMENTATIONS_TABLE,
    STIMULI,
    STIMULUS_TABLE,
    TREES,
    embeddings_id,
)
from laion_fmri_fetchers.messages import listed

from .context import FIRST_EMBEDDINGS, Context, Record, Sample
from .points import FAILED, NOTE, Point, judged, note

ANNOUNCED = frozenset({"derivatives/retinotopy/"})
NEEDED_TREES = (GLM, ROIS, ANATOMICAL)
NEEDED_TYPES = ("betas", "trials", "roi", "brain_mask")
N_SESSIONS = 34
EMBEDDED_ANEW = "2026-09-28"
"""When embeddings of images with transparency were replaced."""
_REPORT = "The bucket changed: update this package, or report this to its developers."


def root_files(context: Context) -> Iterator[Point]:
    """Look at files at the top; any may be missing."""
    names = {rec["id"] for rec in context.sample.records if "/" not in rec["id"]}
    unknown = sorted(names - ROOT_FILES)
    yield judged(
        not unknown,
        "files at the top",
        listed(unknown or sorted(names), 6) or "none",
        "a BIDS dataset's own files",
        _REPORT,
        NOTE,
    )


def trees(context: Context) -> Iterator[Point]:
    """Look at folders of the top and of derivatives."""
    found = set(context.sample.trees)
    known = {tree for tree in TREES if tree}
    other = found - known - ANNOUNCED - {STIMULI, ARCHIVED}
    lacking = sorted(known - found)
    needed = [tree for tree in NEEDED_TREES if tree in lacking]
    yield judged(
        not needed,
        "trees",
        f"missing: {listed(needed)}" if needed else listed(sorted(found & known), 9),
        listed(list(NEEDED_TREES)),
        "Check that LAION_FMRI_BUCKET_URL names the whole dataset.",
    )
    rest = sorted(set(lacking) - set(needed))
    if rest:
        yield note("trees not there", listed(rest, 9), "published, not always needed")
    if found & ANNOUNCED:
        yield note("trees announced", listed(sorted(found & ANNOUNCED)), "", _REPORT)
    if other:
        yield note("trees not known", listed(sorted(other), 9), "", _REPORT)


def subjects(context: Context) -> Iterator[Point]:
    """Compare the subjects that have betas with the published ones."""
    found = context.sample.subjects
    same = sorted(found) == sorted(SUBJECTS)
    yield judged(
        same,
        "subjects",
        listed(found, 9) or "none",
        listed(list(SUBJECTS)),
        _REPORT,
        NOTE if found else FAILED,
    )


def sessions(context: Context) -> Iterator[Point]:
    """Count the sessions of the subject sampled."""
    sample = context.sample
    held_out = [name for name in sample.sessions if name in HELD_OUT]
    public = len(sample.sessions) - len(held_out)
    yield judged(
        (public, len(held_out)) == (N_SESSIONS - len(HELD_OUT), 4),
        "sessions",
        f"{sample.subject}: {public} public, {len(held_out)} held out",
        "30 public, 4 held out",
        "",
        NOTE if public else FAILED,
    )


def keys(context: Context) -> Iterator[Point]:
    """Look for keys of known trees that no rule of the layout explains."""
    recs = [rec for rec in context.sample.records if _is_of_known_tree(rec)]
    other = [rec for rec in recs if rec["image_type"] == "other"]
    unparsed = [rec for rec in recs if rec["suffix"] is None and _is_bids(rec)]
    for point, wrong in (("keys", other), ("entities", unparsed)):
        yield judged(
            not wrong,
            point,
            f"{len(wrong)} of {len(recs)} not explained: {_names(wrong)}"
            if wrong
            else f"{len(recs)} keys explained",
            "each is of a known kind",
            _REPORT,
            NOTE,
        )


def image_types(context: Context) -> Iterator[Point]:
    """Look for kinds of files that the sample should hold, but does not."""
    sample = context.sample
    found = {rec["image_type"] for rec in sample.records}
    lacking = [
        name
        for name, tree in IMAGE_TYPES.items()
        if tree is not None and name not in found and _is_there(tree, sample)
    ]
    needed = [name for name in NEEDED_TYPES if name in lacking]
    yield judged(
        not lacking,
        "kinds of files",
        f"{sample.subject}, {sample.session}: none of {listed(lacking, 9)}"
        if lacking
        else f"all of {sample.subject}, {sample.session}",
        "each published kind",
        _REPORT,
        FAILED if needed else NOTE,
    )


def roi_names(context: Context) -> Iterator[Point]:
    """Compare ROIs and their categories with the published ones."""
    sample = context.sample
    found = {(rec["roi_category"], rec["roi"]) for rec in sample.of_type("roi")}
    known = {(c, name) for c, names in ROI_CATEGORIES.items() for name in names}
    unknown = [f"{category}/{name}" for category, name in sorted(found - known)]
    yield judged(
        not unknown,
        "ROI names",
        f"not known: {listed(unknown, 9)}"
        if unknown
        else f"{len(found)} of {sample.subject}",
        f"of the {len(known)} published names",
        _REPORT,
        NOTE,
    )


def grids_of_masks(context: Context) -> Iterator[Point]:
    """Look at the grids of volumetric ROI masks, by their names."""
    expected = {FUNCTIONAL_GRID, LOCALIZER_GRID}
    masks = [r for r in context.sample.of_type("roi") if r["extension"] == "nii.gz"]
    found = {rec["res"] or "without res-" for rec in masks}
    yield judged(
        found == expected,
        "grids of ROI masks",
        listed(sorted(found)) or "none",
        listed(sorted(expected)),
        _REPORT,
        NOTE if FUNCTIONAL_GRID in found else FAILED,
    )


def stimulus_files(context: Context) -> Iterator[Point]:
    """Look for files below stimuli/, and for what is archived of them."""
    recs = {rec["id"]: rec for rec in context.sample.records}
    embeddings = [embeddings_id(model) for model in EMBEDDING_MODELS]
    others = [CAPTIONS, SEGMENTATIONS, SEGMENTATIONS_TABLE]
    expected = [ARCHIVE, STIMULUS_TABLE, *embeddings, *others]
    lacking = [one.rpartition("/")[2] for one in expected if one not in recs]
    yield judged(
        not lacking,
        "stimulus files",
        f"missing: {listed(lacking, 9)}" if lacking else f"all {len(expected)}",
        listed([one.rpartition("/")[2] for one in expected], 9),
        _REPORT,
    )
    there = [recs[one] for one in embeddings if one in recs]
    if there:
        dates = sorted({str(rec["last_modified"])[:10] for rec in there})
        sizes = [f"{rec['desc']} {rec['size'] / 1e6:.1f} MB" for rec in there]
        yield judged(
            dates[0] >= EMBEDDED_ANEW,
            "embeddings",
            f"{', '.join(sizes)}; of {listed(dates)}",
            f"of {EMBEDDED_ANEW} or later",
            "These are embeddings as first published: those of 116 OOD images with "
            "transparency were replaced later.",
            NOTE,
        )
    first = [one for one in recs if one.startswith(FIRST_EMBEDDINGS)]
    yield judged(
        len(first) == len(embeddings),
        "first embeddings",
        f"{len(first)} files in {FIRST_EMBEDDINGS}",
        f"{len(embeddings)}",
        _REPORT,
        NOTE,
    )


def _is_of_known_tree(rec: Record) -> bool:
    tree, subject = place_of(rec["id"])
    return subject is not None and tree in TREES


def _is_bids(rec: Record) -> bool:
    return rec["image_type"] not in ("freesurfer", "figure")


def _is_there(tree: str, sample: Sample) -> bool:
    if tree == RAW:
        return any(place_of(rec["id"])[0] == tree for rec in sample.records)
    return tree in sample.trees


def _names(recs: list[Record]) -> str:
    return listed([rec["id"].rpartition("/")[2] for rec in recs])
