"""Ranks with ties.

The tie rule, everywhere: scores within 1e-6 are tied, and tied items stand in random order. What is reported is
the exact expectation over that order, so collapsed embeddings score what chance would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of each query stands, one entry a query.

    above: items that score higher; tied: items on its score, itself included; tied_positives: positives of those.
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
    """scores: (Q, G), -inf for what is no candidate; positive: (Q, G) bool, at least one a row."""
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    tied = (scores - best).abs() <= TIE
    above = (scores > best + TIE).sum(dim=1)
    return Ranks(above.double(), tied.sum(dim=1).double(), (tied & positive).sum(dim=1).double())


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    k = torch.minimum(k, n)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
