"""The Triton implementation as operators of torch.library: checked by torch, compiled without a graph break, faked.

Without a GPU the kernels run in Triton's interpreter; the compiler's backends `eager` and `aot_eager` need no device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from csaligner.losses.objective import Objective
from csaligner.ops import dispatch, triton_operators
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Gaussian

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNEL = Gaussian(0.7)
Step = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks; several chunks and groups of rows."""
    from csaligner.ops import triton

    monkeypatch.setattr(triton, "BLOCK", 16)
    monkeypatch.setattr(triton, "CHUNK_ENTRIES", 16 * 48)
    monkeypatch.setattr(triton, "GROUP_ENTRIES", 4 * 48 // 16 * 16)
    torch.compiler.reset()


def batch(dtype: torch.dtype, n: int = 20, m: int = 33) -> tuple[Tensor, Tensor, Tensor, RowInfo]:
    """Samples and scale that require gradients, ids with unpaired rows and repeats, and weights."""
    g = torch.Generator().manual_seed(3)
    x, y = (normalize(torch.randn(k, 5, generator=g) + 0.3, dim=1).to(DEVICE, dtype).requires_grad_() for k in (n, m))
    ids = [torch.randint(-1, 8, (k,), generator=g) for k in (n, m)]
    ids[0][0] = ids[1][0] = 2
    a, b = ((torch.rand(k, generator=g) + 0.1).double().to(DEVICE) for k in (n, m))
    scale = torch.tensor(8.0, device=DEVICE, requires_grad=True)
    return x, y, scale, RowInfo(ids[0].to(DEVICE), ids[1].to(DEVICE), a, b)


def operands(dtype: torch.dtype, without: str) -> tuple[Any, ...]:
    x, y, scale, rows = batch(dtype)
    ids = (None, None) if without == "InfoNCE" else (rows.ids_x, rows.ids_y)
    weights = (None, None) if without == "weights" else (rows.weights_x, rows.weights_y)
    return x, y, scale, *ids, *weights, None if without == "kernel" else 0.7


@pytest.mark.parametrize(
    ("dtype", "without"),
    [
        (torch.float32, "nothing"),
        (torch.float32, "InfoNCE"),
        (torch.bfloat16, "kernel"),
        (torch.float16, "weights"),
    ],
)
def test_torch_accepts_the_operators(dtype: torch.dtype, without: str) -> None:
    """Schema, autograd registration, shapes, and agreement under AOTAutograd with dynamic shapes."""
    ops = torch.ops.csaligner
    between = operands(dtype, without)
    torch.library.opcheck(ops.between.default, between)
    if without in ("nothing", "weights"):
        torch.library.opcheck(ops.within.default, (between[0], between[5], 0.7))
    with torch.no_grad():
        state = list(ops.between.default(*between)[2:])
    upstream = torch.ones((), dtype=torch.float64, device=DEVICE)
    backward = (upstream, 2 * upstream, between[2].detach(), state, len(between[0]), len(between[1]), between[-1])
    torch.library.opcheck(ops.between_backward.default, backward)


def loss_of(impl: str, rows: RowInfo) -> Step:
    """InfoNCE + D_CS through the choice of the implementation, as in the objective."""

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        op = dispatch.implementation(impl, x, y, KERNEL)
        nce, between = op.fused(x, y, scale, rows, KERNEL)
        within = [op.log_kernel_mean(side, None, KERNEL, w) for side, w in ((x, rows.weights_x), (y, rows.weights_y))]
        alone = op.info_nce(x, y, scale, rows) + op.log_kernel_mean(x, y, KERNEL, rows.weights_x)
        return 1.3 * nce + 0.7 * (within[0] + within[1] - 2 * between) + 0.1 * alone

    return loss


def trained_on(impl: str, rows: RowInfo) -> Step:
    """The loss of a training step."""
    objective = Objective({"info_nce": 1.0, "cauchy_schwarz": 0.7}, 0.7, impl, unpaired_weight=0.5)
    return lambda x, y, scale: objective.of_checked(x, y, scale, rows.ids_x, rows.ids_y).total


@pytest.mark.parametrize(
    ("impl", "make", "dtype", "backend"),
    [
        ("triton", loss_of, torch.float32, "aot_eager"),
        ("triton", loss_of, torch.bfloat16, "aot_eager"),
        ("triton", loss_of, torch.float16, "aot_eager"),
        ("triton", trained_on, torch.float32, "eager"),
        ("triton", trained_on, torch.bfloat16, "aot_eager"),
        ("reference", trained_on, torch.float64, "aot_eager"),
    ],
)
def test_the_loss_compiles_without_a_graph_break(
    impl: str, make: Callable[[str, RowInfo], Step], dtype: torch.dtype, backend: str
) -> None:
    *leaves, rows = batch(dtype)
    loss = make(impl, rows)

    def step(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return 2 * loss(x * 1.5, y, scale.square())

    assert_equal(torch.compile(step, backend=backend, fullgraph=True), step, leaves, exact=impl == "triton")


def assert_equal(compiled: Step, plain: Step, leaves: list[Tensor], *, exact: bool) -> None:
    got, wanted = compiled(*leaves), plain(*leaves)
    tolerance: dict[str, Any] = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(got, wanted, **tolerance)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert all(bool(t.any()) for t in torch.autograd.grad(plain(*leaves), leaves))


def test_other_numbers_of_rows_reuse_the_compiled_code() -> None:
    def step(x: Tensor, y: Tensor, scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
        return trained_on("triton", RowInfo(ids_x, ids_y))(x, y, scale)

    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for n in (20, 40):
        x, y, scale, rows = batch(torch.bfloat16, n, n + 13)
        assert compiled(x, y, scale, rows.ids_x, rows.ids_y) == step(x, y, scale, rows.ids_x, rows.ids_y)
    assert counter.frame_count == 1


def test_shapes_are_known_without_values() -> None:
    with FakeTensorMode():
        x, y = (torch.empty(k, 64, dtype=torch.bfloat16, device=DEVICE, requires_grad=True) for k in (1000, 900))
        scale = torch.empty((), device=DEVICE, requires_grad=True)
        ids = [torch.empty(len(side), dtype=torch.int64, device=DEVICE) for side in (x, y)]
        value = loss_of("triton", RowInfo(ids[0], ids[1]))(x, y, scale)
        grads = torch.autograd.grad(value, (x, y, scale))
    assert (value.shape, value.dtype, value.device.type) == ((), torch.float64, DEVICE)
    for grad, leaf in zip(grads, (x, y, scale), strict=True):
        assert (grad.shape, grad.dtype, grad.device) == (leaf.shape, leaf.dtype, leaf.device)


def test_the_scale_may_be_double_on_another_device_or_constant() -> None:
    x, y, _, rows = batch(torch.bfloat16)
    scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    value = triton_operators.info_nce(x, y, scale, rows)
    (grad,) = torch.autograd.grad(value, scale)
    assert (grad.dtype, grad.device.type) == (torch.float64, "cpu")
    again = triton_operators.info_nce(x, y, scale.detach(), rows)
    assert again == value
    assert torch.autograd.grad(again, x)[0].any()


@pytest.mark.parametrize(("impl", "dtype"), [("auto", torch.float32), ("tiled", torch.float64)])
def test_on_a_cpu_compiled_code_breaks_at_the_operations_only(impl: str, dtype: torch.dtype) -> None:
    """Whole matrices and tiles run uncompiled: their order of steps depends on values."""
    x, y, scale, rows = batch(dtype)
    leaves = [leaf.detach().cpu().requires_grad_() for leaf in (x, y, scale)]
    loss = trained_on(impl, RowInfo(rows.ids_x.cpu(), rows.ids_y.cpu()))

    def step(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return 2 * loss(x * 1.5, y, scale.square())

    assert_equal(torch.compile(step, backend="aot_eager"), step, leaves, exact=False)
    found = torch._dynamo.explain(step)(*leaves)
    assert found.break_reasons
    assert {Path(reason.user_stack[-1].filename).name for reason in found.break_reasons} <= {"dispatch.py"}
