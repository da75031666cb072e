"""Stimuli for the synthetic dataset: drawn images and what derives from them.

All files have the published names, datasets and columns; images and masks are smaller
than the published 1000 x 1000 pixels. What an image shows follows `content_category`.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .facts import (
    ARCHIVE,
    EMBEDDING_LENGTHS,
    PARTICIPANTS,
    STIMULUS_TABLE,
    image_fields,
)
from .formats import Files, hdf5_bytes, table_bytes

NOUNS = {
    "face": ("face", "eye", "eye", "mouth"),
    "body": ("person", "arm", "leg"),
    "place": ("house", "door", "sky"),
    "object": ("object", "handle"),
    "word": ("sign", "letter", "letter"),
    "motion": ("wheel", "wheel", "road"),
}
"""What a detector finds in images, by what they show; a noun twice for two of it."""

# By content: shapes of PIL's ImageDraw, which of two colours they have, and their box
# or points in percent of the image's size.
_DRAWINGS: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    "face": [
        ("ellipse", "middle", (22, 12, 78, 88)),
        ("ellipse", "dark", (34, 36, 44, 46)),
        ("ellipse", "dark", (56, 36, 66, 46)),
        ("ellipse", "dark", (38, 64, 62, 70)),
    ],
    "body": [
        ("ellipse", "middle", (42, 10, 58, 26)),
        ("line", "dark", (50, 26, 50, 60)),
        ("line", "dark", (30, 52, 50, 34, 70, 52)),
        ("line", "middle", (30, 90, 50, 60, 70, 90)),
    ],
    "place": [
        ("rectangle", "middle", (-20, 70, 120, 120)),
        ("rectangle", "dark", (30, 40, 70, 75)),
        ("polygon", "middle", (25, 40, 50, 20, 75, 40)),
    ],
    "object": [
        ("ellipse", "dark", (52, 40, 80, 65)),
        ("rectangle", "middle", (30, 30, 65, 80)),
    ],
    "word": [
        ("rectangle", "middle", (15, 30, 85, 70)),
        *(("line", "dark", (x, 40, x, 60, x + 10, 60)) for x in (24, 44, 64)),
    ],
    "motion": [
        *(("ellipse", "dark", (x, 45, x + 30, 75)) for x in (15, 55)),
        *(("ellipse", "middle", (x, 51, x + 18, 69)) for x in (21, 61)),
        *(("line", "dark", (5, y, 70, y)) for y in (20, 30)),
    ],
}


def stimuli_files(
    labels: Iterable[str],
    content_of: Callable[[str], str],
    *,
    size: int = 160,
    seed: int = 0,
) -> Files:
    """Yield the files of ``stimuli`` and ``archive``, each ``(key, bytes)``.

    Parameters
    ----------
    labels : iterable of str
        Names of the images; their order is that of the archive.
    content_of : callable
        What an image shows, by its name: a key of `NOUNS`.
    size : int, default=160
        Height and width of images and masks in pixels.
    seed : int, default=0
        Seed of everything random.

    Examples
    --------
    >>> files = dict(stimuli_files(["unique_THINGS_barn_p03.jpg"], lambda _: "place"))
    >>> sorted(files)[0]
    'archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5'
    """
    import h5py

    contents = {label: content_of(label) for label in labels}
    images = np.empty(len(contents), h5py.vlen_dtype(np.uint8))
    for i, (label, content) in enumerate(contents.items()):
        images[i] = np.frombuffer(draw(label, content, size), np.uint8)
    yield ARCHIVE, hdf5_bytes({"images": images}, dtype=images.dtype)
    yield STIMULUS_TABLE, table_bytes(_metadata(contents), ",")
    names = [label.encode() for label in contents]
    for model in EMBEDDING_LENGTHS:
        name = f"task-images_desc-{model}_embeddings.h5"
        # The first files had names of another type, which makes their size another.
        for folder, background, kind in (
            ("archive/embeddings/v1", "black", "S"),
            ("stimuli", "grey", "O"),
        ):
            arrays = {
                "embedding": _embeddings(model, contents, background, seed),
                "image_ids": np.array(names, kind),
                "valid": np.ones(len(names), bool),
            }
            yield f"{folder}/{name}", hdf5_bytes(arrays)
    stem = "stimuli/task-images_desc"
    masks, rows = _segmentations(contents, size)
    yield f"{stem}-segmentations_metadata.csv", table_bytes(rows, ",")
    options = {"chunks": (1, size, size), "compression": "gzip", "shuffle": True}
    file = hdf5_bytes({"masks": masks}, **(options if len(masks) else {}))
    yield f"{stem}-segmentations.h5", file
    yield f"{stem}-captions.csv", table_bytes(_captions(contents), ",")


def draw(label: str, content: str, size: int = 160) -> bytes:
    r"""Return an encoded image: an RGBA PNG or an RGB JPEG, as the label says.

    Parameters
    ----------
    label : str
        Its name, which decides on colours and places.
    content : str
        What it shows, a key of `NOUNS`.
    size : int, default=160
        Height and width in pixels.

    Examples
    --------
    >>> draw("shared_4rep_OOD_shape_blob.png", "object")[:4]
    b'\x89PNG'
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(zlib.crc32(label.encode()))
    is_png = label.endswith(".png")
    light = tuple(int(v) for v in rng.integers(150, 250, 3))
    dark = tuple(int(v) for v in rng.integers(10, 110, 3))
    mixed = tuple((a + b) // 2 for a, b in zip(light, dark, strict=True))
    colors = {"dark": dark, "middle": light if is_png else mixed}
    background = (*dark, 0) if is_png else light
    image = Image.new("RGBA" if is_png else "RGB", (size, size), background)
    pen = ImageDraw.Draw(image)
    shift = rng.uniform(-0.08, 0.08, 2)
    for shape, color, corners in _DRAWINGS[content]:
        points = (np.reshape(corners, (-1, 2)) / 100 + shift) * size
        options: dict[str, Any] = {"width": 6} if shape == "line" else {}
        xy = [(float(x), float(y)) for x, y in points]
        getattr(pen, shape)(xy, fill=colors[color], **options)
    if is_png:
        alpha = np.asarray(image.getchannel("A")) * np.linspace(1, 0.5, size)
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if is_png else "JPEG", quality=85)
    return buffer.getvalue()


def _metadata(labels: Iterable[str]) -> Iterator[Sequence[object]]:
    """Yield the rows of the table, shared images marked in the two published ways."""
    yield "image_name", "dataset", "participant", "unique_or_shared", "n_reps"
    for i, label in enumerate(labels):
        fields = image_fields(label)
        if fields.kind is None:
            yield label, "n/a", "n/a", "n/a", "n/a"
            continue
        dataset = "THINGSplus" if fields.dataset == "THINGS+" else fields.dataset
        everyone = ("shared", ";".join(PARTICIPANTS))[i % 2]
        yield (
            label,
            dataset,
            fields.subject or everyone,
            fields.kind,
            f"{fields.n_reps}rep",
        )


def _captions(contents: dict[str, str]) -> Iterator[Sequence[object]]:
    yield (
        *("image_name", "caption_idx", "source", "caption"),
        *("origin_collection", "participant_id", "ai_model"),
    )
    for i, (label, content) in enumerate(contents.items()):
        fields = image_fields(label)
        shared = fields.kind == "shared"
        article = "an" if content[0] in "aeiou" else "a"
        if shared and fields.dataset != "OOD":
            text = f"A picture that shows {article} {content}."
            yield label, 0, "ai", text, "LAION-fMRI", "", "demo-captioner"
        for k in range(1, 6 if shared else 4):
            nouns = " and ".join(dict.fromkeys(NOUNS[content][:2]))
            text = f"{article.capitalize()} {content}, with {nouns}"
            text += "" if k % 2 else ", drawn by hand"
            yield label, k, "human", text, "LAION-fMRI", f"P{(i + k) % 40:03d}", ""


def _segmentations(
    contents: dict[str, str], size: int
) -> tuple[np.ndarray, list[Sequence[object]]]:
    """Return masks and rows of their table: a box for each noun in shared images."""
    masks: list[np.ndarray] = []
    rows: list[Sequence[object]] = [
        (
            *("mask_row", "image_name", "noun", "instance_id", "score"),
            *("box_x0", "box_y0", "box_x1", "box_y1", "localized", "mask_file"),
        )
    ]
    shared = [label for label in contents if image_fields(label).kind == "shared"]
    for label in shared:
        rng = np.random.default_rng(zlib.crc32(label.encode()) + 1)
        nouns = NOUNS[contents[label]]
        for i, noun in enumerate(nouns):
            corner, extent = rng.uniform(0, 0.6, 2), rng.uniform(0.1, 0.4, 2)
            box = np.concatenate([corner, corner + extent]) * size
            x0, y0, x1, y1 = np.round(box).astype(int)
            score = round(float(rng.uniform(0.3, 1)), 4)
            localized = bool(rng.random() > 0.1)
            corners = (x0, y0, x1, y1) if localized else ("", "", "", "")
            mask = np.full((size, size), not localized, np.uint8)
            mask[y0:y1, x0:x1] = 1
            instance = nouns[:i].count(noun)
            file = f"{label.rpartition('.')[0]}/{noun}_{instance}.png"
            about = len(masks), label, noun, instance, score
            rows.append((*about, *corners, int(localized), file))
            masks.append(mask)
    return np.reshape(masks, (-1, size, size)).astype(np.uint8), rows


def _embeddings(
    model: str, contents: dict[str, str], background: str, seed: int
) -> np.ndarray:
    """Return embeddings: a direction for what is shown, and one for the image.

    Where the image is transparent, what lies behind it has a direction too.
    """
    n = EMBEDDING_LENGTHS[model]

    def direction(text: str) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(f"{model}/{text}".encode())])
        return rng.standard_normal(n) / np.sqrt(n)

    values = np.empty((len(contents), n), np.float16)
    for row, (label, content) in zip(values, contents.items(), strict=True):
        behind = 0.5 * direction(background) if label.endswith(".png") else 0
        row[:] = direction(content) + 0.7 * direction(label) + behind
    return values
