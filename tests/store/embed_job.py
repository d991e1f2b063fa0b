"""A small `embed` job that other processes load by its path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csaligner.store.shard_maker import Encoders
from csaligner.types import EncoderInfo, Item


class MeanColour:
    """killed_once: a file; if it does not exist, the first batch creates it and kills the process."""

    info = EncoderInfo("mean", "1", "image", 3, {"size": 8})

    def __init__(self, killed_once: Path | None = None, pause: float = 0.0) -> None:
        self._killed_once, self._pause = killed_once, pause

    def prepare(self, item: Any) -> Tensor:
        return torch.from_numpy(np.asarray(item, dtype=np.float32).mean((0, 1)))

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        time.sleep(self._pause)
        if self._killed_once is not None and not self._killed_once.exists():
            self._killed_once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.stack(list(prepared))


class Length:
    info = EncoderInfo("length", "1", "text", 2, {})

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        return torch.tensor([[float(len(text)), 1.0] for text in prepared])


class Pictures:
    """Dataset of 0.png, 1.png, ... in a folder."""

    name, attribution = "pictures", ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def items(self) -> Sequence[Item]:
        files = sorted(self._folder.glob("*.png"), key=lambda path: int(path.stem))
        return [Item(f.stem, f, (f"picture {f.stem}", "again"), f.stem) for f in files]


def encoders(killed_once: Path | None = None) -> Encoders:
    return Encoders(MeanColour(killed_once), Length())
