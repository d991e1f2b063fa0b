"""Evaluation of paired features: all metrics, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.types import PairedFeatures

from . import mixed_search, retrieval
from .bootstrap import draw_counts, percentile_interval, resampled_means, resampled_norms
from .gap import gap_of
from .mixed_search import mixed_search_per_query
from .retrieval import KS, PerQuery, retrieval_per_query
from .score import MEANS, derived_metrics


@dataclass(frozen=True)
class Evaluation:
    """metrics: name -> value; intervals: name -> 95 % bootstrap interval (low, high) over images, for means over
    queries or pairs and for the centroid distance."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def evaluate(features: PairedFeatures, *, bandwidth: float = 0.5, seed: int = 0, intervals: bool = True) -> Evaluation:
    """Compute retrieval, mixed-search and gap metrics, their means over both kinds of query and the score that ranks
    (score.derived_metrics).

    bandwidth: sigma of gap/cs, gap/mmd2 and centred_gap/cs. seed: of the probe's splits, the bootstrap and
    the row subsets of large inputs. Raises InputError.
    """
    directions, mixed = retrieval_per_query(features), mixed_search_per_query(features)
    metrics = retrieval.summarise(directions)
    metrics |= mixed_search.summarise(mixed)
    metrics |= gap_of(features, bandwidth=bandwidth, seed=seed)
    metrics |= derived_metrics(metrics)
    return Evaluation(metrics, _intervals(features, directions, mixed, seed) if intervals else {})


def _intervals(
    features: PairedFeatures, directions: dict[str, PerQuery], mixed: dict[str, Tensor], seed: int
) -> dict[str, tuple[float, float]]:
    n = len(features.image)
    counts = draw_counts(n, seed)
    every_image = torch.arange(n)
    found: dict[str, Tensor] = {}
    for k in KS:
        for direction, owner in (("image_to_text", every_image), ("text_to_image", features.text_to_image)):
            found[f"{direction}_recall@{k}"] = resampled_means(directions[direction][f"recall@{k}"], owner, counts)
    for name, values in mixed.items():
        owner = every_image if name in mixed_search.OF_IMAGES else features.text_to_image
        found[name] = resampled_means(values, owner, counts)
    for name, (one, two) in MEANS.items():
        found[name] = (found[one] + found[two]) / 2
    image, text = normalize(features.image.double(), dim=1), _mean_captions(features)
    found["gap/paired_cosine"] = resampled_means((image * text).sum(dim=1), every_image, counts)
    found["gap/centroid"] = resampled_norms(image - text, counts)
    return {name: percentile_interval(estimates) for name, estimates in found.items()}


def _mean_captions(features: PairedFeatures) -> Tensor:
    """Return (N, d) float64 means of the L2-normalised captions of each image."""
    n, text = len(features.image), normalize(features.text.double(), dim=1)
    sums = torch.zeros(n, text.shape[1], dtype=torch.float64).index_add_(0, features.text_to_image, text)
    return sums / torch.bincount(features.text_to_image, minlength=n)[:, None]
