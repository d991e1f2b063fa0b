"""The Sinkhorn divergence: debiased entropic optimal transport between two samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_positive
from csaligner.ops.arguments import Samples, samples
from csaligner.ops.kernels import Gaussian
from csaligner.ops.reference import log_weights
from csaligner.ops.row_sums import log_density
from csaligner.ops.tiles import no_autocast, widened

# Cost matrices up to this size are kept between iterations; larger ones are recomputed in each iteration.
KEPT_BYTES = 64 * 2**20
# Convergence: no entry of a potential changes by more than this fraction of epsilon.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}


def sinkhorn_divergence(
    x: Any,
    y: Any,
    *,
    blur: float = 0.3,
    weights_x: Any = None,
    weights_y: Any = None,
    max_iterations: int = 1000,
    impl: str = "auto",
) -> Tensor:
    """S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2, with cost C = |x_i - y_j|^2 / 2 and entropy epsilon =
    blur^2:

    OT(x, y) = min over plans pi with marginals a, b of <pi, C> + epsilon KL(pi | a b').
    x: (N, d), y: (M, d). blur: the length scale of the entropic smoothing, in the unit of the features.
    For blur -> 0, S is half the squared Wasserstein-2 distance; for blur -> infinity, half the squared distance of
    the means. weights and impl as in cauchy_schwarz_divergence. Potentials are computed by annealed log-domain
    iterations until they change by less than 1e-4 epsilon (1e-7 in float64) or for max_iterations; the gradient is
    that of the converged plan (envelope theorem). Returns a scalar >= 0, float64 if a sample is float64, else
    float32. Raises InputError. Source: Feydy et al. 2019 (Interpolating between optimal transport and MMD), eq. 3 and
    10.
    """
    s = samples(x, y, weights_x, weights_y)
    check_positive("blur", blur)
    if max_iterations < 1:
        raise InputError(f"max_iterations: got {max_iterations}, wanted at least 1")
    dtype = s.dtype
    x, y = widened(s.x, s.y, float(blur))
    s = replace(s, x=x, y=y)
    problem = _Problem(s, float(blur) ** 2, max_iterations, impl)
    f, g = problem.between()
    f_within, g_within = problem.within(s.x, s.weights_x), problem.within(s.y, s.weights_y)
    a, b = log_weights(s.x, s.weights_x).exp(), log_weights(s.y, s.weights_y).exp()
    on_x = problem.softmin(s.x, s.y.detach(), g, s.weights_y) - problem.softmin(
        s.x, s.x.detach(), f_within, s.weights_x
    )
    on_y = problem.softmin(s.y, s.x.detach(), f, s.weights_x) - problem.softmin(
        s.y, s.y.detach(), g_within, s.weights_y
    )
    return ((a * on_x).sum() + (b * on_y).sum()).to(dtype)


class _Problem:
    """Solver for the potentials, the fixed points of the softmin. Potentials carry no gradient."""

    def __init__(self, samples: Samples, epsilon: float, max_iterations: int, impl: str) -> None:
        self.samples, self.epsilon, self.impl = samples, epsilon, impl
        self.max_iterations = max_iterations
        pooled = torch.cat([samples.x.detach(), samples.y.detach()])
        self.diameter = 2 * float((pooled - pooled.mean(dim=0)).norm(dim=1).max())

    @torch.no_grad()
    def _softmin_of(self, x: Tensor, y: Tensor, weights: Tensor | None) -> Callable[[Tensor, float], Tensor]:
        """Return a function (potential of y, epsilon) -> softmin on x that caches the cost matrix if it is small."""
        if len(x) * len(y) * x.element_size() > KEPT_BYTES:
            return lambda g, epsilon: self.softmin(x, y, g, weights, epsilon)
        x, y = x - y.mean(dim=0), y - y.mean(dim=0)  # centre, to avoid cancellation of squares
        with no_autocast(x):
            cost = (x * x).sum(1)[:, None] / 2 + (y * y).sum(1) / 2 - x @ y.T
        logs = log_weights(y, weights)
        return lambda g, epsilon: -epsilon * torch.sub(g / epsilon + logs, cost, alpha=1 / epsilon).logsumexp(dim=1)

    def softmin(self, x: Tensor, y: Tensor, g: Tensor, weights: Tensor | None, epsilon: float | None = None) -> Tensor:
        """Return -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon) for each row of x."""
        epsilon = self.epsilon if epsilon is None else epsilon
        offsets = g / epsilon + log_weights(y, weights)
        return -epsilon * log_density(x, y, Gaussian(epsilon**0.5), offsets, self.impl)

    @torch.no_grad()
    def between(self) -> tuple[Tensor, Tensor]:
        """Return the potentials of x against y, by alternating updates."""
        x, y = self.samples.x, self.samples.y
        on_x = self._softmin_of(x, y, self.samples.weights_y)
        on_y = self._softmin_of(y, x, self.samples.weights_x)
        f, g = x.new_zeros(len(x)), y.new_zeros(len(y))
        for epsilon, last in self._epsilons():
            before = f
            f = on_x(g, epsilon)
            g = on_y(f, epsilon)
            if last and float((f - before).abs().max()) <= _TOLERANCE[x.dtype] * epsilon:
                break
        return f, g

    @torch.no_grad()
    def within(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Return the potential of x against itself, by averaged updates."""
        softmin = self._softmin_of(x, x, weights)
        f = x.new_zeros(len(x))
        for epsilon, last in self._epsilons():
            before = f
            f = (f + softmin(f, epsilon)) / 2
            if last and float((f - before).abs().max()) <= _TOLERANCE[x.dtype] * epsilon / 2:
                break
        return f

    def _epsilons(self) -> Iterator[tuple[float, bool]]:
        """Yield the annealing schedule: from the squared diameter down to epsilon, then constant."""
        epsilon = self.diameter**2
        for _ in range(self.max_iterations):
            yield max(epsilon, self.epsilon), epsilon <= self.epsilon
            epsilon /= 4
