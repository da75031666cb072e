"""Names in the bucket against `layout`: trees, subjects, sessions, keys, ROIs."""

from __future__ import annotations

from collections.abc import Iterator

from laion_fmri_fetchers.layout import trees as layout
from laion_fmri_fetchers.layout.keys import place_of
from laion_fmri_fetchers.layout.names import ROI_CATEGORIES, SUBJECTS
from laion_fmri_fetchers.messages import listed

from .context import FIRST_EMBEDDINGS, Context, Record, Sample
from .points import FAILED, NOTE, Point, judged, none_of

ANNOUNCED = frozenset({"derivatives/retinotopy/"})
NEEDED_TREES = (layout.GLM, layout.ROIS, layout.ANATOMICAL)
NEEDED_TYPES = ("betas", "trials", "roi", "brain_mask")
N_SESSIONS = (30, 4)
"""Public and held-out sessions of a subject."""
EMBEDDED_ANEW = "2026-09-28"
"""When embeddings of images with transparency were replaced."""


def root_files(context: Context) -> Iterator[Point]:
    """Look at files at the top; any may be missing."""
    names = {rec["id"] for rec in context.sample.records if "/" not in rec["id"]}
    unknown = sorted(names - layout.ROOT_FILES)
    found = listed(unknown or sorted(names), 6) or "none"
    yield judged(not unknown, "files at the top", found)


def trees(context: Context) -> Iterator[Point]:
    """Look at folders of the top and of derivatives."""
    listed_trees = set(context.sample.trees)
    published = {tree for tree in layout.TREES if tree}
    lacking = sorted(published - listed_trees)
    needed = [tree for tree in NEEDED_TREES if tree in lacking]
    right = listed(sorted(listed_trees & published), 9)
    expected = listed(list(NEEDED_TREES))
    yield none_of(needed, "trees", "missing", right, expected=expected)
    other = listed_trees - published - ANNOUNCED - {layout.STIMULI, layout.ARCHIVED}
    for point, names in (
        ("trees not there", set(lacking) - set(needed)),
        ("trees announced", listed_trees & ANNOUNCED),
        ("trees not known", other),
    ):
        if names:
            yield judged(False, point, listed(sorted(names), 9))


def subjects(context: Context) -> Iterator[Point]:
    """Compare the subjects that have betas with the published ones."""
    names = context.sample.subjects
    yield judged(
        sorted(names) == sorted(SUBJECTS),
        "subjects",
        listed(names, 9) or "none",
        listed(list(SUBJECTS)),
        otherwise=NOTE if names else FAILED,
    )


def sessions(context: Context) -> Iterator[Point]:
    """Count the sessions of the subject sampled."""
    sample = context.sample
    n_held_out = sum(name in layout.HELD_OUT for name in sample.sessions)
    n_public = len(sample.sessions) - n_held_out
    yield judged(
        (n_public, n_held_out) == N_SESSIONS,
        "sessions",
        f"{sample.subject}: {n_public} public, {n_held_out} held out",
        otherwise=NOTE if n_public else FAILED,
    )


def keys(context: Context) -> Iterator[Point]:
    """Look for keys of known trees that no rule of the layout explains."""
    recs = [rec for rec in context.sample.records if _is_of_known_tree(rec)]
    other = [rec for rec in recs if rec["image_type"] == "other"]
    free_names = ("freesurfer", "figure")
    unparsed = [
        rec
        for rec in recs
        if rec["suffix"] is None and rec["image_type"] not in free_names
    ]
    for point, wrong in (("keys", other), ("entities", unparsed)):
        names = [rec["id"].rpartition("/")[2] for rec in wrong]
        label = f"{len(wrong)} of {len(recs)} not explained"
        yield none_of(names, point, label, f"{len(recs)} keys explained")


def image_types(context: Context) -> Iterator[Point]:
    """Look for kinds of files that the sample should hold, but does not."""
    sample = context.sample
    types = {rec["image_type"] for rec in sample.records}
    lacking = [
        name
        for name, tree in layout.IMAGE_TYPES.items()
        if tree is not None and name not in types and _is_listed(tree, sample)
    ]
    which = f"{sample.subject}, {sample.session}"
    otherwise = FAILED if set(NEEDED_TYPES) & set(lacking) else NOTE
    label = f"{which}: none of"
    yield none_of(
        lacking, "kinds of files", label, f"all of {which}", otherwise=otherwise
    )


def roi_names(context: Context) -> Iterator[Point]:
    """Compare ROIs and their categories with the published ones."""
    sample = context.sample
    rois = {(rec["roi_category"], rec["roi"]) for rec in sample.of_type("roi")}
    published = {(c, name) for c, names in ROI_CATEGORIES.items() for name in names}
    yield none_of(
        [f"{category}/{name}" for category, name in sorted(rois - published)],
        "ROI names",
        "not known",
        f"{len(rois)} of {sample.subject}",
        expected=f"of the {len(published)} published names",
    )


def grids_of_masks(context: Context) -> Iterator[Point]:
    """Look at the grids of volumetric ROI masks, by their names."""
    expected = {layout.FUNCTIONAL_GRID, layout.LOCALIZER_GRID}
    masks = [r for r in context.sample.of_type("roi") if r["extension"] == "nii.gz"]
    grids = {rec["res"] or "without res-" for rec in masks}
    yield judged(
        grids == expected,
        "grids of ROI masks",
        listed(sorted(grids)) or "none",
        listed(sorted(expected)),
        otherwise=NOTE if layout.FUNCTIONAL_GRID in grids else FAILED,
    )


def stimulus_files(context: Context) -> Iterator[Point]:
    """Look for files below stimuli/, and for archived ones."""
    recs = {rec["id"]: rec for rec in context.sample.records}
    embeddings = [layout.embeddings_id(model) for model in layout.EMBEDDING_MODELS]
    files = [layout.ARCHIVE, layout.STIMULUS_TABLE, *embeddings, layout.CAPTIONS]
    files += [layout.SEGMENTATIONS, layout.SEGMENTATIONS_TABLE]
    names = {file: file.rpartition("/")[2] for file in files}
    lacking = [name for file, name in names.items() if file not in recs]
    expected = listed(list(names.values()), 9)
    right = f"all {len(files)}"
    yield none_of(lacking, "stimulus files", "missing", right, expected=expected)
    current = [recs[file] for file in embeddings if file in recs]
    if current:
        dates = sorted({str(rec["last_modified"])[:10] for rec in current})
        sizes = [f"{rec['desc']} {rec['size'] / 1e6:.1f} MB" for rec in current]
        yield judged(
            dates[0] >= EMBEDDED_ANEW,
            "embeddings",
            f"{', '.join(sizes)}; of {listed(dates)}",
            f"of {EMBEDDED_ANEW} or later",
        )
    n_first = sum(file.startswith(FIRST_EMBEDDINGS) for file in recs)
    yield judged(
        n_first == len(embeddings),
        "first embeddings",
        f"{n_first} files in {FIRST_EMBEDDINGS}",
        str(len(embeddings)),
    )


def _is_of_known_tree(rec: Record) -> bool:
    tree, subject = place_of(rec["id"])
    return subject is not None and tree in layout.TREES


def _is_listed(tree: str, sample: Sample) -> bool:
    if tree == layout.RAW:
        return any(place_of(rec["id"])[0] == tree for rec in sample.records)
    return tree in sample.trees
