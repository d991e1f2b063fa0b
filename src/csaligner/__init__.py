"""csaligner: aligns image and text embeddings as samples of one distribution.

The public names; they are imported on first use, so that `import csaligner` is quick and needs no optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._deprecated import install
from ._lazy import lazy_exports

if TYPE_CHECKING:
    from .checks import CSAlignerError, InputError
    from .config import TrainConfig, load_config
    from .datasets import open_dataset
    from .distributed import CSAlignerLoss
    from .divergences import cauchy_schwarz_divergence, energy_distance, mmd, sinkhorn_divergence
    from .encoders import open_encoder
    from .estimator import CSAligner
    from .evaluation import evaluate, gap_metrics, mixed_search_metrics, retrieval_metrics
    from .generation.generate import generate
    from .losses import Objective, info_nce, siglip, token_cauchy_schwarz
    from .model import AlignedModel
    from .pipeline import embed_dataset, evaluate_run, train
    from .search import Index, build_index
    from .store import Store, write_store
    from .types import PairedFeatures

__version__ = "0.3.0"

__all__ = [
    "AlignedModel",
    "CSAligner",
    "CSAlignerError",
    "CSAlignerLoss",
    "Index",
    "InputError",
    "Objective",
    "PairedFeatures",
    "Store",
    "TrainConfig",
    "build_index",
    "cauchy_schwarz_divergence",
    "embed_dataset",
    "energy_distance",
    "evaluate",
    "evaluate_run",
    "gap_metrics",
    "generate",
    "info_nce",
    "load_config",
    "mixed_search_metrics",
    "mmd",
    "open_dataset",
    "open_encoder",
    "retrieval_metrics",
    "siglip",
    "sinkhorn_divergence",
    "token_cauchy_schwarz",
    "train",
    "write_store",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "checks": "CSAlignerError InputError",
        "config": "TrainConfig load_config",
        "datasets": "open_dataset",
        "distributed": "CSAlignerLoss",
        "divergences": "cauchy_schwarz_divergence energy_distance mmd sinkhorn_divergence",
        "encoders": "open_encoder",
        "estimator": "CSAligner",
        "evaluation": "evaluate gap_metrics mixed_search_metrics retrieval_metrics",
        "generation.generate": "generate",
        "losses": "Objective info_nce siglip token_cauchy_schwarz",
        "model": "AlignedModel",
        "pipeline": "embed_dataset evaluate_run train",
        "search": "Index build_index",
        "store": "Store write_store",
        "types": "PairedFeatures",
    },
)

install()
