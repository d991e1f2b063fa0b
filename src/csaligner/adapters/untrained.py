"""Families of untrained alignments: closed-form affine maps, one per candidate setting.

Rows x are normalised to unit length first. N pairs, m captions of one image have weight 1/m each; K = (unpaired
images + unpaired texts) / 2.

mix (equal dimensions; w in MIX_WEIGHTS):
    M_s = S_s'^(-1/2) ((S_x + S_y)/2)'^(1/4): half-CORAL moments (Sun et al. 2016) of paired AND unpaired rows,
          shrinkage 20 / sqrt(N + K)
    P_s = canonical correlations of the pairs (Hotelling 1936) to the power 1, shrinkage 36 / sqrt(N)
    R = polar(sum_i (P x_i)(M x_i)' + sum_j (P y_j)(M y_j)'): one rotation for both modalities, which keeps
        cosines and maps P to the coordinates of M
    map_s = (1 - w) M_s + w P_s R, M_s and P_s scaled to root mean square length 1
cca (any dimensions; c in CCA_SHRINKAGE, e in CCA_POWERS): canonical correlations to the power e, shrinkage c / sqrt(N);
    below FEW_PAIRS pairs only c = 12, e = 1.
onto (one modality fixed; w in ONTO_WEIGHTS): (1 - w) CORAL with shrinkage 60 / sqrt(N) + w ridge regression onto the
    fixed modality with shrinkage 36 / sqrt(N), both scaled to its root mean square; mapped rows get that distance from
    its mean. A further candidate, "onto mean", is the start without a map at three times the distance.

S' = S + shrinkage * tr(S)/d * I.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from csaligner.types import PairedFeatures

from .moments import blocks, unit
from .start import Affine, power, shrunk

MIX_WEIGHTS, MIX_PRIOR = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0), 0.25
CCA_SHRINKAGE, CCA_POWERS, CCA_PRIOR, CCA_FEW = (12.0, 36.0, 100.0), (0.5, 1.0, 2.0), (36.0, 1.0), (12.0, 1.0)
ONTO_WEIGHTS, ONTO_PRIOR = (0.0, 0.25, 0.375, 0.5, 0.75), 0.25

FEW_PAIRS = 100  # with fewer and different dimensions, nothing is chosen

Starts = tuple[Affine, Affine]  # of images, of texts


@dataclass(frozen=True)
class Family:
    """candidates: by label; prior: label of the default candidate."""

    candidates: Mapping[str, Starts]
    prior: str


@dataclass(frozen=True)
class Moments:
    """Moments of one modality, as weighted sums over rows in float64; moments without a fold are a difference.

    weight: sum of weights; first: (d,); second: (d, d).
    """

    weight: float
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> Moments:
        """Moments of rows / |rows|. rows: (n, d); weights: (n,), default 1."""
        d = rows.shape[1]
        first, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
        for part in blocks(len(rows)):
            x = unit(rows[part])
            weighted = x if weights is None else weights[part, None] * x
            first += weighted.sum(dim=0)
            second += x.T @ weighted
        return cls(float(len(rows)) if weights is None else float(weights.sum()), first, second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.weight + other.weight, self.first + other.first, self.second + other.second)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.weight - other.weight, self.first - other.first, self.second - other.second)

    @property
    def mean(self) -> Tensor:
        return self.first / self.weight

    @cached_property
    def cov(self) -> Tensor:
        return self.second / self.weight - torch.outer(self.mean, self.mean)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,), at least 0, and eigenvectors (d, d) of the covariance."""
        values, vectors = torch.linalg.eigh(self.cov)
        return values.clamp_min(0), vectors

    def powers(self, exponent: float, shrinkage: float) -> Tensor:
        """Return the eigenvalues (d,) of `power(cov, exponent, shrinkage)`."""
        return shrunk(self.spectrum[0], shrinkage) ** exponent

    def power(self, exponent: float, shrinkage: float) -> Tensor:
        """Return `power(cov, exponent, shrinkage)` of adapters/start.py, (d, d)."""
        vectors = self.spectrum[1]
        return (vectors * self.powers(exponent, shrinkage)) @ vectors.T


@dataclass(frozen=True)
class PairMoments:
    """Moments of pairs, from which families are computed. image, text: of the pairs; cross: (d_image, d_text), sum of
    outer products over pairs; unpaired_image, unpaired_text: of unpaired rows, if any."""

    image: Moments
    text: Moments
    cross: Tensor
    unpaired_image: Moments | None = None
    unpaired_text: Moments | None = None

    @classmethod
    def of(cls, features: PairedFeatures) -> PairMoments:
        x, y, owner = features.image, features.text, features.text_to_image
        w = caption_shares(owner, len(x))
        cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        for part in blocks(len(y)):
            cross += unit(x[owner[part]]).T @ (w[part, None] * unit(y[part]))
        return cls(Moments.of(x), Moments.of(y, w), cross)

    def with_unpaired(self, image: Tensor | None, text: Tensor | None) -> PairMoments:
        """Add unpaired features. image: (K, d_image); text: (L, d_text)."""
        return replace(self, unpaired_image=_moments(image), unpaired_text=_moments(text))

    def without(self, held: PairMoments) -> PairMoments:
        """Subtract the pairs of `held`."""
        return replace(self, image=self.image - held.image, text=self.text - held.text, cross=self.cross - held.cross)

    @property
    def n(self) -> float:
        """Number of paired images."""
        return self.image.weight

    @property
    def unpaired(self) -> float:
        """K: half the number of unpaired rows."""
        return sum(m.weight for m in (self.unpaired_image, self.unpaired_text) if m) / 2

    @property
    def cross_cov(self) -> Tensor:
        return self.cross / self.n - torch.outer(self.image.mean, self.text.mean)

    @property
    def everything(self) -> tuple[Moments, Moments]:
        """Moments of all images and of all texts, paired or not."""
        image = self.image + self.unpaired_image if self.unpaired_image else self.image
        text = self.text + self.unpaired_text if self.unpaired_text else self.text
        return image, text


def untrained_family(
    moments: PairMoments,
    dim: int | None = None,
    fixed: str | None = None,
    *,
    few: bool | None = None,
) -> Family:
    """Return the family for these moments. dim: output dimension, None: maximum; fixed: "image" or "text".

    onto for a fixed modality of equal dimension, ridge regression (one candidate) for one of another dimension; without
    a fixed modality, mix for equal dimensions, else cca. few: whether there are fewer than FEW_PAIRS pairs (in folds:
    of all pairs); None: by these moments.
    """
    d_image, d_text = moments.cross.shape
    same = d_image == d_text and dim in (None, d_image)
    if fixed is not None:
        return onto_family(moments, fixed) if same else ridge_family(moments, fixed)
    return mix_family(moments) if same else cca_family(moments, dim, few=few)


def ridge_family(moments: PairMoments, fixed: str) -> Family:
    """Ridge regression onto the fixed modality, shrinkage 12 / sqrt(N)."""
    own, target = (moments.text, moments.image) if fixed == "image" else (moments.image, moments.text)
    cross = moments.cross_cov.T if fixed == "image" else moments.cross_cov
    map_ = own.power(-1.0, 12 / math.sqrt(moments.n)) @ cross
    start, unchanged = Affine(own.mean.float(), map_.float(), target.mean.float()), Affine.identity(len(target.mean))
    return Family({"ridge": (unchanged, start) if fixed == "image" else (start, unchanged)}, "ridge")


def mix_family(moments: PairMoments) -> Family:
    """Mix of half-CORAL moments and canonical correlations; see the module."""
    sides = moments.everything
    shrinkage = 20 / math.sqrt(moments.n + moments.unpaired)
    half = power((sides[0].cov + sides[1].cov) / 2, 0.25, shrinkage)
    m = [_scaled(side.power(-0.5, shrinkage) @ half, side.cov) for side in sides]
    p = [_scaled(a, s.cov) for a, s in zip(_Canonical(moments, 36.0).maps(1.0), sides, strict=True)]
    pairs = (moments.image.cov, moments.text.cov)
    u, _, vh = torch.linalg.svd(sum((p[i].T @ pairs[i] @ m[i] for i in range(2)), torch.zeros_like(pairs[0])))
    p = [a @ (u @ vh) for a in p]
    found = {
        f"mix {w:g}": _starts(sides, [(1 - w) * a + w * b for a, b in zip(m, p, strict=True)]) for w in MIX_WEIGHTS
    }
    return Family(found, f"mix {MIX_PRIOR:g}")


def cca_family(moments: PairMoments, dim: int | None = None, *, few: bool | None = None) -> Family:
    """Regularised canonical correlations of the pairs; see the module and untrained_family."""
    found = {}
    few = moments.n < FEW_PAIRS if few is None else few
    for c in (CCA_FEW[0],) if few else CCA_SHRINKAGE:
        canonical = _Canonical(moments, c, dim)
        for e in (CCA_FEW[1],) if few else CCA_POWERS:
            maps = [_scaled(a, s.cov) for a, s in zip(canonical.maps(e), (moments.image, moments.text), strict=True)]
            found[_cca_label(c, e)] = _starts((moments.image, moments.text), maps)
    return Family(found, _cca_label(*(CCA_FEW if few else CCA_PRIOR)))


def canonical_starts(moments: PairMoments, shrinkage: float, power: float) -> Starts:
    """Canonical correlations of the pairs to a power, scaled to root mean square length 1. shrinkage: c of the
    module."""
    maps = _Canonical(moments, shrinkage).maps(power)
    sides = (moments.image, moments.text)
    return _starts(sides, [_scaled(a, s.cov) for a, s in zip(maps, sides, strict=True)])


def onto_family(moments: PairMoments, fixed: str) -> Family:
    """Maps of one modality onto the other, which is not changed. fixed: "image" or "text"; equal dimensions."""
    image, text = moments.everything
    own, target = (text, image) if fixed == "image" else (image, text)
    cross = moments.cross_cov.T if fixed == "image" else moments.cross_cov
    size = target.cov.trace().clamp_min(1e-24).sqrt()
    along = torch.outer(target.mean, target.mean) / target.mean.square().sum().clamp_min(1e-24)
    shrink = 60 / math.sqrt(moments.n + moments.unpaired)
    coral = size * _scaled(own.power(-0.5, shrink) @ target.power(0.5, shrink), own.cov)
    pairs = moments.text if fixed == "image" else moments.image
    ridge = size * _scaled(pairs.power(-1.0, 36 / math.sqrt(moments.n)) @ cross, own.cov)
    maps = {f"onto {w:g}": ((1 - w) * coral + w * ridge, size) for w in ONTO_WEIGHTS}
    maps["onto mean"] = (torch.eye(len(target.mean), dtype=along.dtype), 3 * size)
    unchanged, found = Affine.identity(len(target.mean)), {}
    for label, (map_, distance) in maps.items():
        start = Affine(own.mean.float(), (map_ - map_ @ along).float(), target.mean.float(), float(distance))
        found[label] = (unchanged, start) if fixed == "image" else (start, unchanged)
    return Family(found, f"onto {ONTO_PRIOR:g}")


def caption_shares(text_to_image: Tensor, n: int) -> Tensor:
    """Return weights (M,), float64: 1/m for each caption, m captions of its image."""
    return 1.0 / torch.bincount(text_to_image, minlength=n)[text_to_image].double()


class _Canonical:
    """Canonical correlations of the pairs; maps(e): maps of both modalities, with correlations to the power e.

    With S_x = V diag(s) V', the singular value decomposition is that of diag(s_x'^(-1/2)) V_x' S_xy V_y
    diag(s_y'^(-1/2)); rows and columns of eigenvalue 0 are zero and omitted.
    """

    def __init__(self, moments: PairMoments, c: float, dim: int | None = None) -> None:
        shrinkage, sides = c / math.sqrt(moments.n), (moments.image, moments.text)
        white = []
        for side in sides:
            values, vectors = side.spectrum
            kept = values > 1e-12 * values.max()
            kept[-min(moments.cross.shape) :] = True  # as many correlations as dimensions
            white.append(vectors[:, kept] * side.powers(-0.5, shrinkage)[kept])
        u, self._r, vh = torch.linalg.svd(white[0].T @ moments.cross_cov @ white[1], full_matrices=False)
        self._u, self._v, self._dim = white[0] @ u, white[1] @ vh.T, dim

    def maps(self, exponent: float) -> tuple[Tensor, Tensor]:
        k = len(self._r) if self._dim is None else min(self._dim, len(self._r))
        weights = self._r[:k] ** exponent
        more = 0 if self._dim is None else self._dim - k  # further dimensions are zero
        return pad(self._u[:, :k] * weights, (0, more)), pad(self._v[:, :k] * weights, (0, more))


def _moments(rows: Tensor | None) -> Moments | None:
    return Moments.of(rows) if rows is not None and len(rows) else None


def _scaled(map_: Tensor, cov: Tensor) -> Tensor:
    """Scale the map so that mapped rows of this covariance have root mean square length 1."""
    return map_ / (map_ * (cov @ map_)).sum().clamp_min(1e-24).sqrt()


def _starts(sides: tuple[Moments, Moments], maps: list[Tensor]) -> Starts:
    image, text = (
        Affine(side.mean.float(), map_.float(), torch.zeros(map_.shape[1]))
        for side, map_ in zip(sides, maps, strict=True)
    )
    return image, text


def _cca_label(c: float, e: float) -> str:
    return f"cca {c:g}, {e:g}"
