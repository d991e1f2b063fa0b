"""Features shared by the tests of the metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from csaligner.types import PairedFeatures

ROOT = Path(__file__).parents[2]


def make_captioned(n: int, extra: int, d: int, *, noise: float = 1.0, seed: int = 0) -> PairedFeatures:
    """Return features of n images with n + `extra` captions in random order, at least one per image."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=g, dtype=torch.float64)
    owner = torch.cat([torch.arange(n), torch.randint(n, (extra,), generator=g)])
    owner = owner[torch.randperm(len(owner), generator=g)]
    text = image[owner] + noise * torch.randn(len(owner), d, generator=g, dtype=torch.float64)
    return PairedFeatures(image, text, owner, tuple(map(str, range(n))))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: faster for many small decompositions on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def captioned() -> Callable[..., PairedFeatures]:
    """(n, extra, d, *, noise=1.0, seed=0) -> features: see make_captioned."""
    return make_captioned


@pytest.fixture(scope="session")
def clip_coco() -> tuple[torch.Tensor, torch.Tensor]:
    """(500, 512) image and text features of CLIP ViT-B/32; row i matches row i."""
    path = Path(os.environ.get("CSALIGNER_SHARED", ROOT.parent / "shared")) / "data" / "clip_coco_500.npy"
    if not path.exists():
        pytest.skip("clip_coco_500.npy is not here; set CSALIGNER_SHARED to the folder that holds data/")
    image, text = torch.from_numpy(np.load(path)).float()
    return image, text


@pytest.fixture
def several() -> PairedFeatures:
    return make_captioned(40, 35, 6)
