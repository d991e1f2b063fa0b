"""Closed-form starts: the affine map that an adapter computes before the first step.

    start(x) = (x / |x| - mean) @ map + offset

Every adapter begins with such a map, fitted to the training features, and learns from there.

- identity: mean of the modality, no map: centred features as they are.
- moments: the two covariances S_x, S_y are matched half-way. With the shrunk S' = S + shrinkage * tr(S)/d * I
  and P = (S_x + S_y)/2, map_x = S_x'^(-1/2) P'^(1/4): whitening of the own modality, half re-coloured with the
  pooled covariance (half of CORAL, Sun et al. 2016, which re-colours wholly).
- projection (dimensions differ): regularised canonical correlation analysis of the pairs (Hotelling 1936):
  with S_x'^(-1/2) S_xy S_y'^(-1/2) = U diag(r) V', map_x = S_x'^(-1/2) U diag(r), map_y = S_y'^(-1/2) V diag(r).
- onto a fixed side: rows of one length around the fixed side's mean m, in the directions of the own centred features
  without their part along m: start(x) = spread * u / |u| + m, u = (I - m m' / |m|^2)(x / |x| - mean). With the part
  along m, or with lengths that vary, a text is near to all pictures or far from all, whatever it says. Where the
  dimensions differ, ridge regression of the fixed side's normalised features on the other side's.

Captions weigh 1/m, m captions of one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.config import StartConfig
from csaligner.types import PairedFeatures


@dataclass(frozen=True)
class Affine:
    """mean: (d_in,); map: (d_in, d_out) or None for the identity; offset: (d_out,). spread: the length of mapped rows
    before the offset is added, None: as they come."""

    mean: Tensor
    map: Tensor | None
    offset: Tensor
    spread: float | None = None

    @classmethod
    def identity(cls, dim: int) -> Affine:
        return cls(torch.zeros(dim), None, torch.zeros(dim))

    def __call__(self, x: Tensor) -> Tensor:
        centred = normalize(x, dim=1) - self.mean
        return (centred if self.map is None else centred @ self.map) + self.offset


@dataclass(frozen=True)
class _Moments:
    """Normalised training features in float64, their weighted means and second moments."""

    x: Tensor
    y: Tensor
    mean_x: Tensor
    mean_y: Tensor
    cov_x: Tensor
    cov_y: Tensor
    cov_xy: Tensor

    @classmethod
    def of(cls, features: PairedFeatures) -> _Moments:
        x = normalize(features.image.double(), dim=1)
        y = normalize(features.text.double(), dim=1)
        captions_per_image = torch.bincount(features.text_to_image, minlength=len(x))
        w = (1.0 / captions_per_image[features.text_to_image].double())[:, None] / len(x)  # (M, 1), sums to 1
        mean_x, mean_y = x.mean(dim=0), (w * y).sum(dim=0)
        x0, y0 = x - mean_x, y - mean_y
        cov_xy = x0[features.text_to_image].T @ (w * y0)
        return cls(x, y, mean_x, mean_y, x0.T @ x0 / len(x), y0.T @ (w * y0), cov_xy)


def fit_starts(
    features: PairedFeatures, config: StartConfig, dim: int | None = None, fixed: str | None = None
) -> tuple[Affine, Affine]:
    """The starts of (image, text). fixed: "image" or "text", a side that keeps its own normalised features."""
    m = _Moments.of(features)
    if fixed is not None:
        return _onto_fixed(m, config, fixed)
    same = m.x.shape[1] == m.y.shape[1] and dim in (None, m.x.shape[1])
    kind = config.kind if config.kind != "auto" else ("moments" if same else "projection")
    if kind == "projection" or not same:
        maps = _canonical(m, _projection_shrinkage(m, config), dim)
    elif kind == "moments":
        maps = _half_coral(m, config.shrinkage)
    else:
        zero = torch.zeros(m.x.shape[1])
        return Affine(m.mean_x.float(), None, zero), Affine(m.mean_y.float(), None, zero)
    return affine(m.x, m.mean_x, maps[0]), affine(m.y, m.mean_y, maps[1])


def blank(dim_in: int, dim_out: int) -> Affine:
    """A start of zeros, to be filled from a file."""
    return Affine(torch.zeros(dim_in), torch.zeros(dim_in, dim_out), torch.zeros(dim_out))


def affine(points: Tensor, mean: Tensor, map_: Tensor) -> Affine:
    """Scaled so that mapped rows have length 1 in the mean: the scale the residual blocks expect."""
    length = ((points - mean) @ map_).norm(dim=1).mean().clamp_min(1e-12)
    return Affine(mean.float(), (map_ / length).float(), torch.zeros(map_.shape[1]))


def _half_coral(m: _Moments, shrinkage: float) -> tuple[Tensor, Tensor]:
    recolour = power((m.cov_x + m.cov_y) / 2, 0.25, shrinkage)
    return power(m.cov_x, -0.5, shrinkage) @ recolour, power(m.cov_y, -0.5, shrinkage) @ recolour


def _canonical(m: _Moments, shrinkage: float, dim: int | None) -> tuple[Tensor, Tensor]:
    white_x, white_y = power(m.cov_x, -0.5, shrinkage), power(m.cov_y, -0.5, shrinkage)
    u, r, vh = torch.linalg.svd(white_x @ m.cov_xy @ white_y, full_matrices=False)
    k = len(r) if dim is None else min(dim, len(r))
    map_x, map_y = white_x @ u[:, :k] * r[:k], white_y @ vh[:k].T * r[:k]
    if dim is not None and dim > k:  # more room than directions: the rest starts at zero
        map_x, map_y = (torch.nn.functional.pad(a, (0, dim - k)) for a in (map_x, map_y))
    return map_x, map_y


def _onto_fixed(m: _Moments, config: StartConfig, fixed: str) -> tuple[Affine, Affine]:
    """The side that learns lands on the fixed one: directions without its mean at one distance from it (auto), the mean
    moved there (identity), CORAL (moments: the covariance of the fixed side), or ridge regression (projection, or
    where dimensions differ)."""
    if fixed == "image":
        cov, target_cov, cross, mean, target_mean = m.cov_y, m.cov_x, m.cov_xy.T, m.mean_y, m.mean_x
    else:
        cov, target_cov, cross, mean, target_mean = m.cov_x, m.cov_y, m.cov_xy, m.mean_x, m.mean_y
    same = len(mean) == len(target_mean)
    if config.kind == "projection" or not same:
        map_ = power(cov, -1.0, _projection_shrinkage(m, config)) @ cross
    elif config.kind == "moments":
        map_ = power(cov, -0.5, config.shrinkage) @ power(target_cov, 0.5, config.shrinkage)
    else:
        map_ = torch.eye(len(mean), dtype=cov.dtype)
    spread = None
    if same and config.kind == "auto":
        map_ = map_ - torch.outer(target_mean, target_mean) / target_mean.square().sum().clamp_min(1e-12)
        spread = config.spread * float(target_cov.trace().sqrt())
    start = Affine(mean.float(), map_.float(), target_mean.float(), spread)
    untouched = Affine.identity(len(target_mean))
    return (untouched, start) if fixed == "image" else (start, untouched)


def _projection_shrinkage(m: _Moments, config: StartConfig) -> float:
    return config.projection_shrinkage / math.sqrt(len(m.x))


def power(cov: Tensor, exponent: float, shrinkage: float) -> Tensor:
    """(cov + shrinkage * mean eigenvalue * I)^exponent for a symmetric positive semi-definite matrix."""
    eigenvalues, vectors = torch.linalg.eigh(cov)
    eigenvalues = eigenvalues.clamp_min(0)
    floor = (shrinkage * eigenvalues.mean()).clamp_min(1e-12)
    powers: Tensor = (eigenvalues + floor) ** exponent
    result: Tensor = (vectors * powers) @ vectors.T
    return result
