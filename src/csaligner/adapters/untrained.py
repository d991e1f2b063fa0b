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
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from csaligner.types import PairedFeatures

from .moments import unit
from .pair_moments import Moments
from .pair_moments import PairMoments as PairMoments  # noqa: PLC0414  (exported)
from .start import Affine

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
    d_image, d_text = moments.features
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
    P_y R = W_y |T| Q with Q = polar(T' W_x' S_x M_x + |T| W_y' S_y M_y). |T| and the polar factor are float64 also of
    moments in float32: squares lose half of the digits.
    """
    sides, pairs = moments.everything, (moments.image, moments.text)
    shrinkage, own = 20 / math.sqrt(moments.n + moments.unpaired), 36 / math.sqrt(moments.n)
    half = _pooled_root(sides, shrinkage)
    t = moments.white_cross((pairs[0].powers(-0.5, own), pairs[1].powers(-0.5, own)))
    maps, b = [], torch.zeros(t.shape[1], len(half), dtype=t.dtype)
    for side, paired, root in zip(sides, pairs, (t, _root(t)), strict=True):
        first = _Whitening(side, shrinkage, half)
        kept, white = paired.kept, paired.powers(-0.5, own)
        values = paired.spectrum[0] * white
        if side is paired:  # both sizes are sums over eigenvectors
            seen = first.along
            last = root / _norm((values * white)[kept, None] * root.square())
        else:
            seen = paired.spectrum[1].T @ first.map
            last = root / _size((paired.spectrum[1] * white)[:, kept] @ root, side.cov)
        size = _norm(side.spectrum[0][:, None] * first.along.square())
        b.addmm_(last.T, (values / size)[kept, None] * seen[kept])
        maps.append((first, size, (paired.spectrum[1] * white)[:, kept], last))
    turned = _polar(b)
    return Family(Mixes(sides, [_Mixed(*parts, turned) for parts in maps]), f"mix {MIX_PRIOR:g}")


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
    along = (torch.outer(target.mean, target.mean) / target.mean.square().sum().clamp_min(1e-24)).to(own.dtype)
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


class _Whitening:
    """S'^(-1/2) H of a covariance S and a matrix H (d, k), as a product of factors.

    along: its coordinates along the eigenvectors of S, (r, k)."""

    def __init__(self, side: Moments, shrinkage: float, half: Tensor) -> None:
        powers, self._rest = side.powers(-0.5, shrinkage), side.rest(-0.5, shrinkage)
        self._vectors, self._half = side.spectrum[1], half
        coordinates = self._vectors.T @ half
        self.along, self._more = powers[:, None] * coordinates, (powers - self._rest)[:, None] * coordinates

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows x (n, d), mapped."""
        found = (x @ self._vectors) @ self._more
        return found if self._rest == 0 else found.add_(x @ self._half, alpha=self._rest)

    @cached_property
    def map(self) -> Tensor:
        found = self._vectors @ self._more
        return found if self._rest == 0 else found.add_(self._half, alpha=self._rest)


@dataclass(frozen=True)
class _Mixed:
    """Both maps of a modality: m = first / size and p = white @ last @ turned."""

    first: _Whitening
    size: Tensor
    white: Tensor
    last: Tensor
    turned: Tensor

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the centred rows (n, d), mapped by m and by p, (n, d) each; the maps are not computed."""
        return self.first.rows(x) / self.size, (x @ self.white) @ self.last @ self.turned

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        return self.first.map / self.size, self.white @ (self.last @ self.turned)


class Mixes(Mapping[str, Starts]):
    """The starts of (1 - w) m + w p by label, computed when they are read."""

    def __init__(self, sides: tuple[Moments, Moments], mixed: list[_Mixed]) -> None:
        self._sides, self._mixed = sides, mixed
        self.weights = {f"mix {w:g}": w for w in MIX_WEIGHTS}

    def __getitem__(self, label: str) -> Starts:
        w = self.weights[label]
        return _starts(self._sides, [_lerp(*mixed.maps, w) for mixed in self._mixed])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def ends(self, features: PairedFeatures) -> tuple[PairedFeatures, PairedFeatures]:
        """Return the pairs mapped by the starts of w = 0 and of w = 1."""
        image, text = (
            mixed.rows((unit(x) - side.mean).to(side.dtype))
            for mixed, side, x in zip(self._mixed, self._sides, (features.image, features.text), strict=True)
        )
        first, last = (replace(features, image=image[end].float(), text=text[end].float()) for end in (0, 1))
        return first, last


class _Canonical:
    """Canonical correlations of the pairs; maps(e): maps of both modalities, with correlations to the power e.

    With S_x = V diag(s) V', the singular value decomposition is that of diag(s_x'^(-1/2)) V_x' S_xy V_y
    diag(s_y'^(-1/2)); rows and columns of eigenvalue 0 are zero and omitted.
    """

    def __init__(self, moments: PairMoments, c: float, dim: int | None = None) -> None:
        sides = (moments.image, moments.text)
        weights = [side.powers(-0.5, c / math.sqrt(moments.n)) for side in sides]
        u, self._r, vh = torch.linalg.svd(moments.white_cross((weights[0], weights[1])), full_matrices=False)
        white = [(side.spectrum[1] * w)[:, side.kept] for side, w in zip(sides, weights, strict=True)]
        self._u, self._v = white[0] @ u, white[1] @ vh.T
        self._dim = min(moments.features) if dim is None else dim

    def maps(self, exponent: float) -> tuple[Tensor, Tensor]:
        k = min(self._dim, len(self._r))
        weights = self._r[:k] ** exponent
        more = self._dim - k  # further dimensions are zero
        return pad(self._u[:, :k] * weights, (0, more)), pad(self._v[:, :k] * weights, (0, more))


def _pooled_root(sides: tuple[Moments, Moments], shrinkage: float) -> Tensor:
    """Return the mean of both covariances to the power 1/4, (d, d)."""
    pooled, dim = torch.lerp(sides[0].cov, sides[1].cov, 0.5), sides[0].dim or len(sides[0].first)
    values, vectors = torch.linalg.eigh(pooled)
    values = values.clamp_min(0)
    root: Tensor = (vectors * (values + (shrinkage * values.sum() / dim).clamp_min(1e-12)) ** 0.25) @ vectors.T
    return root


def _root(t: Tensor) -> Tensor:
    """Return (t't)^(1/2)."""
    wide = t.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root.to(t.dtype)


def _polar(b: Tensor) -> Tensor:
    """Return (b b')^(-1/2) b, the orthonormal factor of b (r, d) with r <= d; 0 along singular values of 0."""
    wide = b.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    inverse = torch.where(values > 1e-15 * values.max(), values, torch.inf).rsqrt()
    found: Tensor = ((vectors * inverse) @ vectors.T @ wide).to(b.dtype)
    return found


def _norm(squares: Tensor) -> Tensor:
    return squares.sum().clamp_min(1e-24).sqrt()


def _lerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    return (1 - w) * a + w * b


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
