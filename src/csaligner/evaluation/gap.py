"""Modality gap metrics.

Features are L2-normalised; each of the m captions of an image has weight 1/m (weight 1 in uniformity).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
    x, y = normalize(features.image.double(), dim=1), normalize(features.text.double(), dim=1)
    w = caption_weights(features)
    mean_x, mean_y = x.mean(dim=0), w @ y
    paired = (x[features.text_to_image] * y).sum(dim=1)
    all_pairs, n = float(mean_x @ mean_y), len(x)
    matched = float(w @ paired)
    unpaired = (all_pairs * n - matched) / (n - 1) if n > 1 else float("nan")
    rows_x, rows_y = _rows(n, seed), _rows(len(y), seed)
    few_x, few_y, few_w = x[rows_x].float(), y[rows_y].float(), w[rows_y]
    return {
        "gap/centroid": float((mean_x - mean_y).norm()),
        "gap/cs": float(cauchy_schwarz_divergence(few_x, few_y, bandwidth=bandwidth, weights_y=few_w)),
        "gap/mmd2": float(mmd(few_x, few_y, bandwidth=bandwidth, weights_y=few_w)),
        "gap/probe_accuracy": probe_accuracy(x.float(), y.float(), features.text_to_image, seed=seed),
        "gap/paired_cosine": matched,
        "gap/unpaired_cosine": unpaired,
        "gap/pair_margin": matched - unpaired,
        "gap/frechet": frechet_distance(x, y, w),
        "uniformity/image": _uniformity(few_x),
        "uniformity/text": _uniformity(few_y),
        "uniformity/cross": _log_mean(few_x, few_y),
        "effective_rank/image": effective_rank(x, torch.ones(n, dtype=x.dtype)),
        "effective_rank/text": effective_rank(y, w),
    } | _centred_gap(x - mean_x, y - mean_y, w, (rows_x, rows_y), bandwidth)


def _centred_gap(x: Tensor, y: Tensor, w: Tensor, rows: tuple[Tensor, Tensor], bandwidth: float) -> dict[str, float]:
    """Return the centroid distance, D_CS and Frechet distance of centred rows. A row shorter than rounding errors
    stays at 0, so that collapsed features have no arbitrary direction. rows: those used for D_CS."""
    x, y = (torch.where(s.norm(dim=1, keepdim=True) > ROUNDING, normalize(s, dim=1), 0.0) for s in (x, y))
    few_x, few_y, few_w = x[rows[0]].float(), y[rows[1]].float(), w[rows[1]]
    return {
        "centred_gap/centroid": float((x.mean(dim=0) - w @ y).norm()),
        "centred_gap/cs": float(cauchy_schwarz_divergence(few_x, few_y, bandwidth=bandwidth, weights_y=few_w)),
        "centred_gap/frechet": frechet_distance(x, y, w),
    }


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
    w = torch.full((len(y),), 1 / len(y), dtype=torch.float64) if weights_y is None else weights_y
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(dim=0), w @ y
    x0, y0 = x - mean_x, y - mean_y
    cov_x, cov_y = x0.T @ x0 / len(x), y0.T @ (w[:, None] * y0)
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * root_trace(cov_x, cov_y)
    return float(distance.clamp_min(0))  # rounding errors may make it negative


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
    values = torch.linalg.eigvalsh(x.T @ (weights[:, None] * x)).clamp_min(0).sqrt()
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def _rows(n: int, seed: int) -> Tensor:
    if n <= MAX_ROWS:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MAX_ROWS]
