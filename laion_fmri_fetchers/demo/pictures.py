"""Stimuli for the synthetic dataset: drawn images and what derives from them.

All files have the published names, datasets and columns; images and masks are smaller
than the published 1000 x 1000 pixels. What an image shows follows `content_category`.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .facts import EMBEDDING_LENGTHS, PARTICIPANTS, image_fields
from .formats import csv_bytes

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
    labels = list(labels)
    contents = [content_of(label) for label in labels]
    stem = "stimuli/task-images"
    images = [
        draw(label, content, size)
        for label, content in zip(labels, contents, strict=True)
    ]
    yield f"{stem}_stimuli.h5", _archive(images)
    yield f"{stem}_metadata.csv", csv_bytes(_metadata(labels))
    for model in EMBEDDING_LENGTHS:
        name = f"task-images_desc-{model}_embeddings.h5"
        first = _embeddings(model, labels, contents, "black", seed)
        yield f"archive/embeddings/v1/{name}", _embeddings_file(first, labels, "S")
        current = _embeddings(model, labels, contents, "grey", seed)
        yield f"stimuli/{name}", _embeddings_file(current, labels, "O")
    detections = _detections(labels, contents, size)
    yield (
        f"{stem}_desc-segmentations_metadata.csv",
        csv_bytes(_segmentations(detections)),
    )
    yield f"{stem}_desc-segmentations.h5", _masks(detections, size)
    yield f"{stem}_desc-captions.csv", csv_bytes(_captions(labels, contents))


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
    is_png = _is_transparent(label)
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


def _mixed(color: tuple, other: tuple) -> tuple[int, ...]:
    return tuple((a + b) // 2 for a, b in zip(color, other, strict=True))


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
    """Yield the rows of the table, shared images marked in the two published ways."""
    yield "image_name", "dataset", "participant", "unique_or_shared", "n_reps"
    for i, label in enumerate(labels):
        fields = image_fields(label)
        if fields.kind is None:
            yield label, "n/a", "n/a", "n/a", "n/a"
            continue
        everyone = ("shared", ";".join(PARTICIPANTS))[i % 2]
        yield (
            label,
            "THINGSplus" if fields.dataset == "THINGS+" else fields.dataset,
            everyone if fields.kind == "shared" else fields.subject,
            fields.kind,
            f"{fields.n_reps}rep",
        )


def _captions(
    labels: Sequence[str], contents: Sequence[str]
) -> Iterator[Sequence[object]]:
    yield (
        *("image_name", "caption_idx", "source", "caption"),
        *("origin_collection", "participant_id", "ai_model"),
    )
    for i, (label, content) in enumerate(zip(labels, contents, strict=True)):
        fields = image_fields(label)
        shared = fields.kind == "shared"
        if shared and fields.dataset != "OOD":
            text = f"A picture that shows {_article(content)} {content}."
            yield label, 0, "ai", text, "LAION-fMRI", "", "demo-captioner"
        for k in range(1, 6 if shared else 4):
            nouns = " and ".join(dict.fromkeys(NOUNS[content][:2]))
            text = f"{_article(content).capitalize()} {content}, with {nouns}"
            text += "" if k % 2 else ", drawn by hand"
            yield label, k, "human", text, "LAION-fMRI", f"P{(i + k) % 40:03d}", ""


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# Objects in shared images


def _detections(
    labels: Sequence[str], contents: Sequence[str], size: int
) -> list[dict[str, Any]]:
    """Return what is found in the shared images: a box for each noun."""
    detections = []
    for label, content in zip(labels, contents, strict=True):
        if image_fields(label).kind != "shared":
            continue
        rng = np.random.default_rng(zlib.crc32(label.encode()) + 1)
        seen: dict[str, int] = {}
        for noun in NOUNS[content]:
            corner, extent = rng.uniform(0, 0.6, 2), rng.uniform(0.1, 0.4, 2)
            box = np.round(np.concatenate([corner, corner + extent]) * size).astype(int)
            detections.append(
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
    return detections


def _segmentations(detections: list[dict[str, Any]]) -> Iterator[Sequence[object]]:
    yield (
        *("mask_row", "image_name", "noun", "instance_id", "score"),
        *("box_x0", "box_y0", "box_x1", "box_y1", "localized", "mask_file"),
    )
    for row, detection in enumerate(detections):
        box = detection["box"] if detection["localized"] else [""] * 4
        stem = detection["image_name"].rpartition(".")[0]
        file = f"{stem}/{detection['noun']}_{detection['instance_id']}.png"
        yield (
            *(
                row,
                detection["image_name"],
                detection["noun"],
                detection["instance_id"],
                detection["score"],
            ),
            *(*box, detection["localized"], file),
        )


def _masks(detections: list[dict[str, Any]], size: int) -> bytes:
    import h5py

    masks = np.zeros((len(detections), size, size), np.uint8)
    for mask, detection in zip(masks, detections, strict=True):
        x0, y0, x1, y1 = (
            detection["box"] if detection["localized"] else (0, 0, size, size)
        )
        mask[y0:y1, x0:x1] = 1
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset(
            "masks",
            data=masks,
            chunks=(1, size, size) if detections else None,
            compression="gzip" if detections else None,
            shuffle=bool(detections),
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
    model: str,
    labels: Sequence[str],
    contents: Sequence[str],
    background: str,
    seed: int,
) -> np.ndarray:
    """Return embeddings: a direction for what is shown, and one for the image.

    Where the image is transparent, what lies behind it has a direction too.
    """
    n = EMBEDDING_LENGTHS[model]

    def direction(text: str) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(f"{model}/{text}".encode())])
        return rng.standard_normal(n) / np.sqrt(n)

    values = np.empty((len(labels), n), np.float16)
    for row, label, content in zip(values, labels, contents, strict=True):
        behind = 0.5 * direction(background) if _is_transparent(label) else 0
        row[:] = direction(content) + 0.7 * direction(label) + behind
    return values


def _embeddings_file(values: np.ndarray, labels: Sequence[str], names: str) -> bytes:
    """Return the file; names of fixed length ("S") make its size another."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["embedding"] = values
        if names == "S":
            encoded = [label.encode() for label in labels]
            file["image_ids"] = np.array(encoded, dtype="S")
        else:
            kind = h5py.string_dtype("utf-8")
            file.create_dataset("image_ids", data=list(labels), dtype=kind)
        file["valid"] = np.ones(len(labels), bool)
    return buffer.getvalue()


def _is_transparent(label: str) -> bool:
    return label.endswith(".png")
