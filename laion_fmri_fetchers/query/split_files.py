"""The files of splits, checked: what a file says must be a split of its pool.

Files come from elsewhere, so nothing of them is believed: types, sizes, labels.

    as_split ─▶ StimulusSplit ─▶ as_family ─▶ Family, and which generation it is
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.labels import label_values
from laion_fmri_fetchers.layout.splits import (
    Pool,
    members,
    published_test_size,
)
from laion_fmri_fetchers.messages import counted

from .splits import StimulusSplit

MOST_BYTES = 4 * 2**20
"""Bytes of a file at most; at 45 bytes per label, the largest one has 1.1 MB."""

_MOST_LEVELS = 8
_SHOWN = 60


class Family(NamedTuple):
    """Splits that belong together, where they were read, and their generation."""

    splits: dict[str, StimulusSplit]
    source: str
    generation: str | None


def parsed(content: bytes, most_bytes: int = MOST_BYTES) -> Any:
    """Return what a JSON file of some bytes at most holds.

    Raises
    ------
    ValueError
        If it is too long, or not JSON; the text says so.
    """
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes // 2**20} MiB")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None


def as_split(content: Any, name: str, pool: Pool | None) -> StimulusSplit:
    """Return the split that a file describes.

    Parameters
    ----------
    content : object
        What the file holds, parsed.
    name : str
        The split that it should be.
    pool : Pool or None
        The pool that it should be a partition of; None: not checked.

    Raises
    ------
    ValueError
        If it is anything else; the text says what.
    """
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if content.get("name", name) != name:
        raise ValueError(f"it is named {_shown(content['name'])}")
    params = content.get("params", {})
    if not isinstance(params, dict) or not _is_flat(params):
        raise ValueError("its params are not a JSON object of a few levels")
    train, test = (_side(content, side) for side in ("train", "test"))
    pool_name = pool.name if pool else None
    try:
        split = StimulusSplit(train, test, name, pool_name, params)
    except InvalidQueryError as error:
        raise ValueError(str(error)) from None
    if pool:
        _check_labels(split, pool)
    return split


def _side(content: dict[str, Any], side: str) -> list[Any]:
    """Return the labels to train or to test on, as many as the file says."""
    variants = content.get("variants")
    if not isinstance(variants, list) or len(variants) != 1:
        raise ValueError("its variants are not a list of one")
    if not isinstance(variants[0], dict):
        raise ValueError("its variant is not a JSON object")
    labels = variants[0].get(f"{side}_ids")
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"its {side}_ids are not a list of labels")
    number = content.get(f"n_{side}", len(labels))
    if type(number) is not int or number != len(labels):
        raise ValueError(
            f"its n_{side} is {_shown(number)}, but it has {len(labels)} {side}_ids"
        )
    return labels


def as_family(name: str, contents: dict[str, Any], source: str, pool: Pool) -> Family:
    """Return the splits of a family, checked one by one and as a whole.

    Parameters
    ----------
    name : str
        The family, or a split that has none.
    contents : dict
        Split -> what its file holds, parsed.
    source : str
        Where the files were read, for the user.
    pool : Pool
        The pool.

    Raises
    ------
    ValueError
        If a file is missing or not valid, or the family is not one; the text begins
        with the name of the file.
    """
    splits = {}
    for split in members(name):
        if split not in contents:
            raise ValueError(f"{split}.json: it is missing, though others are there")
        try:
            splits[split] = as_split(contents[split], split, pool)
        except ValueError as error:
            raise ValueError(f"{split}.json: {error}") from None
    generation = None
    if len(splits) > 1:
        tests = [label for split in splits.values() for label in split.test]
        is_partition = len(tests) == len(set(tests)) == len(pool.labels)
        if name == "random":
            generation = _generation(splits, is_partition, pool.name)
        elif not is_partition:
            raise ValueError(f"{name}: an image is tested on twice, or never")
    if pool.is_published and generation != "a":
        _check_sizes(splits, pool)
    if generation:
        splits = {
            member: StimulusSplit(
                split.train, split.test, member, pool.name, split.params, generation
            )
            for member, split in splits.items()
        }
    return Family(splits, source, generation)


def _generation(splits: dict[str, StimulusSplit], is_partition: bool, pool: str) -> str:
    """Return the generation of random splits; raise ValueError where there is none."""
    revisions = {str(split.params.get("revision")) for split in splits.values()}
    are_folds = any("fold" in split.params for split in splits.values())
    if not (is_partition or are_folds) and revisions == {"None"}:
        return "a"
    if not is_partition or len(revisions) > 1:
        raise ValueError(
            "random: an image is tested on twice, or never, or the files are not of "
            "one generation"
        )
    (revision,) = revisions
    if revision == "2" and pool != "shared":
        return "c"
    return "b" if revision == "None" else f"revision {revision}"


def _check_labels(split: StimulusSplit, pool: Pool) -> None:
    """Raise ValueError where a split is not a partition of its pool."""
    labels, of_pool = {*split.train, *split.test}, set(pool.labels)
    for label in sorted(labels - of_pool):
        participant = label_values(label)[-1]
        if participant not in (None, pool.name):
            raise ValueError(f"it holds {_shown(label)}, unique to {participant}")
        raise ValueError(
            f"it holds {_shown(label)}, which is not an image of the pool {pool.name}"
        )
    n_complete = min(len(of_pool), pool.n_published)
    if len(labels) < n_complete:
        raise ValueError(
            f"it lacks {counted(n_complete - len(labels), 'image')} of the pool "
            f"{pool.name}, such as {_shown(min(of_pool - labels))}"
        )
    if len(labels) > n_complete:
        raise ValueError(
            f"it holds {len(labels):,} images of the pool {pool.name}, of which "
            f"{n_complete:,} were published"
        )


def _check_sizes(splits: dict[str, StimulusSplit], pool: Pool) -> None:
    """Raise ValueError where splits have other sizes than published."""
    for name, split in splits.items():
        n_test = published_test_size(pool.name, name)
        if n_test not in (None, len(split.test)):
            raise ValueError(
                f"{name}.json: it tests on {len(split.test)} images, not {n_test}, as "
                "published"
            )


def _is_flat(value: Any, level: int = 0) -> bool:
    """Return whether JSON is nested no deeper than a few levels."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return level < _MOST_LEVELS and all(_is_flat(item, level + 1) for item in inner)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
