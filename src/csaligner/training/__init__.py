"""Training: trainer, samplers, checkpoints, schedules, memory bank and gradient caching for large batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .gradcache import cached_features
    from .samplers import PairSampler, own_part
    from .trainer import Hooks, RunOptions, Trainer
    from .training_data import TrainingData

__all__ = [
    "Hooks",
    "PairSampler",
    "RunOptions",
    "Trainer",
    "TrainingData",
    "cached_features",
    "own_part",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "gradcache": "cached_features",
        "samplers": "PairSampler own_part",
        "trainer": "Hooks RunOptions Trainer",
        "training_data": "TrainingData",
    },
)
