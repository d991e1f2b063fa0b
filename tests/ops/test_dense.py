"""Whole-matrix implementation: values and gradients of the reference, and tiles where exponents are too large."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csaligner.losses.objective import Objective
from csaligner.ops import dense, reference, tiled_contrastive
from csaligner.ops import joint as joint_module
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.joint import joint
from csaligner.ops.kernels import Gaussian, Laplacian

KERNEL = Gaussian(0.7)
BOTH = {"info_nce": 1.0, "cauchy_schwarz": 0.7}
ALL = {"info_nce": 0.5, "cauchy_schwarz": 2.0, "mmd": 3.0}
NONE = torch.arange(5), torch.arange(5)
SHUFFLED = torch.tensor([4, 0, 2, 9, 1]), torch.tensor([4, 0, 2, 9, 1])
REPEATED = torch.tensor([3, 1, 1, 2, 0]), torch.tensor([3, 1, 1, 2, 0])
UNPAIRED = torch.tensor([3, 1, -1, 2, 0]), torch.tensor([3, 1, -1, 2, 0])
SEVERAL = torch.tensor([3, 1, 2, -1, 0]), torch.tensor([0, 1, 1, 7, -1, 3, 3])


def cloud(rows: int, seed: int, dtype: torch.dtype = torch.float64, dim: int = 3) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(found: tuple[Tensor, dict[str, Tensor]] | None) -> tuple[Tensor, ...]:
    assert found is not None
    return found[0], *found[1].values()


def objective(impl: str, ids: tuple[Tensor, Tensor], weight: float, inputs: list[Tensor]) -> list[Tensor]:
    """Return the total, and its gradients in both samples and the scale."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = Objective({"info_nce": 1.0, "cauchy_schwarz": 0.7}, 0.8, impl, unpaired_weight=weight)
    x, y, scale = leaves
    total = loss(x, y, scale, *ids).total
    return [total.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize(
    "ids", [NONE, SHUFFLED, REPEATED, UNPAIRED, SEVERAL], ids=["none", "shuffled", "repeated", "unpaired", "several"]
)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_objective_equals_the_reference(ids: tuple[Tensor, Tensor], weight: float) -> None:
    inputs = [cloud(len(ids[0]), 0), cloud(len(ids[1]), 1) + 0.5, torch.tensor(3.0, dtype=torch.float64)]
    for got, wanted in zip(*(objective(impl, ids, weight, inputs) for impl in ("dense", "reference")), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
@pytest.mark.parametrize("sigma", [0.2, 0.5, 2.0])
def test_single_precision_keeps_the_reference_in_float64(scale: float, sigma: float) -> None:
    x, y = (torch.nn.functional.normalize(cloud(300, s, torch.float32, 64) + 0.4, dim=1) for s in (0, 1))
    results = []
    for impl, dtype in (("dense", torch.float32), ("tiled", torch.float32), ("reference", torch.float64)):
        leaves = tuple(side.to(dtype).requires_grad_() for side in (x, y))
        total = Objective({"info_nce": 1.0, "cauchy_schwarz": 1.0}, sigma, impl)(leaves[0], leaves[1], scale).total
        results.append([total.detach().double(), *(g.double() for g in torch.autograd.grad(total, leaves))])
    for got, other, wanted in zip(*results, strict=True):
        size = wanted.abs().max()
        assert (got - wanted).abs().max() <= max(4 * (other - wanted).abs().max().item(), 3e-6 * max(1.0, size.item()))


@pytest.mark.parametrize(
    ("scale", "sigma", "far"), [(1e4, 0.5, 0.0), (5.0, 0.01, 0.0), (5.0, 0.5, 300.0), (300.0, 0.5, 0.0)]
)
def test_what_float32_cannot_hold_goes_to_tiles(scale: float, sigma: float, far: float) -> None:
    x, y = cloud(20, 0, torch.float32) + far, cloud(20, 1, torch.float32) + far
    rows, kernel, times = RowInfo(torch.arange(20), torch.arange(20)), Gaussian(sigma), torch.tensor(scale)
    assert dense.fused(x, y, times, rows, kernel) == tiled_contrastive.fused(x, y, times, rows, kernel)
    assert joint(x, y, times, rows, kernel, BOTH) is None


@pytest.mark.parametrize("scale", [30.0, 50.0, 90.0])
@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1]])
def test_a_positive_far_below_the_largest_logit_stays_finite(scale: float, ids: list[int]) -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    rows = RowInfo(torch.arange(2), torch.tensor(ids))
    value = dense.info_nce(x, -x.detach()[ids], torch.tensor(scale), rows)
    assert value.item() == pytest.approx(2 * scale)
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("kernel", [KERNEL, Laplacian(0.7)])
def test_log_kernel_means_of_all_kinds(kernel: Gaussian | Laplacian, diagonal: bool) -> None:
    x, y, w = cloud(6, 0).requires_grad_(), cloud(4, 1), torch.rand(6, dtype=torch.float64) + 0.1
    for other, also in ((None, diagonal), (y, True)):
        got = dense.log_kernel_mean(x, other, kernel, w, diagonal=also)
        wanted = reference.log_kernel_mean(x, other, kernel, w, diagonal=also)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (got, wanted)))


@pytest.mark.parametrize("ids", [NONE, SEVERAL], ids=["none", "several"])
def test_first_and_second_derivatives(ids: tuple[Tensor, Tensor]) -> None:
    x, y = (cloud(len(side), seed).requires_grad_() for seed, side in enumerate(ids))
    scale, rows = torch.tensor(2.5, dtype=torch.float64, requires_grad=True), RowInfo(*ids)
    inputs = (x, y, scale)
    for function in (
        lambda x, y, s: flat(joint(x, y, s, rows, KERNEL, BOTH)),
        lambda x, y, s: dense.fused(x, y, s, rows, KERNEL),
        lambda x, y, s: dense.info_nce(x, y, s, rows),
        lambda x, y, s: dense.log_kernel_mean(x, y, KERNEL) * s,
        lambda x, y, s: dense.log_kernel_mean(x, None, KERNEL) * y.sum() * s,
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_autocast_does_not_lower_the_precision() -> None:
    x, y = cloud(30, 0, torch.float32), cloud(30, 1, torch.float32)
    rows, scale = RowInfo(torch.arange(30), torch.arange(30)), torch.tensor(5.0)
    plain = flat(joint(x, y, scale, rows, KERNEL, BOTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flat(joint(x, y, scale, rows, KERNEL, BOTH)) == plain


@pytest.fixture
def in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows, and memory that every call reuses."""
    monkeypatch.setattr(joint_module, "STRIP", 3)
    monkeypatch.setattr(joint_module, "SMALLEST_REUSED", 1)


def wanted_of(inputs: list[Tensor], ids: tuple[Tensor, Tensor], name: str | None = None) -> list[Tensor | None]:
    """Return the gradients of one term, by default of the weighted sum, by autograd."""
    terms = ALL if name is None else {name: 1.0}
    value = Objective(terms, KERNEL.sigma, "reference")(inputs[0], inputs[1], inputs[2], *ids).total
    return list(torch.autograd.grad(value, inputs, allow_unused=True))


@pytest.mark.usefixtures("in_strips")
@pytest.mark.parametrize(
    "ids",
    [(torch.arange(13), torch.arange(13)), (SEVERAL[0].repeat(2), SEVERAL[1].repeat(2))],
    ids=["one to one", "several"],
)
def test_sums_in_strips_of_all_terms_and_of_single_ones(ids: tuple[Tensor, Tensor]) -> None:
    inputs = [cloud(len(side), seed).requires_grad_() for seed, side in enumerate(ids)]
    inputs.append(torch.tensor(2.5, dtype=torch.float64, requires_grad=True))
    loss = Objective(ALL, KERNEL.sigma, "dense")(inputs[0], inputs[1], inputs[2], *ids)
    Objective(ALL, 0.4, "dense")(inputs[1], inputs[0], 1.0, ids[1], ids[0])  # must leave the first as it is
    for factor in (1.0, 3.0):  # the second pass after the first has handed out the gradients
        got = torch.autograd.grad(loss.total * factor, inputs, retain_graph=True)
        for each, true in zip(got, wanted_of(inputs, ids), strict=True):
            assert true is not None
            torch.testing.assert_close(each, factor * true, atol=1e-12, rtol=0)
            each.zero_()  # the caller may
    for name, weight in ALL.items():
        got = torch.autograd.grad(loss.parts[name], inputs, retain_graph=True)
        for each, found in zip(got, wanted_of(inputs, ids, name), strict=True):
            true = torch.zeros_like(each) if found is None else found
            torch.testing.assert_close(each, weight * true, atol=1e-12, rtol=0)


def test_the_total_and_a_term_in_one_backward_pass() -> None:
    x, y = cloud(5, 0).requires_grad_(), cloud(5, 1)
    grads = []
    for impl in ("dense", "reference"):
        loss = Objective(BOTH, KERNEL.sigma, impl)(x, y, 2.0)
        grads.append(torch.autograd.grad(2 * loss.total - loss.parts["cauchy_schwarz"], x)[0])
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


def test_a_few_images_and_many_captions_do_not_need_the_square_of_the_captions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joint_module, "DENSE_ENTRIES", 100)
    ids = torch.arange(20) % 4
    rows = RowInfo(torch.arange(4), ids)
    x, y, scale = cloud(4, 0), cloud(20, 1), torch.tensor(2.0)
    assert joint(x, y, scale, rows, KERNEL, BOTH) is None
    assert joint(x, y[:9], scale, RowInfo(torch.arange(4), ids[:9]), KERNEL, BOTH) is not None


def test_memory_of_inference_mode_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_module, "SMALLEST_REUSED", 1)
    x, y = (torch.randn(512, 3, dtype=torch.float64) for _ in range(2))  # more than any other test keeps
    with torch.inference_mode():
        Objective(BOTH)(x, y, 2.0)
    loss = Objective(BOTH)(x.requires_grad_(), y, 2.0).total
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()
