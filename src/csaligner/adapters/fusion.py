"""One vector of an image and a text: items that have both, and queries of words and an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError

WEIGHT = 0.5
WEIGHTS = tuple(step / 10 for step in range(11))
BLOCK = 1024  # rows of similarities in memory at once


def fuse(image: Tensor, text: Tensor, image_weight: float = WEIGHT) -> Tensor:
    """Return normalise(w * image + (1 - w) * text): (..., d).

    image, text: (..., d), unit vectors of one space without a gap, aligned or centred; with a gap the sum keeps a part
    that is the same for every item. w = image_weight; 1 gives `image` and 0 `text`, to the bit. Vectors that cancel
    give zeros. Source: GR-CLIP (2025), which uses 0.5 after centring. Raises InputError for another shape or weight.
    """
    check_image_weight(image_weight)
    if image.shape != text.shape:
        raise InputError(f"text: got shape {tuple(text.shape)}, wanted {tuple(image.shape)} as image; give one per row")
    if image_weight in (0, 1):
        return image if image_weight else text
    return normalize(image_weight * image + (1 - image_weight) * text, dim=-1)


def check_image_weight(image_weight: float) -> None:
    """Raise InputError unless 0 <= image_weight <= 1."""
    if not 0 <= image_weight <= 1:
        raise InputError(f"image_weight: got {image_weight}, wanted a number from 0 (text only) to 1 (image only)")


@dataclass(frozen=True)
class FusionChoice:
    """image_weight: the chosen one; scores: mean reciprocal rank on validation by weight."""

    image_weight: float
    scores: Mapping[float, float]


def choose_image_weight(
    image: Tensor,
    text: Tensor,
    others: Tensor,
    labels: Sequence[str] | None = None,
    *,
    other_labels: Sequence[str] | None = None,
    weights: Sequence[float] = WEIGHTS,
) -> FusionChoice:
    """Choose the weight of `fuse` on validation data.

    image, text: (N, d), row i of both is one fused item or query; others: (M, d), what they are searched with or in,
    all unit rows. labels (N), other_labels (M): rows with equal labels match; default: row i matches row i.
    score(w) = mean over both directions of 1 / rank of the first match; of equal scores, the weight nearest 0.5 is
    taken. Weights 0 and 1 are candidates, so that on validation the choice is never worse than the better single one.
    Raises InputError for shapes that do not fit, a weight out of range, and a row without a match.
    """
    for weight in weights:
        check_image_weight(weight)
    if not weights:
        raise InputError("weights: got none, wanted at least one number from 0 to 1")
    own, other = _numbers(len(image), len(others), labels, other_labels)
    if image.ndim != 2 or others.ndim != 2 or image.shape[1] != others.shape[1]:
        raise InputError(f"others: got shape {tuple(others.shape)}, wanted (rows, {image.shape[-1]}) as image")
    scores = {}
    for weight in weights:
        fused = fuse(image, text, weight)
        both = _reciprocal_rank(fused, others, own, other), _reciprocal_rank(others, fused, other, own)
        scores[weight] = sum(both) / 2
    best = max(scores, key=lambda w: (scores[w], -abs(w - WEIGHT)))
    return FusionChoice(best, scores)


def _numbers(n: int, m: int, labels: Sequence[str] | None, other_labels: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Return the labels as numbers, (N,) and (M,). Raises InputError if a row has no match."""
    if labels is None and other_labels is None:
        if n != m:
            raise InputError(
                f"others: got {m} rows for {n} fused rows; without labels row i matches row i: give labels"
            )
        return torch.arange(n), torch.arange(n)
    if labels is None or other_labels is None or len(labels) != n or len(other_labels) != m:
        raise InputError(f"labels: wanted {n} labels and {m} other_labels, one per row; give both")
    lost = set(labels) ^ set(other_labels)
    if lost:
        raise InputError(f"labels: {min(lost)!r} is only in one of labels and other_labels; give rows that match")
    number = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[each] for each in labels]), torch.tensor([number[each] for each in other_labels])


def _reciprocal_rank(queries: Tensor, items: Tensor, own: Tensor, labels: Tensor) -> float:
    """Mean of 1 / (1 + items that do not match and are at least as near as the nearest match)."""
    total = 0.0
    for rows, wanted in zip(torch.split(queries, BLOCK), torch.split(own, BLOCK), strict=True):
        cosines, match = rows @ items.T, wanted[:, None] == labels
        best = cosines.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True)
        total += float((1 / (1 + ((cosines >= best) & ~match).sum(dim=1).double())).sum())
    return total / len(queries)
