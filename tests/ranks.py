"""Runs a function on several processes of one group."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes


def on_ranks(size: int, worker: Callable[..., None], *args: Any, backend: str = "gloo") -> None:
    """Run worker(*args) on `size` processes of one group; an error of any process is raised here.

    worker: a module-level function. Processes are forked from a server that has imported csaligner, which takes
    seconds.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["csaligner.training.trainer"])
    with tempfile.TemporaryDirectory() as folder:
        start = (size, Path(folder) / "meeting-point", backend, worker, args)
        start_processes(_enter, start, nprocs=size, start_method="forkserver")  # type: ignore[no-untyped-call]


def _enter(
    rank: int, size: int, meeting_point: Path, backend: str, worker: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=meeting_point.as_uri(), rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    worker(*args)
    dist.barrier()
    dist.destroy_process_group()
