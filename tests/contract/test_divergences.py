"""Contract of registered divergences; runs for every registered divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.losses.objective import Objective
from csaligner.registry import DIVERGENCES, load

NAMES = sorted(DIVERGENCES)


def get(name: str) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = load("divergence", DIVERGENCES, name)
    return function


def cloud(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_it_is_a_symmetric_divergence(name: str, impl: str) -> None:
    divergence, x, y = get(name), cloud(12), cloud(9, 1) + 0.5
    value = divergence(x, y, impl=impl).item()
    assert value > 0.01
    assert abs(divergence(x, x.clone(), impl=impl).item()) < 1e-5 * value
    assert math.isclose(divergence(y, x, impl=impl).item(), value, rel_tol=1e-6)
    assert math.isclose(divergence(x.flip(0), y, impl=impl).item(), value, rel_tol=1e-6)
    turn, _ = torch.linalg.qr(cloud(3, 2))
    moved = divergence(x @ turn + 3, y @ turn + 3, impl=impl).item()
    assert math.isclose(moved, value, rel_tol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_give_one_value_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csaligner.ops.tiles.CPU_BLOCK", 4)
    monkeypatch.setattr("csaligner.ops.row_sums.CPU_BLOCK", 4)
    x, y = cloud(11).requires_grad_(), (cloud(9, 1) + 0.5).requires_grad_()
    values = [get(name)(x, y, impl=impl) for impl in ("reference", "tiled")]
    assert math.isclose(values[0].item(), values[1].item(), rel_tol=1e-10)
    grads = [torch.autograd.grad(value, (x, y)) for value in values]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name: str) -> None:
    x, y = (0.3 * cloud(5)).requires_grad_(), (0.3 * cloud(4, 1) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(get(name), (x, y), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights(name: str) -> None:
    divergence, x, y = get(name), cloud(7), cloud(5, 1) + 0.5
    repeated = divergence(x[[0, 1, 1, 2, 3, 4, 5, 5, 5, 6]], y).item()
    assert math.isclose(divergence(x, y, weights_x=[1, 2, 1, 1, 1, 3, 1]).item(), repeated, rel_tol=1e-6)
    without = divergence(x[:5], y).item()
    mask = torch.arange(7) < 5
    assert divergence(torch.cat([x[:5], x[5:] * 1e4]), y, weights_x=mask).item() == without
    assert divergence(y, x, weights_y=mask).item() == divergence(y, x[:5]).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(name: str, dtype: torch.dtype) -> None:
    x, y = cloud(12).to(dtype).requires_grad_(), (cloud(9, 1) + 0.5).to(dtype).requires_grad_()
    value = get(name)(x, y)
    wanted = get(name)(x.detach().double(), y.detach().double())
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), wanted.item(), rel_tol=1e-3)
    grad, _ = torch.autograd.grad(value, (x, y))
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_autocast_changes_nothing(name: str, impl: str) -> None:
    x, y = cloud(12).float(), cloud(9, 1).float() + 0.5
    plain = get(name)(x, y, impl=impl).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert get(name)(x, y, impl=impl).item() == plain


@pytest.mark.parametrize("name", NAMES)
def test_single_points_and_duplicates_are_finite(name: str) -> None:
    if name == "gaussian_kl":
        return  # one point has no covariance
    for x, y in ((cloud(1), cloud(1, 1)), (torch.ones(4, 3).double(), torch.ones(2, 3).double())):
        leaf = x.clone().requires_grad_()
        value = get(name)(leaf, y)
        (grad,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_errors_at_the_door(name: str) -> None:
    with pytest.raises(InputError, match="dimensions"):
        get(name)(cloud(3), cloud(3)[:, :2])
    with pytest.raises(InputError, match=r"weights.*2.*3"):
        get(name)(cloud(3), cloud(3), weights_x=[1, 2])


@pytest.mark.parametrize("name", NAMES)
def test_it_works_as_a_term_of_the_objective(name: str) -> None:
    x, y = cloud(8).requires_grad_(), cloud(8, 1) + 0.5
    loss = Objective({"info_nce": 1.0, name: 0.5})(x, y, 1.0)
    wanted = get(name)(x, y).detach()
    torch.testing.assert_close(loss.terms[name], wanted)
    torch.testing.assert_close(loss.total, loss.terms["info_nce"] + 0.5 * wanted)
    (grad,) = torch.autograd.grad(loss.total, x)
    assert torch.isfinite(grad).all()
