"""Training on a CUDA device against training on the CPU: losses, weights, resuming and the loss in half precision.

Run by `make gpu`. Requires torch, triton, pytest and the dependencies of the trainer.
"""

# ruff: noqa: E402 (a missing dependency skips the module before its imports)
from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

for package in ("pydantic", "accelerate"):  # a CUDA image may have torch and triton only
    pytest.importorskip(package)

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig, build_config
from csaligner.distributed.loss import ExchangedObjective
from csaligner.distributed.processes import average_gradients, on_main, rank, wait_for_all, world_size
from csaligner.losses.objective import Objective
from csaligner.ops import dispatch
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Trainer
from tests.ranks import on_ranks
from tests.support.features import make_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PAIRS = make_pairs(600, (48, 32), captions=2, noise=0.5)
TERMS = {"info_nce": 1.0, "cauchy_schwarz": 0.7}
STEPS = {"epochs": 4, "batch_size": 256, "start": {"kind": "auto"}}


class Stop(Exception):
    pass


def config(**settings: object) -> TrainConfig:
    adapter = {"hidden": 64, "dropout": 0.0}
    return build_config(TrainConfig, STEPS | {"image_adapter": adapter, "text_adapter": adapter} | settings)


def train(c: TrainConfig, *, folder: Path | None = None, stop_at: int = 0) -> tuple[Aligner, list[float]]:
    """Return the model and the losses of its steps."""
    losses: list[float] = []

    def report(step: int, total: int, values: Mapping[str, float]) -> None:
        losses.append(values["loss/total"])
        if step == stop_at:
            raise Stop

    torch.manual_seed(c.seed)
    model = Aligner.fit_start(PAIRS, c)
    trainer = Trainer(model, PairSampler(PAIRS, c.batch_size, c.captions, c.seed), c, folder, Hooks(report=report))
    trainer.fit()
    return model, losses


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU of a machine with a GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the implementations that the losses of a test used, with the dtype of their features."""
    found: set[str] = set()
    table = copy.copy(dispatch.implementation)

    def recorded(impl: str, x: torch.Tensor, y: torch.Tensor, kernel: object = None) -> object:
        found.add(f"{dispatch.choose(impl, x, y, kernel)} {x.dtype} {x.device.type}")  # type: ignore[arg-type]
        return table(impl, x, y, kernel)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatch, "implementation", recorded)
    return found


@pytest.mark.parametrize("impl", ["reference", "tiled", "triton"])
def test_every_implementation_trains_as_on_the_cpu(impl: str, request: pytest.FixtureRequest) -> None:
    on_gpu, losses = train(config(objective={"impl": impl}))
    request.getfixturevalue("on_cpu")
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    on_cpu, wanted = train(config())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses == pytest.approx(wanted, rel=1e-3)
    for name, value in on_cpu.state_dict().items():
        torch.testing.assert_close(on_gpu.state_dict()[name], value, rtol=0.02, atol=2e-3)


def test_half_precision_reaches_the_kernels_and_trains(used: set[str]) -> None:
    _, losses = train(config(precision="bf16", objective={"impl": "triton"}))
    assert "triton torch.bfloat16 cuda" in used
    _, exact = train(config())
    assert losses[-1] == pytest.approx(exact[-1], rel=0.02)
    assert losses[-1] < 0.95 * losses[0]


def test_an_interrupted_run_ends_at_the_same_bits(tmp_path: Path) -> None:
    c = config(objective={"impl": "triton"}, precision="bf16", evaluate_every=1)
    whole, _ = train(c)
    with pytest.raises(Stop):
        train(c, folder=tmp_path, stop_at=7)
    resumed, losses = train(c, folder=tmp_path)
    assert 0 < len(losses) < 12
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def exchange_by_nccl() -> None:
    """Value and gradients over the ranks of an nccl group, against one process in float64 on the CPU."""
    g = torch.Generator().manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(90, 16, generator=g), dim=1) for _ in range(2)]
    exact = [side.double().requires_grad_() for side in rows]
    wanted = Objective(TERMS, impl="reference")(exact[0], exact[1], 5.0).total
    wanted_grads = torch.autograd.grad(wanted, exact)
    own = slice(90 * rank() // world_size(), 90 * (rank() + 1) // world_size())
    for exchange in ("gather", "ring"):
        x, y = (side[own].cuda().requires_grad_() for side in rows)
        total = ExchangedObjective(Objective(TERMS), exchange)(x, y, 5.0).total
        torch.testing.assert_close(total.item(), wanted.item(), rtol=1e-5, atol=1e-5)
        for got, true in zip(torch.autograd.grad(total, (x, y)), wanted_grads, strict=True):
            torch.testing.assert_close(got.double().cpu() / world_size(), true[own], rtol=1e-3, atol=1e-6)
    weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
    weight.grad = torch.full_like(weight, float(rank()))
    average_gradients([weight])
    assert weight.grad.tolist() == [(world_size() - 1) / 2] * 3
    assert on_main(rank) == 0
    wait_for_all()


@pytest.mark.parametrize("size", [1, 2])
def test_exchange_by_nccl(size: int) -> None:
    if size > torch.cuda.device_count():
        pytest.skip(f"needs {size} GPUs")
    on_ranks(size, exchange_by_nccl, backend="nccl")
