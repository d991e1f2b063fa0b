"""Metrics of aligned features: retrieval, mixed search, modality gap; baselines; metrics of generated images."""

from __future__ import annotations

from .baselines import GRCLIP, I0T, CanonicalCorrelation, Coral, MeanCentring, Procrustes, Standardising
from .evaluate import Evaluation, evaluate
from .gap import gap_metrics
from .mixed_search import mixed_search_metrics, modality_bias
from .retrieval import retrieval_metrics

__all__ = [
    "GRCLIP",
    "I0T",
    "CanonicalCorrelation",
    "Coral",
    "Evaluation",
    "MeanCentring",
    "Procrustes",
    "Standardising",
    "evaluate",
    "gap_metrics",
    "mixed_search_metrics",
    "modality_bias",
    "retrieval_metrics",
]
