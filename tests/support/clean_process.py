"""Run a function in a process without the threads and libraries of the tests before it.

A fork of a test process has neither their threads nor what these held, and may crash in either's memory.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_clean_process(function: Callable[..., object], *args: Any) -> None:
    """Run function(*args), and fail if it does. function: a module-level one. The process is forked from a server that
    has imported csaligner, with the arguments, folder and import path of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["csaligner.training.trainer"])
    process = context.Process(target=function, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == 0
