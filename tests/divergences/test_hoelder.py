"""Hoelder divergence of several samples; equal to D_CS for two."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from csaligner.checks import InputError
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.divergences.hoelder import hoelder_divergence


def cloud(rows: int, seed: int, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, generator=g, dtype=torch.float64) + shift


@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_two_samples_give_the_cauchy_schwarz_divergence(impl: str) -> None:
    x, y, w = cloud(9, 0), cloud(7, 1, 0.5), torch.arange(1, 10)
    value = hoelder_divergence(x, y, bandwidth=0.8, weights_x=w, impl=impl)
    wanted = cauchy_schwarz_divergence(x, y, bandwidth=0.8, weights_x=w, impl=impl)
    torch.testing.assert_close(value, wanted, atol=1e-11, rtol=0)


def test_three_samples_by_numpy() -> None:
    clouds = [cloud(9, 0).numpy(), cloud(7, 1, 0.5).numpy(), cloud(8, 2, -0.5).numpy()]
    p = [[rbf_kernel(a, b, gamma=0.5 / 0.8**2).mean(axis=1) for b in clouds] for a in clouds]
    own = sum(np.log((p[k][k] ** 2).mean()) for k in range(3))
    product = np.mean([(p[k][(k + 1) % 3] * p[k][(k + 2) % 3]).mean() for k in range(3)])
    value = hoelder_divergence(*clouds, bandwidth=0.8).item()
    assert math.isclose(value, own - 3 * np.log(product), rel_tol=1e-10)


def test_equal_samples_give_zero_and_order_does_not_matter() -> None:
    x, y, z = cloud(9, 0), cloud(7, 1, 0.5), cloud(8, 2, -0.5)
    assert abs(hoelder_divergence(x, x, x, x).item()) < 1e-12
    values = [hoelder_divergence(*order).item() for order in itertools.permutations((x, y, z))]
    assert max(values) - min(values) < 1e-12
    assert values[0] > 0.1


def test_it_grows_with_the_distance_of_any_one_sample() -> None:
    x, y = cloud(50, 0), cloud(50, 1)
    values = [hoelder_divergence(x, y, cloud(50, 2, shift), bandwidth=1.0).item() for shift in (0, 1, 3)]
    assert values == sorted(values)


def test_gradient_of_the_third_sample() -> None:
    leaves = [cloud(4, 0).requires_grad_(), cloud(3, 1).requires_grad_(), cloud(5, 2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *c: hoelder_divergence(*c, bandwidth=0.8), leaves)


def test_bad_third_sample() -> None:
    with pytest.raises(InputError, match=r"x.*2.*sample 3.*3"):
        hoelder_divergence(cloud(3, 0), cloud(3, 1), torch.ones(2, 3))
