"""Distributed loss, gathered and by ring exchange, against dense autograd in one process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss, ExchangedObjective
from csaligner.distributed.processes import rank, world_size
from csaligner.losses.objective import Objective
from csaligner.ops import tiles
from csaligner.types import LossTerms
from tests.ranks import on_ranks

IMAGE_IDS = [7, 1, 2, 3, 3, 5, -1, 0, 8, 8, 9, -1, 4]
TEXT_IDS = [0, 0, 1, 2, 3, 3, 4, 5, 8, 20, 7, 8, 8, 9, -1, -1, 21]
BOTH = {"info_nce": 1.0, "cauchy_schwarz": 0.7}


@dataclass(frozen=True)
class Case:
    """first: parts of the rows of rank 0; rank r has r more."""

    terms: dict[str, float]
    bandwidth: Any = 0.5
    kernel: str = "gaussian"
    paired_by: str = "ids"
    frozen: bool = False
    unpaired_weight: float = 1.0
    first: int = 1

    def objective(self, impl: str = "auto") -> Objective:
        return Objective(self.terms, self.bandwidth, impl, self.kernel, self.unpaired_weight)


CASES = [
    Case(BOTH),
    Case({**BOTH, "mmd": 2.0}, ("median", 0.05), "laplacian", unpaired_weight=2.5),
    Case({"info_nce": 1.0}, paired_by="position"),
    Case(BOTH, "temperature", paired_by="position"),
    Case({"cauchy_schwarz": 1.0}, 0.1, paired_by="nothing"),
    Case(BOTH, 1.5, "inverse_multiquadric", frozen=True),
    Case({**BOTH, "mmd": 2.0}, "median", first=0),
]


def own(rows: int, first: int) -> slice:
    """Return the rows of this rank, (r + first) parts of all."""
    parts = [0, *itertools.accumulate(r + first if world_size() > 1 else 1 for r in range(world_size()))]
    bounds = [rows * part // parts[-1] for part in parts]
    return slice(bounds[rank()], bounds[rank() + 1])


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Sequence[int] | None, Sequence[int] | None]:
    g = torch.Generator().manual_seed(3)
    rows = len(IMAGE_IDS), len(IMAGE_IDS if case.paired_by == "position" else TEXT_IDS)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=g) + 2 for n in rows)
    ids = (IMAGE_IDS, TEXT_IDS) if case.paired_by == "ids" else (None, None)
    scale = torch.tensor(3.0, dtype=torch.float64)
    return x.requires_grad_(not case.frozen), y.requires_grad_(), scale.requires_grad_(), *ids


def gradients(loss: LossTerms, *of: Tensor) -> list[Tensor]:
    """Zeros where the loss does not depend on a tensor."""
    inputs = [t for t in of if t.requires_grad]
    return list(torch.autograd.grad(loss.total, inputs, allow_unused=True, materialize_grads=True))


def same_as_one_process(case: Case, exchange: str) -> None:
    x, y, scale, ids_x, ids_y = inputs(case)
    wanted = case.objective("reference")(x, y, scale, ids_x, ids_y)
    i, j = own(len(x), case.first), own(len(y), case.first)
    own_x, own_y = (t.detach()[where].requires_grad_(t.requires_grad) for t, where in ((x, i), (y, j)))
    own_ids = None if ids_x is None else ids_x[i], None if ids_y is None else torch.tensor(ids_y[j])
    objective = ExchangedObjective(case.objective(), exchange)
    found = objective(own_x, own_y, scale, *own_ids)

    assert found.weights == wanted.weights
    for name, value in wanted.terms.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-9, atol=1e-9)
    expected = gradients(wanted, x, y, scale)
    parts = [*([] if case.frozen else [world_size() * expected[0][i]]), world_size() * expected[-2][j], expected[-1]]
    for gradient, part in zip(gradients(found, own_x, own_y, scale), parts, strict=True):
        torch.testing.assert_close(gradient, part, rtol=1e-6, atol=1e-8)


def all_cases() -> None:
    tiles.CPU_BLOCK = 2
    for case in CASES:
        for exchange in ("gather", "ring"):
            same_as_one_process(case, exchange)
    if world_size() == 2:
        errors_reach_every_rank()


def errors_reach_every_rank() -> None:
    good, bad = torch.eye(3), torch.eye(3)
    bad[1, 1] = torch.nan
    ring = CSAlignerLoss(exchange="ring")
    with pytest.raises(InputError, match="NaN" if rank() else "rank 1"):
        ring(bad if rank() else good, good, 2.0)
    with pytest.raises(InputError, match="rank"):
        ring(good, good, 2.0, torch.arange(3), torch.arange(3) + 3)
    with pytest.raises(InputError, match="ids"):
        ring(good, good, 2.0, ["a", "b", "c"])
    for loss in (ring, CSAlignerLoss()):
        with pytest.raises(InputError, match="rows"):
            loss(good, good[: 3 - rank()], 2.0)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_value_and_gradients_are_those_of_one_process(size: int) -> None:
    on_ranks(size, all_cases)


def test_one_process_needs_no_group() -> None:
    x, y, scale, *_ = inputs(Case(BOTH, paired_by="position"))
    wanted = Objective(BOTH, impl="reference")(x, y, scale)
    for exchange in ("gather", "ring", "none"):
        found = ExchangedObjective(Objective(BOTH), exchange)(x, y, scale)
        torch.testing.assert_close(found.total, wanted.total, rtol=1e-12, atol=0)


def test_float32_far_from_the_origin_keeps_its_digits() -> None:
    g = torch.Generator().manual_seed(5)
    x, y = (torch.randn(70, 8, generator=g) + 30 for _ in range(2))
    x64, y64 = x.double().requires_grad_(), y.double().requires_grad_()
    wanted = gradients(Objective(BOTH, 2.0, "reference")(x64, y64, 1.0), x64, y64)
    x, y = x.requires_grad_(), y.requires_grad_()
    found = gradients(ExchangedObjective(Objective(BOTH, 2.0), "ring")(x, y, 1.0), x, y)
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), w, rtol=0, atol=2e-5 * float(w.abs().max()))


def test_what_the_ring_cannot_do_is_one_line() -> None:
    with pytest.raises(InputError, match="'energy'"):
        ExchangedObjective(Objective({"energy": 1.0}), "ring")
    with pytest.raises(InputError, match="mixed"):
        ExchangedObjective(Objective(BOTH, impl="mixed"), "ring")
    with pytest.raises(InputError, match="'ring'"):
        ExchangedObjective(Objective(BOTH), "rings")
    x, y, scale, *_ = inputs(Case(BOTH, paired_by="position"))
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(CSAlignerLoss(exchange="ring")(x, y, scale).total, x, create_graph=True)
