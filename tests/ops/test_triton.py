"""Triton kernels against the dense reference, on a GPU if available, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.ops import reference
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Gaussian

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNEL = Gaussian(0.7)
SIZES = [(1, 1), (20, 33), (40, 17)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The operators, with small blocks and tiles that do not divide the sizes."""
    from csaligner.ops import triton, triton_operators

    monkeypatch.setattr(triton, "BLOCK", 16)
    monkeypatch.setattr(triton, "CHUNK_ENTRIES", 32 * 48)
    monkeypatch.setattr(triton, "GROUP_ENTRIES", 4 * 48 // 16 * 32)
    return triton_operators


def cloud(rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(100 * seed + rows)
    x = torch.nn.functional.normalize(torch.randn(rows, 5, generator=g) + 0.4 * seed, dim=1)
    return x.to(device=DEVICE, dtype=dtype)


def ids(rows: int, seed: int) -> Tensor:
    drawn = torch.randint(-1, 8, (rows,), generator=torch.Generator().manual_seed(seed))
    drawn[0] = 2
    return drawn.to(DEVICE)


def weights(rows: int, seed: int = 0) -> Tensor:
    return (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) + 0.1).double().to(DEVICE)


def assert_within_budget(
    fast: Callable[..., Tensor], truth: Callable[..., Tensor], dtype: torch.dtype, *inputs: Tensor
) -> None:
    """Check the value to 1e-5 and gradients to the dtype's tolerance, relative to float64 on the same inputs."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    value, wanted = fast(*leaves), truth(*exact)
    assert abs(value.item() - wanted.item()) <= 1e-5 * max(1.0, abs(wanted.item()))
    grads, wanted_grads = torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, exact)
    for got, want, leaf in zip(grads, wanted_grads, leaves, strict=True):
        assert got.dtype == leaf.dtype
        bound = TOLERANCE[dtype] * max(1e-2, want.abs().max().item())
        torch.testing.assert_close(got.double(), want, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_info_nce_and_kernel(ops: ModuleType, n: int, m: int, dtype: torch.dtype) -> None:
    rows = RowInfo(ids(n, 1), ids(m, 2), weights(n), weights(m, 1))

    def fused(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        nce, mean = ops.fused(x, y, scale, rows, KERNEL)
        total: Tensor = 1.5 * nce - 2 * mean
        return total

    def truth(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
        return 1.5 * nce - 2 * reference.log_kernel_mean(x, y, KERNEL, rows.weights_x, rows.weights_y)

    scale = torch.tensor(8.0, device=DEVICE)
    assert_within_budget(fused, truth, dtype, cloud(n, dtype), cloud(m, dtype, 1), scale)


def test_each_alone(ops: ModuleType) -> None:
    n, m = 20, 33
    rows, w, dtype = RowInfo(ids(n, 1), ids(m, 2)), weights(n), torch.float32
    x, y, scale = cloud(n, dtype), cloud(m, dtype, 1), torch.tensor(8.0, device=DEVICE)
    assert_within_budget(
        lambda x, y, s: ops.info_nce(x, y, s, rows),
        lambda x, y, s: reference.info_nce(x, y, s, rows.ids_x, rows.ids_y),
        dtype,
        x,
        y,
        scale,
    )
    assert_within_budget(
        lambda x, y: ops.log_kernel_mean(x, y, KERNEL, w),
        lambda x, y: reference.log_kernel_mean(x, y, KERNEL, w),
        dtype,
        x,
        y,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_within(ops: ModuleType, rows: int, weighted: bool, dtype: torch.dtype) -> None:
    w = weights(rows) if weighted else None
    assert_within_budget(
        lambda x: ops.log_kernel_mean(x, None, KERNEL, w),
        lambda x: reference.log_kernel_mean(x, None, KERNEL, w),
        dtype,
        cloud(rows, dtype),
    )


def test_small_float16_coefficients_keep_their_digits(ops: ModuleType) -> None:
    """Rows of length 100: coefficients of 1e-7 and less, which float16 has no digits for, and gradients that it has."""
    x, y = (100 * cloud(n, torch.float16, seed) for n, seed in ((20, 0), (33, 1)))
    rows, scale, kernel = RowInfo(ids(20, 1), ids(33, 2)), torch.tensor(1e-5, device=DEVICE), Gaussian(70.0)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        within, between = (ops.log_kernel_mean(x, other, kernel) for other in (None, y))
        total: Tensor = ops.info_nce(x, y, scale, rows) + 0.5 * within - between
        return total

    def truth(x: Tensor, y: Tensor) -> Tensor:
        within, between = (reference.log_kernel_mean(x, other, kernel) for other in (None, y))
        return reference.info_nce(x, y, scale.double(), rows.ids_x, rows.ids_y) + 0.5 * within - between

    leaves, exact = ([side.detach().to(d).requires_grad_() for side in (x, y)] for d in (x.dtype, torch.float64))
    grads, wanted_grads = torch.autograd.grad(loss(*leaves), leaves), torch.autograd.grad(truth(*exact), exact)
    for got, wanted in zip(grads, wanted_grads, strict=True):
        assert (got.double() - wanted).norm() <= 2e-3 * wanted.norm()


def test_narrow_kernel_far_clouds_and_sharp_softmax_are_finite(ops: ModuleType) -> None:
    x, y = cloud(20, torch.float32), cloud(20, torch.float32, 1) + 20
    rows = RowInfo(torch.arange(20, device=DEVICE), torch.arange(20, device=DEVICE))
    leaf = x.clone().requires_grad_()
    nce, mean = ops.fused(leaf, y, torch.tensor(100.0), rows, Gaussian(0.05))
    (grad,) = torch.autograd.grad(nce - mean, leaf)
    wanted = reference.log_kernel_mean(x.double(), y.double(), Gaussian(0.05))
    assert abs(mean.item() / wanted.item() - 1) < 1e-5
    assert torch.isfinite(nce)
    assert torch.isfinite(grad).all()


@pytest.mark.usefixtures("ops")
def test_at_the_door() -> None:
    x, y = cloud(20, torch.bfloat16).requires_grad_(), cloud(33, torch.bfloat16, 1).requires_grad_()
    image_ids, text_ids = torch.arange(20), torch.arange(33) % 20
    losses = [CSAlignerLoss(impl=impl)(x, y, 8.0, image_ids, text_ids).total for impl in ("triton", "reference")]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], atol=2e-5, rtol=0)
    got, wanted = (torch.autograd.grad(loss, (x, y)) for loss in losses)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2 * b.abs().max().item(), rtol=0)


@pytest.mark.usefixtures("ops")
def test_what_it_does_not_do_is_said() -> None:
    x = cloud(5, torch.float32)
    with pytest.raises(InputError, match="gaussian"):
        CSAlignerLoss(impl="triton", kernel="laplacian")(x, x, 8.0)
    with pytest.raises(InputError, match="float64"):
        CSAlignerLoss(impl="triton")(x.double(), x.double(), 8.0)
    leaf = x.clone().requires_grad_()
    with pytest.raises(InputError, match="reference"):
        torch.autograd.grad(CSAlignerLoss(impl="triton")(leaf, x, 8.0).total, leaf, create_graph=True)
