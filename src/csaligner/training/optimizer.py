"""AdamW as torch computes it, without the import of torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, fused; methods that torch wraps for torch.compile are used unwrapped.

    The wrappers import torch._dynamo at the first call, more than a second of processor time, which only compiled code
    needs. Where torch has no wrapper, its own method is used.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        inspect.unwrap(torch.optim.AdamW.step)(self, closure)
