"""Bootstrap confidence intervals over images; an image is resampled with all its captions.

Queries are resampled, the index they search is fixed: the intervals cover the sampling error of means over queries.
Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

RESAMPLES = 1000
ENTRIES = 2**22  # of a block of counts


def count_blocks(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Tensor]:
    """Yield draw_counts in blocks of resamples, for large n: the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, ENTRIES // n)
    for start in range(0, resamples, size):
        drawn = torch.randint(n, (min(size, resamples - start), n), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones_like(counts))


def draw_counts(n: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """(resamples, n) float64: how often each of n images occurs in each resample (with replacement)."""
    return torch.cat(list(count_blocks(n, seed, resamples)))


def resampled_means(values: Tensor, image_of: Tensor, counts: Tensor) -> Tensor:
    """Return (resamples,) means of per-query values. image_of: the image of each query."""
    sums, sizes = _per_image(values, image_of, counts.shape[1])
    return (counts @ sums) / (counts @ sizes)


def resampled_norms(vectors: Tensor, counts: Tensor) -> Tensor:
    """Return (resamples,) norms of the mean of `vectors`, (n, d), one per image.

    Resampling adds noise in all d dimensions, which increases the norm of nearly every mean. The mean excess over the
    measured norm is subtracted; otherwise the interval would lie above the value.
    """
    return _around((counts @ vectors / len(vectors)).norm(dim=1), vectors)


def resample(
    values: Mapping[str, tuple[Tensor, Tensor]], vectors: Tensor, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return resampled_means of each entry (values, image_of) and resampled_norms of `vectors` (n, d), for the counts
    draw_counts(n, seed), which are drawn and used in blocks."""
    n = len(vectors)
    columns = torch.stack([column for one in values.values() for column in _per_image(*one, n)], dim=1)
    totals, lengths = [], []
    for counts in count_blocks(n, seed):
        totals.append(counts @ columns)
        lengths.append((counts @ vectors / n).norm(dim=1))
    sums, sizes = torch.cat(totals).T.reshape(len(values), 2, -1).unbind(dim=1)
    return dict(zip(values, sums / sizes, strict=True)), _around(torch.cat(lengths), vectors)


def _per_image(values: Tensor, image_of: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return sum and number of the values of each image, (n,) float64."""
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, image_of, values.double())
    return sums, torch.bincount(image_of, minlength=n).double()


def _around(lengths: Tensor, vectors: Tensor) -> Tensor:
    excess = float(lengths.mean() - vectors.mean(dim=0).norm())
    return (lengths - excess).clamp_min(0)


def percentile_interval(estimates: Tensor) -> tuple[float, float]:
    """Return the 95 % percentile interval (low, high)."""
    low, high = torch.quantile(estimates, torch.tensor([0.025, 0.975], dtype=estimates.dtype)).tolist()
    return low, high
