"""Ranks with ties.

Scores within 1e-6 are tied, and tied items are in random order. Metrics are exact expectations over that order, so
collapsed embeddings score at chance level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .query_chunks import Matches

TIE = 1e-6


@dataclass(frozen=True)
class Ranks:
    """Rank of the best positive of each query, one entry per query.

    above: number of items with a higher score; tied: with the same score, itself included; tied_positives: positives
    among the tied.
    """

    above: Tensor
    tied: Tensor
    tied_positives: Tensor

    def expected(self) -> Tensor:
        """Expected rank of the first positive, from 1: above + (tied + 1) / (tied_positives + 1)."""
        return self.above + (self.tied + 1) / (self.tied_positives + 1)

    def hit_at(self, k: int) -> Tensor:
        """Probability that a positive is among the first k: 1 - C(t - p, s) / C(t, s), s = k - above places left."""
        places = (k - self.above).clamp_min(0)
        others = self.tied - self.tied_positives
        missed = (_log_choose(others, places) - _log_choose(self.tied, places)).exp()
        missed = torch.where(places > others, 0.0, missed)
        return 1 - torch.where(places == 0, 1.0, missed)


def ranks(scores: Tensor, positive: Tensor) -> Ranks:
    """Rank the positives. scores: (Q, G), -inf = not a candidate; positive: (Q, G) bool, at least one per row."""
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    tied = (scores - best).abs() <= TIE
    above = (scores > best + TIE).sum(dim=1)
    return Ranks(above.double(), tied.sum(dim=1).double(), (tied & positive).sum(dim=1).double())


def ranks_of(scores: Tensor, right: Matches) -> Ranks:
    """Rank the right items, as `ranks` does, without a mask of all items. scores: (Q, G)."""
    positive = right.scores(scores)
    best = positive.amax(dim=1, keepdim=True)
    least = best - TIE
    above = _count(scores > best + TIE)
    return Ranks(above, _count(scores >= least) - above, (positive >= least).sum(dim=1).double())


def _count(mask: Tensor) -> Tensor:
    """Return the number of true entries per row, float64; NumPy counts bytes, torch's sum converts them."""
    return torch.tensor([np.count_nonzero(row) for row in mask.numpy()], dtype=torch.float64)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    k = torch.minimum(k, n)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
