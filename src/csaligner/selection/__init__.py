"""Selection on the training pairs: choice of the untrained alignment, and a gate for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .fit import Selecting, Selection
    from .gate import GateChoice, gate_by_folds, gate_by_validation
    from .start import StartChoice, choose_start

__all__ = [
    "GateChoice",
    "Selecting",
    "Selection",
    "StartChoice",
    "choose_start",
    "gate_by_folds",
    "gate_by_validation",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "fit": "Selecting Selection",
        "gate": "GateChoice gate_by_folds gate_by_validation",
        "start": "StartChoice choose_start",
    },
)
