"""Evaluation of paired features: all metrics, with bootstrap intervals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.moments import blocks
from csaligner.paired_features import rows_of, spaced
from csaligner.types import PairedFeatures

from . import mixed_search, retrieval
from .bootstrap import percentile_interval, resample
from .gap import gap_of
from .one_pass import search_per_query
from .retrieval import KS, PerQuery
from .score import MEANS, derived_metrics

MAX_IMAGES = 20_000  # the products grow with the square of their number


@dataclass(frozen=True)
class Evaluation:
    """metrics: name -> value; intervals: name -> 95 % bootstrap interval (low, high) over images, for means over
    queries or pairs and for the centroid distance. images: number of images given; sample: number of evenly spaced
    ones that were measured, None: all."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    images: int = 0
    sample: int | None = None


def evaluate(
    features: PairedFeatures,
    *,
    bandwidth: float = 0.5,
    seed: int = 0,
    intervals: bool = True,
    max_images: int | None = MAX_IMAGES,
) -> Evaluation:
    """Compute retrieval, mixed-search and gap metrics, their means over both kinds of query and the score that ranks
    (score.derived_metrics).

    bandwidth: sigma of gap/cs, gap/mmd2 and centred_gap/cs. seed: of the probe's splits, the bootstrap and
    the row subsets of large inputs. max_images: of more images, this many are measured, evenly spaced, with all their
    captions, and a warning says so; None: all. Recall falls with the number of items searched, so results of a sample
    and of all images cannot be compared. Raises InputError.
    """
    n, sample = len(features.image), None
    if max_images is not None and n > max_images:
        sample = max_images
        features = rows_of(features, spaced(n, sample))
        warnings.warn(f"evaluate: {sample_line(sample, n)}; max_images=None measures all", stacklevel=2)
    directions, mixed = search_per_query(features)
    metrics = retrieval.summarise(directions)
    metrics |= mixed_search.summarise(mixed)
    metrics |= gap_of(features, bandwidth=bandwidth, seed=seed)
    metrics |= derived_metrics(metrics)
    found = _intervals(features, directions, mixed, seed) if intervals else {}
    return Evaluation(metrics, found, n, sample)


def sample_line(sample: int, images: int) -> str:
    """Return a statement that a sample was measured."""
    return f"measured on a sample of {sample:,} of {images:,} images, evenly spaced"


def _intervals(
    features: PairedFeatures, directions: dict[str, PerQuery], mixed: dict[str, Tensor], seed: int
) -> dict[str, tuple[float, float]]:
    every_image, owner = torch.arange(len(features.image)), features.text_to_image
    values: dict[str, tuple[Tensor, Tensor]] = {}
    for k in KS:
        for direction, images in (("image_to_text", every_image), ("text_to_image", owner)):
            values[f"{direction}_recall@{k}"] = directions[direction][f"recall@{k}"], images
    for name, value in mixed.items():
        values[name] = value, every_image if name in mixed_search.OF_IMAGES else owner
    cosines, shifts = _pairs(features)
    values["gap/paired_cosine"] = cosines, every_image
    found, lengths = resample(values, shifts, seed)
    for name, (one, two) in MEANS.items():
        found[name] = (found[one] + found[two]) / 2
    found["gap/centroid"] = lengths
    return {name: percentile_interval(estimates) for name, estimates in found.items()}


def pair_shifts(features: PairedFeatures) -> Tensor:
    """Return each image minus the mean of its captions, all L2-normalised, (N, d) in float64; gap/centroid is the
    length of their mean."""
    return _pairs(features)[1]


def _pairs(features: PairedFeatures) -> tuple[Tensor, Tensor]:
    """Return the cosine of each image with the mean of its L2-normalised captions, (N,), and image minus this mean,
    (N, d), in float64."""
    n, owner = len(features.image), features.text_to_image
    shifts = torch.zeros(n, features.text.shape[1], dtype=torch.float64)
    for rows in blocks(len(owner)):
        shifts.index_add_(0, owner[rows], normalize(features.text[rows].double(), dim=1))
    shifts /= torch.bincount(owner, minlength=n)[:, None]
    cosines = []
    for rows in blocks(n):
        image = normalize(features.image[rows].double(), dim=1)
        cosines.append((image * shifts[rows]).sum(dim=1))
        shifts[rows] = image - shifts[rows]
    return torch.cat(cosines), shifts
