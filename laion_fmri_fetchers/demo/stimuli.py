"""Stimuli for the synthetic dataset: drawn images and what derives from them.

All files have the published names, datasets and columns; images and masks are smaller
than the published 1000 x 1000 pixels. What an image shows follows `content_category`.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from laion_fmri_fetchers.layout import EMBEDDING_MODELS, stimulus_fields

DIMENSIONS = {"CLIP": 1024, "DINOv2": 1024, "PEcore": 1024, "SigLIP2": 1152}
"""Length of an embedding by model."""

NOUNS = {
    "face": ("face", "eye", "eye", "mouth"),
    "body": ("person", "arm", "leg"),
    "place": ("house", "door", "sky"),
    "object": ("object", "handle"),
    "word": ("sign", "letter", "letter"),
    "motion": ("wheel", "wheel", "road"),
}
"""What a detector finds in images, by what they show; a noun twice for two of it."""


def stimuli_files(
    labels: Iterable[str],
    content_of: Callable[[str], str],
    *,
    size: int = 160,
    seed: int = 0,
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the folder ``stimuli``, each ``(key, bytes)``.

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
    'stimuli/task-images_desc-CLIP_embeddings.h5'
    """
    labels = list(labels)
    contents = [content_of(label) for label in labels]
    stem = "stimuli/task-images"
    images = [
        draw(label, content, size)
        for label, content in zip(labels, contents, strict=True)
    ]
    yield f"{stem}_stimuli.h5", _archive(images)
    yield f"{stem}_metadata.csv", _csv(_metadata(labels))
    for model in EMBEDDING_MODELS:
        data = _embeddings(model, labels, contents, seed)
        yield f"{stem}_desc-{model}_embeddings.h5", data
    found = _detections(labels, contents, size)
    yield f"{stem}_desc-segmentations_metadata.csv", _csv(_segmentations(found))
    yield f"{stem}_desc-segmentations.h5", _masks(found, size)
    yield f"{stem}_desc-captions.csv", _csv(_captions(labels, contents))


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
    background = (*dark, 0) if is_png else light
    image = Image.new("RGBA" if is_png else "RGB", (size, size), background)
    pen = ImageDraw.Draw(image)
    shift = rng.uniform(-0.08, 0.08, 2)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
        corners = np.array([x0, y0, x1, y1]) + np.tile(shift, 2)
        return tuple(float(v) for v in corners * size)

    _DRAWINGS[content](pen, box, dark, light if is_png else _mixed(light, dark))
    if is_png:
        alpha = np.asarray(image.getchannel("A")).astype(float)
        alpha *= np.linspace(1, 0.5, size)
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if is_png else "JPEG", quality=85)
    return buffer.getvalue()


def _mixed(one: tuple, other: tuple) -> tuple[int, ...]:
    return tuple((a + b) // 2 for a, b in zip(one, other, strict=True))


def _face(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    pen.ellipse(box(0.22, 0.12, 0.78, 0.88), fill=middle, outline=dark, width=2)
    for x in (0.34, 0.56):
        pen.ellipse(box(x, 0.36, x + 0.1, 0.46), fill=dark)
    pen.arc(box(0.36, 0.5, 0.64, 0.76), 20, 160, fill=dark, width=4)


def _body(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    pen.ellipse(box(0.42, 0.1, 0.58, 0.26), fill=middle)
    pen.line(box(0.5, 0.26, 0.5, 0.6), fill=dark, width=8)
    for x in (0.3, 0.7):
        pen.line(box(0.5, 0.34, x, 0.52), fill=dark, width=6)
        pen.line(box(0.5, 0.6, x, 0.9), fill=middle, width=6)


def _place(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    pen.rectangle(box(-0.2, 0.7, 1.2, 1.2), fill=middle)
    pen.rectangle(box(0.3, 0.4, 0.7, 0.75), fill=dark)
    pen.polygon([box(x, y, 0, 0)[:2] for x, y in _ROOF], fill=middle)


_ROOF = ((0.25, 0.4), (0.5, 0.2), (0.75, 0.4))


def _object(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    pen.rounded_rectangle(box(0.3, 0.3, 0.65, 0.8), 12, fill=middle, outline=dark)
    pen.arc(box(0.55, 0.4, 0.8, 0.65), 270, 90, fill=dark, width=6)


def _word(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    pen.rectangle(box(0.15, 0.3, 0.85, 0.7), fill=middle, outline=dark, width=3)
    for x in (0.24, 0.44, 0.64):
        pen.line(box(x, 0.4, x, 0.6), fill=dark, width=5)
        pen.line(box(x, 0.5, x + 0.1, 0.5), fill=dark, width=5)


def _motion(pen: Any, box: Callable, dark: tuple, middle: tuple) -> None:
    for x in (0.15, 0.55):
        pen.ellipse(box(x, 0.45, x + 0.3, 0.75), outline=dark, width=5)
        for i in range(8):
            angle = i * math.pi / 4
            dx, dy = 0.15 * math.cos(angle), 0.15 * math.sin(angle)
            pen.line(box(x + 0.15, 0.6, x + 0.15 + dx, 0.6 + dy), fill=middle, width=2)
    for y in (0.2, 0.3):
        pen.line(box(0.05, y, 0.7, y), fill=dark, width=2)


_DRAWINGS: dict[str, Callable[[Any, Callable, tuple, tuple], None]] = {
    "face": _face,
    "body": _body,
    "place": _place,
    "object": _object,
    "word": _word,
    "motion": _motion,
}


# Tables


def _metadata(labels: Sequence[str]) -> Iterator[Sequence[object]]:
    yield "image_name", "dataset", "participant", "unique_or_shared", "n_reps"
    for label in labels:
        told = stimulus_fields(label)
        shared = "shared" if told["n_reps"] == 12 else "sub-01;sub-03"
        yield (
            label,
            (told["dataset"] or "n/a").replace("THINGS+", "THINGSplus"),
            told["participant"] or shared,
            told["unique_or_shared"] or "n/a",
            f"{told['n_reps']}rep" if told["n_reps"] else "n/a",
        )


def _captions(
    labels: Sequence[str], contents: Sequence[str]
) -> Iterator[Sequence[object]]:
    yield (
        *("image_name", "caption_idx", "source", "caption"),
        *("origin_collection", "participant_id", "ai_model"),
    )
    for i, (label, content) in enumerate(zip(labels, contents, strict=True)):
        told = stimulus_fields(label)
        shared = told["unique_or_shared"] == "shared"
        if shared and told["dataset"] != "OOD":
            text = f"A picture that shows {_article(content)} {content}."
            yield label, 0, "ai", text, "LAION-fMRI", "", "demo-captioner"
        for k in range(1, 6 if shared else 4):
            nouns = " and ".join(dict.fromkeys(NOUNS[content][:2]))
            text = f"{_article(content).capitalize()} {content}, with {nouns}"
            text += "" if k % 2 else ", drawn by hand"
            yield label, k, "human", text, "LAION-fMRI", f"P{(i + k) % 40:03d}", ""


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


# Objects in shared images


def _detections(
    labels: Sequence[str], contents: Sequence[str], size: int
) -> list[dict[str, Any]]:
    """Return what is found in the shared images: a box for each noun."""
    found = []
    for label, content in zip(labels, contents, strict=True):
        if stimulus_fields(label)["unique_or_shared"] != "shared":
            continue
        rng = np.random.default_rng(zlib.crc32(label.encode()) + 1)
        seen: dict[str, int] = {}
        for noun in NOUNS[content]:
            corner, extent = rng.uniform(0, 0.6, 2), rng.uniform(0.1, 0.4, 2)
            box = np.round(np.concatenate([corner, corner + extent]) * size).astype(int)
            found.append(
                {
                    "image_name": label,
                    "noun": noun,
                    "instance_id": seen.get(noun, 0),
                    "score": round(float(rng.uniform(0.3, 1)), 4),
                    "box": box.tolist(),
                    "localized": int(rng.random() > 0.1),
                }
            )
            seen[noun] = seen.get(noun, 0) + 1
    return found


def _segmentations(found: list[dict[str, Any]]) -> Iterator[Sequence[object]]:
    yield (
        *("mask_row", "image_name", "noun", "instance_id", "score"),
        *("box_x0", "box_y0", "box_x1", "box_y1", "localized"),
    )
    for row, one in enumerate(found):
        box = one["box"] if one["localized"] else [""] * 4
        yield (
            *(row, one["image_name"], one["noun"], one["instance_id"], one["score"]),
            *(*box, one["localized"]),
        )


def _masks(found: list[dict[str, Any]], size: int) -> bytes:
    import h5py

    masks = np.zeros((len(found), size, size), np.uint8)
    for mask, one in zip(masks, found, strict=True):
        x0, y0, x1, y1 = one["box"] if one["localized"] else (0, 0, size, size)
        mask[y0:y1, x0:x1] = 1
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset(
            "masks",
            data=masks,
            chunks=(1, size, size) if found else None,
            compression="gzip" if found else None,
            shuffle=bool(found),
        )
    return buffer.getvalue()


# Arrays of images


def _archive(images: Sequence[bytes]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        kind = h5py.vlen_dtype(np.dtype("uint8"))
        rows = file.create_dataset("images", (len(images),), dtype=kind)
        for i, image in enumerate(images):
            rows[i] = np.frombuffer(image, np.uint8)
    return buffer.getvalue()


def _embeddings(
    model: str, labels: Sequence[str], contents: Sequence[str], seed: int
) -> bytes:
    """Return embeddings: a direction for what is shown, and one for the image."""
    import h5py

    n = DIMENSIONS[model]
    values = np.empty((len(labels), n), np.float16)
    for row, label, content in zip(values, labels, contents, strict=True):
        parts = [
            np.random.default_rng(
                [seed, zlib.crc32(f"{model}/{text}".encode())]
            ).standard_normal(n)
            for text in (content, label)
        ]
        row[:] = (parts[0] + 0.7 * parts[1]) / np.sqrt(n)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["embedding"] = values
        file.create_dataset(
            "image_ids", data=list(labels), dtype=h5py.string_dtype("utf-8")
        )
        file["valid"] = np.ones(len(labels), bool)
    return buffer.getvalue()
