"""Stimuli of the synthetic dataset: drawn images and what derives from them.

All files have the published names, datasets and columns; images and masks are smaller
than the published 1000 x 1000 pixels. What an image shows follows `content_category`.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .facts import (
    ARCHIVE,
    EMBEDDING_LENGTHS,
    PARTICIPANTS,
    STIMULUS_TABLE,
    image_fields,
)
from .formats import Files, hdf5_bytes
from .labels import content_category

SIZE = 160
"""Height and width of images and masks in pixels."""

# Parts of images by what they show, as a detector names them, and where (percent).
_PARTS = {
    "face": {
        "face": [(22, 12, 78, 88)],
        "eye": [(34, 36, 44, 46), (56, 36, 66, 46)],
        "mouth": [(38, 64, 62, 70)],
    },
    "body": {
        "person": [(40, 30, 60, 90)],
        "arm": [(20, 38, 80, 46)],
        "head": [(42, 10, 58, 28)],
    },
    "place": {"house": [(25, 40, 75, 85)], "door": [(44, 60, 56, 85)]},
    "object": {"object": [(30, 30, 65, 80)], "handle": [(65, 42, 80, 50)]},
    "word": {
        "sign": [(15, 30, 85, 70)],
        "letter": [(24, 40, 34, 60), (44, 40, 54, 60), (64, 40, 74, 60)],
    },
    "motion": {
        "bicycle": [(20, 36, 80, 56)],
        "wheel": [(15, 50, 45, 80), (55, 50, 85, 80)],
    },
}


def _boxes(label: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield parts of an image: a noun, which one of it, and its box in pixels."""
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    shift = rng.uniform(-0.08, 0.08, 2)
    for noun, boxes in _PARTS[content_category(label)].items():
        for i, box in enumerate(boxes):
            corners = (np.reshape(box, (2, 2)) / 100 + shift) * SIZE
            yield noun, i, corners.round().astype(int).ravel()


def stimuli_files(labels: Sequence[str], seed: int = 0) -> Files:
    """Yield the files of ``stimuli`` and ``archive``, each ``(key, bytes)``.

    Parameters
    ----------
    labels : sequence of str
        Names of the images; their order is that of the archive.
    seed : int, default=0
        Seed of everything random.

    Examples
    --------
    >>> files = dict(stimuli_files(["unique_THINGS_barn_p03.jpg"]))
    >>> sorted(files)[0]
    'archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5'
    """
    import h5py

    images = np.empty(len(labels), h5py.vlen_dtype(np.uint8))
    for i, label in enumerate(labels):
        images[i] = np.frombuffer(draw(label), np.uint8)
    yield ARCHIVE, {"images": images}
    yield STIMULUS_TABLE, _metadata(labels)
    for model in EMBEDDING_LENGTHS:
        # The first files had names of another type, which makes their size another.
        for folder, background, kind in (
            ("archive/embeddings/v1", "black", "S"),
            ("stimuli", "grey", "O"),
        ):
            arrays = {
                "embedding": _embeddings(model, labels, background, seed),
                "image_ids": np.array([label.encode() for label in labels], kind),
                "valid": np.ones(len(labels), bool),
            }
            yield f"{folder}/task-images_desc-{model}_embeddings.h5", arrays
    stem = "stimuli/task-images_desc"
    rows, masks = _segmentations(labels)
    yield f"{stem}-segmentations_metadata.csv", rows
    options = {"compression": "gzip"} if len(masks) else {}
    yield f"{stem}-segmentations.h5", hdf5_bytes({"masks": masks}, **options)
    yield f"{stem}-captions.csv", _captions(labels)


def draw(label: str) -> bytes:
    r"""Return an encoded image: an RGBA PNG or an RGB JPEG, as the label says.

    Examples
    --------
    >>> draw("shared_4rep_OOD_shape_blob.png")[:4]
    b'\x89PNG'
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(zlib.crc32(label.encode()) + 1)
    is_png = label.endswith(".png")
    light, dark = rng.integers(150, 250, 3), rng.integers(10, 110, 3)
    image = Image.new("RGB", (SIZE, SIZE), tuple(light.tolist()))
    pen = ImageDraw.Draw(image)
    is_round = content_category(label) in ("face", "body", "motion")
    for i, (_, _, box) in enumerate(_boxes(label)):
        colour = tuple((dark if i else (light + dark) // 2).tolist())
        (pen.ellipse if is_round else pen.rectangle)(box.tolist(), fill=colour)
    if is_png:
        fade = np.repeat(np.linspace(0, 255, SIZE), SIZE).reshape(SIZE, SIZE)
        image.putalpha(Image.fromarray(fade.astype(np.uint8)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if is_png else "JPEG", quality=85)
    return buffer.getvalue()


def _metadata(labels: Iterable[str]) -> Iterator[Sequence[object]]:
    """Yield the rows of the table, shared images marked in the two published ways."""
    yield "image_name", "dataset", "participant", "unique_or_shared", "n_reps"
    for i, label in enumerate(labels):
        dataset, kind, n_reps, subject = image_fields(label)
        if kind is None:
            yield label, *["n/a"] * 4
            continue
        dataset = "THINGSplus" if dataset == "THINGS+" else dataset
        participant = subject or ("shared", ";".join(PARTICIPANTS))[i % 2]
        yield label, dataset, participant, kind, f"{n_reps}rep"


def _captions(labels: Iterable[str]) -> Iterator[Sequence[object]]:
    yield (
        *("image_name", "caption_idx", "source", "caption"),
        *("origin_collection", "participant_id", "ai_model"),
    )
    for i, label in enumerate(labels):
        content, fields = content_category(label), image_fields(label)
        is_shared = fields.kind == "shared"
        if is_shared and fields.dataset != "OOD":
            text = f"A picture of: {content}."
            yield label, 0, "ai", text, "LAION-fMRI", "", "demo-captioner"
        for k in range(1, 6 if is_shared else 4):
            text = f"{content}, with {' and '.join(_PARTS[content])}, number {k}"
            yield label, k, "human", text, "LAION-fMRI", f"P{(i + k) % 40:03d}", ""


def _segmentations(labels: Iterable[str]) -> tuple[list[Sequence[object]], np.ndarray]:
    """Return rows of the table and masks: a box for each noun in shared images."""
    masks: list[np.ndarray] = []
    rows: list[Sequence[object]] = [
        (
            *("mask_row", "image_name", "noun", "instance_id", "score"),
            *("box_x0", "box_y0", "box_x1", "box_y1", "localized", "mask_file"),
        )
    ]
    for label in labels:
        if image_fields(label).kind != "shared":
            continue
        for noun, i, (x0, y0, x1, y1) in _boxes(label):
            row = len(masks)
            is_localized = row % 10 != 9
            corners = (x0, y0, x1, y1) if is_localized else ("",) * 4
            file = f"{label.rpartition('.')[0]}/{noun}_{i}.png"
            about = row, label, noun, i, round(1 / (1 + row % 3), 2)
            rows.append((*about, *corners, int(is_localized), file))
            mask = np.full((SIZE, SIZE), not is_localized, np.uint8)
            mask[y0:y1, x0:x1] = 1
            masks.append(mask)
    return rows, np.reshape(masks, (-1, SIZE, SIZE)).astype(np.uint8)


def _embeddings(
    model: str, labels: Sequence[str], background: str, seed: int
) -> np.ndarray:
    """Return embeddings: a direction for what is shown, and one for the image.

    Where the image is transparent, what lies behind it has a direction too.
    """
    n = EMBEDDING_LENGTHS[model]

    def direction(text: str) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(f"{model}/{text}".encode())])
        return rng.standard_normal(n) / np.sqrt(n)

    values = np.empty((len(labels), n), np.float16)
    for row, label in zip(values, labels, strict=True):
        behind = 0.5 * direction(background) if label.endswith(".png") else 0
        row[:] = direction(content_category(label)) + 0.7 * direction(label) + behind
    return values
