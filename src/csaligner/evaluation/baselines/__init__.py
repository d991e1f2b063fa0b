"""Untrained baselines: maps of both modalities that are fitted without gradient steps, one per module."""

from __future__ import annotations

from .canonical_correlation import CanonicalCorrelation
from .class_names import ClassNames
from .coral import Coral
from .gr_clip import GRCLIP
from .i0t import I0T
from .mean_centring import MeanCentring
from .procrustes import Procrustes
from .standardising import Standardising

__all__ = [
    "GRCLIP",
    "I0T",
    "CanonicalCorrelation",
    "ClassNames",
    "Coral",
    "MeanCentring",
    "Procrustes",
    "Standardising",
]
