"""Fused items of an index: an image and its captions as one vector, and the weight of the image in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.fusion import WEIGHT, choose_image_weight
from csaligner.checks import InputError
from csaligner.datasets.documents import Entry
from csaligner.datasets.images.load import ImageError
from csaligner.model import AlignedModel

from .lance_table import FUSED, ItemKind

AUTO: Literal["auto"] = "auto"
Fuse = float | Literal["auto"] | None
FEWEST, MOST = 30, 300  # images with two captions: to choose a weight; that are encoded for it


def parse_fuse(value: str | None) -> Fuse:
    """Parse the option: auto, a weight or None. Raises InputError, one line."""
    if value is None or value == AUTO:
        return value
    try:
        return float(value)
    except ValueError:
        return check_fuse(math.nan, value)


def check_fuse(value: Fuse, shown: object = None) -> Fuse:
    """Return the value. Raises InputError unless it is None, auto or a number from 0 to 1."""
    if value is None or value == AUTO or 0 <= value <= 1:
        return value
    shown = value if shown is None else shown
    raise InputError(f"fuse: got {shown!r}, wanted auto or the weight of the image: 0 (text only) to 1 (image only)")


def check_same(fuse: Fuse, recorded: float | None, where: object) -> None:
    """Raise InputError if an existing index has other items than `fuse` asks for."""
    if fuse is not None and recorded is None:
        raise InputError(f"fuse: the index at {where} has images and captions as separate items; choose another out")
    if isinstance(fuse, int | float) and fuse != recorded:
        raise InputError(f"fuse: got {fuse:g}, the index at {where} has the weight {recorded:g}; choose another out")


def kind_of(entry: Entry) -> ItemKind:
    return FUSED if entry.modality == "image" and entry.text else entry.modality


def fuse_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries with each image and its captions as one entry: an image whose text has one caption per line.
    Texts of no image, and images without a caption, stay as they are."""
    entries = list(entries)
    captions: dict[str, list[str]] = {}
    for entry in entries:
        if entry.modality == "text" and entry.owner:
            captions.setdefault(entry.owner, []).append(entry.text)
    found = []
    for entry in entries:
        if entry.modality == "image":
            words = captions.get(entry.id) or ([entry.caption] if entry.caption else [])
            found.append(replace(entry, text="\n".join(words)))
        elif not entry.owner:
            found.append(entry)
    return tuple(found)


def captions_of(text: str) -> list[str]:
    """Return the captions of a fused item; each is one line."""
    return text.split("\n")


def with_text(entry: Entry, digest: str) -> str:
    """Return the digest of an entry: of a fused one, those of image and text, joined with +."""
    if kind_of(entry) != FUSED:
        return digest
    return f"{digest}+{hashlib.sha256(entry.text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def image_digest(digest: str) -> str:
    """Return the part of a digest that is the image's."""
    return digest.partition("+")[0]


def text_part(model: AlignedModel, captions: Sequence[Sequence[str]]) -> Tensor:
    """Return the aligned text vector of each item, (N, d): of its caption, or the normalised mean of several."""
    vectors = model.align("text", model.features_text([caption for each in captions for caption in each]))
    parts = torch.split(vectors, [len(each) for each in captions])
    return torch.stack([rows[0] if len(rows) == 1 else normalize(rows.mean(dim=0), dim=0) for rows in parts])


def _features(model: AlignedModel, entry: Entry) -> Tensor | None:
    """Return the features of an image, None if it cannot be read, which is reported when it is indexed."""
    assert entry.path is not None
    try:
        return model.features_image([entry.path])[0]
    except ImageError:
        return None


@dataclass(frozen=True)
class WeightChoice:
    """image_weight: the weight; note: how it was chosen, in one line."""

    image_weight: float
    note: str


def choose_weight(model: AlignedModel, entries: Sequence[Entry]) -> WeightChoice:
    """Choose the weight on images with several captions: the last caption of each is the query, the others are its text
    (adapters.fusion.choose_image_weight). With fewer than FEWEST of them it is 0.5.

    The queries are texts, so this is the best weight for search by text.
    """
    several = [entry for entry in entries if kind_of(entry) == FUSED and "\n" in entry.text]
    order = torch.randperm(len(several), generator=torch.Generator().manual_seed(0)).tolist()[:MOST]
    encoded = ((_features(model, several[n]), captions_of(several[n].text)) for n in order)
    rows = [(features, captions) for features, captions in encoded if features is not None]
    if len(rows) < FEWEST:
        few = f"{len(rows)} images with two or more captions, wanted {FEWEST}"
        return WeightChoice(WEIGHT, f"fuse: image weight {WEIGHT:g}: too few to choose one ({few})")
    image = model.align("image", torch.stack([features for features, _ in rows]))
    text = text_part(model, [captions[:-1] for _, captions in rows])
    query = text_part(model, [captions[-1:] for _, captions in rows])
    found = choose_image_weight(image, text, query)
    score, single = found.scores[found.image_weight], max(found.scores[0.0], found.scores[1.0])
    return WeightChoice(
        found.image_weight,
        f"fuse: image weight {found.image_weight:g}, chosen on {len(rows)} images by their last caption "
        f"(mean reciprocal rank {score:.3f}; better single vector {single:.3f})",
    )
