"""Tiled implementation against the dense reference, values and gradients, for any tile size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.ops import gaussian_factors as folded
from csaligner.ops import logsumexp as softmaxes
from csaligner.ops import reference, tiled, tiled_contrastive, tiles
from csaligner.ops.contrastive import Pair, RowInfo
from csaligner.ops.kernels import Gaussian

KERNEL = Gaussian(0.7)
SIZES = [(1, 1), (1, 6), (4, 4), (8, 4), (5, 9), (13, 6), (13, 13)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", 4)


@pytest.fixture(params=["online", "shared"])
def softmax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with both implementations of the softmax sums."""
    for module in (softmaxes, folded):
        monkeypatch.setattr(module, "LIMIT", {"online": 0.0, "shared": 300.0}[request.param])
    return str(request.param)


def cloud(rows: int, dim: int = 3, seed: int = 0, offset: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(100 * seed + rows)
    return torch.randn(rows, dim, generator=g, dtype=torch.float64) + offset


def weights(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def ids(rows: int, seed: int, low: int = -1) -> Tensor:
    drawn = torch.randint(low, 5, (rows,), generator=torch.Generator().manual_seed(seed))
    drawn[0] = 2  # at least one positive pair
    return drawn


def assert_same(
    fast: Callable[..., Tensor], truth: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-10
) -> None:
    """Check that values and gradients agree to `tolerance`, relative to the largest entry."""
    results = []
    for function in (fast, truth):
        leaves = [t.clone().requires_grad_() for t in inputs]
        value = function(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == wanted.dtype
        bound = tolerance * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(got, wanted, atol=bound, rtol=0)


def test_the_comparison_itself_can_fail() -> None:
    x = cloud(5)
    with pytest.raises(AssertionError):
        assert_same(lambda x: x.sum() * (1 + 1e-8), lambda x: x.sum(), x)
    with pytest.raises(AssertionError):
        assert_same(lambda x: x.sum(), lambda x: (x.detach() * 2 - x).sum(), x)


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 13])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_within(rows: int, weighted: bool, diagonal: bool) -> None:
    if rows == 1 and not diagonal:
        return
    w = weights(rows) if weighted else None
    assert_same(
        lambda x: tiled.log_kernel_mean(x, None, KERNEL, w, diagonal=diagonal),
        lambda x: reference.log_kernel_mean(x, None, KERNEL, w, diagonal=diagonal),
        cloud(rows),
    )


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_between(n: int, m: int, weighted: bool) -> None:
    w = (weights(n), weights(m, 1)) if weighted else (None, None)
    assert_same(
        lambda x, y: tiled.log_kernel_mean(x, y, KERNEL, *w),
        lambda x, y: reference.log_kernel_mean(x, y, KERNEL, *w),
        cloud(n, offset=2.0),
        cloud(m, seed=1),
    )


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.usefixtures("softmax")
def test_info_nce(n: int, m: int, low: int) -> None:
    a, b = ids(n, 1, low), ids(m, 2, low)
    assert_same(
        lambda x, y, s: tiled_contrastive.info_nce(x, y, s, RowInfo(a, b)),
        lambda x, y, s: reference.info_nce(x, y, s, a, b),
        cloud(n, offset=2.0),
        cloud(m, seed=1),
        torch.tensor(2.5, dtype=torch.float64),
    )


@pytest.mark.parametrize("rows", [1, 4, 13])
@pytest.mark.usefixtures("softmax")
def test_info_nce_of_rows_in_order(rows: int) -> None:
    order = torch.arange(rows)
    assert_same(
        lambda x, y, s: tiled_contrastive.info_nce(x, y, s, RowInfo(order, order)),
        lambda x, y, s: reference.info_nce(x, y, s, order, order),
        cloud(rows, offset=2.0),
        cloud(rows, seed=1),
        torch.tensor(2.5, dtype=torch.float64),
    )


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("factors", [(1.0, -2.0), (-1.5, 0.7), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.usefixtures("softmax")
def test_fused_with_any_upstream_gradient(n: int, m: int, factors: tuple[float, float]) -> None:
    rows = RowInfo(ids(n, 1), ids(m, 2), weights(n), weights(m, 1))

    def fused(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        nce, mean = tiled_contrastive.fused(x, y, s, rows, KERNEL)
        return factors[0] * nce + factors[1] * mean

    def truth(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        nce = reference.info_nce(x, y, s, rows.ids_x, rows.ids_y)
        mean = reference.log_kernel_mean(x, y, KERNEL, rows.weights_x, rows.weights_y)
        return factors[0] * nce + factors[1] * mean

    scale = torch.tensor(2.5, dtype=torch.float64)
    assert_same(fused, truth, cloud(n, offset=2.0), cloud(m, seed=1), scale)


def test_one_exponential_serves_both_softmaxes_only_where_float32_holds_it() -> None:
    x, y, order = cloud(5) / 10, cloud(5, seed=1) / 10, torch.arange(5)
    for scale, kind in ((5.0, softmaxes.SharedSoftmaxes), (5000.0, softmaxes.OnlineSoftmaxes)):
        assert type(softmaxes.softmaxes(Pair.of(x, y, RowInfo(order, order), scale))) is kind
    far = x + torch.tensor([300.0, 0, 0])
    pair = Pair.of(far, y + torch.tensor([300.0, 0, 0]), RowInfo(order, order), 5.0)
    assert type(softmaxes.softmaxes(pair)) is softmaxes.OnlineSoftmaxes


def test_rescaling_of_the_sums_when_later_tiles_are_much_nearer() -> None:
    x = torch.tensor([[0.0], [100.0], [200.0], [300.0], [400.0], [500.0]], dtype=torch.float64)
    y = torch.tensor([[900.0], [800.0], [700.0], [600.0], [401.0], [500.5]], dtype=torch.float64)
    for kernel in (Gaussian(1.0), Gaussian(30.0)):
        assert_same(
            lambda x, y, k=kernel: tiled.log_kernel_mean(x, y, k),
            lambda x, y, k=kernel: reference.log_kernel_mean(x, y, k),
            x,
            y,
        )
        assert_same(
            lambda x, k=kernel: tiled.log_kernel_mean(x, None, k, diagonal=False),
            lambda x, k=kernel: reference.log_kernel_mean(x, None, k, diagonal=False),
            x,
        )


def test_gradcheck() -> None:
    x, y = cloud(5).requires_grad_(), cloud(6, seed=1).requires_grad_()
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    rows = RowInfo(ids(5, 1, 0), ids(6, 2, 0))
    assert torch.autograd.gradcheck(lambda x, y: tiled.log_kernel_mean(x, y, KERNEL), (x, y))
    assert torch.autograd.gradcheck(lambda x: tiled.log_kernel_mean(x, None, KERNEL), (x,))
    assert torch.autograd.gradcheck(lambda x, y, s: tiled_contrastive.fused(x, y, s, rows, KERNEL), (x, y, scale))


def test_one_side_alone_may_need_a_gradient() -> None:
    x, y = cloud(5), cloud(6, seed=1)
    for needs_x in (True, False):
        leaf = (x if needs_x else y).clone().requires_grad_()
        pair = (leaf, y) if needs_x else (x, leaf)
        (got,) = torch.autograd.grad(tiled.log_kernel_mean(*pair, KERNEL), leaf)
        (wanted,) = torch.autograd.grad(reference.log_kernel_mean(*pair, KERNEL), leaf)
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_the_graph_may_be_walked_twice() -> None:
    x = cloud(5).requires_grad_()
    value = tiled.log_kernel_mean(x, cloud(6, seed=1), KERNEL)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


def test_double_backward_is_refused() -> None:
    x, y, scale = cloud(5).requires_grad_(), cloud(5, seed=1), torch.tensor(2.0, dtype=torch.float64)
    order = torch.arange(5)
    for value in (
        tiled.log_kernel_mean(x, y, KERNEL),
        tiled.log_kernel_mean(x, None, KERNEL),
        tiled_contrastive.info_nce(x, y, scale, RowInfo(order, order)),
    ):
        with pytest.raises(InputError, match="reference"):
            torch.autograd.grad(value, x, create_graph=True)


def test_autocast_changes_nothing() -> None:
    x, y = cloud(9).float().requires_grad_(), cloud(7, seed=1).float()
    rows = RowInfo(ids(9, 1), ids(7, 2))
    scale = torch.tensor(2.0)
    plain = tiled_contrastive.fused(x, y, scale, rows, KERNEL)
    plain_within = tiled.log_kernel_mean(x, None, KERNEL)
    plain_grad = torch.autograd.grad(sum(plain) + plain_within, x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tiled_contrastive.fused(x, y, scale, rows, KERNEL)
        cast_within = tiled.log_kernel_mean(x, None, KERNEL)
        cast_grad = torch.autograd.grad(sum(cast) + cast_within, x)[0]
    assert [v.item() for v in (*plain, plain_within)] == [v.item() for v in (*cast, cast_within)]
    assert torch.equal(plain_grad, cast_grad)


def test_inputs_are_left_as_they_were() -> None:
    x, y = cloud(9).requires_grad_(), cloud(7, seed=1).requires_grad_()
    before = x.detach().clone(), y.detach().clone()
    rows = RowInfo(ids(9, 1), ids(7, 2))
    nce, mean = tiled_contrastive.fused(x, y, torch.tensor(2.0), rows, KERNEL)
    torch.autograd.grad(nce + mean + tiled.log_kernel_mean(x, None, KERNEL), (x, y))
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y.detach(), before[1])
