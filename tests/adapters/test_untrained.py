"""Families of untrained alignments against an independent NumPy computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from csaligner.adapters import moments
from csaligner.adapters.untrained import MIX_WEIGHTS, PairMoments, cca_family, mix_family, onto_family, untrained_family
from csaligner.types import PairedFeatures

Array = NDArray[np.float64]


def pairs(n: int = 60, dims: tuple[int, int] = (12, 12), captions: int = 1, seed: int = 0) -> PairedFeatures:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 6, generator=g)
    owner = torch.arange(n).repeat_interleave(captions)
    image = z @ torch.randn(6, dims[0], generator=g) + 0.3 * torch.randn(n, dims[0], generator=g) + 1
    text = z[owner] @ torch.randn(6, dims[1], generator=g) + 0.3 * torch.randn(len(owner), dims[1], generator=g) - 1
    return PairedFeatures(image, text, owner, tuple(map(str, range(n))))


def power(cov: Array, exponent: float, shrinkage: float) -> Array:
    values, vectors = np.linalg.eigh(cov + shrinkage * np.trace(cov) / len(cov) * np.eye(len(cov)))
    result: Array = (vectors * values**exponent) @ vectors.T
    return result


def cosines(x: Array, y: Array) -> Array:
    result: Array = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    return result


@pytest.mark.parametrize(("w", "n"), [(0.0, 60), (0.25, 60), (1.0, 60), (0.25, 12)])
def test_the_mix_is_that_of_the_formula(w: float, n: int) -> None:
    """Also of fewer pairs than dimensions."""
    features = pairs(n)
    x, y = (a.double().numpy() for a in (features.image, features.text))
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    a, b = x - x.mean(0), y - y.mean(0)
    sa, sb = a.T @ a / n, b.T @ b / n
    half = power((sa + sb) / 2, 0.25, 20 / n**0.5)
    m = [power(s, -0.5, 20 / n**0.5) @ half for s in (sa, sb)]
    white = [power(s, -0.5, 36 / n**0.5) for s in (sa, sb)]
    u, r, vt = np.linalg.svd(white[0] @ (a.T @ b / n) @ white[1])
    p = [white[0] @ u * r, white[1] @ vt.T * r]
    m, p = (
        [k / np.sqrt(((rows @ k) ** 2).sum(1).mean()) for k, rows in zip(maps, (a, b), strict=True)] for maps in (m, p)
    )
    left, _, right = np.linalg.svd(sum((rows @ q).T @ (rows @ k) for rows, q, k in zip((a, b), p, m, strict=True)))
    wanted = cosines(*(rows @ ((1 - w) * k + w * q @ left @ right) for rows, q, k in zip((a, b), p, m, strict=True)))

    starts = mix_family(PairMoments.of(features)).candidates[f"mix {w:g}"]
    found = cosines(*(s(f).double().numpy() for s, f in zip(starts, (features.image, features.text), strict=True)))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_moments_of_a_fold_are_a_difference() -> None:
    whole, held, rest = pairs(40, captions=2), slice(0, 30), slice(30, 40)

    def part(images: slice) -> PairedFeatures:
        texts = slice(2 * images.start, 2 * images.stop)
        owner = whole.text_to_image[texts] - images.start
        return PairedFeatures(whole.image[images], whole.text[texts], owner, whole.image_ids[images])

    found = PairMoments.of(whole).without(PairMoments.of(part(held)))
    wanted = PairMoments.of(part(rest))
    for a, b in ((found.image, wanted.image), (found.text, wanted.text)):
        assert a.weight == pytest.approx(b.weight)
        torch.testing.assert_close(a.cov, b.cov)
    torch.testing.assert_close(found.cross_cov, wanted.cross_cov)


def test_captions_of_one_image_count_once() -> None:
    once, features = pairs(), pairs()
    twice = PairedFeatures(
        features.image,
        features.text.repeat_interleave(2, dim=0),
        torch.arange(60).repeat_interleave(2),
        features.image_ids,
    )
    torch.testing.assert_close(PairMoments.of(once).text.cov, PairMoments.of(twice).text.cov)
    torch.testing.assert_close(PairMoments.of(once).cross_cov, PairMoments.of(twice).cross_cov)


def test_unpaired_rows_enter_the_moments_of_their_modality() -> None:
    features, more = pairs(), pairs(30, seed=5)
    with_them = PairMoments.of(features).with_unpaired(more.image, None)
    rows = torch.nn.functional.normalize(torch.cat([features.image, more.image]).double(), dim=1)
    image, text = with_them.everything
    torch.testing.assert_close(image.cov, torch.cov(rows.T, correction=0))
    torch.testing.assert_close(text.cov, PairMoments.of(features).text.cov)
    assert with_them.unpaired == 15


def test_the_family_follows_the_dimensions() -> None:
    assert len(untrained_family(PairMoments.of(pairs())).candidates) == len(MIX_WEIGHTS)
    family = untrained_family(PairMoments.of(pairs(dims=(12, 9))), dim=20)
    assert family.prior in family.candidates
    image, text = family.candidates[family.prior]
    assert image.map is not None
    assert text.map is not None
    assert image.map.shape == (12, 20)
    assert text.map.shape == (9, 20)
    assert bool((image.map[:, 9:] == 0).all())


def test_canonical_correlations_decorrelate_the_pairs() -> None:
    features = pairs(400, dims=(12, 9))
    starts = cca_family(PairMoments.of(features)).candidates["cca 12, 1"]
    x, y = (s(f).double() for s, f in zip(starts, (features.image, features.text), strict=True))
    cross = ((x - x.mean(0)).T @ (y - y.mean(0))) / 400
    off = cross - torch.diag(cross.diagonal())
    assert float(off.abs().max()) < 1e-3 * float(cross.abs().max())


@pytest.mark.parametrize("fixed", ["image", "text"])
def test_a_fixed_modality_is_not_changed(fixed: str) -> None:
    features = pairs()
    family = onto_family(PairMoments.of(features), fixed)
    for starts in family.candidates.values():
        kept, moved = starts if fixed == "image" else starts[::-1]
        assert kept.map is None
        assert moved.spread is not None
        assert moved.spread > 0


def test_blocks_of_rows_give_the_moments_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    features = pairs(40, captions=2)
    x, y = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (features.image, features.text))
    monkeypatch.setattr(moments, "ROWS", 7)
    found = PairMoments.of(features)
    torch.testing.assert_close(found.image.second, x.T @ x)
    torch.testing.assert_close(found.text.first, y.sum(dim=0) / 2)
    torch.testing.assert_close(found.text.second, y.T @ y / 2)
    torch.testing.assert_close(found.cross, x[features.text_to_image].T @ y / 2)
