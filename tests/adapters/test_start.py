"""Closed-form initialisation of the adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters import moments
from csaligner.adapters.start import Affine, fit_starts
from csaligner.config import StartConfig
from csaligner.types import PairedFeatures
from tests.support.features import make_pairs


def apply(start: Affine, x: Tensor) -> Tensor:
    z = normalize(x, dim=1) - start.mean
    return (z if start.map is None else z @ start.map) + start.offset


def test_identity_is_the_centred_features_themselves() -> None:
    f = make_pairs(dims=(6, 6))
    image, text = fit_starts(f, StartConfig(kind="identity"))
    for start, x in ((image, f.image), (text, f.text)):
        unit = normalize(x, dim=1)
        torch.testing.assert_close(apply(start, x), unit - unit.mean(dim=0), atol=1e-6, rtol=0)


def test_moments_match_the_covariances_half_way() -> None:
    """With almost no shrinkage, both modalities get the covariance P^(1/2), P the pooled covariance, up to a scale."""
    f = make_pairs(2000, (6, 6))
    starts = fit_starts(f, StartConfig(kind="moments", shrinkage=1e-6))
    units = [normalize(x.double(), dim=1) for x in (f.image, f.text)]
    pooled = sum(torch.cov(u.T) for u in units) / 2
    assert isinstance(pooled, Tensor)
    values, vectors = torch.linalg.eigh(pooled)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    for start, x in zip(starts, (f.image, f.text), strict=True):
        z = apply(start, x).double()
        cov = torch.cov(z.T)
        torch.testing.assert_close(cov / cov.trace(), root / root.trace(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["moments", "identity"])
def test_unpaired_rows_count_in_the_moments_of_their_modality(kind: Any) -> None:
    """Pairs with further rows on both sides: as if all rows were pairs, in any pairing."""
    whole = make_pairs(40, (6, 6))
    order = torch.arange(40)
    few = PairedFeatures(whole.image[:15], whole.text[:15], order[:15], whole.image_ids[:15])
    wanted = fit_starts(whole, StartConfig(kind=kind))
    found = fit_starts(few, StartConfig(kind=kind), unpaired=(whole.image[15:], whole.text[15:].flip(0)))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.mean, b.mean)
        if a.map is not None and b.map is not None:
            torch.testing.assert_close(a.map / a.map.norm(), b.map / b.map.norm())
    alone = fit_starts(few, StartConfig(kind=kind))
    assert (found[0].mean - alone[0].mean).norm() > 1e-2
    one_side = fit_starts(few, StartConfig(kind=kind), unpaired=(whole.image[15:], None))
    torch.testing.assert_close(one_side[0].mean, wanted[0].mean)
    torch.testing.assert_close(one_side[1].mean, alone[1].mean)


def test_a_projection_uses_pairs_alone() -> None:
    f = make_pairs(30, (7, 5))
    more = make_pairs(20, (7, 5), seed=3)
    for fixed in (None, "image"):
        alone = fit_starts(f, StartConfig(), fixed=fixed)
        for a, b in zip(fit_starts(f, StartConfig(), None, fixed, (more.image, more.text)), alone, strict=True):
            assert torch.equal(a.offset, b.offset)
            assert a.map is b.map is None or torch.equal(a.map, b.map)  # type: ignore[arg-type]


def test_projection_finds_the_canonical_correlations() -> None:
    f = make_pairs(n=400, dims=(8, 5))
    image, text = fit_starts(f, StartConfig(projection_shrinkage=1e-6))
    a, b = apply(image, f.image), apply(text, f.text)
    assert a.shape == b.shape == (400, 5)
    ours = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(3)]
    x, y = (normalize(t, dim=1).numpy() for t in (f.image, f.text))
    u, v = CCA(n_components=3, max_iter=5000).fit_transform(x, y)
    assert ours == pytest.approx([np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(3)], abs=2e-3)


def test_onto_a_fixed_image_side_is_ridge_regression() -> None:
    f = make_pairs(dims=(7, 5))
    image, text = fit_starts(f, StartConfig(projection_shrinkage=0.3 * len(f.image) ** 0.5), fixed="image")
    assert image.map is None
    x, y = (normalize(t, dim=1).double().numpy() for t in (f.image, f.text))
    cov = np.cov(y.T, bias=True)
    alpha = 0.3 * np.trace(cov) / 5 * len(y)
    expected = Ridge(alpha=alpha).fit(y, x).predict(y)
    np.testing.assert_allclose(apply(text, f.text).numpy(), expected, atol=1e-5)


def test_repeating_every_caption_changes_nothing() -> None:
    once = make_pairs(dims=(6, 4))
    twice = PairedFeatures(
        once.image, once.text.repeat_interleave(2, 0), once.text_to_image.repeat_interleave(2), once.image_ids
    )
    for a, b in zip(fit_starts(once, StartConfig()), fit_starts(twice, StartConfig()), strict=True):
        torch.testing.assert_close(a.mean, b.mean, atol=1e-6, rtol=0)
        assert a.map is not None
        assert b.map is not None
        torch.testing.assert_close(a.map.abs(), b.map.abs(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["identity", "moments", "projection"])
def test_two_pairs_in_many_dimensions_stay_finite(kind: str) -> None:
    f = make_pairs(n=2, dims=(6, 6))
    for start in fit_starts(f, StartConfig(kind=kind)):  # type: ignore[arg-type]
        assert bool(torch.isfinite(apply(start, f.image)).all())


@pytest.mark.parametrize("kind", ["identity", "moments", "projection"])
def test_blocks_of_rows_change_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    f = make_pairs(60, (6, 6))
    unpaired = (f.image.flip(1), f.text[:30].flip(1))
    wanted = fit_starts(f, StartConfig(kind=kind), unpaired=unpaired)
    monkeypatch.setattr(moments, "ROWS", 7)
    for a, b in zip(fit_starts(f, StartConfig(kind=kind), unpaired=unpaired), wanted, strict=True):
        torch.testing.assert_close(a.mean, b.mean)
        assert (a.map is None) == (b.map is None)
        if a.map is not None and b.map is not None:
            torch.testing.assert_close(a.map, b.map, atol=1e-5, rtol=1e-5)
