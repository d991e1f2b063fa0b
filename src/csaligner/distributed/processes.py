"""The process group: initialisation, main-process execution, broadcasting and gradient averaging."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from csaligner.checks import CSAlignerError, InputError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # processes wait for the slowest one, or for validation on the main process


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if _started() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if _started() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files and reports progress."""
    return rank() == 0


def join_processes() -> None:
    """Initialise the process group if a launcher (`torchrun`, `accelerate launch`) started this process.

    Does nothing for a single process, or if the group exists. Backends: gloo for CPU tensors, nccl (or the default
    backend of the accelerator) for GPU tensors; local rank r uses GPU r.
    """
    if _started() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    backend = "gloo"
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device.type)}"
    dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(_leave)


@dataclass(frozen=True)
class CPUAlone:
    """What an Accelerator is to a single process on a CPU without trackers, without the import of accelerate."""

    device: torch.device
    trackers: tuple[Any, ...] = ()


def make_accelerator(**options: Any) -> Any:
    """Return a Hugging Face Accelerator in the group of join_processes: the device of this process, and the trackers.

    CPUAlone for a single process on a CPU without trackers (`log_with`). Raises InputError if a machine has fewer GPUs
    than processes, which nccl does not support.
    """
    join_processes()
    has_gpu = torch.accelerator.is_available()
    if not has_gpu and world_size() == 1 and not options.get("log_with"):
        return CPUAlone(torch.device("cpu"))
    from accelerate import Accelerator  # slow import

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if has_gpu and world_size() > 1 and processes > torch.accelerator.device_count():
        raise InputError(
            f"processes: {processes} on a machine with {torch.accelerator.device_count()} GPUs; start one per GPU"
        )
    return Accelerator(cpu=not has_gpu, **options)


def wait_for_all() -> None:
    """Block until every process has called it."""
    if world_size() > 1:
        dist.barrier()


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process only and return its result on all processes.

    A CSAlignerError is raised on all processes. On any other failure, the other processes raise a CSAlignerError.
    The result must be picklable. Every process must call it.
    """
    if world_size() == 1:
        return action()
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            answer[0] = action()
        except CSAlignerError as error:
            answer[1] = failure = error
        except Exception as error:
            failure = error
            answer[1] = CSAlignerError(f"the main process failed ({type(error).__name__}: {error})")
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise failure or answer[1]
    result: T = answer[0]
    return result


@contextmanager
def held_by_main(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Enter `make()` on the main process only and yield its value on all; exits when the main process leaves."""
    with ExitStack() as held:
        yield on_main(lambda: held.enter_context(make()))


@torch.no_grad()
def same_start(model: nn.Module) -> None:
    """Broadcast the parameters and buffers of the main process to all processes."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; see csaligner.distributed.gather for the rule.

    Called after backward, in place of DistributedDataParallel, which handles only parameters used in its forward: a
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


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave() -> None:
    """Destroy the group at exit; its threads may otherwise abort the interpreter."""
    if dist.is_initialized():
        dist.destroy_process_group()
