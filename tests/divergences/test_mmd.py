"""MMD^2 against explicit means, a closed form and geomloss."""

from __future__ import annotations

import math

import geomloss
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from csaligner.checks import InputError
from csaligner.divergences.mmd import mmd

IMPLEMENTATIONS = ["reference", "dense", "tiled"]


def cloud(rows: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_biased_and_unbiased_are_the_means_of_sklearns_kernel(impl: str) -> None:
    x, y = cloud(7), cloud(5, seed=1) + 0.3
    kxx, kyy, kxy = (rbf_kernel(a.numpy(), b.numpy(), gamma=0.5 / 0.8**2) for a, b in ((x, x), (y, y), (x, y)))
    biased = kxx.mean() + kyy.mean() - 2 * kxy.mean()
    assert math.isclose(mmd(x, y, bandwidth=0.8, impl=impl).item(), biased, abs_tol=1e-12)
    unbiased = (kxx.sum() - 7) / 42 + (kyy.sum() - 5) / 20 - 2 * kxy.mean()
    value = mmd(x, y, bandwidth=0.8, unbiased=True, impl=impl).item()
    assert math.isclose(value, unbiased, abs_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_value_and_gradient_equal_geomloss(impl: str) -> None:
    x, y = cloud(30).requires_grad_(), (cloud(20, seed=1) + 0.5).requires_grad_()
    a, b = torch.rand(30).double() + 0.1, torch.rand(20).double() + 0.1
    peer = geomloss.SamplesLoss("gaussian", blur=0.9, backend="tensorized")
    wanted = 2 * peer(a / a.sum(), x, b / b.sum(), y)  # geomloss halves
    value = mmd(x, y, bandwidth=0.9, weights_x=a, weights_y=b, impl=impl)
    torch.testing.assert_close(value, wanted, atol=1e-12, rtol=0)
    for got, want in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(wanted, (x, y)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_one_point_each(impl: str) -> None:
    x, y = cloud(1), cloud(1, seed=1)
    wanted = 2 - 2 * math.exp(-(x - y).square().sum().item() / 2)
    assert math.isclose(mmd(x, y, bandwidth=1.0, impl=impl).item(), wanted, rel_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_bounds(impl: str) -> None:
    x = cloud(6)
    assert abs(mmd(x, x, impl=impl).item()) < 1e-15
    assert math.isclose(mmd(x[:1], x[:1] + 1000, impl=impl).item(), 2.0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_unbiased_estimate_is_zero_on_average(impl: str) -> None:
    values = torch.stack([mmd(*cloud(20, seed=s).chunk(2), unbiased=True, impl=impl) for s in range(200)])
    biased = torch.stack([mmd(*cloud(20, seed=s).chunk(2), impl=impl) for s in range(200)])
    error = values.std() / 200**0.5
    assert abs(values.mean()) < 4 * error
    assert values.min() < 0 < biased.min()
    assert biased.mean() > 20 * error


def test_unbiased_needs_two_rows() -> None:
    with pytest.raises(InputError, match="unbiased"):
        mmd(cloud(1), cloud(3), unbiased=True)
    with pytest.raises(InputError, match="unbiased"):
        mmd(cloud(3), cloud(3), weights_y=[1, 0, 0], unbiased=True)
