"""Warnings of a run whose divergence harms the pairs: a narrow kernel, or gap and pairs lost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.config import ObjectiveConfig, Schedule
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.ops.reference import id_weights
from csaligner.registry import DIVERGENCES

from .memory import Embeddings

CS, MARGIN = "batch/gap/cs", "batch/gap/pair_margin"  # as gap/cs and gap/pair_margin of docs/metrics.md
ROWS = 2048  # images
NARROW = 0.2  # sigma, on unit rows; docs/training.md has the map that it comes from
CS_LEFT, MARGIN_LEFT = 0.9, 0.8  # shares of the values at the largest margin; above them, a fall counts as noise


def narrow_kernel(config: ObjectiveConfig) -> str | None:
    """Return a warning if every bandwidth of a divergence is a number (or ends at one) of at most 0.2."""
    if not any(config.terms[name] != 0 for name in config.terms if name in DIVERGENCES):
        return None
    specs = config.bandwidth if isinstance(config.bandwidth, tuple) else (config.bandwidth,)
    sigmas = [min(spec.start, spec.end) if isinstance(spec, Schedule) else spec for spec in specs]
    numbers = [sigma for sigma in sigmas if not isinstance(sigma, str)]
    if len(numbers) < len(sigmas) or max(numbers) > NARROW:
        return None
    return f"bandwidth: sigma {max(numbers):g} is narrow, and pairs may lose each other; use 0.5 or median"


def lost_pairs(config: ObjectiveConfig, history: Sequence[Mapping[str, float]]) -> str | None:
    """Return a warning if the run ends with a pair margin more than a fifth below its largest at an evaluation, and a
    D_CS more than a tenth below that of the same evaluation. history: of evaluations, with the values of batch_gap."""
    seen = [row for row in history if CS in row and MARGIN in row]
    if len(seen) < 2 or not any(config.terms[name] != 0 for name in config.terms if name in DIVERGENCES):
        return None
    best, last = max(seen, key=lambda row: row[MARGIN]), seen[-1]
    if not (last[CS] < CS_LEFT * best[CS] and last[MARGIN] < MARGIN_LEFT * best[MARGIN]):
        return None
    return (
        f"training: the gap closes but pairs are losing each other (D_CS {best[CS]:.3f} to {last[CS]:.3f}, pair margin "
        f"{best[MARGIN]:.3f} to {last[MARGIN]:.3f}): raise sigma or lower the weight"
    )


@torch.no_grad()
def batch_gap(rows: Embeddings) -> dict[str, float]:
    """Return D_CS (sigma 0.5) and pair margin of the paired rows, at most 2,048 images; {} with fewer than 2 pairs.

    pair margin: mean cosine of an image with its captions minus that with other captions; an image counts once.
    """
    image, ids = _paired(rows.image, rows.image_ids)
    image, ids = image[:ROWS], ids[:ROWS]
    text, text_ids = _paired(rows.text, rows.text_ids)
    kept = torch.isin(text_ids, ids)
    text, text_ids = text[kept], text_ids[kept]
    if len(torch.unique(ids)) < 2 or len(text) == 0:
        return {}
    a, b = id_weights(ids).to(image), id_weights(text_ids).to(image)
    cosines = a[:, None] * (image @ text.T) * b
    same = ids[:, None] == text_ids
    weights = a[:, None] * b
    paired, others = (float((cosines * at).sum() / (weights * at).sum()) for at in (same, ~same))
    divergence = cauchy_schwarz_divergence(image, text, weights_x=a, weights_y=b)
    return {CS: float(divergence), MARGIN: paired - others}


def _paired(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return normalize(x[ids >= 0].float(), dim=1), ids[ids >= 0]
