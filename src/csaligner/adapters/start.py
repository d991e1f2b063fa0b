"""Closed-form starts: affine maps fitted to the training features that initialise the adapters.

    start(x) = (x / |x| - mean) @ map + offset

- identity: mean of the modality, map = I: centred features.
- moments: the covariances S_x, S_y of the modalities are matched half-way. With the shrunk
  S' = S + shrinkage * tr(S)/d * I and P = (S_x + S_y)/2, map_x = S_x'^(-1/2) P'^(1/4): whitening of the modality,
  then half re-colouring with the pooled covariance (CORAL, Sun et al. 2016, re-colours fully).
- projection (dimensions differ): regularised canonical correlation analysis of the pairs (Hotelling 1936):
  with S_x'^(-1/2) S_xy S_y'^(-1/2) = U diag(r) V', map_x = S_x'^(-1/2) U diag(r), map_y = S_y'^(-1/2) V diag(r).
- random: no fit; mean and offset 0, map of independent N(0, 1/d_out).
- with a fixed target modality of mean m: start(x) = spread * u / |u| + m, u = (I - m m' / |m|^2)(x / |x| - mean),
  centred features without their component along m, at a constant distance from m. A component along m, or varying
  lengths, would make a text similar to all images or to none. If the dimensions differ: ridge regression of the
  target's normalised features on the other modality's.

Each of the c captions of an image has weight 1/c, an unpaired row 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.config import StartConfig
from csaligner.types import PairedFeatures

from .moments import blocks, unit, unit_blocks

Unpaired = tuple[Tensor | None, Tensor | None]  # (K, d_image) and (L, d_text)


@dataclass(frozen=True)
class Affine:
    """mean: (d_in,); map: (d_in, d_out) or None for the identity; offset: (d_out,). spread: the length that mapped
    rows are scaled to before the offset is added; None: no scaling."""

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
    """Weighted means and second moments of the normalised training features of n images, in float64."""

    n: int
    mean_x: Tensor
    mean_y: Tensor
    cov_x: Tensor
    cov_y: Tensor
    cov_xy: Tensor

    @classmethod
    def of(cls, features: PairedFeatures) -> _Moments:
        x, y, owner = features.image, features.text, features.text_to_image
        captions_per_image = torch.bincount(owner, minlength=len(x))
        w = (1.0 / captions_per_image[owner].double())[:, None] / len(x)  # (M, 1), sums to 1
        mean_x = _sum(rows.sum(dim=0) for rows in unit_blocks(x)) / len(x)
        mean_y = _sum((w[part] * unit(y[part])).sum(dim=0) for part in blocks(len(y)))
        cov_x = _second(x, mean_x) / len(x)
        cov_y, cov_xy = torch.zeros(len(mean_y), len(mean_y)).double(), torch.zeros(len(mean_x), len(mean_y)).double()
        for part in blocks(len(y)):
            y0 = unit(y[part]) - mean_y
            weighted = w[part] * y0
            cov_y += y0.T @ weighted
            cov_xy += (unit(x[owner[part]]) - mean_x).T @ weighted
        return cls(len(x), mean_x, mean_y, cov_x, cov_y, cov_xy)

    def with_unpaired(self, unpaired: Unpaired) -> _Moments:
        """Add unpaired rows, each with the weight of a paired image, to means and covariances within a modality."""
        (mean_x, cov_x), (mean_y, cov_y) = (
            (mean, cov) if rows is None or len(rows) == 0 else _pooled(self.n, mean, cov, rows)
            for mean, cov, rows in ((self.mean_x, self.cov_x, unpaired[0]), (self.mean_y, self.cov_y, unpaired[1]))
        )
        return replace(self, mean_x=mean_x, mean_y=mean_y, cov_x=cov_x, cov_y=cov_y)


def _pooled(n: int, mean: Tensor, cov: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of n rows with these moments and further rows together."""
    total = n + len(rows)
    pooled = (n * mean + _sum(part.sum(dim=0) for part in unit_blocks(rows))) / total
    shift = mean - pooled
    return pooled, (n * (cov + torch.outer(shift, shift)) + _second(rows, pooled)) / total


def _second(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the sum of the outer products of the normalised, centred rows, (d, d)."""
    return _sum((part - mean).T @ (part - mean) for part in unit_blocks(rows))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def fit_starts(
    features: PairedFeatures,
    config: StartConfig,
    dim: int | None = None,
    fixed: str | None = None,
    unpaired: Unpaired = (None, None),
) -> tuple[Affine, Affine]:
    """Return the starts of (image, text). fixed: "image" or "text", a modality whose features stay unchanged. unpaired:
    features of unpaired images and texts, which count in means and covariances, except in a projection.

    kind chosen is read as auto: adapters/untrained.py computes the chosen start.
    """
    if config.kind == "random":
        return _random((features.image.shape[1], features.text.shape[1]), dim, fixed)
    if config.kind == "chosen":
        config = config.model_copy(update={"kind": "auto"})
    m = _Moments.of(features)
    if fixed is not None:
        return _onto_fixed(m, m.with_unpaired(unpaired), config, fixed)
    same = len(m.mean_x) == len(m.mean_y) and dim in (None, len(m.mean_x))
    kind = config.kind if config.kind != "auto" else ("moments" if same else "projection")
    if kind == "projection" or not same:
        maps = _canonical(m, _projection_shrinkage(m, config), dim)
        return _scaled(features, m, maps)
    m = m.with_unpaired(unpaired)
    if kind == "moments":
        maps = _half_coral(m, config.shrinkage)
    else:
        zero = torch.zeros(len(m.mean_x))
        return Affine(m.mean_x.float(), None, zero), Affine(m.mean_y.float(), None, zero)
    return _scaled(features, m, maps)


def blank(dim_in: int, dim_out: int) -> Affine:
    """Return a start of zeros, a placeholder for loaded weights."""
    return Affine(torch.zeros(dim_in), torch.zeros(dim_in, dim_out), torch.zeros(dim_out))


def _random(dims: tuple[int, int], dim: int | None, fixed: str | None) -> tuple[Affine, Affine]:
    """Return random maps of both modalities, from torch's generator; a fixed modality keeps its features."""
    out = dim or min(dims)
    if fixed is not None:
        out = dims[0] if fixed == "image" else dims[1]
    made = {
        side: Affine.identity(d)
        if side == fixed
        else Affine(torch.zeros(d), torch.randn(d, out) / math.sqrt(out), torch.zeros(out))
        for side, d in zip(("image", "text"), dims, strict=True)
    }
    return made["image"], made["text"]


def _scaled(features: PairedFeatures, m: _Moments, maps: tuple[Tensor, Tensor]) -> tuple[Affine, Affine]:
    image = affine(unit_blocks(features.image), m.mean_x, maps[0])
    return image, affine(unit_blocks(features.text), m.mean_y, maps[1])


def affine(points: Iterable[Tensor], mean: Tensor, map_: Tensor) -> Affine:
    """Return the start (points - mean) @ map_, scaled to mean row length 1, as the residual blocks expect. points: in
    blocks (n, d)."""
    length = torch.cat([((block - mean) @ map_).norm(dim=1) for block in points]).mean().clamp_min(1e-12)
    return Affine(mean.float(), (map_ / length).float(), torch.zeros(map_.shape[1]))


def _half_coral(m: _Moments, shrinkage: float) -> tuple[Tensor, Tensor]:
    recolour = power((m.cov_x + m.cov_y) / 2, 0.25, shrinkage)
    return power(m.cov_x, -0.5, shrinkage) @ recolour, power(m.cov_y, -0.5, shrinkage) @ recolour


def _canonical(m: _Moments, shrinkage: float, dim: int | None) -> tuple[Tensor, Tensor]:
    white_x, white_y = power(m.cov_x, -0.5, shrinkage), power(m.cov_y, -0.5, shrinkage)
    u, r, vh = torch.linalg.svd(white_x @ m.cov_xy @ white_y, full_matrices=False)
    k = len(r) if dim is None else min(dim, len(r))
    map_x, map_y = white_x @ u[:, :k] * r[:k], white_y @ vh[:k].T * r[:k]
    if dim is not None and dim > k:  # fewer directions than dim: the remaining dimensions start at zero
        map_x, map_y = (torch.nn.functional.pad(a, (0, dim - k)) for a in (map_x, map_y))
    return map_x, map_y


def _onto_fixed(pairs: _Moments, m: _Moments, config: StartConfig, fixed: str) -> tuple[Affine, Affine]:
    """Map the trained modality onto the fixed one: directions orthogonal to its mean at a constant distance (auto), a
    shift of the mean (identity), CORAL with the fixed modality's covariance (moments), or ridge regression
    (projection, or if the dimensions differ). pairs: moments of the pairs alone, for the regression."""
    if config.kind == "projection" or pairs.cov_xy.shape[0] != pairs.cov_xy.shape[1]:
        m = pairs
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
    return config.projection_shrinkage / math.sqrt(m.n)


def power(cov: Tensor, exponent: float, shrinkage: float) -> Tensor:
    """Return (cov + shrinkage * mean eigenvalue * I)^exponent for a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(cov)
    result: Tensor = (vectors * shrunk(values.clamp_min(0), shrinkage) ** exponent) @ vectors.T
    return result


def shrunk(values: Tensor, shrinkage: float) -> Tensor:
    """Return eigenvalues (d,) + shrinkage * their mean, by at least 1e-12."""
    return values + (shrinkage * values.mean()).clamp_min(1e-12)
