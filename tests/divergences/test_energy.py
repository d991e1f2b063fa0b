"""Energy distance against a closed form and geomloss."""

from __future__ import annotations

import math

import geomloss
import numpy as np
import torch
from scipy.spatial.distance import cdist

from csaligner.divergences.energy import energy_distance


def test_one_point_each_is_twice_the_distance() -> None:
    assert math.isclose(energy_distance([[0.0, 0.0]], [[3.0, 4.0]]).item(), 10.0)


def test_equals_the_means_of_scipys_distances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(15, 4)) + 0.3
    wanted = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    for impl in ("reference", "tiled"):
        assert math.isclose(energy_distance(x, y, impl=impl).item(), wanted, rel_tol=1e-9)


def test_equals_geomloss() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=g).double(), torch.randn(15, 4, generator=g).double() + 0.3
    wanted = 2 * geomloss.SamplesLoss("energy", backend="tensorized")(x, y).item()
    assert math.isclose(energy_distance(x, y).item(), wanted, rel_tol=1e-4)  # geomloss clips zero distances


def test_normals_on_the_line() -> None:
    # E|a - b| of N(0, 1) and N(m, 1): sqrt(4/pi) at m = 0, here by 2,000 quantiles each.
    quantiles = torch.special.ndtri((torch.arange(2000).double() + 0.5) / 2000)
    m = 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    wanted = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    x = quantiles[:, None]
    assert math.isclose(energy_distance(x, x + m).item(), wanted, rel_tol=2e-3)
