"""csaligner: image and text embeddings as samples of one distribution.

The public names are imported on first use, so that `import csaligner` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csaligner.distributed.loss import CSAlignerLoss
    from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
    from csaligner.divergences.mmd import mmd
    from csaligner.evaluation.gap import gap_metrics
    from csaligner.evaluation.mixed_search import mixed_search_metrics
    from csaligner.evaluation.retrieval import retrieval_metrics
    from csaligner.losses.infonce import info_nce

    from .estimator import CSAligner

__version__ = "0.1.0"

_HOME = {
    "CSAligner": "estimator",
    "CSAlignerLoss": "distributed.loss",
    "cauchy_schwarz_divergence": "divergences.cauchy_schwarz",
    "gap_metrics": "evaluation.gap",
    "info_nce": "losses.infonce",
    "mixed_search_metrics": "evaluation.mixed_search",
    "mmd": "divergences.mmd",
    "retrieval_metrics": "evaluation.retrieval",
}

__all__ = [
    "CSAligner",
    "CSAlignerLoss",
    "cauchy_schwarz_divergence",
    "gap_metrics",
    "info_nce",
    "mixed_search_metrics",
    "mmd",
    "retrieval_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'csaligner' has no attribute {name!r}")
    return getattr(importlib.import_module(f"csaligner.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
