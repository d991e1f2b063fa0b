"""Rounding errors against float64: at most those of dense torch in the same dtype, plus a tolerance."""

from __future__ import annotations

from functools import cache
from inspect import signature

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.losses.infonce import info_nce
from csaligner.losses.objective import Objective
from csaligner.losses.token import token_cauchy_schwarz
from csaligner.ops import dispatch, reference, tiled, tiled_contrastive, tiles
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Gaussian
from csaligner.registry import DIVERGENCES, load

ROWS, DIM, SCALE = 400, 64, 20.0
DETECTED = dispatch.bfloat16_products


def clouds(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=g, dtype=torch.float64)
    y = 0.5 * x + torch.randn(ROWS, DIM, generator=g, dtype=torch.float64)
    if kind == "unit":
        x, y = normalize(x, dim=1), normalize(y + 1, dim=1)
    elif kind == "offset":
        x, y = x / 8 + 12, y / 8 + 12
    return x.to(dtype), y.to(dtype)


def dense(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Plain log-domain formulas, without centring."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        t = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return torch.logsumexp((t * (-0.5 / sigma**2)).flatten(), 0)

    logits, target = SCALE * x @ y.T, torch.arange(len(x))
    nce = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    return nce + mean(x, x) + mean(y, y) - 2 * mean(x, y)


def ours(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y, kernel = x.to(dtype), y.to(dtype), Gaussian(sigma)
    order = torch.arange(len(x))
    nce, cross = tiled_contrastive.fused(x, y, torch.tensor(SCALE), RowInfo(order, order), kernel)
    return nce + tiled.log_kernel_mean(x, None, kernel) + tiled.log_kernel_mean(y, None, kernel) - 2 * cross


def truth(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    order, kernel = torch.arange(len(x)), Gaussian(sigma)
    return reference.info_nce(x, y, SCALE, order, order) + reference.cauchy_schwarz(x, y, kernel)


@pytest.mark.parametrize("kind", ["unit", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1])
def test_error_budget(kind: str, dtype: torch.dtype, sigma: float) -> None:
    x, y = clouds(kind, dtype)
    exact = x.double().requires_grad_(), y.double().requires_grad_()
    wanted = truth(*exact, sigma)
    wanted_grads = torch.autograd.grad(wanted, exact)
    largest = max(g.abs().max().item() for g in wanted_grads)

    def errors(value: Tensor, leaves: tuple[Tensor, Tensor]) -> tuple[float, float]:
        grads = torch.autograd.grad(value, leaves)
        worst = max((g - w).abs().max().item() for g, w in zip(grads, wanted_grads, strict=True))
        return abs(value.item() - wanted.item()) / max(1.0, abs(wanted.item())), worst / largest

    peers = x.clone().requires_grad_(), y.clone().requires_grad_()
    mine = x.clone().requires_grad_(), y.clone().requires_grad_()
    peer_value, peer_grad = errors(dense(*peers, sigma), peers)
    value, grad = errors(ours(*mine, sigma), mine)
    # The gradient comes back in the dtype of the features: bfloat16 rounds it to 2^-9 of each entry.
    rounding = 2**-8 if dtype == torch.bfloat16 else 0.0
    assert value <= peer_value + 2e-6
    assert grad <= peer_grad + 2e-5 + rounding
    # The absolute error is small too.
    assert value <= 1e-5
    assert grad <= 1e-4 + rounding


def test_half_precision_features_cost_nothing_beyond_their_own_rounding() -> None:
    x, y = clouds("unit", torch.bfloat16)
    assert ours(x, y, 0.1).item() == ours(x.float(), y.float(), 0.1).item()


@pytest.fixture(autouse=True)
def _a_processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "bfloat16_products", lambda: True)


def test_mixed_mode_without_bfloat16_products_is_tiled_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "bfloat16_products", cache(DETECTED.__wrapped__))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    x, y = (t.requires_grad_() for t in clouds("unit", torch.float32))
    terms = {"info_nce": 1.0, "cauchy_schwarz": 1.0}
    with pytest.warns(UserWarning, match=r"mixed.*tiled") as found:
        Objective(terms | {"energy": 1.0, "hoelder": 1.0}, impl="mixed")(x.detach(), y.detach(), SCALE)
    assert len(found) == 1
    mixed = CSAlignerLoss(impl="mixed")(x, y, SCALE).total
    pairs = (torch.autograd.grad(total, (x, y)) for total in (mixed, CSAlignerLoss(impl="tiled")(x, y, SCALE).total))
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_mixed_mode_keeps_the_value_and_rounds_the_gradient() -> None:
    x, y = (t.requires_grad_() for t in clouds("unit", torch.float32))
    losses = [CSAlignerLoss(bandwidth=0.5, impl=impl)(x, y, SCALE).total for impl in ("tiled", "mixed")]
    assert losses[0].item() == losses[1].item()
    exact, rounded = (torch.autograd.grad(loss, (x, y)) for loss in losses)
    for a, b in zip(exact, rounded, strict=True):
        error = ((a - b).abs().max() / a.abs().max()).item()
        assert 1e-5 < error < 5e-3


def test_mixed_mode_leaves_the_tiles_with_pairs_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close pairs have the largest gradients, so their rounding dominates the error."""
    monkeypatch.setattr(tiles, "CPU_BLOCK", 32)
    g = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(256, 64, generator=g), dim=1).requires_grad_()
    y = normalize(2 * x.detach() + torch.randn(256, 64, generator=g) / 8, dim=1).requires_grad_()
    exact, mixed = (torch.autograd.grad(info_nce(x, y, 5.0, impl=impl), (x, y)) for impl in ("tiled", "mixed"))
    for a, b in zip(exact, mixed, strict=True):
        assert ((a - b).abs().max() / a.abs().max()).item() < 1e-3


def test_mixed_mode_is_not_for_float64() -> None:
    x, y = clouds("unit", torch.float64)
    with pytest.raises(InputError, match=r"mixed.*bfloat16"):
        CSAlignerLoss(impl="mixed")(x, y, SCALE)


def raw(far: float) -> tuple[Tensor, Tensor]:
    """|x| / sigma in the hundreds, neighbours within sigma: products of float32 rows would lose the distances."""
    g = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(4, 32, generator=g), dim=1) * far / 2
    x, y = (centres.repeat(20, 1) + torch.randn(80, 32, generator=g) / 8 for _ in range(2))
    return x, y


@pytest.mark.parametrize("far", [100.0, 400.0, 1000.0])
@pytest.mark.parametrize("impl", ["auto", "tiled", "mixed"])
@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_divergences_of_raw_features_keep_their_precision(name: str, impl: str, far: float) -> None:
    divergence = load("divergence", DIVERGENCES, name)
    known = {"impl": impl, "bandwidth": 0.5}
    given = {key: value for key, value in known.items() if key in signature(divergence).parameters}
    rows = [side.requires_grad_() for side in raw(far)]
    exact = [side.detach().double().requires_grad_() for side in rows]
    value, wanted = (
        divergence(*rows, **given),
        divergence(*exact, **given | ({"impl": "tiled"} if "impl" in given else {})),
    )
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    for got, true in zip(*(torch.autograd.grad(v, r) for v, r in ((value, rows), (wanted, exact))), strict=True):
        assert (got - true).abs().max() <= 1e-3 * true.abs().max()


@pytest.mark.parametrize("far", [100.0, 400.0])
@pytest.mark.parametrize("impl", ["auto", "tiled", "mixed"])
def test_raw_features_and_a_narrow_kernel_keep_their_precision(impl: str, far: float) -> None:
    x, y = raw(far)
    exact = [side.double().requires_grad_() for side in (x, y)]
    wanted = cauchy_schwarz_divergence(exact[0], exact[1], bandwidth=0.5, impl="reference")
    wanted_grads = torch.autograd.grad(wanted, exact)
    rows = [side.requires_grad_() for side in (x, y)]
    terms = {"info_nce": 0.0, "cauchy_schwarz": 1.0}
    with_nce = Objective({"info_nce": 1.0, "cauchy_schwarz": 1.0}, 0.5, impl)(rows[0], rows[1], 1e-3)
    alone = Objective(terms, 0.5, impl)(rows[0], rows[1], 1e-3).total
    tokens = token_cauchy_schwarz(rows[0][None], rows[1][None], bandwidth=0.5)
    for value in (with_nce.parts["cauchy_schwarz"], alone, tokens):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(wanted.item(), abs=1e-5)
        for got, true in zip(torch.autograd.grad(value, rows, retain_graph=True), wanted_grads, strict=True):
            assert got.dtype == torch.float32
            assert (got - true).abs().max() <= 1e-4 * true.abs().max()
