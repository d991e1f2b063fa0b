"""Bootstrap intervals over images: an image is drawn with all its captions.

Queries are drawn again, the index they search is not: the intervals say how sure a mean over queries is.
Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 1000


def draw_counts(n: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """(resamples, n) float64: how often each of n images was drawn with replacement in each resample."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def resampled_means(values: Tensor, image_of: Tensor, counts: Tensor) -> Tensor:
    """(resamples,) the mean of per-query values in each resample. image_of: the image that each query belongs to."""
    n = counts.shape[1]
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, image_of, values.double())
    sizes = torch.bincount(image_of, minlength=n).double()
    return (counts @ sums) / (counts @ sizes)


def resampled_norms(vectors: Tensor, counts: Tensor) -> Tensor:
    """(resamples,) the length of the mean of one vector an image, (n, d), in each resample.

    Drawing again adds noise of its own in all d directions, and that makes nearly every mean longer: the average
    excess over the measured length is taken off, or the interval would lie above the value.
    """
    lengths: Tensor = (counts @ vectors / len(vectors)).norm(dim=1)
    excess = float(lengths.mean() - vectors.mean(dim=0).norm())
    return (lengths - excess).clamp_min(0)


def percentile_interval(estimates: Tensor) -> tuple[float, float]:
    """The middle 95 % of the resamples' estimates."""
    low, high = torch.quantile(estimates, torch.tensor([0.025, 0.975], dtype=estimates.dtype)).tolist()
    return low, high
