"""Vectors of any two models: what is wrong between them, and mending it without re-embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .diagnosis import Diagnosis, diagnose
    from .joint import JointAlignment, align_spaces
    from .migration import Migration, migrate
    from .space import Space
    from .unpaired import UnpairedStart, align_unpaired

__all__ = [
    "Diagnosis",
    "JointAlignment",
    "Migration",
    "Space",
    "UnpairedStart",
    "align_spaces",
    "align_unpaired",
    "diagnose",
    "migrate",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "diagnosis": "Diagnosis diagnose",
        "joint": "JointAlignment align_spaces",
        "migration": "Migration migrate",
        "space": "Space",
        "unpaired": "UnpairedStart align_unpaired",
    },
)
