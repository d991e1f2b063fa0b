"""Modality gap metrics against NumPy formulas and exact values on CLIP features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from csaligner.checks import InputError
from csaligner.evaluation import gap
from csaligner.evaluation.gap import frechet_distance, gap_metrics, gap_of
from csaligner.evaluation.retrieval import retrieval_metrics
from csaligner.types import PairedFeatures

Array = NDArray[np.float64]


def unit(x: torch.Tensor) -> Array:
    return np.asarray(x / x.norm(dim=1, keepdim=True))


def kernel_mean(x: Array, y: Array, v: Array, w: Array, sigma: float) -> float:
    t = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return float(v @ np.exp(-t / (2 * sigma**2)) @ w)


def test_equals_the_formulas(several: PairedFeatures) -> None:
    x, y, owner = unit(several.image), unit(several.text), several.text_to_image.numpy()
    n = len(x)
    v, w = np.full(n, 1 / n), 1 / np.bincount(owner)[owner] / n
    found = gap_of(several, bandwidth=0.7)
    k_xx, k_yy, k_xy = (kernel_mean(a, b, p, q, 0.7) for a, b, p, q in ((x, x, v, v), (y, y, w, w), (x, y, v, w)))
    assert found["gap/centroid"] == pytest.approx(np.linalg.norm(v @ x - w @ y))
    assert found["gap/cs"] == pytest.approx(np.log(k_xx) + np.log(k_yy) - 2 * np.log(k_xy), abs=2e-6)
    assert found["gap/mmd2"] == pytest.approx(k_xx + k_yy - 2 * k_xy, abs=2e-6)
    by_image = [[(x[i] @ y[owner == j].T).mean() for j in range(n)] for i in range(n)]
    assert found["gap/paired_cosine"] == pytest.approx(np.trace(by_image) / n)
    assert found["gap/unpaired_cosine"] == pytest.approx((np.sum(by_image) - np.trace(by_image)) / (n * (n - 1)))
    assert found["gap/pair_margin"] == pytest.approx(found["gap/paired_cosine"] - found["gap/unpaired_cosine"])
    cross = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    assert found["uniformity/cross"] == pytest.approx(np.log(np.exp(-2 * cross).mean()), abs=2e-6)
    for name, z, weight in (("image", x, v), ("text", y, w)):
        t = ((z[:, None] - z[None]) ** 2).sum(axis=2)[np.triu_indices(len(z), 1)]
        assert found[f"uniformity/{name}"] == pytest.approx(np.log(np.exp(-2 * t).mean()), abs=2e-6)
        p = np.linalg.svd(z * np.sqrt(weight)[:, None], compute_uv=False)
        p /= p.sum()
        assert found[f"effective_rank/{name}"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    cov_x, cov_y = np.cov(x.T, bias=True), np.cov(y.T, aweights=w, ddof=0)
    wanted = np.sum((v @ x - w @ y) ** 2) + np.trace(cov_x + cov_y - 2 * np.real(sqrtm(cov_x @ cov_y)))
    assert found["gap/frechet"] == pytest.approx(wanted)


def test_centred_gap_is_that_of_centred_features(several: PairedFeatures) -> None:
    x, y, owner = unit(several.image), unit(several.text), several.text_to_image.numpy()
    w = 1 / np.bincount(owner)[owner] / len(x)
    centred = replace(
        several, image=torch.from_numpy(x - x.mean(axis=0)), text=torch.from_numpy(y - w @ y)
    )  # gap_of normalises
    found, wanted = gap_of(several, bandwidth=0.7), gap_of(centred, bandwidth=0.7)
    for name in ("centroid", "cs", "frechet"):
        assert found[f"centred_gap/{name}"] == pytest.approx(wanted[f"gap/{name}"], abs=2e-6)


def test_centring_removes_a_shift_but_not_a_difference_in_shape() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=g)
    shifted = gap_metrics(x, x + 3 * torch.tensor([1.0, 0.0, 0.0, 0.0]))
    flat = gap_metrics(x, x * torch.tensor([3.0, 1.0, 0.1, 0.1]))
    assert shifted["gap/cs"] > 10 * shifted["centred_gap/cs"]
    assert flat["centred_gap/cs"] > 0.5 * flat["gap/cs"] > 0.01


def test_frechet_distance_of_diagonal_gaussians() -> None:
    # corners of a box: variance a_i^2 along each axis, so the distance is |shift|^2 + sum (a_i - b_i)^2
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
    a, b, shift = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, 2.0])
    assert frechet_distance(corners * a, corners * b + shift) == pytest.approx(5 + 4 + 0.25)
    assert frechet_distance(corners, corners) == pytest.approx(0, abs=1e-9)


def test_a_caption_given_three_times_counts_once(several: PairedFeatures) -> None:
    repeated = replace(
        several, text=several.text.repeat(3, 1), text_to_image=several.text_to_image.repeat(3), captions=None
    )
    once, thrice = gap_of(several), gap_of(repeated)
    for name in (
        "gap/centroid",
        "gap/cs",
        "gap/mmd2",
        "gap/paired_cosine",
        "gap/unpaired_cosine",
        "gap/frechet",
        "effective_rank/text",
    ):
        assert thrice[name] == pytest.approx(once[name], abs=2e-6), name


def test_one_sample_twice_has_no_gap() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    found = gap_metrics(x, x * 3)
    for name in ("gap/centroid", "gap/cs", "gap/mmd2", "gap/frechet"):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert found["gap/paired_cosine"] == pytest.approx(1)


def test_collapse_shows_in_rank_and_uniformity() -> None:
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).expand(20, 5)
    for noise in (0.0, 1e-7):  # float32 rounding of collapsed rows does not count as rank
        found = gap_metrics(x, x + noise * torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))
        assert found["effective_rank/image"] == pytest.approx(1, abs=1e-4)
        assert found["effective_rank/text"] == pytest.approx(1, abs=1e-4)
    assert found["uniformity/image"] == pytest.approx(0, abs=1e-6)
    assert found["gap/probe_accuracy"] == 0.5
    assert found["centred_gap/frechet"] == pytest.approx(0, abs=1e-6)  # rounding errors have no direction


def test_many_rows_are_thinned_by_the_seed(
    captioned: Callable[..., PairedFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    f = captioned(300, 0, 4)
    whole = gap_of(f)
    monkeypatch.setattr(gap, "MAX_ROWS", 200)
    thinned = gap_of(f, seed=1)
    assert thinned == gap_of(f, seed=1)
    assert thinned["gap/cs"] != gap_of(f, seed=2)["gap/cs"]
    assert thinned["uniformity/image"] == pytest.approx(whole["uniformity/image"], abs=0.1)
    assert thinned["gap/centroid"] == whole["gap/centroid"]


def test_one_pair_has_what_one_pair_can_have() -> None:
    found = gap_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), bandwidth=0.5)
    assert found["gap/centroid"] == pytest.approx(2**0.5)
    assert found["gap/cs"] == pytest.approx(2 / 0.5**2)
    assert found["effective_rank/image"] == pytest.approx(1, abs=1e-5)
    for name in ("gap/unpaired_cosine", "gap/probe_accuracy", "uniformity/image"):
        assert np.isnan(found[name])


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan")])
def test_a_bandwidth_that_is_no_width_is_named(bandwidth: float) -> None:
    with pytest.raises(InputError, match="bandwidth"):
        gap_metrics(torch.eye(3), torch.eye(3), bandwidth=bandwidth)


def test_clip_on_500_coco_pairs(clip_coco: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = gap_metrics(*clip_coco) | retrieval_metrics(*clip_coco)
    assert found["gap/centroid"] == pytest.approx(0.8514, abs=5e-5)
    assert found["gap/paired_cosine"] == pytest.approx(0.3099, abs=5e-5)
    assert found["gap/probe_accuracy"] == 1
    assert found["image_to_text_recall@1"] == pytest.approx(0.552)
    assert found["text_to_image_recall@1"] == pytest.approx(0.506)
