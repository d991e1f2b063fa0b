"""hypothesis strategies: valid and invalid arguments of functions of two samples."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

PROFILE = "CSALIGNER_FUZZ_EXAMPLES"  # examples of each property; 6 if not given, the same ones in every run
few = settings(
    max_examples=int(os.environ.get(PROFILE, "6")),
    derandomize=PROFILE not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
seeds = st.integers(0, 2**31 - 1)


@st.composite
def clouds(draw: Any, most: int = 9, scales: tuple[float, float] = (-2, 2)) -> tuple[Tensor, Tensor]:
    """Return two float64 samples in one space with different sizes and locations, scaled by 10 ** scales."""
    n, m, d = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(seeds))
    scale = 10.0 ** draw(st.floats(*scales))
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    y = (torch.randn(m, d, generator=generator, dtype=torch.float64) + draw(st.floats(-1, 1))) * scale
    return x, y


ODD = st.sampled_from(
    (
        *(None, 1.0, "features", b"x", [], [[]], [[1.0], [1.0, 2.0]], {"a": 1}, object(), [["a", "b"]]),
        *(np.zeros((0, 4)), np.zeros((4, 0)), np.zeros(4), np.zeros((2, 2, 2)), np.array(1.0)),
        *(np.full((3, 4), np.nan), np.array([[1.0, np.inf, 0.0, 0.0]]), np.array([[None, 1]], dtype=object)),
        *(torch.zeros(3, 4, dtype=torch.complex64), np.array([["1", "2"]]), np.zeros((2, 4), dtype="datetime64[s]")),
        *(torch.zeros(2, 4).to_sparse(), torch.zeros(2, 4, device="meta"), np.zeros((3, 5)), torch.zeros(3, 5)),
    )
)


@st.composite
def plain(draw: Any, rows: st.SearchStrategy[int] | None = None) -> Any:
    """Return (N, 4) arrays of all supported dtypes and memory layouts."""
    n = draw(rows if rows is not None else st.integers(1, 8))
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(draw(seeds)))
    x = x * 10.0 ** draw(st.sampled_from((-30, -6, 0, 3, 12)))
    kind = draw(st.sampled_from(("float32", "float64", "float16", "bfloat16", "int", "bool", "numpy", "list", "view")))
    if kind in ("float16", "bfloat16"):
        return x.clamp(-1e4, 1e4).to(getattr(torch, kind))
    return {
        "float32": x,
        "float64": x.double(),
        "int": x.clamp(-100, 100).to(torch.int64),
        "bool": x > 0,
        "numpy": x.numpy(),
        "list": x.tolist(),
        "view": torch.cat([x, x], dim=1)[:, ::2].flip(0),
    }[kind]
