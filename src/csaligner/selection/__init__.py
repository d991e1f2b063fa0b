"""Selection on the training pairs: choice of the untrained alignment, and a gate for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .fit import Selecting
    from .gate import GateChoice, gate_by_folds, gate_by_validation
    from .selection import Selection, read_selection
    from .start import StartChoice, choose_start

__all__ = [
    "GateChoice",
    "Selecting",
    "Selection",
    "StartChoice",
    "choose_start",
    "gate_by_folds",
    "gate_by_validation",
    "read_selection",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "fit": "Selecting",
        "gate": "GateChoice gate_by_folds gate_by_validation",
        "selection": "Selection read_selection",
        "start": "StartChoice choose_start",
    },
)
