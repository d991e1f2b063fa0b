"""Divergences between Gaussians fitted to two samples: symmetric Kullback-Leibler and Bures-Wasserstein."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.ops.arguments import samples
from csaligner.ops.reference import log_weights
from csaligner.ops.tiles import no_autocast


def gaussian_kl(
    x: Any,
    y: Any,
    *,
    shrinkage: float = 0.01,
    weights_x: Any = None,
    weights_y: Any = None,
    impl: str = "auto",
) -> Tensor:
    """Symmetric Kullback-Leibler divergence [KL(p; q) + KL(q; p)] / 2 of N(m1, S1) and N(m2, S2):

    1/4 [tr(S1^-1 S2) + tr(S2^-1 S1) - 2 d + (m1 - m2)' (S1^-1 + S2^-1) (m1 - m2)], in nats.
    x: (N, d), y: (M, d). Covariances are normalised by the sum of weights and shrunk to be invertible:
    S <- (1 - shrinkage) S + shrinkage (tr S1 + tr S2) / (2 d) I, with shrinkage between 0 and 1 (0 requires more
    than d rows per sample). weights as in cauchy_schwarz_divergence; impl has no effect.
    Returns a scalar >= 0, float64 if a sample is float64, else float32 (computed in float64). Raises InputError.
    """
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage: got {shrinkage:g}, wanted a number from 0 to 1")
    s = samples(x, y, weights_x, weights_y)
    with no_autocast(s.x):
        (m1, a), (m2, b) = _moments(s.x, s.weights_x), _moments(s.y, s.weights_y)
        s1, s2 = a.T @ a, b.T @ b
        d = s1.shape[0]
        ridge = shrinkage * (s1.trace() + s2.trace()) / (2 * d) * torch.eye(d, dtype=s1.dtype, device=s1.device)
        s1, s2 = (1 - shrinkage) * s1 + ridge, (1 - shrinkage) * s2 + ridge
        factors = [torch.linalg.cholesky_ex(c) for c in (s1, s2)]
        if any(bool(info) for _, info in factors):
            raise InputError("gaussian_kl: a covariance matrix is singular; increase shrinkage or provide more rows")
        gap = (m1 - m2)[:, None]
        one, two = (factor for factor, _ in factors)
        traces = torch.cholesky_solve(s2, one).trace() + torch.cholesky_solve(s1, two).trace()
        gaps = gap.T @ (torch.cholesky_solve(gap, one) + torch.cholesky_solve(gap, two))
        return _as(s.x, (traces - 2 * d + gaps.squeeze()) / 4)


def bures_wasserstein(x: Any, y: Any, *, weights_x: Any = None, weights_y: Any = None, impl: str = "auto") -> Tensor:
    """Squared Wasserstein-2 distance of N(m1, S1) and N(m2, S2), as in the Frechet distance (FID):

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2, in squared units of the features.
    x: (N, d), y: (M, d). Covariances are normalised by the sum of weights and may be singular. weights as in
    cauchy_schwarz_divergence; impl has no effect. The last trace is the nuclear norm of A B', where S1 = A'A and
    S2 = B'B. Returns a scalar >= 0, float64 if a sample is float64, else float32 (computed in float64).
    Raises InputError. Source: Dowson and Landau 1982 (J. Multivariate Analysis 12), eq. 4.
    """
    s = samples(x, y, weights_x, weights_y)
    with no_autocast(s.x):
        (m1, a), (m2, b) = _moments(s.x, s.weights_x), _moments(s.y, s.weights_y)
        # At most d x d. To first order the nuclear norm is invariant to rotations of the row space bases.
        cross = _in_own_basis(a) @ _in_own_basis(b).T
        nuclear = torch.linalg.svdvals(cross).sum()
        value = (m1 - m2).square().sum() + a.square().sum() + b.square().sum() - 2 * nuclear
        return _as(s.x, value)


def _moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and A (N, d) with covariance A'A, in float64."""
    x = x.double()
    share = log_weights(x, weights).exp()
    mean = share @ x
    return mean, (x - mean) * share.sqrt()[:, None]


def _as(like: Tensor, value: Tensor) -> Tensor:
    return value.to(like.dtype)


def _in_own_basis(a: Tensor) -> Tensor:
    """Return Q'A, (min(N, d), d), where Q is an orthonormal basis of the columns, treated as constant."""
    q: Tensor = torch.linalg.qr(a.detach())[0]
    return q.T @ a
