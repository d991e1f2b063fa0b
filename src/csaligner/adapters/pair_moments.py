"""Moments of features and of pairs, in float64, from which untrained alignments are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from csaligner.types import PairedFeatures

from .moments import blocks, unit

NEGLIGIBLE = 1e-13  # eigenvalues below this share of the largest count as 0 if computed from the rows


@dataclass(frozen=True)
class Moments:
    """Moments of one modality, as weighted sums over rows in float64; moments without a fold are a difference.

    weight: sum of weights; first: (d,); second: (d, d). rows: the normalised rows (n, d) and their weights (n,), if
    n < d; None for more rows, and for differences.
    """

    weight: float
    first: Tensor
    second: Tensor
    rows: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> Moments:
        """Moments of rows / |rows|. rows: (n, d); weights: (n,), default 1."""
        n, d = rows.shape
        first, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
        kept = None
        for part in blocks(n):
            x = unit(rows[part])
            weighted = x if weights is None else weights[part, None] * x
            first += weighted.sum(dim=0)
            second += x.T @ weighted
            if part == slice(0, n) and n < d:
                kept = x, x.new_ones(n) if weights is None else weights
        return cls(float(n) if weights is None else float(weights.sum()), first, second, kept)

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
        """Eigenvalues (r,), at least 0, and eigenvectors (d, r) of the covariance; further eigenvalues are 0.

        r = d, or less if the rows are known: those of the Gram matrix of the centred rows take (n / d)^3 of the time.
        """
        if self.rows is None:
            values, vectors = torch.linalg.eigh(self.cov)
            return values.clamp_min(0), vectors
        x, weights = self.rows
        centred = weights.sqrt()[:, None] * (x - self.mean)
        values, vectors = torch.linalg.eigh(centred @ centred.T / self.weight)
        kept = values > NEGLIGIBLE * values.max()
        return values[kept], centred.T @ (vectors[:, kept] / (self.weight * values[kept]).sqrt())

    def powers(self, exponent: float, shrinkage: float) -> Tensor:
        """Return the eigenvalues (r,) of `power(cov, exponent, shrinkage)`, of the same eigenvectors."""
        return (self.spectrum[0] + self._added(shrinkage)) ** exponent

    def power(self, exponent: float, shrinkage: float) -> Tensor:
        """Return `power(cov, exponent, shrinkage)` of adapters/start.py, (d, d)."""
        vectors = self.spectrum[1]
        rest = self._rest(exponent, shrinkage)
        result = (vectors * (self.powers(exponent, shrinkage) - rest)) @ vectors.T
        result.diagonal().add_(rest)
        return result

    def power_times(self, exponent: float, shrinkage: float, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return power(exponent, shrinkage) @ other, and its coordinates along the eigenvectors, (r, k).
        other: (d, k)."""
        vectors = self.spectrum[1]
        along, powers = vectors.T @ other, self.powers(exponent, shrinkage)[:, None]
        rest = self._rest(exponent, shrinkage)
        result = vectors @ ((powers - rest) * along)
        return result.add_(other, alpha=rest), powers * along

    def _added(self, shrinkage: float) -> Tensor:
        """What `shrunk` of adapters/start.py adds to the eigenvalues."""
        return (shrinkage * self.spectrum[0].sum() / len(self.first)).clamp_min(1e-12)

    def _rest(self, exponent: float, shrinkage: float) -> float:
        """The power of the eigenvalues that are not in the spectrum; 0 if there are none."""
        return float(self._added(shrinkage)) ** exponent if len(self.spectrum[0]) < len(self.first) else 0.0


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


def caption_shares(text_to_image: Tensor, n: int) -> Tensor:
    """Return weights (M,), float64: 1/m for each caption, m captions of its image."""
    return 1.0 / torch.bincount(text_to_image, minlength=n)[text_to_image].double()


def _moments(rows: Tensor | None) -> Moments | None:
    return Moments.of(rows) if rows is not None and len(rows) else None
