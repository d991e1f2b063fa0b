"""Bootstrap intervals over images: an image is drawn with all its captions."""

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


def mean_interval(values: Tensor, image_of: Tensor, counts: Tensor) -> tuple[float, float]:
    """95 % percentile interval of the mean of per-query values. image_of: the image that each query belongs to."""
    n = counts.shape[1]
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, image_of, values.double())
    sizes = torch.bincount(image_of, minlength=n).double()
    return percentiles((counts @ sums) / (counts @ sizes).clamp_min(1e-12))


def percentiles(estimates: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(estimates, torch.tensor([0.025, 0.975], dtype=estimates.dtype)).tolist()
    return low, high
