"""Divergences between two samples: functions of (N, d) and (M, d) tensors that return a scalar."""

from __future__ import annotations

from .cauchy_schwarz import cauchy_schwarz_divergence
from .energy import energy_distance
from .gaussian import bures_wasserstein, gaussian_kl
from .hoelder import hoelder_divergence
from .mmd import mmd
from .sinkhorn import sinkhorn_divergence

__all__ = [
    "bures_wasserstein",
    "cauchy_schwarz_divergence",
    "energy_distance",
    "gaussian_kl",
    "hoelder_divergence",
    "mmd",
    "sinkhorn_divergence",
]
