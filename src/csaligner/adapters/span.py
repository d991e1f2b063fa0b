"""Few pairs of many dimensions: families are computed in coordinates of the span of the rows.

With an orthonormal basis B (d, k) of the span of all rows, x = B B' x, so a map found for the coordinates B' x is one
for x. On directions without rows, the maps of a family are a multiple of the identity, c: a further coordinate, which
is 0 in every row, shows c. With the map A of the coordinates, that of x is B (A - c I) B' + c I.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csaligner.types import PairedFeatures

from .moments import unit
from .pair_moments import PairMoments
from .start import Affine, Unpaired
from .untrained import Family, Starts, untrained_family

SHARE = 0.7  # of the dimensions: a basis of more directions saves no time


@dataclass(frozen=True)
class Span:
    """Bases of the rows of both modalities, (d_image, k) and (d_text, l), float64; one basis if the dimensions are
    equal. output: basis of the maps' output, (d_out, k); None: it has coordinates of its own."""

    image: Tensor
    text: Tensor
    output: Tensor | None

    @classmethod
    def of(
        cls, features: PairedFeatures, unpaired: Unpaired, dim: int | None = None, fixed: str | None = None
    ) -> Span | None:
        """Return the span of these rows; None if a basis would save no time. dim, fixed: see untrained_family."""
        images, texts = (
            [rows for rows in (paired, more) if rows is not None]
            for paired, more in zip((features.image, features.text), unpaired, strict=True)
        )
        dims = features.image.shape[1], features.text.shape[1]
        if dims[0] == dims[1] and dim in (None, dims[0]):
            basis = _basis([*images, *texts])
            return None if basis is None else cls(basis, basis, basis)
        image, text = _basis(images), _basis(texts)
        if image is None or text is None:
            return None
        return cls(image, text, {"image": image, "text": text, None: None}[fixed])

    def coordinates(self, features: PairedFeatures) -> PairedFeatures:
        """Return the pairs with normalised rows in coordinates of the span, (n, k + 1) and (m, l + 1), float64."""
        return replace(features, image=_along(features.image, self.image), text=_along(features.text, self.text))

    def moments(self, features: PairedFeatures, unpaired: Unpaired) -> PairMoments:
        """Return the moments of pairs and unpaired rows, in coordinates of the span."""
        found = PairMoments.of(self.coordinates(features), (len(self.image), len(self.text)))
        image, text = (
            None if rows is None else _along(rows, basis)
            for rows, basis in zip(unpaired, (self.image, self.text), strict=True)
        )
        return found.with_unpaired(image, text)

    def starts(self, starts: Starts) -> Starts:
        """Return the starts for features of starts for coordinates."""
        image, text = (self._lifted(s, b) for s, b in zip(starts, (self.image, self.text), strict=True))
        return image, text

    def _lifted(self, start: Affine, basis: Tensor) -> Affine:
        own, out = basis.float(), None if self.output is None else self.output.float()
        k = own.shape[1]
        offset = start.offset if out is None else out @ start.offset[: out.shape[1]]
        if start.map is None:
            return replace(start, mean=own @ start.mean[:k], offset=offset)
        if out is None:
            return replace(start, mean=own @ start.mean[:k], map=own @ start.map[:k])
        inner = start.map[:k, : out.shape[1]]
        if out.shape != own.shape:
            return replace(start, mean=own @ start.mean[:k], map=own @ inner @ out.T, offset=offset)
        rest = float(start.map[-1, -1])
        map_ = own @ (inner - rest * torch.eye(k)) @ out.T
        map_.diagonal().add_(rest)
        return replace(start, mean=own @ start.mean[:k], map=map_, offset=offset)


@dataclass(frozen=True)
class Lifted(Mapping[str, Starts]):
    """The candidates of a family in coordinates of a span, as starts for features, computed when they are read."""

    candidates: Mapping[str, Starts]
    span: Span

    def __getitem__(self, label: str) -> Starts:
        return self.span.starts(self.candidates[label])

    def __iter__(self) -> Iterator[str]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)


def fit_family(
    features: PairedFeatures,
    unpaired: Unpaired = (None, None),
    dim: int | None = None,
    fixed: str | None = None,
    *,
    few: bool | None = None,
) -> Family:
    """Return untrained_family of these pairs and unpaired rows, in coordinates of their span where that saves time."""
    span = Span.of(features, unpaired, dim, fixed)
    if span is None:
        return untrained_family(PairMoments.of(features).with_unpaired(*unpaired), dim, fixed, few=few)
    family = untrained_family(span.moments(features, unpaired), dim, fixed, few=few)
    return Family(Lifted(family.candidates, span), family.prior)


def _basis(parts: list[Tensor]) -> Tensor | None:
    """Return an orthonormal basis of the rows, (d, k); None if there are too many rows."""
    n, d = sum(len(rows) for rows in parts), parts[0].shape[1]
    if n > SHARE * d:
        return None
    basis: Tensor = torch.linalg.qr(torch.cat([unit(rows) for rows in parts]).T)[0]
    return basis


def _along(rows: Tensor, basis: Tensor) -> Tensor:
    """Return the coordinates of the normalised rows, and a coordinate of zeros."""
    return pad(unit(rows) @ basis, (0, 1))
