"""Weighted sum of named loss terms, and CSAlignerLoss."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.divergences.mmd import mmd
from csaligner.losses.infonce import info_nce
from csaligner.losses.modalities import ModalitiesLoss
from csaligner.losses.objective import Objective
from csaligner.ops import dispatch

IMPLEMENTATIONS = ["reference", "dense", "tiled"]
ALL = {"info_nce": 1.0, "cauchy_schwarz": 0.7, "mmd": 3.0}


def cloud(rows: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 4, generator=g, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("names", [list(ALL), ["info_nce"], ["mmd"], ["info_nce", "mmd"], ["cauchy_schwarz"]])
def test_total_and_gradients_are_those_of_the_terms_alone(impl: str, names: list[str]) -> None:
    x, y, scale = cloud(9).requires_grad_(), cloud(9, 1).requires_grad_(), torch.tensor(7.0).requires_grad_()
    weights = {name: ALL[name] for name in names}
    loss = Objective(weights, bandwidth=0.6, impl=impl)(x, y, scale)
    alone = {
        "info_nce": info_nce(x, y, scale, impl="reference"),
        "cauchy_schwarz": cauchy_schwarz_divergence(x, y, bandwidth=0.6, impl="reference"),
        "mmd": mmd(x, y, bandwidth=0.6, impl="reference"),
    }
    total = torch.stack([weights[name] * alone[name] for name in names]).sum()
    torch.testing.assert_close(loss.total, total, atol=1e-12, rtol=0)
    assert dict(loss.weights) == weights
    assert set(loss.terms) == set(names)
    for name, value in loss.terms.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, alone[name].detach(), atol=1e-12, rtol=0)
    got = torch.autograd.grad(loss.total, (x, y, scale), allow_unused=True)
    wanted = torch.autograd.grad(total, (x, y, scale), allow_unused=True)
    for g, w in zip(got, wanted, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_repeating_a_caption_changes_no_term(impl: str) -> None:
    x, y, n = cloud(6), cloud(6, 1), torch.arange(6)
    again = torch.tensor([0, 1, 2, 3, 3, 3, 4, 5])
    objective = Objective(ALL, impl=impl)
    once, often = objective(x, y, 7.0, n, n), objective(x, y[again], 7.0, n, again)
    for name in ALL:
        assert math.isclose(once.terms[name].item(), often.terms[name].item(), rel_tol=1e-12)
    assert math.isclose(once.total.item(), often.total.item(), rel_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_unpaired_rows_count_in_the_divergence_alone(impl: str) -> None:
    x, y = cloud(6), cloud(8, 1)
    image_ids, text_ids = torch.tensor([0, 1, 2, 3, -1, -1]), torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    loss = Objective(ALL, impl=impl)(x, y, 7.0, image_ids, text_ids)
    wanted = info_nce(x[:4], y[:4], 7.0, impl=impl).item()
    assert math.isclose(loss.terms["info_nce"].item(), wanted, rel_tol=1e-12)
    wanted = cauchy_schwarz_divergence(x, y, impl=impl).item()
    assert math.isclose(loss.terms["cauchy_schwarz"].item(), wanted, rel_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_unpaired_row_of_weight_three_counts_as_three(impl: str) -> None:
    x, y = cloud(6), cloud(8, 1)
    image_ids, text_ids = torch.tensor([0, 1, 2, 3, -1, -1]), torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    loss = Objective(ALL, impl=impl, unpaired_weight=3.0)(x, y, 7.0, image_ids, text_ids)
    thrice_x, thrice_y = torch.cat([x, x[4:], x[4:]]), torch.cat([y, y[4:], y[4:]])
    wanted = cauchy_schwarz_divergence(thrice_x, thrice_y, impl="reference").item()
    assert math.isclose(loss.terms["cauchy_schwarz"].item(), wanted, rel_tol=1e-10)
    assert math.isclose(loss.terms["info_nce"].item(), info_nce(x[:4], y[:4], 7.0, impl=impl).item(), rel_tol=1e-12)


def test_samples_without_pairs_are_enough_where_info_nce_has_no_weight() -> None:
    x, y = cloud(6), cloud(8, 1)
    wanted = cauchy_schwarz_divergence(x, y)
    objective = Objective({"info_nce": 0.0, "cauchy_schwarz": 1.0})
    torch.testing.assert_close(objective(x, y, 7.0).total, wanted)
    apart = objective(x, y, 7.0, torch.full((6,), -1), torch.full((8,), -1))
    torch.testing.assert_close(apart.total, wanted)
    with pytest.raises(InputError, match=r"6 image.*8 text"):
        objective(x, y, 7.0, term_weights={"info_nce": 1.0})


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_changes_nothing(impl: str) -> None:
    x, y = cloud(9).float().requires_grad_(), cloud(9, 1).float()
    plain = Objective(ALL, impl=impl)(x, y, 50.0).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = Objective(ALL, impl=impl)(x, y, 50.0).total
    (cast_grad,) = torch.autograd.grad(cast, x)
    (grad,) = torch.autograd.grad(plain, x)
    assert plain.item() == cast.item()
    assert torch.equal(grad, cast_grad)


def test_weight_zero_skips_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("computed a term of weight 0")

    x, y = cloud(6), cloud(6, 1)
    objective = Objective({"info_nce": 1.0, "cauchy_schwarz": 0.0})
    dense = dispatch.TABLE["dense"]
    no_kernel = dispatch.Implementation(forbidden, dense.info_nce, forbidden, forbidden)  # type: ignore[arg-type]
    monkeypatch.setitem(dispatch.TABLE, "dense", no_kernel)
    loss = objective(x, y, 7.0)
    assert set(loss.terms) == {"info_nce"}
    assert loss.weights["cauchy_schwarz"] == 0
    with pytest.raises(AssertionError, match="weight 0"):
        objective(x, y, 7.0, term_weights={"cauchy_schwarz": 0.1})


@pytest.mark.parametrize(
    ("impl", "wanted"), [("tiled", ["fused", "log_kernel_mean", "log_kernel_mean"]), ("dense", ["joint"])]
)
def test_info_nce_and_the_kernel_share_one_sweep(impl: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    found = dispatch.TABLE[impl]

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            return function(*arguments, **more)

        return call

    operations = {field.name: getattr(found, field.name) for field in fields(found)}
    replaced = {name: counted(name, function) for name, function in operations.items() if function is not None}
    monkeypatch.setitem(dispatch.TABLE, impl, dispatch.Implementation(**replaced))
    Objective(ALL, impl=impl)(cloud(6), cloud(6, 1), 7.0)
    assert sorted(calls) == wanted


def test_weights_of_one_call() -> None:
    x, y = cloud(6), cloud(6, 1)
    objective = Objective({"info_nce": 1.0, "cauchy_schwarz": 0.5})
    loss = objective(x, y, 7.0, term_weights={"cauchy_schwarz": 2.0})
    with pytest.warns(DeprecationWarning, match="term_weights"):
        assert torch.equal(objective(x, y, 7.0, weights={"cauchy_schwarz": 2.0}).total, loss.total)
    wanted = loss.terms["info_nce"] + 2 * loss.terms["cauchy_schwarz"]
    torch.testing.assert_close(loss.total, wanted)
    assert objective(x, y, 7.0).weights == {"info_nce": 1.0, "cauchy_schwarz": 0.5}


def test_all_weights_zero_still_has_a_gradient_of_zero() -> None:
    x = cloud(6).requires_grad_()
    loss = Objective({"info_nce": 0.0})(x, cloud(6, 1), 7.0)
    (grad,) = torch.autograd.grad(loss.total, x)
    assert loss.total.item() == 0
    assert not grad.any()


def test_temperature_bandwidth_follows_the_scale_without_a_gradient() -> None:
    x, y, scale = cloud(6), cloud(6, 1), torch.tensor(4.0, requires_grad=True)
    loss = Objective({"cauchy_schwarz": 1.0}, bandwidth="temperature")(x, y, scale)
    wanted = cauchy_schwarz_divergence(x, y, bandwidth=0.5)
    torch.testing.assert_close(loss.total, wanted)
    assert not loss.total.requires_grad


def test_info_nce_and_half_d_cs_cancel_the_cross_modal_repulsion() -> None:
    # METHOD.md: at sigma^2 = tau, lambda = 1/2 the cross term of D_CS is -lse over all pairs, and the InfoNCE
    # normalisers are +lse over rows and columns: by Jensen their sum is at most log N.
    x, y, scale = cloud(30), cloud(30, 1), 5.0
    lse = scale * x @ y.T
    rows = (lse.logsumexp(1).mean() + lse.logsumexp(0).mean()) / 2
    loss = Objective({"info_nce": 1.0, "cauchy_schwarz": 0.5}, bandwidth="temperature")(x, y, scale)
    alignment = -scale * (x * y).sum(1).mean()
    within = 0.5 * (
        (scale * (x @ x.T - 1)).flatten().logsumexp(0) + (scale * (y @ y.T - 1)).flatten().logsumexp(0)
    ) - 2 * math.log(30)
    leftover = loss.total - alignment - within
    torch.testing.assert_close(leftover, rows - lse.flatten().logsumexp(0) + scale + 2 * math.log(30))
    assert rows - lse.flatten().logsumexp(0) <= -math.log(30) + 1e-9


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_module(impl: str) -> None:
    x, y = cloud(6), cloud(6, 1)
    module = CSAlignerLoss(weight=0.3, bandwidth=0.8, impl=impl)
    loss = module(x, y, 7.0)
    wanted = info_nce(x, y, 7.0) + 0.3 * cauchy_schwarz_divergence(x, y, bandwidth=0.8)
    torch.testing.assert_close(loss.total, wanted, atol=1e-12, rtol=0)
    assert list(module.parameters()) == []
    captions = module(x, y[[0, 0, 1, 2, 3, 4, 5]], 7.0, list("abcdef"), list("aabcdef"))
    torch.testing.assert_close(captions.total, loss.total, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, 1e20, None, "foo", [], [0.5, "foo"], [0.5, 0]])
@pytest.mark.parametrize("make", [CSAlignerLoss, ModalitiesLoss])
def test_a_bandwidth_is_checked_at_construction(make: Callable[..., Any], bandwidth: Any) -> None:
    with pytest.raises(InputError, match="bandwidth"):
        make(bandwidth=bandwidth)


@pytest.mark.parametrize(
    "bandwidth", ["median", "median-cross", "temperature", 0.5, torch.tensor(0.5), (0.2, "median"), [0.2, 0.5]]
)
def test_every_form_of_a_bandwidth_is_accepted(bandwidth: Any) -> None:
    assert math.isfinite(CSAlignerLoss(bandwidth=bandwidth)(cloud(6), cloud(6, 1), 7.0).total.item())


def test_the_printed_module_shows_its_settings() -> None:
    loss = CSAlignerLoss(weight=0.3, bandwidth=[0.2, "median"], kernel="laplacian")
    shown = eval(repr(loss), {"CSAlignerLoss": CSAlignerLoss})
    assert shown.objective.terms == loss.objective.terms
    assert shown.objective.bandwidth == loss.objective.bandwidth
    assert (shown.objective.kernel, shown.objective.impl, shown.exchange) == ("laplacian", "auto", "gather")


def second_derivative(**settings: Any) -> Tensor:
    x, y = (normalize(cloud(32, seed), dim=1) for seed in (0, 1))
    (slope,) = torch.autograd.grad(CSAlignerLoss(**settings)(x.requires_grad_(), y, 7.0).total, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), x)
    return curvature


@pytest.mark.parametrize("settings", [{"bandwidth": [0.2, 0.5]}, {"kernel": "laplacian"}, {"bandwidth": 0.02}])
def test_second_derivatives_are_as_the_page_says(settings: dict[str, Any]) -> None:
    """docs/integrations.md: the default has them for a Gaussian kernel at one bandwidth that is not too narrow."""
    torch.testing.assert_close(second_derivative(bandwidth=0.15), second_derivative(bandwidth=0.15, impl="reference"))
    with pytest.raises(InputError, match=r'bandwidth.*impl="reference"'):
        second_derivative(**settings)
    assert bool(second_derivative(**settings, impl="reference").isfinite().all())


def test_training_with_it_closes_the_gap() -> None:
    torch.manual_seed(0)
    x, y = normalize(cloud(64) + 1, dim=1), normalize(cloud(64) - 1, dim=1)
    shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.05)
    loss = CSAlignerLoss()
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        result = loss(x, normalize(y + shift, dim=1), 10.0)
        result.total.backward()
        optimizer.step()
        values.append(result.terms["cauchy_schwarz"].item())
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms: .*at least one"),
        ({"cauchy_schwartz": 1.0}, "^terms.*'cauchy_schwartz'.*'cauchy_schwarz'"),
        ({"mmd": -1.0}, "mmd.*-1"),
        ({"mmd": math.nan}, "mmd.*nan"),
    ],
)
def test_bad_terms(terms: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as error:
        Objective(terms)
    assert re.search(message, str(error.value))


def test_weights_of_a_call_must_name_terms_of_the_objective() -> None:
    with pytest.raises(InputError, match=r"terms.*'mmd'"):
        Objective({"info_nce": 1.0})(cloud(3), cloud(3), 1.0, term_weights={"mmd": 1.0})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("csaligner.losses.objective", "CSAlignerLoss"),
        ("csaligner.parallel", "ParallelCSAlignerLoss"),
        ("csaligner.distributed.loss", "ParallelCSAlignerLoss"),
    ],
)
def test_old_names_of_the_loss_are_the_one_class(module: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match="CSAlignerLoss"):
        assert getattr(importlib.import_module(module), name) is CSAlignerLoss
