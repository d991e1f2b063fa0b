"""Families in coordinates of the span of the rows are those of the features themselves."""

from __future__ import annotations

import pytest
import torch

from csaligner.adapters.span import Span, fit_family
from csaligner.adapters.untrained import PairMoments, untrained_family
from csaligner.types import PairedFeatures


def pairs(n: int, dims: tuple[int, int], captions: int = 1, seed: int = 0) -> PairedFeatures:
    g = torch.Generator().manual_seed(seed)
    z, owner = torch.randn(n, 3, generator=g), torch.arange(n).repeat_interleave(captions)
    image = z @ torch.randn(3, dims[0], generator=g) + 0.5 * torch.randn(n, dims[0], generator=g) + 0.3
    text = z[owner] @ torch.randn(3, dims[1], generator=g) + 0.5 * torch.randn(len(owner), dims[1], generator=g) - 0.2
    return PairedFeatures(image, text, owner, tuple(map(str, range(n))))


@pytest.mark.parametrize(
    ("dims", "dim", "fixed"),
    [
        ((60, 60), None, None),
        ((60, 60), None, "image"),
        ((60, 60), None, "text"),
        ((60, 60), 40, None),
        ((60, 50), None, None),
        ((60, 50), 60, None),
        ((60, 50), None, "image"),
        ((60, 50), None, "text"),
    ],
)
@pytest.mark.parametrize("more", [0, 6])
@pytest.mark.parametrize("captions", [1, 2])
def test_maps_are_those_without_a_basis(
    dims: tuple[int, int], dim: int | None, fixed: str | None, more: int, captions: int
) -> None:
    """Also for rows outside the span, and with unpaired rows."""
    features, others, seen = pairs(9, dims, captions), pairs(6, dims, seed=1), pairs(8, dims, seed=2)
    unpaired = (others.image, others.text) if more else (None, None)
    assert Span.of(features, unpaired, dim, fixed) is not None
    found = fit_family(features, unpaired, dim, fixed, few=False)
    wanted = untrained_family(PairMoments.of(features).with_unpaired(*unpaired), dim, fixed, few=False)
    assert list(found.candidates) == list(wanted.candidates)
    assert found.prior == wanted.prior
    for label, starts in wanted.candidates.items():
        for a, b, x in zip(found.candidates[label], starts, (seen.image, seen.text), strict=True):
            assert a.spread == (None if b.spread is None else pytest.approx(b.spread))
            if label.startswith("cca"):  # singular vectors may differ in sign
                torch.testing.assert_close(_gram(a(x)), _gram(b(x)), atol=1e-4, rtol=1e-3)
            else:
                torch.testing.assert_close(a(x), b(x), atol=2e-5, rtol=1e-4)


def test_many_rows_have_no_basis() -> None:
    assert Span.of(pairs(30, (20, 20)), (None, None)) is None
    assert Span.of(pairs(5, (20, 4)), (None, None)) is None


def _gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T
