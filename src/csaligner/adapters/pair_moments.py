"""Moments of features and of pairs, from which untrained alignments are computed.

Sums over rows are float64. Where there are fewer rows than dimensions, the rows are kept, and spectra and products are
computed from them: Gram matrices take (n / d)^3 of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from csaligner.types import PairedFeatures

from .moments import ROWS, blocks, unit

# Eigenvalues below this share of the largest count as 0 if computed from the rows.
NEGLIGIBLE = {torch.float64: 1e-13, torch.float32: 1e-6}


@dataclass(frozen=True)
class Moments:
    """Moments of one modality, as weighted sums over rows in float64; moments without a fold are a difference.

    weight: sum of weights; first: (d,); sums: the second moments (d, d), None: those of the rows. rows: the normalised
    rows (n, d) and their weights (n,), if n < d; None for more rows, and for differences. dim: the number of dimensions
    that eigenvalues are averaged over, for rows in coordinates of their span (span.py); None: d. dtype: of the
    covariance and of its spectrum.
    """

    weight: float
    first: Tensor
    sums: Tensor | None = None
    rows: tuple[Tensor, Tensor] | None = None
    dim: int | None = None
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None, dim: int | None = None) -> Moments:
        """Moments of rows / |rows|. rows: (n, d); weights: (n,), default 1."""
        n, d = rows.shape
        weight = float(n) if weights is None else float(weights.sum())
        if n < min(d, ROWS):
            x = unit(rows)
            w = x.new_ones(n) if weights is None else weights
            return cls(weight, w @ x, None, (x, w), dim)
        first, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
        for part in blocks(n):
            x = unit(rows[part])
            weighted = x if weights is None else weights[part, None] * x
            first += weighted.sum(dim=0)
            second.addmm_(x.T, weighted)
        return cls(weight, first, second, None, dim)

    def __add__(self, other: Moments) -> Moments:
        return replace(
            self,
            weight=self.weight + other.weight,
            first=self.first + other.first,
            sums=self.second + other.second,
            rows=None,
        )

    def __sub__(self, other: Moments) -> Moments:
        return replace(
            self,
            weight=self.weight - other.weight,
            first=self.first - other.first,
            sums=self.second - other.second,
            rows=None,
        )

    @property
    def mean(self) -> Tensor:
        return self.first / self.weight

    @cached_property
    def second(self) -> Tensor:
        """The sum of the outer products of the rows, (d, d)."""
        if self.sums is not None:
            return self.sums
        assert self.rows is not None
        x, weights = self.rows
        return x.T @ (weights[:, None] * x)

    @cached_property
    def cov(self) -> Tensor:
        if self.rows is not None:
            return self.centred.T @ self.centred / self.weight
        return torch.addr(self.second / self.weight, self.mean, self.mean, alpha=-1).to(self.dtype)

    @cached_property
    def centred(self) -> Tensor:
        """The rows minus their mean, times the roots of their weights, (n, d); only where the rows are known."""
        assert self.rows is not None
        x, weights = self.rows
        return (x - self.mean).mul_(weights.sqrt()[:, None]).to(self.dtype)

    @cached_property
    def _gram(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (r,) of the covariance other than 0, and eigenvectors (n, r) of the Gram matrix."""
        values, vectors = torch.linalg.eigh((self.centred @ self.centred.T).div_(self.weight))
        kept = values > NEGLIGIBLE[self.dtype] * values.max()
        return values[kept], vectors[:, kept]

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (r,), at least 0, and eigenvectors (d, r) of the covariance; further eigenvalues are 0.

        r = d, or less if the rows are known.
        """
        if self.rows is None:
            values, vectors = torch.linalg.eigh(self.cov)
            return values.clamp_min(0), vectors
        values, vectors = self._gram
        return values, self.centred.T @ (vectors / (self.weight * values).sqrt())

    @property
    def kept(self) -> Tensor:
        """Which eigenvalues of the spectrum are not 0, (r,) bool."""
        values = self.spectrum[0]
        return values > 1e-12 * values.max()

    @cached_property
    def coordinates(self) -> Tensor:
        """Coordinates of the rows minus their mean along the eigenvectors of the spectrum, (n, r); only where the rows
        are known."""
        assert self.rows is not None
        values, vectors = self._gram
        return vectors * (self.weight * values).sqrt() / self.rows[1].sqrt()[:, None].to(self.dtype)

    def powers(self, exponent: float, shrinkage: float) -> Tensor:
        """Return the eigenvalues (r,) of `power(cov, exponent, shrinkage)`, of the same eigenvectors."""
        return (self.spectrum[0] + self._added(shrinkage)) ** exponent

    def power(self, exponent: float, shrinkage: float) -> Tensor:
        """Return `power(cov, exponent, shrinkage)` of adapters/start.py, (d, d)."""
        vectors = self.spectrum[1]
        rest = self.rest(exponent, shrinkage)
        result = (vectors * (self.powers(exponent, shrinkage) - rest)) @ vectors.T
        result.diagonal().add_(rest)
        return result

    def rest(self, exponent: float, shrinkage: float) -> float:
        """The power of the eigenvalues that are not in the spectrum; 0 if there are none."""
        return float(self._added(shrinkage)) ** exponent if len(self.spectrum[0]) < len(self.first) else 0.0

    def _added(self, shrinkage: float) -> Tensor:
        """What `shrunk` of adapters/start.py adds to the eigenvalues."""
        return (shrinkage * self.spectrum[0].sum() / (self.dim or len(self.first))).clamp_min(1e-12)


@dataclass(frozen=True)
class PairMoments:
    """Moments of pairs, from which families are computed. image, text: of the pairs; sums: (d_image, d_text), sum of
    outer products over pairs, None: that of the rows; owner: the image row of each caption; unpaired_image,
    unpaired_text: of unpaired rows, if any."""

    image: Moments
    text: Moments
    sums: Tensor | None = None
    owner: Tensor | None = None
    unpaired_image: Moments | None = None
    unpaired_text: Moments | None = None

    @classmethod
    def of(cls, features: PairedFeatures, dims: tuple[int | None, int | None] = (None, None)) -> PairMoments:
        """dims: of the features before they were given in coordinates of their span; see Moments."""
        x, y, owner = features.image, features.text, features.text_to_image
        w = caption_shares(owner, len(x))
        image, text = Moments.of(x, dim=dims[0]), Moments.of(y, w, dims[1])
        if image.rows is not None and text.rows is not None:
            return cls(image, text, None, owner)
        cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
        for part in blocks(len(y)):
            cross.addmm_(unit(x[owner[part]]).T, w[part, None] * unit(y[part]))
        return cls(image, text, cross)

    def with_unpaired(self, image: Tensor | None, text: Tensor | None) -> PairMoments:
        """Add unpaired features. image: (K, d_image); text: (L, d_text)."""
        dims = self.image.dim, self.text.dim
        return replace(self, unpaired_image=_moments(image, dims[0]), unpaired_text=_moments(text, dims[1]))

    def without(self, held: PairMoments) -> PairMoments:
        """Subtract the pairs of `held`."""
        cross = self.cross - held.cross
        return replace(self, image=self.image - held.image, text=self.text - held.text, sums=cross, owner=None)

    def in_single(self) -> PairMoments:
        """Return the same moments with covariances and spectra in float32: families to compare, not to keep."""
        sides = {
            name: None if m is None else replace(m, dtype=torch.float32)
            for name, m in (
                ("image", self.image),
                ("text", self.text),
                ("unpaired_image", self.unpaired_image),
                ("unpaired_text", self.unpaired_text),
            )
        }
        return replace(self, **sides)  # type: ignore[arg-type]

    @property
    def n(self) -> float:
        """Number of paired images."""
        return self.image.weight

    @property
    def dims(self) -> tuple[int, int]:
        """Dimensions of the moments, (d_image, d_text)."""
        return len(self.image.first), len(self.text.first)

    @property
    def features(self) -> tuple[int, int]:
        """Dimensions of the features; more than `dims` if the moments are those of coordinates (span.py)."""
        return self.image.dim or self.dims[0], self.text.dim or self.dims[1]

    @property
    def unpaired(self) -> float:
        """K: half the number of unpaired rows."""
        return sum(m.weight for m in (self.unpaired_image, self.unpaired_text) if m) / 2

    @cached_property
    def cross(self) -> Tensor:
        """The sum of the outer products of the pairs, (d_image, d_text)."""
        if self.sums is not None:
            return self.sums
        assert self.owner is not None
        assert self.image.rows is not None
        assert self.text.rows is not None
        y, weights = self.text.rows
        return self.image.rows[0][self.owner].T @ (weights[:, None] * y)

    @cached_property
    def cross_cov(self) -> Tensor:
        return torch.addr(self.cross / self.n, self.image.mean, self.text.mean, alpha=-1).to(self.image.dtype)

    def white_cross(self, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Return diag(a) V_x' S_xy V_y diag(b) for weights a, b of the eigenvectors V of both modalities (0: left out),
        (r_x, r_y)."""
        (a, b), kept = weights, (self.image.kept, self.text.kept)
        if self.owner is None:
            vectors = (side.spectrum[1][:, k] * w[k] for side, k, w in zip(self._sides, kept, (a, b), strict=True))
            x, y = vectors
            return x.T @ self.cross_cov @ y
        assert self.text.rows is not None
        x, y = (side.coordinates[:, k] * w[k] for side, k, w in zip(self._sides, kept, (a, b), strict=True))
        shares = (self.text.rows[1] / self.n).to(y.dtype)
        return x[self.owner].T @ (shares[:, None] * y)

    @property
    def _sides(self) -> tuple[Moments, Moments]:
        return self.image, self.text

    @property
    def everything(self) -> tuple[Moments, Moments]:
        """Moments of all images and of all texts, paired or not."""
        image = self.image + self.unpaired_image if self.unpaired_image else self.image
        text = self.text + self.unpaired_text if self.unpaired_text else self.text
        return image, text


def caption_shares(text_to_image: Tensor, n: int) -> Tensor:
    """Return weights (M,), float64: 1/m for each caption, m captions of its image."""
    return 1.0 / torch.bincount(text_to_image, minlength=n)[text_to_image].double()


def _moments(rows: Tensor | None, dim: int | None) -> Moments | None:
    return Moments.of(rows, dim=dim) if rows is not None and len(rows) else None
