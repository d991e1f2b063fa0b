"""Training data of a decoder: small images with the embeddings of the original images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from csaligner.checks import InputError
from csaligner.datasets.images.load import load_image
from csaligner.decoders.micro_training import Pictures
from csaligner.encoders import open_encoder
from csaligner.encoders.pixels import fit_square, to_tensor
from csaligner.files import write_atomically
from csaligner.integrity import ErrorContext, load_tensors, save_tensors
from csaligner.model import AlignedModel
from csaligner.store.store import Store
from csaligner.types import EncoderInfo, ImageSource

CHUNK = 32
Progress = Callable[[int, int], None]


def gather_pictures(stores: Sequence[Store], size: int, cache: Path, progress: Progress) -> Pictures:
    """Collect the train splits of the stores, each image twice: original and mirrored, with the embeddings of both.
    A store given twice counts twice.

    cache: file to reuse if it is intact and was written for the same stores and size.

    Raises InputError if the stores have different image encoders, or a store has no image files.
    """
    info = image_encoder(stores[0])
    for store in stores[1:]:
        store.require(image=info)
    source = f"{size} " + " ".join(store.sha256 for store in stores)
    try:
        found = load_tensors(cache, ErrorContext("pictures", "it is computed again"))
        if bytes(found["source"].tolist()) == source.encode():
            return Pictures(found["pixels"], found["embeddings"])
    except (FileNotFoundError, InputError, KeyError):
        pass  # missing, damaged or of other stores
    model = AlignedModel.of_encoders(open_encoder(info.id, "image"))
    by_store = {s.sha256: s for s in stores}
    total, done = sum(s.counts.get("train", (0, 0))[0] for s in by_store.values()), 0
    parts: dict[str, Pictures] = {}
    for key, store in by_store.items():
        parts[key] = _of_store(store, size, model, lambda n, done=done: progress(done + n, total))  # type: ignore[misc]
        done += len(parts[key].pixels) // 2
    pixels = torch.cat([parts[s.sha256].pixels for s in stores])
    embeddings = torch.cat([parts[s.sha256].embeddings for s in stores])
    tensors = {"pixels": pixels, "embeddings": embeddings, "source": torch.tensor(list(source.encode()))}
    write_atomically(cache, lambda temporary: save_tensors(tensors, temporary))
    return Pictures(pixels, embeddings)


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


def _of_store(store: Store, size: int, model: AlignedModel, progress: Callable[[int], None]) -> Pictures:
    rows = store.rows_of("image", "train")
    sources = [_known(store, f"row {r}", s) for r, s in zip(rows.tolist(), store.items("image", rows), strict=True)]
    pixels, mirrored = [], []
    for start in range(0, len(sources), CHUNK):
        images = [load_image(source, model.image_size) for source in sources[start : start + CHUNK]]
        flipped = [ImageOps.mirror(image) for image in images]
        pixels += [_small(image, size) for image in images]
        mirrored.append(model.features_image(flipped))
        progress(start + len(images))
    straight = torch.stack(pixels)
    return Pictures(torch.cat([straight, straight.flip(3)]), torch.cat([store.rows("image", rows), *mirrored]))


def _small(image: Image.Image, size: int) -> Tensor:
    return to_tensor(fit_square(image, size))
