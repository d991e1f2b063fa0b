"""Selection of the implementation, and errors if it cannot run."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.losses.objective import Objective
from csaligner.ops import dispatch, tiles
from csaligner.ops.kernels import Gaussian

PACKAGE = Path(dispatch.__file__).parents[1]


def test_auto_goes_by_size() -> None:
    x, y = torch.ones(2000, 4), torch.ones(1000, 4)
    assert dispatch.choose("auto", y, y) == "dense"
    assert dispatch.choose("auto", x, y) == "tiled"
    assert dispatch.choose("tiled", y[:1], y[:1]) == "tiled"


@pytest.mark.parametrize(("rows", "name"), [(1100, "tiled"), (20, "dense")])
def test_large_batches_run_in_tiles(monkeypatch: pytest.MonkeyPatch, rows: int, name: str) -> None:
    def used(*_: object, **__: object) -> None:
        raise RuntimeError(name)

    monkeypatch.setitem(dispatch.TABLE, name, dispatch.Implementation(used, used, used))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=name):
        CSAlignerLoss()(torch.randn(rows, 4), torch.randn(rows, 4), 1.0)


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled"])
def test_the_way_from_the_loss_to_its_first_product_is_short(impl: str) -> None:
    found: list[list[traceback.FrameSummary]] = []

    class FirstProduct(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket is torch.ops.aten.mm:
                found.append([f for f in traceback.extract_stack() if PACKAGE in Path(f.filename).parents])
            return function(*args, **(kwargs or {}))

    x, y = (normalize(torch.randn(30, 4), dim=1).requires_grad_() for _ in range(2))
    with FirstProduct():  # type: ignore[no-untyped-call]
        CSAlignerLoss(impl=impl)(x, y, 5.0)
    frames = found[0]
    assert frames[0].name == "forward"
    assert len(frames) <= 6
    assert len({f.filename for f in frames}) <= 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", ["auto", "reference", "dense", "tiled"])
def test_half_precision_is_raised_where_the_implementation_wants_it(impl: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(30, 4).to(dtype), torch.randn(30, 4).to(dtype)
    terms = {"info_nce": 1.0, "cauchy_schwarz": 1.0, "energy": 1.0, "siglip": 1.0}
    value, wanted = (Objective(terms, impl=impl)(a, b, 5.0).total for a, b in ((x, y), (x.float(), y.float())))
    assert value.dtype == torch.float32
    assert value == wanted


class OnGpu:
    """What the choice of an implementation reads of features on a GPU."""

    is_cuda, device = True, "cuda:0"

    def __init__(self, rows: int, dtype: torch.dtype) -> None:
        self.rows, self.dtype = rows, dtype

    def __len__(self) -> int:
        return self.rows


def chosen_on_a_gpu(rows: int, dtype: torch.dtype) -> str:
    x: Any = OnGpu(rows, dtype)
    return dispatch.choose("auto", x, x, Gaussian(0.5))


def test_on_a_gpu_the_kernels_start_above_the_crossover() -> None:
    pytest.importorskip("triton")
    assert chosen_on_a_gpu(4096, torch.bfloat16) == "reference"
    assert chosen_on_a_gpu(8192, torch.bfloat16) == chosen_on_a_gpu(8192, torch.float32) == "triton"


@pytest.mark.parametrize(("dtype", "word"), [(torch.float64, "float64"), (torch.float32, "package triton")])
def test_on_a_gpu_the_fallback_is_reported(dtype: torch.dtype, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    with pytest.warns(UserWarning, match=word):
        assert chosen_on_a_gpu(8192, dtype) == "tiled"


def test_triton_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r"^impl.*triton.*cpu"):
        CSAlignerLoss(impl="triton")(torch.ones(2, 3), torch.ones(2, 3), 1.0)


def test_importing_the_losses_leaves_torch_as_it_was_and_pulls_in_nothing_heavy() -> None:
    program = """
import sys, torch
def settings():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
torch.manual_seed(7)
before = settings()
import csaligner, csaligner.losses.objective, csaligner.losses.token
assert settings() == before
heavy = {"triton", "transformers", "sklearn", "scipy", "geomloss", "torch._dynamo"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_compile_gives_the_same_numbers_and_leaves_the_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", 4)
    x, y = torch.randn(20, 4).requires_grad_(), torch.randn(20, 4).requires_grad_()
    loss, nodes = CSAlignerLoss(impl="tiled"), []

    def training_step(x: Tensor, y: Tensor) -> Tensor:
        total: Tensor = loss(normalize(x, dim=1), normalize(y, dim=1), 5.0).total
        return total * 2

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nodes.append(len(list(module.graph.nodes)))
        return module.forward

    compiled = torch.compile(training_step, backend=backend)
    plain, other = training_step(x, y), compiled(x, y)
    torch.testing.assert_close(other, plain)
    for a, b in zip(torch.autograd.grad(other, (x, y)), torch.autograd.grad(plain, (x, y)), strict=True):
        torch.testing.assert_close(a, b)
    assert nodes
    assert sum(nodes) < 100
