"""All metrics of one set of pairs, with intervals: what the command line, the estimator and the report share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from csaligner.types import PairedFeatures

from .bootstrap import draw_counts, mean_interval, percentiles
from .gap import gap_of
from .mixed_search import mixed_search_of, mixed_search_per_query
from .retrieval import retrieval_of, retrieval_per_query


@dataclass(frozen=True)
class Evaluation:
    """metrics by name; intervals: 95 % bootstrap [low, high] over images, of those that are means over queries
    and of the centroid distance."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def evaluate(features: PairedFeatures, *, bandwidth: float = 0.5, seed: int = 0, intervals: bool = True) -> Evaluation:
    """Retrieval, mixed search and gap of features in one space; mean_recall@K is the mean of both directions."""
    metrics = retrieval_of(features)
    for k in (1, 5, 10):
        both = (metrics[f"image_to_text_recall@{k}"], metrics[f"text_to_image_recall@{k}"])
        metrics[f"mean_recall@{k}"] = sum(both) / 2
    metrics |= mixed_search_of(features)
    metrics |= gap_of(features, bandwidth=bandwidth, seed=seed)
    return Evaluation(metrics, _intervals(features, seed) if intervals else {})


def _intervals(features: PairedFeatures, seed: int) -> dict[str, tuple[float, float]]:
    n = len(features.image)
    counts = draw_counts(n, seed)
    image_of = {"image": torch.arange(n), "text": features.text_to_image}
    found = {}
    for direction, values in retrieval_per_query(features).items():
        for name, value in values.items():
            if name != "rank":
                found[f"{direction}_{name}"] = mean_interval(value, image_of[direction.split("_")[0]], counts)
    for name, value in mixed_search_per_query(features).items():
        found[name] = mean_interval(value, image_of["image" if name.endswith("/image_query") else "text"], counts)
    x, y = normalize(features.image.double(), dim=1), normalize(features.text.double(), dim=1)
    paired = (x[features.text_to_image] * y).sum(dim=1)
    found["gap/paired_cosine"] = mean_interval(paired, features.text_to_image, counts)
    captions = torch.zeros(n, dtype=torch.float64).index_add_(0, features.text_to_image, torch.ones(len(y)).double())
    text_means = torch.zeros(n, y.shape[1], dtype=torch.float64).index_add_(0, features.text_to_image, y)
    text_means /= captions[:, None]
    found["gap/centroid"] = percentiles((counts @ (x - text_means) / n).norm(dim=1))
    return found
