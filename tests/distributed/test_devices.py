"""Collective calls receive tensors that were made on the device of the features, as nccl requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from csaligner.distributed.loss import CSAlignerLoss, median_sample
from csaligner.distributed.processes import average_gradients, rank, same_start
from tests.ranks import on_ranks


class Elsewhere(TorchFunctionMode):
    """Follows tensors that were made without a device, so on the CPU whatever the device of the features is."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Any = WeakIdKeyDictionary()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = kwargs.get("device") is not None or any(isinstance(leaf, torch.device) for leaf in tree_leaves(args))
        if not moved and all(tensor in self.found for tensor in given):
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.found[tensor] = True
        return result


def watch(where: Elsewhere) -> list[str]:
    """Check the tensors of every collective call of this process; return the names of the calls."""
    calls: list[str] = []

    def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            for tensor in tree_leaves((args, kwargs)):
                assert not isinstance(tensor, Tensor) or tensor not in where.found, f"{name}: a tensor of the CPU"
                assert not isinstance(tensor, Tensor) or tensor.is_contiguous(), f"{name}: nccl needs contiguous rows"
            return function(*args, **kwargs)

        return call

    for name in ("all_reduce", "all_gather", "broadcast", "P2POp"):
        setattr(dist, name, checked(name, getattr(dist, name)))
    return calls


def every_exchange() -> None:
    g = torch.Generator().manual_seed(rank())
    x, y = (torch.randn(rows, 4, generator=g).requires_grad_() for rows in (5 + rank(), 7))
    scale, ids = torch.tensor(3.0, requires_grad=True), (torch.arange(5 + rank()), torch.arange(7) % 6)
    layer = nn.Linear(4, 4)
    with Elsewhere() as where:
        calls = watch(where)
        for exchange in ("gather", "ring"):
            for bandwidth in (0.5, "median"):
                loss = CSAlignerLoss(bandwidth=bandwidth, exchange=exchange)
                loss(x, y, scale, *ids).total.backward()
            CSAlignerLoss(exchange=exchange)(x[:5], y[:5], 3.0).total.backward()
        median_sample(x, y, ids)
        same_start(layer)
        layer(x).sum().backward()
        average_gradients(layer.parameters())
    assert set(calls) == {"all_reduce", "all_gather", "broadcast", "P2POp"}


def a_tensor_of_the_cpu() -> None:
    with Elsewhere() as where:
        watch(where)
        dist.all_reduce(torch.ones(3, device="cpu"))
        with pytest.raises(AssertionError, match="of the CPU"):
            dist.all_reduce(2 * torch.ones(3))


def test_collective_calls_use_the_device_of_the_features() -> None:
    on_ranks(2, a_tensor_of_the_cpu)
    on_ranks(2, every_exchange)
