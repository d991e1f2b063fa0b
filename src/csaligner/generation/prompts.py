"""Prompts: parsing, mixtures with weights, spherical interpolation."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.types import Encoder, TokenCounter

WEIGHT = re.compile(r"::\s*([0-9]*\.?[0-9]+)")
PARALLEL = 1e-6  # sine of the angle below which two directions count as parallel


@dataclass(frozen=True)
class Prompt:
    """texts: one, or several to mix; weights: sum to 1."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, words: str) -> Prompt:
        """ "a red apple", or "a red apple::0.7 a pear::0.3": each text is followed by its weight.

        A last text without weight has weight 1. Raises InputError for an empty text and for weights that sum to 0.
        """
        pieces = WEIGHT.split(words)
        texts = [" ".join(text.split()) for text in pieces[::2]]
        weights = [float(w) for w in pieces[1::2]]
        if len(texts) > len(weights):
            if texts[-1] or not weights:
                weights.append(1.0)
            else:
                texts.pop()
        if not all(texts):
            raise InputError(f"prompt: got {words!r}, wanted words, as in 'a red apple' or 'an apple::0.7 a pear::0.3'")
        total = sum(weights)
        if total <= 0:
            raise InputError(f"prompt: the weights of {words!r} sum to 0, wanted a positive sum")
        return cls(tuple(texts), tuple(weight / total for weight in weights))


def check_length(text: str, encoder: Encoder) -> None:
    """Raise InputError if a text exceeds the encoder's maximum length."""
    limit = encoder.info.preprocessing.get("max_tokens")
    tokens = encoder.token_count(text) if isinstance(encoder, TokenCounter) else len(text.split())
    if limit is not None and tokens > int(limit):
        raise InputError(
            f"prompt: {text[:40]!r}... has {tokens} tokens, {encoder.info.id} takes at most {limit}; shorten it"
        )


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point at fraction t of the great circle from unit vector a to unit vector b:
    [sin((1 - t) w) a + sin(t w) b] / sin w, w the angle between them. Raises InputError for opposite vectors."""
    cosine = (a @ b).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if float(angle.sin()) < PARALLEL:
        if float(cosine) < 0:
            raise InputError("prompt: two of the mixed prompts have opposite embeddings; change one of them")
        return a
    return normalize((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin(), dim=0)


def mix(directions: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Mix (K, d) unit rows to (d,): successive slerp, each by the row's share of the weight so far."""
    point, total = directions[0], weights[0]
    for row, weight in zip(directions[1:], weights[1:], strict=True):
        total += weight
        if total > 0:
            point = slerp(point, row, weight / total)
    return point
