"""Bootstrap confidence intervals over images; an image is resampled with all its captions.

Queries are resampled, the index they search is fixed: the intervals cover the sampling error of means over queries.
Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 1000


def draw_counts(n: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """(resamples, n) float64: how often each of n images occurs in each resample (with replacement)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def resampled_means(values: Tensor, image_of: Tensor, counts: Tensor) -> Tensor:
    """Return (resamples,) means of per-query values. image_of: the image of each query."""
    n = counts.shape[1]
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, image_of, values.double())
    sizes = torch.bincount(image_of, minlength=n).double()
    return (counts @ sums) / (counts @ sizes)


def resampled_norms(vectors: Tensor, counts: Tensor) -> Tensor:
    """Return (resamples,) norms of the mean of `vectors`, (n, d), one per image.

    Resampling adds noise in all d dimensions, which increases the norm of nearly every mean. The mean excess over the
    measured norm is subtracted; otherwise the interval would lie above the value.
    """
    lengths: Tensor = (counts @ vectors / len(vectors)).norm(dim=1)
    excess = float(lengths.mean() - vectors.mean(dim=0).norm())
    return (lengths - excess).clamp_min(0)


def percentile_interval(estimates: Tensor) -> tuple[float, float]:
    """Return the 95 % percentile interval (low, high)."""
    low, high = torch.quantile(estimates, torch.tensor([0.025, 0.975], dtype=estimates.dtype)).tolist()
    return low, high
