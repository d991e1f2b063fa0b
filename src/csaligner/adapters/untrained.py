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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .pair_moments import Moments
from .pair_moments import PairMoments as PairMoments  # noqa: PLC0414  (exported)
from .start import Affine, power

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
    """Mix of half-CORAL moments and canonical correlations; see the module.

    P R is computed without singular vectors. With W_s = S_s'^(-1/2), T = W_x' S_xy W_y = U diag(r) V' and |T| =
    (T'T)^(1/2): P_x = W_x T V, P_y = W_y |T| V, and polar(V' B) = V' polar(B), so P_x R = W_x T Q and
    P_y R = W_y |T| Q with Q = polar(T' W_x' S_x M_x + |T| W_y' S_y M_y).
    """
    sides, pairs = moments.everything, (moments.image, moments.text)
    shrinkage = 20 / math.sqrt(moments.n + moments.unpaired)
    half = power((sides[0].cov + sides[1].cov) / 2, 0.25, shrinkage)
    white = [_white(side, 36 / math.sqrt(moments.n)) for side in pairs]
    t = white[0].T @ moments.cross_cov @ white[1]
    roots = [t, _root(t.T @ t)]
    m, b = [], torch.zeros(t.shape[1], len(half), dtype=t.dtype)
    for number, (side, paired) in enumerate(zip(sides, pairs, strict=True)):
        map_, along = side.power_times(-0.5, shrinkage, half)
        size = (side.spectrum[0] @ along.square().sum(dim=1)).clamp_min(1e-24).sqrt()
        seen = along if side is paired else paired.spectrum[1].T @ map_
        roots[number] = roots[number] / _size(white[number] @ roots[number], side.cov)
        weights, kept = paired.spectrum[0] * paired.powers(-0.5, 36 / math.sqrt(moments.n)), _kept(paired)
        b += roots[number].T @ (weights[kept, None] * (seen[kept] / size))
        m.append(map_ / size)
    turned = _polar(b)
    p = [w @ (root @ turned) for w, root in zip(white, roots, strict=True)]
    return Family(Mixes(sides, m, p), f"mix {MIX_PRIOR:g}")


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


class Mixes(Mapping[str, Starts]):
    """The starts of (1 - w) m + w p by label, computed when they are read; ends: those of w = 0 and of w = 1."""

    def __init__(self, sides: tuple[Moments, Moments], m: list[Tensor], p: list[Tensor]) -> None:
        self._sides, self._maps = sides, list(zip(m, p, strict=True))
        self.weights = {f"mix {w:g}": w for w in MIX_WEIGHTS}

    def __getitem__(self, label: str) -> Starts:
        w = self.weights[label]
        return _starts(self._sides, [(1 - w) * a + w * b for a, b in self._maps])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def ends(self) -> tuple[Starts, Starts]:
        first, last = (_starts(self._sides, [maps[end] for maps in self._maps]) for end in (0, 1))
        return first, last


class _Canonical:
    """Canonical correlations of the pairs; maps(e): maps of both modalities, with correlations to the power e.

    With S_x = V diag(s) V', the singular value decomposition is that of diag(s_x'^(-1/2)) V_x' S_xy V_y
    diag(s_y'^(-1/2)); rows and columns of eigenvalue 0 are zero and omitted.
    """

    def __init__(self, moments: PairMoments, c: float, dim: int | None = None) -> None:
        white = [_white(side, c / math.sqrt(moments.n)) for side in (moments.image, moments.text)]
        u, self._r, vh = torch.linalg.svd(white[0].T @ moments.cross_cov @ white[1], full_matrices=False)
        self._u, self._v = white[0] @ u, white[1] @ vh.T
        self._dim = min(moments.cross.shape) if dim is None else dim

    def maps(self, exponent: float) -> tuple[Tensor, Tensor]:
        k = min(self._dim, len(self._r))
        weights = self._r[:k] ** exponent
        more = self._dim - k  # further dimensions are zero
        return pad(self._u[:, :k] * weights, (0, more)), pad(self._v[:, :k] * weights, (0, more))


def _white(side: Moments, shrinkage: float) -> Tensor:
    """Return V diag(s'^(-1/2)), (d, r), without eigenvalues of 0."""
    kept = _kept(side)
    return side.spectrum[1][:, kept] * side.powers(-0.5, shrinkage)[kept]


def _kept(side: Moments) -> Tensor:
    """Return which eigenvalues of the covariance are not 0, (r,) bool."""
    values = side.spectrum[0]
    return values > 1e-12 * values.max()


def _root(square: Tensor) -> Tensor:
    """Return the square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(square)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _polar(b: Tensor) -> Tensor:
    """Return (b b')^(-1/2) b, the orthonormal factor of b (r, d) with r <= d; 0 along singular values of 0."""
    values, vectors = torch.linalg.eigh(b @ b.T)
    inverse = torch.where(values > 1e-15 * values.max(), values, torch.inf).rsqrt()
    found: Tensor = (vectors * inverse) @ (vectors.T @ b)
    return found


def _scaled(map_: Tensor, cov: Tensor) -> Tensor:
    """Scale the map so that mapped rows of this covariance have root mean square length 1."""
    return map_ / _size(map_, cov)


def _size(map_: Tensor, cov: Tensor) -> Tensor:
    """Return the root mean square length of mapped rows of this covariance."""
    return (map_ * (cov @ map_)).sum().clamp_min(1e-24).sqrt()


def _starts(sides: tuple[Moments, Moments], maps: list[Tensor]) -> Starts:
    image, text = (
        Affine(side.mean.float(), map_.float(), torch.zeros(map_.shape[1]))
        for side, map_ in zip(sides, maps, strict=True)
    )
    return image, text


def _cca_label(c: float, e: float) -> str:
    return f"cca {c:g}, {e:g}"
