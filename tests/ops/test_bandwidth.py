"""Bandwidth rules for sigma."""

from __future__ import annotations

import math

import pytest
import torch

from csaligner.checks import InputError
from csaligner.ops import bandwidth
from csaligner.ops.bandwidth import resolve_bandwidth


def test_numbers_pass_through() -> None:
    x = torch.ones(2, 2)
    assert resolve_bandwidth(0.3, x, x) == 0.3
    assert resolve_bandwidth(torch.tensor(0.25, requires_grad=True), x, x) == 0.25


def test_median_makes_the_median_pair_one_e_fold_apart() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    # distances 1, 9, 10: the median is 9
    sigma = resolve_bandwidth("median", x[:2], x[2:])
    assert math.isclose(math.exp(-(9**2) / (2 * sigma**2)), math.exp(-1), rel_tol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(5, 8), (1, 40), (60, 61)])
def test_median_cross_is_the_median_over_all_cross_distances(n: int, m: int) -> None:
    g = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randn(m, 3, generator=g, dtype=torch.float64) + 2
    every = sorted(math.dist(a, b) for a in x.tolist() for b in y.tolist())
    wanted = every[(n * m - 1) // 2] / math.sqrt(2)
    assert math.isclose(resolve_bandwidth("median-cross", x, y), wanted, rel_tol=1e-12)
    assert not math.isclose(resolve_bandwidth("median", x, y), wanted, rel_tol=1e-3)


def test_median_of_a_subsample_is_near_the_median_and_the_same_every_time() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(700, 8, generator=g), torch.randn(500, 8, generator=g) + 1
    full = resolve_bandwidth("median", x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "MEDIAN_ROWS", 300)
        few = resolve_bandwidth("median", x, y)
        assert few == resolve_bandwidth("median", x, y)
    assert few != full
    assert math.isclose(few, full, rel_tol=0.05)


def test_median_needs_distinct_rows() -> None:
    with pytest.raises(InputError, match="median"):
        resolve_bandwidth("median", torch.ones(3, 2), torch.ones(2, 2))


def test_temperature() -> None:
    x = torch.ones(2, 2)
    assert math.isclose(resolve_bandwidth("temperature", x, x, 16.0), 0.25)
    scale = torch.tensor(4.0, requires_grad=True)
    assert resolve_bandwidth("temperature", x, x, scale) == 0.5


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_temperature_wants_a_positive_scale(scale: float) -> None:
    with pytest.raises(InputError, match=r"^logit_scale"):
        resolve_bandwidth("temperature", torch.ones(2, 2), torch.ones(2, 2), scale)
