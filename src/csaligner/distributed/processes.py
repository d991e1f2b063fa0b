"""What training on several processes needs beside csaligner.distributed.gather: starting, averaging, agreeing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .gather import is_main, world_size

T = TypeVar("T")
PATIENCE = timedelta(hours=3)  # the others wait while the main process validates


def make_accelerator(**options: Any) -> Any:
    """Hugging Face's Accelerator: the device of this process, and the group of all where a launcher (`torchrun`,
    `accelerate launch`) started several."""
    from accelerate import Accelerator, InitProcessGroupKwargs  # a second of import time

    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience], **options)


def start_ranks() -> None:
    """Join the group of processes that a launcher started; nothing where there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        make_accelerator()


def stop_ranks() -> None:
    """Leave the group, after all have done their work."""
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


def from_main(value: T) -> T:
    """The main process's value on all processes; made of what JSON knows."""
    if world_size() == 1:
        return value
    device = _device()
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, src=0)
    if not is_main():
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(text, src=0)
    result: T = json.loads(bytes(text.tolist()))
    return result


@torch.no_grad()
def same_start(model: nn.Module) -> None:
    """Give all processes the main process's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; see csaligner.distributed.gather for why the mean is right.

    Done after the backward and not by DistributedDataParallel, which knows only the parameters that a forward used: a
    logit scale enters the loss outside of it, or not at all.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters:
        if p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for grads in by_dtype.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for g, mean in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))


def _device() -> torch.device:
    """Where tensors must lie for the backend to send them."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
