"""Image files and the image encoder of a store."""

from __future__ import annotations

from collections.abc import Sequence

from csaligner.checks import InputError
from csaligner.store.store import Store
from csaligner.types import EncoderInfo, ImageSource


def picture_sources(store: Store, ids: Sequence[str]) -> list[ImageSource]:
    known = store.image_sources
    return [_known(store, i, known.get(i)) for i in ids]


def _known(store: Store, name: object, source: ImageSource | None) -> ImageSource:
    if source is None:
        raise InputError(f"store: {store.path} has no image file of {name!r}; embed the images with csaligner embed")
    return source


def image_encoder(store: Store) -> EncoderInfo:
    """Return the image encoder of the store. Raises InputError for a store without image features."""
    info = store.manifest.image
    if info is None:
        raise InputError(f"store: {store.path} contains no image features; embed images")
    return info
