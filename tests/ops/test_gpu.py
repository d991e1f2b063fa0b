"""Loss on a CUDA device: implementations and dtypes against float64, determinism, no host synchronisation.

Run by `make gpu`. Imports the numerics only: requires torch, triton and pytest. CSALIGNER_DRY_RUN=1 runs those that do
not need a device on a CPU, in Triton's interpreter (see test_gpu_image.py).
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.ops import dispatch
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Gaussian

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
pytestmark = pytest.mark.gpu
if os.environ.get("CSALIGNER_DRY_RUN") != "1":
    pytestmark = [pytest.mark.gpu, needs_cuda]  # type: ignore[assignment]

SCALE = 20.0
VALUE = {torch.float32: 5e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}
GRADIENT = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 4e-3}
IMPLEMENTATIONS = ["triton", "tiled", "reference"]


def cloud(rows: int, dim: int, seed: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(1000 * seed + rows)
    x = torch.randn(rows, dim, generator=g) + torch.randn(1, dim, generator=torch.Generator().manual_seed(7))
    return normalize(x + 0.3 * seed, dim=1).to(DEVICE, dtype)


def row_info(n: int, m: int, kind: str) -> RowInfo:
    """Return row ids: row i matches row i, or captions with unpaired rows and weights."""
    if kind == "plain":
        ids = torch.arange(max(n, m), device=DEVICE)
        return RowInfo(ids[:n], ids[:m])
    g = torch.Generator().manual_seed(n + m)
    ids_x, ids_y = (torch.randint(-1, max(2, n // 2), (k,), generator=g) for k in (n, m))
    ids_x[0] = ids_y[0] = 1
    a, b = ((torch.rand(k, generator=g) + 0.1).double().to(DEVICE) for k in (n, m))
    return RowInfo(ids_x.to(DEVICE), ids_y.to(DEVICE), a, b)


def value_of(impl: str, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, sigma: float) -> Tensor:
    """Return InfoNCE + D_CS of one implementation, with different weights."""
    kernel = Gaussian(sigma)
    op = dispatch.implementation(impl, x, y, kernel)
    nce, between = op.fused(x, y, scale, rows, kernel)
    within_x = op.log_kernel_mean(x, None, kernel, rows.weights_x)
    within_y = op.log_kernel_mean(y, None, kernel, rows.weights_y)
    return 1.3 * nce + 0.7 * (within_x + within_y - 2 * between)


def with_gradients(
    impl: str, samples: tuple[Tensor, Tensor], rows: RowInfo, scale: float = SCALE, sigma: float = 0.5
) -> tuple[Tensor, ...]:
    dtype = torch.float64 if samples[0].dtype == torch.float64 else torch.float32
    leaves = [t.detach().clone().requires_grad_() for t in (*samples, torch.tensor(scale, dtype=dtype, device=DEVICE))]
    value = value_of(impl, leaves[0], leaves[1], leaves[2], rows, sigma)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    assert abs(float(got[0]) - float(wanted[0])) <= VALUE[dtype] * max(1.0, abs(float(wanted[0])))
    for a, b in zip(got[1:], wanted[1:], strict=True):
        error = (a.double() - b).norm() / b.norm().clamp_min(1e-2)  # 0 for one pair
        assert float(error) <= GRADIENT[dtype], (a.shape, float(error))


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["plain", "ids and weights"])
@pytest.mark.parametrize(("n", "m", "dim"), [(1, 1, 72), (7, 7, 72), (300, 300, 72), (1500, 1501, 512)])
def test_value_and_gradients(impl: str, dtype: torch.dtype, kind: str, n: int, m: int, dim: int) -> None:
    if kind == "plain":
        m = n
    x, y = cloud(n, dim, 1, dtype), cloud(m, dim, 2, dtype)
    rows = row_info(n, m, kind)
    wanted = with_gradients("reference", (x.double(), y.double()), rows)
    if impl != "triton":
        x, y = x.float(), y.float()
    got = with_gradients(impl, (x, y), rows)
    assert_close(got, wanted, dtype if impl == "triton" else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "sigma"), [(100.0, 0.5), (100.0, 0.1), (1.0, 2.0)])
def test_temperatures_and_bandwidths(dtype: torch.dtype, scale: float, sigma: float) -> None:
    x, y = cloud(500, 512, 1, dtype), cloud(500, 512, 2, dtype)
    rows = row_info(500, 500, "plain")
    got = with_gradients("triton", (x, y), rows, scale, sigma)
    wanted = with_gradients("reference", (x.double(), y.double()), rows, scale, sigma)
    assert all(bool(torch.isfinite(t).all()) for t in got)
    if sigma >= 0.5:
        assert_close(got, wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_give_the_same_and_repeat_to_the_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csaligner.ops import triton

    n, m, dim = (3000, 2900, 512) if DEVICE == "cuda" else (300, 290, 40)
    x, y = cloud(n, dim, 1, dtype), cloud(m, dim, 2, dtype)
    rows = row_info(n, m, "ids and weights")
    wanted = with_gradients("reference", (x.double(), y.double()), rows)
    monkeypatch.setattr(triton, "CHUNK_ENTRIES", n // 3 * n)
    first, second = (with_gradients("triton", (x, y), rows) for _ in range(2))
    assert_close(first, wanted, dtype)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_cuda
def test_nothing_waits_for_the_host() -> None:
    x, y = cloud(1000, 512, 1, torch.bfloat16), cloud(1000, 512, 2, torch.bfloat16)
    rows = row_info(1000, 1000, "plain")
    with_gradients("triton", (x, y), rows)  # compiles
    leaves = [t.detach().requires_grad_() for t in (x, y, torch.tensor(SCALE, device=DEVICE))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(value_of("triton", leaves[0], leaves[1], leaves[2], rows, 0.5), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize(
    ("rows", "dtype", "name"),
    [
        (512, torch.bfloat16, "reference"),
        (8192, torch.bfloat16, "triton"),
        (8192, torch.float32, "triton"),
        (8192, torch.float64, "tiled"),
    ],
)
def test_auto_on_a_gpu(rows: int, dtype: torch.dtype, name: str) -> None:
    x = torch.zeros(rows, 8, dtype=dtype, device=DEVICE)
    assert dispatch.choose("auto", x, x, Gaussian(0.5)) == name


@needs_cuda
def test_a_captured_graph_replays_new_inputs() -> None:
    scale = torch.tensor(SCALE, device=DEVICE)
    x, y = (cloud(300, 64, seed, torch.bfloat16).requires_grad_() for seed in (1, 2))
    rows = row_info(300, 300, "plain")

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(value_of("triton", x, y, scale, rows, 0.5), (x, y))

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(cloud(300, 64, 3, torch.bfloat16))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_without_a_graph_break(mode: str) -> None:
    """reduce-overhead: the compiler captures the operators in a CUDA graph."""
    scale = torch.tensor(SCALE, device=DEVICE, requires_grad=True)
    x, y = (cloud(100, 64, seed, torch.bfloat16).requires_grad_() for seed in (1, 2))
    rows = row_info(100, 100, "ids and weights")

    def step(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return value_of("triton", 1.5 * x, y, scale, rows, 0.5)

    torch.compiler.reset()
    if DEVICE == "cuda":
        compiled = torch.compile(step, fullgraph=True, mode=mode)
    else:
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    wanted = step(x, y, scale)
    wanted_grads = torch.autograd.grad(wanted, (x, y, scale))
    for _ in range(4):  # a graph is recorded after warm-up, then replayed
        value = compiled(x, y, scale)
        grads = [grad.clone() for grad in torch.autograd.grad(value, (x, y, scale))]
        torch.testing.assert_close(value.detach().clone(), wanted.detach(), rtol=1e-6, atol=1e-6)
        for a, b in zip(grads, wanted_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-2 * float(b.abs().max()))
