"""Token-level D_CS: equal to D_CS pair by pair, and independent of masked tokens."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.losses.token import token_cauchy_schwarz
from csaligner.ops.bandwidth import resolve_bandwidth

IMPLEMENTATIONS = ["reference", "tiled"]


def tokens(pairs: int, length: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(pairs, length, 3, generator=g, dtype=torch.float64).to(dtype)


def prefix_mask(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_it_is_the_mean_over_pairs(impl: str, kernel: str) -> None:
    x, y = tokens(4, 7, 0).requires_grad_(), tokens(4, 5, 1).requires_grad_()
    mask_x = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    mask_x[:, 3] = True
    mask_y = prefix_mask([5, 1, 3, 2], 5)
    value = token_cauchy_schwarz(x, y, mask_x, mask_y, bandwidth=0.8, kernel=kernel, impl=impl)
    each = [
        cauchy_schwarz_divergence(x[b][mask_x[b]], y[b][mask_y[b]], bandwidth=0.8, kernel=kernel, impl="reference")
        for b in range(4)
    ]
    wanted = torch.stack(each).mean()
    torch.testing.assert_close(value, wanted, atol=1e-11, rtol=0)
    for got, want in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(wanted, (x, y)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan])
@pytest.mark.parametrize("more", [0, 4])
def test_padding_has_no_influence_to_the_last_bit(impl: str, filler: float, more: int) -> None:
    x, y, mask = tokens(3, 6, 0, torch.float32), tokens(3, 5, 1, torch.float32), prefix_mask([5, 2, 3], 5)
    padded = torch.cat([y, torch.zeros(3, more, 3)], dim=1)
    longer = prefix_mask([5, 2, 3], 5 + more)
    padded = padded.masked_fill(~longer[:, :, None], filler)
    leaves = y.clone().requires_grad_(), padded.requires_grad_()
    plain = token_cauchy_schwarz(x, leaves[0], None, mask, impl=impl)
    value = token_cauchy_schwarz(x, leaves[1], None, longer, impl=impl)
    assert value.item() == plain.item()
    (wanted,), (grad,) = torch.autograd.grad(plain, leaves[0]), torch.autograd.grad(value, leaves[1])
    assert torch.equal(grad[longer], wanted[mask])
    assert not grad[~longer].any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_narrow_kernels_and_far_tokens_stay_finite(impl: str) -> None:
    x, y = tokens(2, 4, 0, torch.float32).requires_grad_(), tokens(2, 3, 1, torch.float32) + 50
    value = token_cauchy_schwarz(x, y, bandwidth=0.05, impl=impl)
    wanted = token_cauchy_schwarz(x.double(), y.double(), bandwidth=0.05, impl="reference")
    assert math.isclose(value.item(), wanted.item(), rel_tol=1e-5)
    (grad,) = torch.autograd.grad(value, x)
    assert torch.isfinite(grad).all()
    assert (grad.mean(dim=(0, 1)) < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_against_float64(dtype: torch.dtype) -> None:
    x, y = tokens(3, 20, 0, dtype).requires_grad_(), tokens(3, 15, 1, dtype).requires_grad_()
    exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    value, wanted = token_cauchy_schwarz(x, y, impl="tiled"), token_cauchy_schwarz(*exact, impl="reference")
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), wanted.item(), rel_tol=1e-5)
    for got, want in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(wanted, exact), strict=True):
        assert got.dtype == dtype
        rounding = 2 * torch.finfo(dtype).eps
        assert ((got.double() - want).abs().max() / want.abs().max()).item() < rounding + 1e-5


def test_gradcheck_autocast_and_second_derivative() -> None:
    x, y = tokens(2, 3, 0).requires_grad_(), tokens(2, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: token_cauchy_schwarz(x, y, impl="tiled"), (x, y))
    for impl in IMPLEMENTATIONS:
        plain = token_cauchy_schwarz(x.float(), y.float(), impl=impl)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert token_cauchy_schwarz(x.float(), y.float(), impl=impl).item() == plain.item()
    plain = token_cauchy_schwarz(x, y, impl="tiled")
    with pytest.raises(InputError, match="reference"):
        torch.autograd.grad(plain, x, create_graph=True)


def test_median_bandwidth_looks_at_the_tokens_that_count() -> None:
    x, y, mask = tokens(3, 6, 0), tokens(3, 5, 1), prefix_mask([5, 2, 3], 5)
    sigma = resolve_bandwidth("median", x.flatten(0, 1), y[mask])
    value = token_cauchy_schwarz(x, y.masked_fill(~mask[:, :, None], 1e5), None, mask, bandwidth="median")
    torch.testing.assert_close(value, token_cauchy_schwarz(x, y, None, mask, bandwidth=sigma))


def test_the_graph_may_be_walked_twice() -> None:
    x, y = tokens(2, 3, 0).requires_grad_(), tokens(2, 2, 1)
    value = 0.3 * token_cauchy_schwarz(x, y, impl="tiled")
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(value, x, retain_graph=True)
    (third,) = torch.autograd.grad(value, x)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    assert torch.equal(third, kept)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3, 4)), {}, r"image_tokens.*\(2, 3\)"),
        ((torch.ones(2, 3, 4), torch.ones(3, 3, 4)), {}, "pairs"),
        ((torch.ones(2, 3, 4), torch.ones(2, 3, 5)), {}, "dimensions"),
        (
            (torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 4)),
            {},
            r"image_mask.*\(2, 4\).*\(2, 3\)",
        ),
        (
            (torch.ones(2, 3, 4), torch.ones(2, 3, 4), None, torch.tensor([[1, 0, 0], [0, 0, 0]])),
            {},
            "text_mask.*pair 1",
        ),
        ((torch.full((1, 2, 3), math.nan), torch.ones(1, 2, 3)), {}, "image_tokens: NaN or infinity"),
        ((torch.ones(2, 3, 4), torch.ones(2, 3, 4)), {"impl": "triton"}, "triton"),
        ((torch.ones(2, 3, 4), torch.ones(2, 3, 4)), {"bandwidth": 0.0}, "bandwidth.*0"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        token_cauchy_schwarz(*arguments, **options)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
