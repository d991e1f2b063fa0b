"""Distributed training: process group, differentiable gathering, ring exchange, and the loss of the global batch."""

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

from .gather import gather_ids, gather_rows
from .processes import is_main, join_processes, rank, wait_for_all, world_size

if TYPE_CHECKING:
    from .loss import CSAlignerLoss

__all__ = [
    "CSAlignerLoss",
    "gather_ids",
    "gather_rows",
    "is_main",
    "join_processes",
    "rank",
    "wait_for_all",
    "world_size",
]

__getattr__, __dir__ = lazy_exports(__name__, {"loss": "CSAlignerLoss"})
