"""Loss weights from gradient norms, on quadratics with known gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from csaligner.losses.balance import GradientBalance, gradient_norm


def test_the_norm_runs_over_all_inputs_together() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    y = torch.tensor([[0.0, 2.0]], requires_grad=True)
    unused = torch.ones(2, 2, requires_grad=True)
    value = 0.5 * x.square().sum() + y.square().sum()  # gradients x and 2 y
    assert float(gradient_norm(value, (x, y, unused))) == pytest.approx(5.0)  # sqrt(3^2 + 4^2)
    assert float(gradient_norm(unused.sum() * 1.0, (x,))) == 0.0


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_weighted_gradients_have_the_stated_length(fraction: float) -> None:
    """a/2 |x|^2 and b/2 |x - c|^2 have the gradients a x and b (x - c)."""
    x = torch.tensor([1.0, 2.0, 2.0], requires_grad=True)  # length 3
    c = torch.tensor([1.0, 2.0, 0.0])
    terms: dict[str, Callable[[], Tensor]] = {
        "info_nce": lambda: 0.5 * 4 * x.square().sum(),
        "cs": lambda: 0.5 * 7 * (x - c).square().sum(),
    }
    balance = GradientBalance("info_nce", fraction, momentum=0.9, max_weight=100.0)
    norms = {name: float(gradient_norm(term(), (x,))) for name, term in terms.items()}
    assert norms == pytest.approx({"info_nce": 12.0, "cs": 14.0})
    balance.update(norms)
    assert balance.weight("cs") == pytest.approx(fraction * 12 / 14)
    weighted = balance.weight("cs") * terms["cs"]()
    assert float(gradient_norm(weighted, (x,))) == pytest.approx(fraction * 12, rel=1e-6)


def test_averages_move_and_the_weight_is_capped() -> None:
    balance = GradientBalance("info_nce", 1.0, momentum=0.75, max_weight=10.0)
    balance.update({"info_nce": 4.0, "cs": 2.0})
    balance.update({"info_nce": 8.0, "cs": 2.0})
    assert balance.averages == {"info_nce": 5.0, "cs": 2.0}  # 3/4 * 4 + 1/4 * 8
    assert balance.weight("cs") == 2.5
    balance.update({"cs": 0.0})
    assert balance.averages == {"info_nce": 5.0, "cs": 1.5}
    vanished = GradientBalance("info_nce", 1.0, momentum=0.0, max_weight=10.0)
    vanished.update({"info_nce": 1.0, "cs": 0.0, "mmd": 1e-3})
    assert vanished.weight("cs") == vanished.weight("mmd") == 10.0
