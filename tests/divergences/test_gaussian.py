"""Divergences of fitted Gaussians against formulas from other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from csaligner.checks import InputError
from csaligner.divergences.gaussian import bures_wasserstein, gaussian_kl


def clouds(n: int = 40, m: int = 30, dim: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return x, 1.5 * torch.randn(m, dim, generator=g, dtype=torch.float64) + 0.4


def test_kl_equals_torch_distributions() -> None:
    x, y = clouds()
    p, q = (MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0)) for z in (x, y))
    wanted = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    torch.testing.assert_close(gaussian_kl(x, y, shrinkage=0.0), wanted)


def test_kl_shrinkage() -> None:
    x, y = clouds()
    s = [torch.cov(z.T, correction=0) for z in (x, y)]
    ridge = 0.2 * (s[0].trace() + s[1].trace()) / 6 * torch.eye(3).double()
    p, q = (MultivariateNormal(z.mean(0), 0.8 * c + ridge) for z, c in zip((x, y), s, strict=True))
    wanted = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    torch.testing.assert_close(gaussian_kl(x, y, shrinkage=0.2), wanted)


def test_kl_needs_covariances_that_can_be_inverted() -> None:
    x, y = clouds(3, 3)
    assert math.isfinite(gaussian_kl(x, y).item())
    with pytest.raises(InputError, match="shrinkage"):
        gaussian_kl(torch.zeros(3, 3), y, shrinkage=0.0)
    with pytest.raises(InputError, match=r"shrinkage.*2"):
        gaussian_kl(x, y, shrinkage=2.0)


@pytest.mark.parametrize(("n", "m"), [(40, 30), (3, 30), (2, 3), (5, 2)])
def test_bures_wasserstein_equals_the_formula_with_matrix_roots(n: int, m: int) -> None:
    x, y = (z.numpy() for z in clouds(n, m, dim=5))
    s1, s2 = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    root = np.real(sqrtm(s1 + 1e-14 * np.eye(5)))
    middle = np.linalg.eigvalsh(root @ s2 @ root).clip(0)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * np.sqrt(middle).sum()
    assert math.isclose(bures_wasserstein(x, y).item(), wanted, rel_tol=1e-5)


def test_bures_wasserstein_of_scaled_axes() -> None:
    # Two points on each axis: covariances diag(1, 4) and diag(9, 1): (1 - 3)^2 + (2 - 1)^2 + |gap|^2.
    def cross(a: float, b: float) -> Tensor:
        return torch.tensor([[a, 0], [-a, 0], [0, b], [0, -b]], dtype=torch.float64) * 2**0.5

    value = bures_wasserstein(cross(1, 2), cross(3, 1) + torch.tensor([3.0, 0.0]))
    assert math.isclose(value.item(), 4 + 1 + 9, rel_tol=1e-12)
