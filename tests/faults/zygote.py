"""Runs commands of csaligner in forks of one process that has imported everything: python zygote.py

A line of JSON on standard input starts a command: `words`, its arguments; `watched`, a folder; `log`, a file for its
output; `die_at`, the number of the file operation below `watched` before which the process kills itself (null: none);
`powers`, whether it keeps the capabilities of root, which bypass file permissions. Responses are lines: `pid N`;
`writing` before the first such operation; `operations N` if the command was not killed; `end STATUS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csaligner.registry import ENCODERS
from csaligner.types import EncoderInfo

DIM = 16
ENOUGH = 100  # captioned images with which `quickstart` trains
MODULES = [
    "accelerate.utils",
    "csaligner.cli",
    "csaligner.comparison.run",
    "csaligner.datasets",
    "csaligner.generation.train",
    "csaligner.pipeline",
    "csaligner.selection",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "optuna",
]
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate"}


class TinyImages:
    """Encodes an image as 4 x 4 grey values."""

    info = EncoderInfo("tiny-image", "1", "image", DIM, {"size": 4})

    def prepare(self, item: Image.Image) -> Tensor:
        grey = item.convert("L").resize((4, 4), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(grey, dtype=np.float32).reshape(DIM) / 255)

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(prepared))


class TinyTexts:
    """Encodes a text as numbers derived from its words."""

    info = EncoderInfo("tiny-text", "1", "text", DIM, {})

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        rows = [np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIM], np.uint8) for text in prepared]
        return torch.from_numpy(np.stack(rows).astype(np.float32) / 255)


def import_everything() -> None:
    """Import everything the commands need, except LanceDB, whose thread does not survive a fork."""
    for name in MODULES:
        with contextlib.suppress(ImportError):  # optional dependency not installed
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from diffusers import DDIMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel  # noqa: F401
    from csaligner import quickstart
    from csaligner.search import build

    quickstart.ENOUGH = ENOUGH
    build.A_WRITE = {"image": 4, "text": 6}  # more writes to be killed between


def watch(folder: str, die_at: int | None, say: Callable[[str], None]) -> list[int]:
    """Count file operations below `folder`; returns a list with the current count."""
    count = [0]

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in CHANGES
        if not changes or not _below(folder, arguments):
            return
        count[0] += 1
        if count[0] == 1:
            say("writing")
        if count[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)
    return count


def _below(folder: str, arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(a, str | os.PathLike) and os.fspath(a).startswith(folder) for a in arguments)


def run(words: list[str]) -> int:
    """Run `csaligner words`; returns the exit code."""
    from csaligner.cli import main

    sys.argv = ["csaligner", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def give_up_powers() -> None:
    """Drop all Linux capabilities, so that file permissions apply to root."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call; this process
    if library.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def child(job: dict[str, Any]) -> None:
    """Run one command in this fork and end the process."""
    answers = os.dup(1)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not job["powers"]:
        give_up_powers()

    def say(line: str) -> None:
        os.write(answers, f"{line}\n".encode())

    count = watch(job["watched"], job["die_at"], say)
    code = run(job["words"])
    say(f"operations {count[0]}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    torch.set_num_threads(1)
    for encoder in (TinyImages, TinyTexts):
        ENCODERS.register(encoder.info.id, encoder)
    import_everything()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        os.write(1, f"pid {pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"end {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve()
