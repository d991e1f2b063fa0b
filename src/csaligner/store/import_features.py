"""Import of existing feature files into a store: pairs, or one modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csaligner.checks import InputError, check_length
from csaligner.datasets.split import split_of
from csaligner.datasets.text_files import TextFiles, split_lines
from csaligner.paired_features import pair_features
from csaligner.remote import local
from csaligner.types import EncoderInfo, Modality, PairedFeatures

from .number_formats import AUTO, check_dtype
from .read_features import load_features, precomputed_info
from .shard_files import ShardRows
from .store import Store, write_one_shard, write_store


@dataclass(frozen=True)
class FeatureFiles:
    """image, text: feature files (see load_features), (rows, d); at least one. names: names of the models, which
    distinguish stores. image_ids, text_image_ids, captions: text files with one entry per line: the id of each
    image row, the image id of each text row, the texts. Without ids row i pairs with row i. keys: the arrays in files
    that hold several (see load_features). cuts: numbers of leading dimensions to keep, for models trained so that these
    suffice (Matryoshka embeddings); None: all. dtypes: number formats of integers and base64 (see load_features).
    All files may be at URLs."""

    image: Path | str | None = None
    text: Path | str | None = None
    names: tuple[str, str] = ("image", "text")
    image_ids: Path | str | None = None
    text_image_ids: Path | str | None = None
    captions: Path | str | None = None
    keys: tuple[str | None, str | None] = (None, None)
    cuts: tuple[int | None, int | None] = (None, None)
    dtypes: tuple[str, str] = (AUTO, AUTO)


def import_features(files: FeatureFiles, out: Path | str) -> Store:
    """Write a store from feature files at `out`, which must not exist. Raises InputError if they do not match."""
    image, text = _rows(files, 0), _rows(files, 1)
    ids, owners, captions = _lines(files.image_ids), _lines(files.text_image_ids), _lines(files.captions)
    if image is None or text is None:
        side: Modality = "text" if image is None else "image"
        x = image if image is not None else text
        if x is None:
            raise InputError("image_features and text_features are both missing; give at least one")
        info = _info(files.names[side == "text"], side, x)
        return write_side(out, x, info, ids=owners if side == "text" else ids, captions=captions)
    infos = (_info(files.names[0], "image", image), _info(files.names[1], "text", text))
    pairs = pair_features(image, text, ids, owners)
    if captions is not None:
        check_length("captions", captions, len(pairs.text), "texts")
        pairs = PairedFeatures(pairs.image, pairs.text, pairs.text_to_image, pairs.image_ids, tuple(captions))
    return write_store(out, pairs, infos)


def _rows(files: FeatureFiles, side: int) -> Tensor | None:
    """Read one file and keep the first columns; the rows are scaled to length 1 wherever they are used."""
    path, dims = (files.image, files.text)[side], files.cuts[side]
    if path is None:
        return None
    check_dtype(("image_dtype", "text_dtype")[side], files.dtypes[side])
    x = load_features(path, files.keys[side], ("image_key", "text_key")[side], files.dtypes[side])
    if dims is not None and not 0 < dims <= x.shape[1]:
        raise InputError(f"cut: got {dims}, wanted 1 to {x.shape[1]}, the dimensions of the vectors")
    return x if dims is None else x[:, :dims].contiguous()


def write_side(
    path: Path | str,
    features: Tensor,
    encoder: EncoderInfo,
    *,
    ids: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
) -> Store:
    """Write a store of one modality, encoder.modality, from features (N, d), at `path`, which must not exist.

    ids: one id per row, default: the row number; ids of images are unique, captions of one image share its id. The
    split follows from the id (split.py). Raises InputError.
    """
    path, side = Path(path), encoder.modality
    if path.exists():
        raise InputError(f"out: {path} exists; choose another folder or delete it")
    n = len(features)
    names = list(map(str, range(n) if ids is None else ids))
    check_length("ids", names, n, "rows")
    if side == "image" and len(set(names)) < n:
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"ids: {twice!r} occurs twice; give each image its own id")
    texts = list(captions or [""] * n)
    check_length("captions", texts, n, "rows")
    array = features.detach().to("cpu", torch.float32).numpy()
    metadata = [(name, caption, "", split_of(name), name) for name, caption in zip(names, texts, strict=True)]
    image, text = (array, None) if side == "image" else (None, array)
    infos = (encoder, None) if side == "image" else (None, encoder)
    return write_one_shard(path, ShardRows(image, text, metadata), infos)


def _info(name: str, side: Modality, x: Tensor) -> EncoderInfo:
    unit = bool(((x.double().norm(dim=1) - 1).abs() < 1e-2).all())
    return precomputed_info(name, side, x.shape[1], normalized=unit)


def _lines(path: Path | str | None) -> list[str] | None:
    return None if path is None else split_lines(TextFiles("utf-8-sig").read_all(local(path)))
