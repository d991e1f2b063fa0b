"""Calibration of scores across modalities, and the remaining bias."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.evaluation.mixed_search import mixed_search_metrics
from csaligner.search.calibration import MIN_ITEMS, MODALITIES, Calibration, bias_of
from csaligner.types import Modality


def two_cones(n: int = 300, m: int = 200, seed: int = 0) -> dict[Modality, Tensor]:
    """Return image and text vectors with a gap, texts with less variance than images."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 16, generator=g) + 2 * torch.eye(16)[0]
    text = torch.randn(m, 16, generator=g) * 0.6 + 1.5 * torch.eye(16)[1]
    return {"image": normalize(image, dim=1), "text": normalize(text, dim=1)}


def test_the_bias_is_gone_for_queries_that_calibration_never_saw() -> None:
    vectors = two_cones()
    before = bias_of(vectors)
    assert min(before.values()) > 0.25
    after = bias_of(two_cones(seed=5), Calibration.fit(vectors))
    assert max(map(abs, after.values())) < 0.05


def test_bias_is_the_metric_of_the_evaluation() -> None:
    vectors = two_cones(100, 100)
    known = mixed_search_metrics(vectors["image"], vectors["text"])
    found = bias_of(vectors)
    assert found["text"] == pytest.approx(known["modality_bias@10"], abs=1e-6)
    assert found["image"] == pytest.approx(known["modality_bias@10/image_query"], abs=1e-6)


def test_scores_of_equal_rarity_become_equal() -> None:
    vectors = two_cones(400, 400)
    calibration = Calibration.fit(vectors)
    assert calibration is not None
    mean = {m: torch.tensor(calibration.curves["text"][m]) for m in MODALITIES}
    image, text = (calibration.apply("text", m, mean[m]) for m in MODALITIES)
    assert torch.allclose(text - calibration.offset["text"], image, atol=1e-6)
    assert torch.allclose(image, (mean["image"] + mean["text"]) / 2, atol=1e-6)


def test_the_order_is_kept_and_goes_on_beyond_the_ends() -> None:
    calibration = Calibration.fit(two_cones())
    assert calibration is not None
    x = torch.linspace(-1, 1, 500)
    y = calibration.apply("image", "text", x)
    assert bool((y.diff() > 0).all())
    assert float(y[-1] - y[-2]) == pytest.approx(float(x[-1] - x[-2]), abs=1e-5)
    assert float(y[1] - y[0]) == pytest.approx(float(x[1] - x[0]), abs=1e-5)
    assert float(calibration.apply("image", "image", torch.tensor([-torch.inf]))) == -torch.inf


def test_spaces_that_need_no_calibration_are_left_nearly_alone() -> None:
    g = torch.Generator().manual_seed(3)
    same = {m: normalize(torch.randn(500, 16, generator=g), dim=1) for m in MODALITIES}
    calibration = Calibration.fit(same)
    assert calibration is not None
    x = torch.linspace(-0.5, 0.7, 50)
    for item in MODALITIES:
        assert (calibration.apply("text", item, x) - x).abs().max() < 0.03


def test_too_few_items_are_not_calibrated() -> None:
    vectors = two_cones(100, MIN_ITEMS - 1)
    assert Calibration.fit(vectors) is None
    assert bias_of(vectors) == {}


def test_it_survives_json() -> None:
    calibration = Calibration.fit(two_cones())
    assert calibration is not None
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
