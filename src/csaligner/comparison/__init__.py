"""Comparison of methods under one budget, and sweeps over settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .compare import Budget, Comparison
    from .methods import TRAINED, Trained
    from .run import compare_and_write
    from .suite import Suite, run_suite
    from .sweep import sweep_and_write

__all__ = [
    "TRAINED",
    "Budget",
    "Comparison",
    "Suite",
    "Trained",
    "compare_and_write",
    "run_suite",
    "sweep_and_write",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "compare": "Budget Comparison",
        "methods": "TRAINED Trained",
        "run": "compare_and_write",
        "suite": "Suite run_suite",
        "sweep": "sweep_and_write",
    },
)
