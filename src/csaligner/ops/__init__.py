"""Implementations of the kernel sums and contrastive losses: reference, tiled, Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .arguments import samples, scale_of
    from .bandwidth import resolve_bandwidth
    from .kernels import Gaussian

__all__ = [
    "Gaussian",
    "resolve_bandwidth",
    "samples",
    "scale_of",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "arguments": "samples scale_of",
        "bandwidth": "resolve_bandwidth",
        "kernels": "Gaussian",
    },
)
