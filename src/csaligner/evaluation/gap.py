"""Modality gap metrics.

Features are L2-normalised; each of the m captions of an image has weight 1/m (weight 1 in uniformity).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.moments import blocks, unit
from csaligner.checks import check_same_dim
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.divergences.mmd import mmd
from csaligner.ops import dispatch
from csaligner.ops.kernels import Gaussian
from csaligner.paired_features import Ids, pair_features
from csaligner.types import PairedFeatures

from .probe import probe_accuracy

ROUNDING = 1e-6  # length of a centred row that counts as 0
MAX_ROWS = 4096  # per modality, for metrics of quadratic cost


def gap_metrics(
    image_features: Any,
    text_features: Any,
    image_ids: Ids | None = None,
    *,
    text_image_ids: Ids | None = None,
    bandwidth: float = 0.5,
    seed: int = 0,
) -> dict[str, float]:
    """Measure the modality gap between image and text features.

    gap/centroid: distance of the two means (Liang et al. 2022). gap/cs: Cauchy-Schwarz divergence, gap/mmd2:
    squared MMD, both with a Gaussian kernel of sigma = bandwidth, diagonals kept. gap/probe_accuracy: accuracy of
    a linear classifier that predicts the modality of held-out rows (probe.probe_accuracy; 0.5 = chance).
    gap/paired_cosine, gap/unpaired_cosine: mean cosine of an image with its captions, and with other captions.
    gap/pair_margin: paired minus unpaired cosine. gap/frechet: Frechet distance of the two sets. centred_gap/centroid,
    /cs, /frechet: the same after centring: each modality minus its own (weighted) mean, then unit length again; what
    remains is not a shift of the mean. uniformity/image, /text: log mean exp(-2 |a - b|^2) over pairs of
    different rows (Wang & Isola 2020); /cross: over all pairs of an image and a text. effective_rank/image, /text:
    exp of the entropy of the singular values (Roy & Vetterli 2007, eq. 4); 1 for collapsed rows. Ids as in
    paired_features.pair_features.
    Divergences and uniformity use at most 4,096 rows per modality, sampled with `seed`. Raises InputError.
    """
    features = pair_features(image_features, text_features, image_ids, text_image_ids)
    return gap_of(features, bandwidth=bandwidth, seed=seed)


def gap_of(features: PairedFeatures, *, bandwidth: float = 0.5, seed: int = 0) -> dict[str, float]:
    """Compute gap_metrics of PairedFeatures."""
    check_same_dim(("image_features", "text_features"), features.image, features.text)
    n, owner, w = len(features.image), features.text_to_image, caption_weights(features)
    x = _Moments.of(lambda rows: unit(features.image[rows]), _equal(n))
    y = _Moments.of(lambda rows: unit(features.text[rows]), w)
    matched = _paired_cosine(features, w)
    unpaired = (float(x.mean @ y.mean) * n - matched) / (n - 1) if n > 1 else float("nan")
    rows = _rows(n, seed), _rows(len(w), seed)
    few_x, few_y, few_w = unit(features.image[rows[0]]).float(), unit(features.text[rows[1]]).float(), w[rows[1]]
    return {
        "gap/centroid": float((x.mean - y.mean).norm()),
        "gap/cs": float(cauchy_schwarz_divergence(few_x, few_y, bandwidth=bandwidth, weights_y=few_w)),
        "gap/mmd2": float(mmd(few_x, few_y, bandwidth=bandwidth, weights_y=few_w)),
        "gap/probe_accuracy": probe_accuracy(features.image, features.text, owner, seed=seed, scale=True),
        "gap/paired_cosine": matched,
        "gap/unpaired_cosine": unpaired,
        "gap/pair_margin": matched - unpaired,
        "gap/frechet": _frechet(x, y),
        "uniformity/image": _uniformity(few_x),
        "uniformity/text": _uniformity(few_y),
        "uniformity/cross": _log_mean(few_x, few_y),
        "effective_rank/image": x.effective_rank(),
        "effective_rank/text": y.effective_rank(),
    } | _centred_gap(features, (x.mean, y.mean), w, rows, bandwidth)


def _centred_gap(
    features: PairedFeatures, means: tuple[Tensor, Tensor], w: Tensor, rows: tuple[Tensor, Tensor], bandwidth: float
) -> dict[str, float]:
    """Return the centroid distance, D_CS and Frechet distance of centred rows. A row shorter than rounding errors
    stays at 0, so that collapsed features have no arbitrary direction. rows: those used for D_CS."""

    def image(taken: Tensor | slice) -> Tensor:
        return _centred(features.image[taken], means[0])

    def text(taken: Tensor | slice) -> Tensor:
        return _centred(features.text[taken], means[1])

    x, y = _Moments.of(image, _equal(len(features.image))), _Moments.of(text, w)
    few = image(rows[0]).float(), text(rows[1]).float()
    return {
        "centred_gap/centroid": float((x.mean - y.mean).norm()),
        "centred_gap/cs": float(cauchy_schwarz_divergence(*few, bandwidth=bandwidth, weights_y=w[rows[1]])),
        "centred_gap/frechet": _frechet(x, y),
    }


def _centred(rows: Tensor, mean: Tensor) -> Tensor:
    x = unit(rows) - mean
    return torch.where(x.norm(dim=1, keepdim=True) > ROUNDING, normalize(x, dim=1), 0.0)


def _paired_cosine(features: PairedFeatures, w: Tensor) -> float:
    """Return the weighted mean cosine of the captions with their images."""
    owner = features.text_to_image
    total = torch.zeros((), dtype=torch.float64)
    for rows in blocks(len(owner)):
        total += w[rows] @ (unit(features.image[owner[rows]]) * unit(features.text[rows])).sum(dim=1)
    return float(total)


def caption_weights(features: PairedFeatures) -> Tensor:
    """(M,) float64, 1/m for a caption of an image with m captions, divided by their sum."""
    counts = torch.bincount(features.text_to_image, minlength=len(features.image))
    w = 1.0 / counts[features.text_to_image].double()
    return w / w.sum()


def frechet_distance(x: Tensor, y: Tensor, weights_y: Tensor | None = None) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^(1/2) S_y S_x^(1/2))^(1/2)), in float64.

    x: (N, d), y: (M, d). Covariances divide by N and by the sum of weights_y (population covariances; FID, in
    evaluation/generation.py, uses sample covariances).
    Source: Dowson & Landau 1982; used as FID by Heusel et al. 2017, eq. 6.
    """
    w = _equal(len(y)) if weights_y is None else weights_y
    moments = _Moments.of(lambda rows: x[rows].double(), _equal(len(x)))
    return _frechet(moments, _Moments.of(lambda rows: y[rows].double(), w))


@dataclass(frozen=True)
class _Moments:
    """Mean (d,), covariance (d, d) and uncentred second moment (d, d) of weighted rows, in float64.

    few: of fewer rows than dimensions, the centred rows times the roots of their weights (n, d); their n singular
    values are exact where most eigenvalues of the covariance are 0, and take less time.
    """

    mean: Tensor
    cov: Tensor
    few: Tensor | None = None

    @classmethod
    def of(cls, read: Callable[[slice], Tensor], weights: Tensor) -> _Moments:
        """read: returns rows in float64; weights: (n,), with sum 1."""
        parts = list(blocks(len(weights)))
        mean = reduce(torch.add, (weights[part] @ read(part) for part in parts))
        cov = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in parts:
            x = read(part) - mean
            cov += x.T @ (weights[part, None] * x)
        few = [weights[part, None].sqrt() * (read(part) - mean) for part in parts] if len(weights) < len(mean) else []
        return cls(mean, cov, torch.cat(few) if few else None)

    @property
    def second(self) -> Tensor:
        return self.cov + torch.outer(self.mean, self.mean)

    def effective_rank(self) -> float:
        """Return the effective rank of the uncentred rows."""
        if self.few is None:
            return _rank(self.second)
        rows = torch.cat([self.few, self.mean[None]])  # their second moment is that of the uncentred rows
        return _rank(rows @ rows.T)


def _frechet(x: _Moments, y: _Moments) -> float:
    shift = (x.mean - y.mean).square().sum()
    few = None if x.few is None or y.few is None else x.few @ y.few.T
    root = root_trace(x.cov, y.cov) if few is None else torch.linalg.svdvals(few).sum()
    distance = shift + x.cov.trace() + y.cov.trace() - 2 * root
    return float(distance.clamp_min(0))  # rounding errors may make it negative


def _equal(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def root_trace(s: Tensor, t: Tensor) -> Tensor:
    """tr (S^(1/2) T S^(1/2))^(1/2) of two covariances; equals the nuclear norm of A B' for S = A'A, T = B'B."""
    values, vectors = torch.linalg.eigh(s)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    total: Tensor = torch.linalg.eigvalsh(root @ t @ root).clamp_min(0).sqrt().sum()
    return total


def _uniformity(x: Tensor) -> float:
    if len(x) < 2:
        return float("nan")
    return _log_mean(x, None)


def _log_mean(x: Tensor, y: Tensor | None) -> float:
    """log mean exp(-2 |a - b|^2) over pairs of different rows."""
    kernel = Gaussian(0.5)
    op = dispatch.implementation("auto", x, x if y is None else y, kernel)
    return float(op.log_kernel_mean(x, y, kernel, diagonal=y is not None))


def effective_rank(x: Tensor, weights: Tensor) -> float:
    """Return the effective rank of uncentred rows; centring collapsed rows would leave full-rank rounding noise."""
    return _rank(x.T @ (weights[:, None] * x))


def _rank(second: Tensor) -> float:
    """Return the effective rank for the second moments (d, d) of the rows."""
    values = torch.linalg.eigvalsh(second).clamp_min(0).sqrt()
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def _rows(n: int, seed: int) -> Tensor:
    if n <= MAX_ROWS:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MAX_ROWS]
