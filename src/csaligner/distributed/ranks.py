"""Several processes that torchrun started, working on one folder."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch import distributed as dist

from csaligner.checks import CSAlignerError

from .gather import rank, world_size

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a rank that is done waits for the slowest


def join_ranks() -> None:
    """Start the process group where torchrun (or any launcher that sets WORLD_SIZE) started several processes and
    nobody else did yet. One process needs none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(_leave)


def _leave() -> None:
    """A group that is still there when the interpreter goes may abort the process: its threads run on."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_first(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 alone and give its result to all; where it raises a CSAlignerError, all raise it."""
    if world_size() == 1:
        return action()
    answer: list[object] = [None, None]
    if rank() == 0:
        try:
            answer = [action(), None]
        except CSAlignerError as error:
            answer = [None, error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[1], CSAlignerError):
        raise answer[1]
    return answer[0]  # type: ignore[return-value]
