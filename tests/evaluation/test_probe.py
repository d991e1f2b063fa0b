"""Linear probe: fit against scikit-learn, and accuracy on distributions with known separation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from csaligner.evaluation.probe import fit_logistic, probe_accuracy


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_the_fit_is_scikit_learns(c: float) -> None:
    x = torch.nn.functional.normalize(cloud(200, 8), dim=1)
    labels = (x[:, 0] + 0.3 * cloud(200, 1, seed=1)[:, 0] > 0.1).double()
    reference = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x.numpy(), labels.numpy())
    weight, bias = fit_logistic(x, labels, c)
    np.testing.assert_allclose(weight, reference.coef_[0], atol=1e-4)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-4)


def test_clouds_apart_are_told_apart() -> None:
    image, text = cloud(100, 4) * 0.1, cloud(100, 4, seed=1) * 0.1
    image[:, 0] += 1
    text[:, 0] -= 1
    assert probe_accuracy(image, text, torch.arange(100)) == 1


def test_overlapping_clouds_give_the_best_possible_rate() -> None:
    n, d = 2000, 3  # Gaussians two units apart: the best hyperplane is right with probability Phi(1) = 0.841
    image, text = cloud(n, d), cloud(n, d, seed=1)
    text[:, 0] += 2
    assert probe_accuracy(image, text, torch.arange(n)) == pytest.approx(0.841, abs=0.012)


def test_one_distribution_is_blind_and_close_pairs_do_not_push_below() -> None:
    # captions equal to their images: if pairs were split over both halves, the probe would nearly always be wrong
    found = []
    for seed in range(8):
        image = torch.nn.functional.normalize(cloud(100, 64, seed=seed), dim=1)
        text = torch.nn.functional.normalize(image + 0.02 * cloud(100, 64, seed=100 + seed), dim=1)
        found.append(probe_accuracy(image, text, torch.arange(100)))
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_the_seed_decides_and_further_captions_do_not() -> None:
    image = cloud(50, 4)
    text = cloud(100, 4, seed=1)
    owner = torch.arange(50).flip(0).repeat(2)
    one = probe_accuracy(image, text, owner, seed=3)
    assert one == probe_accuracy(image, text, owner, seed=3)
    first = text[:50].flip(0)  # the first caption of each image
    assert one == probe_accuracy(image, first, torch.arange(50), seed=3)
    assert one != probe_accuracy(image, text, owner, seed=4)


def test_too_few_images_have_no_answer() -> None:
    assert math.isnan(probe_accuracy(cloud(3, 2), cloud(3, 2), torch.arange(3)))


def test_works_in_inference_mode() -> None:
    with torch.inference_mode():
        image, text = cloud(20, 3), cloud(20, 3, seed=1)
        assert 0 <= probe_accuracy(image, text, torch.arange(20)) <= 1
