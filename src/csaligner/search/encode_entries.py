"""Encoding of entries and writing of their vectors to an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.class_names import count_photos
from csaligner.adapters.fusion import fuse
from csaligner.datasets.documents import Entry
from csaligner.datasets.images.load import ImageError
from csaligner.model import AlignedModel
from csaligner.types import Modality

from .feature_cache import FeatureCache, size_and_time
from .fused import captions_of, kind_of, text_part
from .index import Index
from .lance_table import FUSED, ItemKind, Row
from .manifest import write_manifest
from .vector_spaces import raw_vectors

Pair = tuple[Entry, str]  # an entry and its digest


@dataclass(frozen=True)
class Encoding:
    """source: name of the data; workers: threads for image decoding; cache: features that need not be encoded again;
    skip: called with the reason for each skipped item."""

    source: str
    workers: int
    cache: FeatureCache | None
    skip: Callable[[str], object]


@dataclass
class Encoded:
    """ids: of the entries that were written; skipped: reasons; gone: ids that were deleted; photos: of the images."""

    ids: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    photos: int = 0


@dataclass
class EncodedPart:
    """The rows of one batch of one kind and their encoder features (N, d_encoder); of fused items also the aligned
    vectors of the captions (N, d). failed: ids and reasons of the entries that could not be read; photos: see
    Encoded."""

    kind: ItemKind
    modality: Modality
    rows: list[Row] = field(default_factory=list)
    features: Tensor | None = None
    captions: Tensor | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    photos: int = 0


def encode_part(model: AlignedModel, part: Sequence[Pair], how: Encoding) -> EncodedPart:
    """Encode one batch of one kind, and write nothing."""
    kind, modality = kind_of(part[0][0]), part[0][0].modality
    known = _cached(model, part, how.cache)
    with ThreadPoolExecutor(how.workers) as pool:
        ready = list(pool.map(lambda pair: _prepare(model, pair[0]) if pair[1] not in known else None, part))
    done = EncodedPart(kind, modality)
    fresh: list[Any] = []
    for (entry, digest), value in zip(part, ready, strict=True):
        if isinstance(value, ImageError):
            done.failed.append((entry.id, str(value)))
            continue
        if digest not in known:
            fresh.append(value)
        words = (entry.text, entry.caption, entry.owner, how.source)
        done.rows.append(Row(entry.id, entry.modality, entry.place, *words, *size_and_time(entry), digest))
    if done.rows:
        encoded = iter(model.encode_prepared(modality, fresh)) if fresh else iter(())
        done.features = torch.stack([known[row.sha256] if row.sha256 in known else next(encoded) for row in done.rows])
        if modality == "image":
            done.photos = count_photos(model.aligner.image_adapter, done.features)
        if kind == FUSED:
            done.captions = text_part(model, [captions_of(row.text) for row in done.rows])
    return done


def write_part(index: Index, part: EncodedPart, new: set[str], how: Encoding) -> Encoded:
    """Align and write one encoded batch. new: ids that the index does not have."""
    done = Encoded({row.id for row in part.rows}, photos=part.photos)
    for item, reason in part.failed:
        done.skipped.append(reason)
        how.skip(reason)
        if item not in new:  # its index entry is out of date
            index.items.delete([item])
            done.gone.append(item)
    if part.photos and not index.manifest.photos:
        index.manifest = replace(index.manifest, photos=True)
        write_manifest(index.path, index.manifest)
    if part.features is not None:
        all_new = all(row.id in new for row in part.rows)
        if part.captions is not None:
            _put_fused(index, part.rows, part.features, part.captions, new=all_new)
        else:
            put_features(index, part.modality, part.rows, part.features, new=all_new)
    return done


def put_features(index: Index, modality: Modality, rows: list[Row], features: Tensor, *, new: bool) -> None:
    """Write rows of one modality by their encoder features (N, d_encoder). new: the index has none of the ids."""
    features = features.float()
    aligned = index.model.align(modality, features)
    raw = raw_vectors(index.model.aligner, modality, features) if index.manifest.raw_dim is not None else None
    index.items.put(modality, rows, aligned, raw, new=new)


def _put_fused(index: Index, rows: list[Row], features: Tensor, text: Tensor, *, new: bool) -> None:
    """Write fused items by the features of their images (N, d_encoder) and the aligned vectors of their captions."""
    assert index.manifest.fused is not None
    image = index.model.align("image", features.float())
    fused = fuse(image, text, index.manifest.fused)
    index.items.put(FUSED, rows, fused, None, new=new, parts={"image": image, "text": text})


def _cached(model: AlignedModel, part: Sequence[Pair], cache: FeatureCache | None) -> dict[str, Tensor]:
    """Return the features of a batch that are in the cache, by digest; none of encoders with weights of the run."""
    modality = part[0][0].modality
    if cache is None or modality in model.lora or (modality == "text" and model.aligner.reads_states):
        return {}
    info = model.info(modality)
    found = {digest: cache.get(info, digest) for _, digest in part}
    return {digest: features for digest, features in found.items() if features is not None}


def _prepare(model: AlignedModel, entry: Entry) -> Any:
    """Preprocess an entry for the encoder; an ImageError is returned, not raised."""
    try:
        return model.prepare(entry.modality, entry.text if entry.modality == "text" else entry.path)
    except ImageError as error:
        return error
