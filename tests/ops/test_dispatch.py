"""Which implementation runs, and what is said where one cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.ops import dispatch, tiled, tiles


def test_auto_goes_by_size() -> None:
    assert dispatch.choose("auto", 100, 100) == "reference"
    assert dispatch.choose("auto", 200, 100) == "tiled"
    assert dispatch.choose("tiled", 1, 1) == "tiled"


def test_large_batches_run_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    within = tiled.log_kernel_mean

    def counted(x: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        calls.append(len(x))
        return within(x, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tiled, "log_kernel_mean", counted)
    CSAlignerLoss()(torch.randn(200, 4), torch.randn(200, 4), 1.0)
    CSAlignerLoss()(torch.randn(20, 4), torch.randn(20, 4), 1.0)
    assert calls == [200, 200]


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
