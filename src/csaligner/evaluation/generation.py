"""Metrics of generated images: FID, KID, CMMD and CLIP score on features, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError, as_features, check_same_dim

from .gap import root_trace

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
NAMES = ("real", "generated")


@dataclass(frozen=True)
class Projection:
    """Projection onto k principal directions of a reference sample, for Frechet distances of few images.

    A covariance of d dimensions needs more than d rows. The reference must be disjoint from the compared samples.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, reference: Any, k: int) -> Projection:
        x = as_features("reference", reference).double()
        if not 1 <= k <= min(x.shape[1], len(x) - 1):
            raise InputError(f"dims: got {k}, wanted 1 to {min(x.shape[1], len(x) - 1)}")
        mean = x.mean(dim=0)
        if len(x) <= len(mean):
            return cls(mean, torch.linalg.svd(x - mean, full_matrices=False).Vh[:k].T)
        _, axes = torch.linalg.eigh((x - mean).T @ (x - mean))
        return cls(mean, axes[:, -k:].flip(1))

    def __call__(self, x: Any) -> Tensor:
        """(N, d) -> (N, k) float64."""
        return (as_features("features", x).double() - self.mean) @ self.axes


def frechet_distance(real: Any, generated: Any, *, force: bool = False) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^1/2): FID for Inception features (Heusel et al., NeurIPS 2017).

    real: (N, d), generated: (M, d). Covariances divide by N - 1. tr (S S')^1/2 is the nuclear norm of A B', where
    S = A'A and S' = B'B. Raises InputError if a sample has no more rows than dimensions: its covariance is singular
    and the value depends mostly on the number of rows. force: compute the value anyway.
    """
    x, y = _samples(real, generated)
    for name, sample in zip(NAMES, (x, y), strict=True):
        if len(sample) < 2 or (len(sample) <= sample.shape[1] and not force):
            raise InputError(
                f"{name}: got {len(sample)} rows, wanted more than the {sample.shape[1]} dimensions; give more rows or "
                "fewer dimensions (dims), or set force (the value then depends on the number of rows)"
            )
    a, b = ((s - s.mean(dim=0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    gap = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    few = len(a) * len(b) < a.shape[1] ** 2
    cross = torch.linalg.matrix_norm(a @ b.T, "nuc") if few else root_trace(a.T @ a, b.T @ b)
    return max(0.0, float(gap + a.square().sum() + b.square().sum() - 2 * cross))


def kernel_distance(real: Any, generated: Any) -> float:
    """KID: the unbiased squared MMD with kernel (x.y / d + 1)^3 (Binkowski et al., ICLR 2018); may be negative.

    Uses all rows instead of random subsets, which minimises the variance.
    """
    x, y = _samples(real, generated)
    if min(len(x), len(y)) < 2:
        raise InputError(f"real and generated: {len(x)} and {len(y)} rows, wanted at least 2 of each")
    d = x.shape[1]
    xx, yy, xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return float(within - 2 * xy.mean())


def cmmd(real: Any, generated: Any) -> float:
    """CMMD: 1000 times the squared MMD of unit rows, kernel exp(-|x - y|^2 / (2 * 10^2)), diagonals kept (Jayasumana
    et al., CVPR 2024, with CLIP features)."""
    x, y = (normalize(s, dim=1) for s in _samples(real, generated))
    means = [torch.exp((p @ q.T - 1) / CMMD_SIGMA**2).mean() for p, q in ((x, x), (y, y), (x, y))]
    return float(CMMD_SCALE * (means[0] + means[1] - 2 * means[2]))


def text_agreement(pictures: Any, texts: Any) -> float:
    """Mean of max(100 cos, 0) over pairs, row i with row i (CLIP score, Hessel et al., EMNLP 2021), in one space."""
    x, y = _samples(pictures, texts)
    if len(x) != len(y):
        raise InputError(
            f"pictures and texts: got {len(x)} and {len(y)} rows, wanted equal numbers (row i matches row i)"
        )
    cosines = (normalize(x, dim=1) * normalize(y, dim=1)).sum(dim=1)
    return float(100 * cosines.clamp_min(0).mean())


def generation_metrics(
    real: Any, generated: Any, *, project: Projection | None = None, force: bool = False
) -> dict[str, float]:
    """Return fid (of projected features if `project` is given), kid, cmmd and the numbers of rows."""
    pair = (real, generated) if project is None else (project(real), project(generated))
    x, y = _samples(real, generated)
    return {
        "fid": frechet_distance(*pair, force=force),
        "kid": kernel_distance(x, y),
        "cmmd": cmmd(x, y),
        "n_real": float(len(x)),
        "n_generated": float(len(y)),
    }


def _samples(real: Any, generated: Any) -> tuple[Tensor, Tensor]:
    x, y = (as_features(name, value).double() for name, value in zip(NAMES, (real, generated), strict=True))
    check_same_dim(NAMES, x, y)
    return x, y
