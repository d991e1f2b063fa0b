"""Sinkhorn divergence against an independent solver, its two limits and geomloss."""

from __future__ import annotations

import math

import geomloss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from csaligner.checks import InputError
from csaligner.divergences import sinkhorn
from csaligner.divergences.sinkhorn import sinkhorn_divergence

Array = NDArray[np.float64]


def clouds(n: int = 20, m: int = 15) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.4


def matrix_scaling(x: Array, y: Array, epsilon: float) -> float:
    """Solve entropic OT by matrix scaling; returns the primal value of the plan."""
    cost = cdist(x, y, "sqeuclidean") / 2
    a, b, k = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), np.exp(-cost / epsilon)
    v = np.ones(len(y))
    for _ in range(20000):
        u = a / (k @ v)
        v = b / (k.T @ u)
    plan = u[:, None] * k * v
    return float((plan * cost).sum() + epsilon * (plan * np.log(plan / np.outer(a, b))).sum())


@pytest.mark.parametrize("blur", [0.5, 2.0])
@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_equals_textbook_sinkhorn(blur: float, impl: str) -> None:
    x, y = clouds()
    e = blur**2
    wanted = matrix_scaling(x, y, e) - matrix_scaling(x, x, e) / 2 - matrix_scaling(y, y, e) / 2
    assert math.isclose(sinkhorn_divergence(x, y, blur=blur, impl=impl).item(), wanted, rel_tol=1e-6)


def test_costs_that_are_kept_or_computed_again_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (c + 1000 for c in clouds())
    kept = sinkhorn_divergence(x, y).item()
    monkeypatch.setattr(sinkhorn, "KEPT_BYTES", 0)
    assert math.isclose(kept, sinkhorn_divergence(x, y).item(), rel_tol=1e-8)


def test_small_blur_is_half_the_squared_wasserstein_distance() -> None:
    x, y = clouds(10, 10)
    cost = cdist(x, y, "sqeuclidean") / 2
    wanted = cost[linear_sum_assignment(cost)].mean()
    value = sinkhorn_divergence(x, y, blur=0.02, max_iterations=5000).item()
    assert math.isclose(value, wanted, rel_tol=5e-3)


def test_large_blur_sees_the_means_alone() -> None:
    x, y = clouds()
    wanted = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() / 2)
    assert math.isclose(sinkhorn_divergence(x, y, blur=100.0).item(), wanted, rel_tol=1e-3)


def test_equals_geomloss_with_its_gradient() -> None:
    x, y = (torch.from_numpy(z).requires_grad_() for z in clouds())
    peer = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.7, scaling=0.99, backend="tensorized")
    value, wanted = sinkhorn_divergence(x, y, blur=0.7), peer(x, y)
    assert math.isclose(value.item(), wanted.item(), rel_tol=1e-3)
    (grad,), (wanted_grad,) = torch.autograd.grad(value, x), torch.autograd.grad(wanted, x)
    torch.testing.assert_close(grad, wanted_grad, atol=3e-3, rtol=0)  # geomloss stops earlier


def test_one_point_each_is_half_the_squared_distance() -> None:
    assert math.isclose(sinkhorn_divergence([[0.0, 0.0]], [[3.0, 4.0]]).item(), 12.5, rel_tol=1e-6)


def test_errors() -> None:
    with pytest.raises(InputError, match=r"blur.*0"):
        sinkhorn_divergence(*clouds(), blur=0.0)
    with pytest.raises(InputError, match=r"max_iterations.*0"):
        sinkhorn_divergence(*clouds(), max_iterations=0)
