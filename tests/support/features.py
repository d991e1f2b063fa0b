"""Paired features and stores of them, as most tests need them: a few shared factors, and two linear maps of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from csaligner.store.store import write_store
from csaligner.types import EncoderInfo, PairedFeatures, Split

FACTORS = 4


def make_pairs(
    n: int = 40,
    dims: tuple[int, int] = (8, 6),
    captions: int = 1,
    *,
    seed: int = 0,
    noise: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> PairedFeatures:
    """n images of dims[0] numbers, each with `captions` texts of dims[1] numbers; neither modality is centred.

    Another seed gives other rows of the same distribution: the maps of the shared factors stay.
    """
    g, maps = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    factors = torch.randn(n, FACTORS, generator=g, dtype=dtype)
    owner = torch.arange(n).repeat_interleave(captions)
    image, text = (
        rows @ torch.randn(FACTORS, dim, generator=maps, dtype=dtype)
        + noise * torch.randn(len(rows), dim, generator=g, dtype=dtype)
        for rows, dim in zip((factors, factors[owner]), dims, strict=True)
    )
    return PairedFeatures(image + 1, text - 2, owner, tuple(f"{seed}-{i}" for i in range(n)))


def make_arrays(
    n: int, dims: tuple[int, int], *, seed: int = 0, noise: float = 0.1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Row i of the images belongs to row i of the texts."""
    pairs = make_pairs(n, dims, seed=seed, noise=noise)
    return pairs.image.numpy(), pairs.text.numpy()


def make_store(
    path: Path, n: int = 50, dims: tuple[int, int] = (8, 6), *, held_out: int = 10, revision: str = "1", seed: int = 0
) -> Path:
    """A store of n pairs with captions that hold markup: 10 for validation, `held_out` for the test, else training.

    revision: of the text encoder; stores of another revision do not go together.
    """
    f = make_pairs(n, dims, seed=seed)
    captions = tuple(f"caption <b>{i}</b>" for i in range(n))
    named = PairedFeatures(f.image, f.text, f.text_to_image, f.image_ids, captions)
    image = EncoderInfo("test-image", "1", "image", dims[0], {})
    text = EncoderInfo("test-text", revision, "text", dims[1], {})
    parts: list[tuple[Split, int]] = [("train", n - 10 - held_out), ("val", 10), ("test", held_out)]
    splits = [split for split, count in parts for _ in range(count)]
    write_store(path, named, (image, text), splits=dict(zip(f.image_ids, splits, strict=True)))
    return path
