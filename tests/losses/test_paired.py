"""Other paired losses against explicit sums and scipy's optimum."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.losses.objective import Objective


def cloud(rows: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 4, generator=g, dtype=torch.float64), dim=1)


def test_siglip_is_the_sum_of_binary_losses_at_the_best_bias() -> None:
    x, y, scale = cloud(5), cloud(5, 1), 7.0

    def loss(bias: float) -> float:
        total = 0.0
        for i in range(5):
            for j in range(5):
                sign = 1.0 if i == j else -1.0
                logit = sign * (scale * float(x[i] @ y[j]) + bias)
                total += float(torch.log1p(torch.exp(torch.tensor(-logit, dtype=torch.float64))))
        return total / 5

    best = minimize_scalar(loss, bounds=(-30, 30), method="bounded", options={"xatol": 1e-10})
    got = Objective({"siglip": 1.0})(x, y, scale).total
    assert float(got) == pytest.approx(best.fun, abs=1e-10)


def test_siglip_gradient_is_the_slope_of_its_value() -> None:
    x, y, n = cloud(5), cloud(6, 1), torch.arange(5)
    texts = torch.tensor([0, 1, 2, 3, 4, 4])
    siglip = Objective({"siglip": 1.0})
    assert torch.autograd.gradcheck(lambda a, b, s: siglip(a, b, s, n, texts).total, _inputs(x, y), atol=1e-7)


def test_paired_l2_is_the_mean_over_images_of_the_mean_over_captions() -> None:
    x, y = cloud(3), cloud(4, 1)
    texts = torch.tensor([0, 1, 1, 2])
    d = ((x[texts] - y) ** 2).sum(dim=1)
    wanted = (d[0] + (d[1] + d[2]) / 2 + d[3]) / 3
    got = Objective({"paired_l2": 1.0})(x, y, 1.0, torch.arange(3), texts).total
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["siglip", "paired_l2"])
def test_repeated_captions_and_unpaired_rows_change_nothing(name: str) -> None:
    x, y, n = cloud(5), cloud(5, 1), torch.arange(5)
    objective = Objective({name: 1.0})
    alone = objective(x, y, 7.0, n, n).total
    again = torch.tensor([0, 1, 2, 2, 3, 4])
    torch.testing.assert_close(objective(x, y[again], 7.0, n, again).total, alone)
    more = torch.cat([y, cloud(2, 2)])
    torch.testing.assert_close(objective(x, more, 7.0, n, torch.tensor([0, 1, 2, 3, 4, -1, -1])).total, alone)


def _inputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    return x.clone().requires_grad_(), y.clone().requires_grad_(), scale
