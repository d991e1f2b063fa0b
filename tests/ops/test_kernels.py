"""Kernels: formulas, derivatives and names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.ops import reference, tiled, tiles
from csaligner.ops.kernels import Gaussian, InverseMultiquadric, Kernel, Laplacian, Mixture, make_kernel

ALL: list[Kernel] = [
    Gaussian(0.7),
    Laplacian(0.7),
    InverseMultiquadric(0.7),
    Mixture((Gaussian(0.3), Gaussian(1.0), Laplacian(2.0))),
]


def cloud(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_formulas() -> None:
    t = torch.tensor([0.0, 0.25, 4.0], dtype=torch.float64)
    wanted: dict[Kernel, list[float]] = {
        Gaussian(0.5): [1, math.exp(-0.5), math.exp(-8)],
        Laplacian(0.5): [1, math.exp(-1), math.exp(-4)],
        InverseMultiquadric(0.5): [1, 1.5**-0.5, 9**-0.5],
        Mixture((Gaussian(0.5), Laplacian(0.5))): [
            1,
            (math.exp(-0.5) + math.exp(-1)) / 2,
            (math.exp(-8) + math.exp(-4)) / 2,
        ],
    }
    for kernel, values in wanted.items():
        torch.testing.assert_close(kernel.log_value(t).exp(), torch.tensor(values).double())
        torch.testing.assert_close(kernel.log_value_and_slope(t.clone())[0], kernel.log_value(t))


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: type(k).__name__)
def test_slope_is_the_derivative(kernel: Kernel) -> None:
    t = torch.tensor([0.1, 0.25, 4.0, 900.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(kernel.log_value(t).sum(), t)
    _, slope = kernel.log_value_and_slope(t.detach().clone())
    torch.testing.assert_close(torch.as_tensor(slope).double() * torch.ones(4).double(), wanted)


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("diagonal", [False, True])
def test_tiles_equal_the_dense_truth(kernel: Kernel, diagonal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", 4)
    x, y = cloud(9).requires_grad_(), cloud(6, 1).requires_grad_()
    pairs = [
        (op.log_kernel_mean(x, None, kernel, diagonal=diagonal), op.log_kernel_mean(x, y, kernel))
        for op in (tiled, reference)
    ]
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
        for g, w in zip(
            torch.autograd.grad(got, (x, y), allow_unused=True),
            torch.autograd.grad(wanted, (x, y), allow_unused=True),
            strict=True,
        ):
            if g is not None:
                torch.testing.assert_close(g, w, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("op", [tiled, reference])
def test_coinciding_points_have_a_finite_gradient(kernel: Kernel, op: object) -> None:
    x = torch.ones(5, 3, dtype=torch.float64).requires_grad_()
    within = op.log_kernel_mean(x, None, kernel)  # type: ignore[attr-defined]
    between = op.log_kernel_mean(x, torch.ones(4, 3).double(), kernel)  # type: ignore[attr-defined]
    (grad,) = torch.autograd.grad(within + between, x)
    assert abs(within.item()) < 1e-15
    assert not grad.any()


def test_mixture_in_far_tails_does_not_underflow() -> None:
    t = torch.tensor([1e6], dtype=torch.float64)
    value, slope = Mixture((Gaussian(0.1), Gaussian(1.0))).log_value_and_slope(t.clone())
    assert math.isclose(value.item(), -5e5 - math.log(2), rel_tol=1e-12)
    assert math.isclose(float(slope), -0.5, rel_tol=1e-12)


def test_doors() -> None:
    x, y = cloud(4), cloud(3, 1)
    assert make_kernel("laplacian", 0.5, x, y) == Laplacian(0.5)
    assert make_kernel("gaussian", [0.5, 1.0], x, y) == Mixture((Gaussian(0.5), Gaussian(1.0)))
    one = cauchy_schwarz_divergence(x, y, bandwidth=0.5, kernel="inverse_multiquadric").item()
    two = cauchy_schwarz_divergence(x, y, bandwidth=[0.5, 0.5], kernel="inverse_multiquadric").item()
    assert math.isclose(one, two, rel_tol=1e-12)
    with pytest.raises(InputError, match=r"kernel.*'gausian'.*'gaussian'"):
        make_kernel("gausian", 0.5, x, y)
    with pytest.raises(InputError, match=r"bandwidth.*empty"):
        make_kernel("gaussian", [], x, y)
    with pytest.raises(InputError, match=r"bandwidth.*-1"):
        make_kernel("gaussian", [0.5, -1.0], x, y)
