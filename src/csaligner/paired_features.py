"""Anybody's arrays as PairedFeatures: who belongs to whom is decided here, by id, once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import InputError, as_features, check_length
from .types import PairedFeatures, PairedTokens

Ids = Sequence[Any] | NDArray[Any] | Tensor  # one name, an int or a string, for each row


def pair_features(
    image_features: Any,
    text_features: Any,
    image_ids: Ids | None = None,
    text_image_ids: Ids | None = None,
) -> PairedFeatures:
    """Features of images and of their captions, matched.

    image_features: (N, d_image), text_features: (M, d_text). Three forms:
    no ids: row i pairs with row i, N == M; image_ids alone (N == M entries): row i pairs with row i, rows of one
    id are one image with several captions and their image rows must agree; image_ids (N, all different) and
    text_image_ids (M): whose caption each text is. Images without a caption are left out with a warning.
    Both come back detached, on the CPU, in one dtype: the wider of the two, at least float32. Raises InputError.
    """
    image, text = as_features("image_features", image_features), as_features("text_features", text_features)
    dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    image, text = (x.detach().to("cpu", dtype) for x in (image, text))
    if text_image_ids is None:
        if len(image) != len(text):
            raise InputError(
                f"image_features has {len(image)} rows and text_features {len(text)}; without text_image_ids row i "
                "pairs with row i, so give as many of each, or image_ids and text_image_ids"
            )
        ids = [str(i) for i in range(len(image))] if image_ids is None else _names("image_ids", image_ids)
        check_length("image_ids", ids, len(image), "pairs")
        return _from_rows(image, text, ids)
    if image_ids is None:
        raise InputError("text_image_ids needs image_ids beside it; give the id of each image row")
    ids, text_ids = _names("image_ids", image_ids), _names("text_image_ids", text_image_ids)
    check_length("image_ids", ids, len(image), "images")
    check_length("text_image_ids", text_ids, len(text), "texts")
    return _from_ids(image, text, ids, text_ids)


def join_features(first: PairedFeatures, second: PairedFeatures) -> PairedFeatures:
    """Both sets of pairs as one; an id that both hold is an error, since it would be two pictures of one name."""
    shared = set(first.image_ids) & set(second.image_ids)
    if shared:
        raise InputError(f"image_ids: {min(shared)!r} is in both sets; give each picture its own id")
    captions = None if first.captions is None or second.captions is None else first.captions + second.captions
    return PairedFeatures(
        torch.cat([first.image, second.image]),
        torch.cat([first.text, second.text]),
        torch.cat([first.text_to_image, second.text_to_image + len(first.image)]),
        first.image_ids + second.image_ids,
        captions,
        _join_tokens(first.tokens, second.tokens),
    )


def _join_tokens(first: PairedTokens | None, second: PairedTokens | None) -> PairedTokens | None:
    if first is None or second is None:
        return None
    return PairedTokens(first.image.concat(second.image), first.text.concat(second.text))


def first_captions(text_to_image: Tensor, n: int) -> Tensor:
    """(n,) the row of the first caption of each of n images. text_to_image: (M,) as PairedFeatures has it."""
    m = len(text_to_image)
    return torch.full((n,), m).scatter_reduce(0, text_to_image, torch.arange(m), "amin")


def _from_rows(image: Tensor, text: Tensor, ids: Sequence[str]) -> PairedFeatures:
    first: dict[str, int] = {}
    for row, image_id in enumerate(ids):
        before = first.setdefault(image_id, row)
        if before != row and not _same(image[before], image[row]):
            raise InputError(
                f"image_ids: rows {before} and {row} share the id {image_id!r} but their image features differ; "
                "give each picture its own id"
            )
    index = {image_id: n for n, image_id in enumerate(first)}
    rows = torch.tensor(list(first.values()))
    return PairedFeatures(image[rows], text, torch.tensor([index[i] for i in ids]), tuple(first))


def _from_ids(image: Tensor, text: Tensor, ids: Sequence[str], text_ids: Sequence[str]) -> PairedFeatures:
    index = {image_id: row for row, image_id in enumerate(ids)}
    if len(index) < len(ids):
        twice = next(i for row, i in enumerate(ids) if index[i] != row)
        raise InputError(f"image_ids: {twice!r} is there twice; with text_image_ids each image stands once")
    unknown = next((t for t in text_ids if t not in index), None)
    if unknown is not None:
        raise InputError(f"text_image_ids: {unknown!r} is not among the image_ids; give ids of images that are there")
    owner = torch.tensor([index[t] for t in text_ids])
    captioned = torch.bincount(owner, minlength=len(ids)) > 0
    if not bool(captioned.all()):
        warnings.warn(f"{int((~captioned).sum())} images have no caption and are left out", stacklevel=3)
    new_row = torch.cumsum(captioned, dim=0) - 1
    kept = tuple(i for i, keep in zip(ids, captioned.tolist(), strict=True) if keep)
    return PairedFeatures(image[captioned], text, new_row[owner], kept)


def _same(a: Tensor, b: Tensor) -> bool:
    """One picture encoded twice: 1e-3 of its length leaves room for half precision and other batches."""
    return bool((a - b).norm() <= 1e-3 * a.norm())


def _names(name: str, ids: Ids) -> list[str]:
    """One string an id: 7, numpy.int64(7), tensor(7) and "7" are the same name."""
    try:
        plain = [i.item() if hasattr(i, "item") else i for i in ids]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: got {type(ids).__name__}, wanted one id, an int or a string, for each row") from None
    odd = [ids] if isinstance(ids, str) else [i for i in plain if not isinstance(i, (str, int))]
    if odd:
        raise InputError(f"{name}: got {odd[0]!r}, wanted one id, an int or a string, for each row")
    return [str(i) for i in plain]
