"""Untrained baselines against hand-computed answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.evaluation.baselines import (
    GRCLIP,
    I0T,
    CanonicalCorrelation,
    Coral,
    MeanCentring,
    Procrustes,
    Standardising,
)
from csaligner.evaluation.evaluate import evaluate
from csaligner.paired_features import pair_features
from csaligner.types import PairedFeatures


def test_subtracts_the_training_means_each_image_counting_once(captioned: Callable[..., PairedFeatures]) -> None:
    train, test = captioned(12, 20, 4), captioned(7, 5, 4, seed=1)
    found = MeanCentring.fit(train).transform(test)
    unit_text = normalize(train.text, dim=1)
    by_image = torch.stack([unit_text[train.text_to_image == i].mean(dim=0) for i in range(12)])
    for got, given, mean in (
        (found.image, test.image, normalize(train.image, dim=1).mean(dim=0)),
        (found.text, test.text, by_image.mean(dim=0)),
    ):
        torch.testing.assert_close(got, normalize(normalize(given, dim=1) - mean, dim=1))
    assert torch.equal(found.text_to_image, test.text_to_image)
    assert found.image_ids == test.image_ids


def test_what_it_costs_and_gives_on_clip(clip_coco: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, text = clip_coco
    order = np.random.RandomState(0).permutation(500)
    raw, centred = [], []
    for fold in range(5):
        test = order[fold::5]
        train = np.setdiff1d(order, test)
        pairs = pair_features(image[test], text[test])
        raw.append(evaluate(pairs, intervals=False).metrics)
        baseline = MeanCentring.fit(pair_features(image[train], text[train]))
        centred.append(evaluate(baseline.transform(pairs), intervals=False).metrics)
    wanted = {  # metric: raw, mean-centred, how near
        "mean_recall@1": (0.733, 0.721, 5e-4),
        "gap/centroid": (0.854, 0.128, 5e-4),
        "gap/cs": (3.12, 1.00, 6e-3),
        "mixed_image_recall@10": (0.0, 0.774, 5e-4),
        "gap/probe_accuracy": (1.0, 0.55, 0.02),
    }
    for name, (of_raw, of_centred, near) in wanted.items():
        for folds, value in ((raw, of_raw), (centred, of_centred)):
            assert abs(np.mean([m[name] for m in folds]) - value) <= near, name


def test_standardising_is_that_of_scikit_learn(captioned: Callable[..., PairedFeatures]) -> None:
    train, test = captioned(12, 12, 4), captioned(7, 7, 4, seed=1)
    found = Standardising.fit(train).transform(test)
    scaler = StandardScaler().fit(normalize(train.image, dim=1).numpy())
    wanted = torch.from_numpy(scaler.transform(normalize(test.image, dim=1).numpy()))
    torch.testing.assert_close(found.image, normalize(wanted, dim=1).to(found.image.dtype), atol=1e-5, rtol=1e-4)


def test_procrustes_finds_the_rotation() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(50, 5, generator=g)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=g))[0]
    pairs = pair_features(image, normalize(image, dim=1) @ rotation)
    found = Procrustes.fit(pairs).transform(pairs)
    torch.testing.assert_close(found.image, found.text, atol=1e-5, rtol=0)


def test_cca_finds_what_both_sides_share() -> None:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(400, 3, generator=g)
    image = torch.cat([shared, torch.randn(400, 4, generator=g)], dim=1)
    text = torch.cat([torch.randn(400, 2, generator=g), shared], dim=1)
    train, test = (pair_features(image[a:b], text[a:b]) for a, b in ((0, 300), (300, 400)))
    found = CanonicalCorrelation.fit(train).transform(test)
    assert found.image.shape == found.text.shape == (100, 5)
    rotated = Procrustes.fit(_padded(train)).transform(_padded(test))
    cca, procrustes = (evaluate(f, intervals=False).metrics["mean_recall@1"] for f in (found, rotated))
    assert cca > 0.5
    assert cca > 2 * procrustes


def _padded(pairs: PairedFeatures) -> PairedFeatures:
    return replace(pairs, text=torch.nn.functional.pad(pairs.text, (0, 2)))


def test_cca_weights_directions_by_the_power_of_their_correlations() -> None:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(300, 5, generator=g), torch.randn(300, 5, generator=g)
    text[:, 0] = image[:, 0]
    text[:, 1] += image[:, 1]
    pairs = pair_features(image, text)
    one, two = (CanonicalCorrelation.fit(pairs, 3.0, power).starts for power in (1.0, 2.0))
    for a, b in zip(one, two, strict=True):
        assert a.map is not None
        assert b.map is not None
        ratio = b.map.norm(dim=0) / a.map.norm(dim=0)
        assert (ratio[:-1] > ratio[1:]).all()  # of the correlations, in descending order
        torch.testing.assert_close(normalize(a.map, dim=0), normalize(b.map, dim=0))
    weak, strong = (CanonicalCorrelation.fit(pairs, c).transform(pairs).text for c in (1.0, 300.0))
    assert not torch.allclose(weak, strong, atol=1e-2)


def test_gr_clip_subtracts_the_mean_of_each_kind_of_item() -> None:
    calibration = pair_features(torch.tensor([[1.0, 0, 0], [0, 2, 0]]), torch.tensor([[0, 0, 3.0], [0, 1, 0]]))
    found = GRCLIP.fit(calibration)
    image, text = torch.tensor([[1.0, 0, 0], [0, 0, 1]]), torch.tensor([[0.0, 1, 0], [0, 0, 5]])
    searched = found.transform(pair_features(image, text))
    root = 0.5**0.5
    # means (.5, .5, 0) and (0, .5, .5), of fused items (.25, .5, .25)
    torch.testing.assert_close(searched.image[0], torch.tensor([root, -root, 0]))
    torch.testing.assert_close(searched.text[0], torch.tensor([0, root, -root]))
    wanted = normalize(torch.tensor([[0.25, 0, -0.25], [-0.25, -0.5, 0.75]]), dim=1)
    torch.testing.assert_close(found.fused(image, text), wanted)
    torch.testing.assert_close(found.fused(image, text, weight=1.0), searched.image)
    torch.testing.assert_close(found.fused(image, text, weight=0.0), searched.text)
    torch.testing.assert_close(found.query(text), searched.text)
    queries = found.with_queries(torch.tensor([[0.0, 4, 0]])).query(torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(queries, torch.tensor([[root, -root, 0]]))


def test_gr_clip_depends_on_the_calibration_set_alone(captioned: Callable[..., PairedFeatures]) -> None:
    outside, test = captioned(12, 20, 4), captioned(7, 5, 4, seed=1)
    found = GRCLIP.fit(outside)
    torch.testing.assert_close(found.transform(test).image, MeanCentring.fit(outside).transform(test).image)
    torch.testing.assert_close(found.transform(test).text, MeanCentring.fit(outside).transform(test).text)
    fused = found.fused(outside.image[outside.text_to_image], outside.text)
    assert float((fused.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_gr_clip_refuses_weights_and_shapes_that_mean_nothing(weight: float) -> None:
    found = GRCLIP.fit(pair_features(torch.eye(3), torch.eye(3)))
    with pytest.raises(InputError, match="weight"):
        found.fused(torch.eye(3), torch.eye(3), weight)
    with pytest.raises(InputError, match="shapes"):
        found.fused(torch.eye(3), torch.eye(3)[:2])
    with pytest.raises(InputError, match="dimensions"):
        GRCLIP.fit(pair_features(torch.eye(3), torch.ones(3, 2)))


def test_i0t_counts_every_caption_once(captioned: Callable[..., PairedFeatures]) -> None:
    train, test = captioned(12, 20, 4), captioned(7, 5, 4, seed=1)
    found = I0T.fit(train).transform(test)
    for got, given, seen in ((found.image, test.image, train.image), (found.text, test.text, train.text)):
        standard = [row / row.norm() - (seen / seen.norm(dim=1, keepdim=True)).mean(dim=0) for row in given]
        torch.testing.assert_close(got, torch.stack([row / row.norm() for row in standard]))
    single = pair_features(train.image, train.text[:12])
    one, two = I0T.fit(single).transform(test), MeanCentring.fit(single).transform(test)
    torch.testing.assert_close(one.text, two.text)


def test_coral_gives_texts_the_covariance_of_images() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(400, 4, generator=g) @ torch.randn(4, 4, generator=g) + 1
    text = torch.randn(400, 4, generator=g) @ torch.randn(4, 4, generator=g) - 2
    pairs = pair_features(image, text)
    found = Coral.fit(pairs, shrinkage=0.0)
    x, y = found.centring.shift(pairs)
    mapped = y @ found.map
    torch.testing.assert_close(mapped.T @ mapped / 400, x.T @ x / 400, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.transform(pairs).text, normalize(mapped, dim=1))
    alone = pair_features(image, text[torch.randperm(400, generator=g)])
    torch.testing.assert_close(Coral.fit(alone, shrinkage=0.0).map, found.map, atol=1e-4, rtol=1e-3)
    large = Coral.fit(pairs, shrinkage=1e6).map
    torch.testing.assert_close(large / large.diagonal().mean(), torch.eye(4), atol=1e-3, rtol=0)  # a scaled identity
