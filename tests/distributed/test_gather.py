"""Gathering features of all ranks with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from csaligner.distributed.gather import gather_ids, gather_rows, row_counts
from csaligner.distributed.processes import is_main, rank, world_size
from tests.ranks import on_ranks

ROWS = (3, 0, 1, 2)


def own(x: Tensor) -> slice:
    """Return the rows of this rank; rank r has ROWS[r] rows."""
    start = sum(ROWS[: rank()])
    return slice(start, start + ROWS[rank()])


def everything() -> Tensor:
    return torch.arange(24, dtype=torch.float64).reshape(6, 4).sin()


def loss(x: Tensor) -> Tensor:
    """Loss over all pairs of rows, not a mean over rows."""
    return (x @ x.T).exp().sum().log()


def test_one_process_gathers_nothing() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert (rank(), world_size(), is_main(), row_counts(x)) == (0, 1, True, [2])
    assert gather_rows(x) is x
    assert gather_ids(x) is x


def gathers_in_rank_order() -> None:
    x = everything()
    assert is_main() == (dist.get_rank() == 0)
    assert row_counts(x[own(x)]) == list(ROWS)
    torch.testing.assert_close(gather_rows(x[own(x)]), x, rtol=0, atol=0)
    ids = torch.arange(6)
    assert gather_ids(ids[own(x)]).tolist() == list(range(6))


def backward_sums_over_ranks() -> None:
    full = everything().requires_grad_()
    loss(full).backward()  # type: ignore[no-untyped-call]
    x = everything()[own(full)].requires_grad_()
    # Each rank takes a different share of the loss; the shares sum to 10 / 4 of it.
    (gradient,) = torch.autograd.grad((rank() + 1) / 4 * loss(gather_rows(x)), x, create_graph=True)
    assert full.grad is not None
    torch.testing.assert_close(gradient, 10 / 4 * full.grad[own(full)])
    if ROWS[rank()]:
        assert gradient.requires_grad


def second_derivative_is_that_of_one_process() -> None:
    def penalty(x: Tensor, gathered: bool) -> Tensor:
        rows = gather_rows(x) if gathered else x
        (gradient,) = torch.autograd.grad(loss(rows), rows, create_graph=True)
        return gradient.square().sum()

    full = everything().requires_grad_()
    (expected,) = torch.autograd.grad(penalty(full, False), full)
    x = everything()[own(full)].requires_grad_()
    (found,) = torch.autograd.grad(penalty(x, True), x)
    torch.testing.assert_close(found, world_size() * expected[own(full)])


def ddp_equals_one_process() -> None:
    torch.manual_seed(0)
    x = everything()
    model = nn.Linear(4, 3).double()
    loss(model(x)).backward()  # type: ignore[no-untyped-call]
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    together = DistributedDataParallel(model)
    rows = own(x) if ROWS[rank()] else slice(0, 0)
    loss(gather_rows(together(x[rows]))).backward()  # type: ignore[no-untyped-call]
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


def all_checks() -> None:
    gathers_in_rank_order()
    backward_sums_over_ranks()
    second_derivative_is_that_of_one_process()
    ddp_equals_one_process()


def test_four_ranks_with_uneven_rows_equal_one_process() -> None:
    on_ranks(4, all_checks)


def fails_on_one_rank() -> None:
    assert rank() == 0


def test_an_error_on_one_rank_is_seen() -> None:
    with pytest.raises(Exception, match="fails_on_one_rank"):
        on_ranks(2, fails_on_one_rank)
