"""Conversion of arrays to PairedFeatures: matches rows of two arrays by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from csaligner.wording import count_of

from .checks import InputError, check_length, check_rows, warn_caller
from .names import Names
from .types import PairedFeatures, PairedTokens, TokenRows, TokenSource

Ids = Sequence[Any] | NDArray[Any] | Tensor  # an int or a string per row


def pair_features(
    image_features: Any,
    text_features: Any,
    image_ids: Ids | None = None,
    text_image_ids: Ids | None = None,
    *,
    names: Names | None = None,
) -> PairedFeatures:
    """Match features of images and captions.

    image_features: (N, d_image), text_features: (M, d_text). Three forms:
    no ids: row i matches row i, N == M; only image_ids (N == M entries): row i matches row i, rows with equal ids are
    one image with several captions, and their image features must be equal; image_ids (N, unique) and text_image_ids
    (M): id of the image of each text. Images without a caption are skipped with a warning.
    names: of the two spaces in errors; None: image and text.
    Results are detached, on the CPU, in one dtype: the wider of the two, at least float32. Raises InputError.
    """
    names = names or Names()
    first, second = f"{names.first}_features", f"{names.second}_features"
    image, text = check_rows(first, image_features), check_rows(second, text_features)
    dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    image, text = (x.detach().to("cpu", dtype) for x in (image, text))
    if text_image_ids is None:
        if len(image) != len(text):
            raise InputError(
                f"{first} has {len(image)} rows and {second} {len(text)}; without text_image_ids row i "
                "matches row i: give equal numbers of rows, or image_ids and text_image_ids"
            )
        ids = [str(i) for i in range(len(image))] if image_ids is None else _names("image_ids", image_ids)
        check_length("image_ids", ids, len(image), "pairs")
        return _from_rows(image, text, ids, names)
    if image_ids is None:
        raise InputError("text_image_ids requires image_ids; give the id of each image row")
    ids, text_ids = _names("image_ids", image_ids), _names("text_image_ids", text_image_ids)
    check_length("image_ids", ids, len(image), names.fill("{images}"))
    check_length("text_image_ids", text_ids, len(text), names.fill("{texts}"))
    return _from_ids(image, text, ids, text_ids, names)


def join_features(first: PairedFeatures, second: PairedFeatures) -> PairedFeatures:
    """Concatenate two sets of pairs. Raises InputError for an id in both sets."""
    shared = set(first.image_ids) & set(second.image_ids)
    if shared:
        raise InputError(f"image_ids: {min(shared)!r} is in both sets; use unique ids")
    captions = None if first.captions is None or second.captions is None else first.captions + second.captions
    return PairedFeatures(
        torch.cat([first.image, second.image]),
        torch.cat([first.text, second.text]),
        torch.cat([first.text_to_image, second.text_to_image + len(first.image)]),
        first.image_ids + second.image_ids,
        captions,
        _join_tokens(first.tokens, second.tokens),
        None if first.states is None or second.states is None else _joined(first.states, second.states),
    )


def _join_tokens(first: PairedTokens | None, second: PairedTokens | None) -> PairedTokens | None:
    if first is None or second is None:
        return None
    return PairedTokens(_joined(first.image, second.image), _joined(first.text, second.text))


def _joined(first: TokenSource, second: TokenSource) -> TokenRows:
    return first.loaded().concat(second.loaded())


def first_captions(text_to_image: Tensor, n: int) -> Tensor:
    """Return (n,) rows of the first caption of each image. text_to_image: (M,) as in PairedFeatures."""
    m = len(text_to_image)
    return torch.full((n,), m).scatter_reduce(0, text_to_image, torch.arange(m), "amin")


def spaced(n: int, count: int) -> Tensor:
    """Return `count` of the rows 0 to n - 1, evenly spaced, (count,) int64; all of them if there are no more."""
    return torch.arange(n) if n <= count else torch.linspace(0, n - 1, count, dtype=torch.float64).round().long()


def rows_of(features: PairedFeatures, images: Tensor) -> PairedFeatures:
    """Return the pairs of the given image rows, with all their captions, tokens and states."""
    place = torch.full((len(features.image),), -1)
    place[images] = torch.arange(len(images))
    owner = place[features.text_to_image]
    kept = (owner >= 0).nonzero().flatten()
    tokens = features.tokens
    return replace(
        features,
        image=features.image[images],
        text=features.text[kept],
        text_to_image=owner[kept],
        image_ids=tuple(features.image_ids[i] for i in images.tolist()),
        captions=None if features.captions is None else tuple(features.captions[i] for i in kept.tolist()),
        tokens=None if tokens is None else PairedTokens(tokens.image.subset(images), tokens.text.subset(kept)),
        states=None if features.states is None else features.states.subset(kept),
    )


def checked_owners(features: PairedFeatures, images: int, captions: int) -> list[int]:
    """Return the image row of each caption. Raises InputError for duplicate ids and images without a caption."""
    ids, owners = features.image_ids, features.text_to_image
    check_length("image_ids", ids, images, "images")
    if len(set(ids)) < images:
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(f"image_ids: {twice!r} occurs twice; give each image its own id")
    if owners.ndim != 1 or owners.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"text_to_image: got {owners.dtype} of shape {tuple(owners.shape)}, wanted ({captions},) int64"
        )
    check_length("text_to_image", owners, captions, "captions")
    rows: list[int] = owners.tolist()
    outside = next((n for n, row in enumerate(rows) if not 0 <= row < images), None)
    if outside is not None:
        raise InputError(f"text_to_image: caption {outside} has image {rows[outside]}; wanted 0 to {images - 1}")
    bare = set(range(images)) - set(rows)
    if bare:
        raise InputError(f"text_to_image: image {ids[min(bare)]!r} has no caption; add one or remove the image")
    return rows


def _from_rows(image: Tensor, text: Tensor, ids: Sequence[str], names: Names) -> PairedFeatures:
    first: dict[str, int] = {}
    for row, image_id in enumerate(ids):
        before = first.setdefault(image_id, row)
        if before != row and not _same(image[before], image[row]):
            raise InputError(
                f"image_ids: rows {before} and {row} share the id {image_id!r} but their {names.first} features "
                f"differ; give each {names.first} its own id"
            )
    index = {image_id: n for n, image_id in enumerate(first)}
    rows = torch.tensor(list(first.values()))
    return PairedFeatures(image[rows], text, torch.tensor([index[i] for i in ids]), tuple(first))


def _from_ids(image: Tensor, text: Tensor, ids: Sequence[str], text_ids: Sequence[str], names: Names) -> PairedFeatures:
    index = {image_id: row for row, image_id in enumerate(ids)}
    if len(index) < len(ids):
        twice = next(i for row, i in enumerate(ids) if index[i] != row)
        raise InputError(f"image_ids: {twice!r} occurs twice; with text_image_ids, give each {names.first} once")
    unknown = next((t for t in text_ids if t not in index), None)
    if unknown is not None:
        raise InputError(
            f"text_image_ids: {unknown!r} is not in image_ids; give only ids of given {names.fill('{images}')}"
        )
    owner = torch.tensor([index[t] for t in text_ids])
    captioned = torch.bincount(owner, minlength=len(ids)) > 0
    if not bool(captioned.all()):
        bare = count_of(int((~captioned).sum()), names.first, names.fill("{images}"))
        warn_caller(names.fill(f"{bare} without a {{caption}} skipped"))
    new_row = torch.cumsum(captioned, dim=0) - 1
    kept = tuple(i for i, keep in zip(ids, captioned.tolist(), strict=True) if keep)
    return PairedFeatures(image[captioned], text, new_row[owner], kept)


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two rows are equal up to a relative 1e-3, the error of half precision."""
    return bool((a - b).norm() <= 1e-3 * a.norm())


def _names(name: str, ids: Ids) -> list[str]:
    """Convert ids to strings: 7, numpy.int64(7), tensor(7) and "7" are equal."""
    try:
        plain = [i.item() if hasattr(i, "item") else i for i in ids]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: got {type(ids).__name__}, wanted one id (int or string) per row") from None
    odd = [ids] if isinstance(ids, str) else [i for i in plain if not isinstance(i, (str, int))]
    if odd:
        raise InputError(f"{name}: got {odd[0]!r}, wanted one id (int or string) per row")
    return [str(i) for i in plain]
