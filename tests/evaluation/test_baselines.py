"""Mean-centring, standardisation, Procrustes and CCA baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from csaligner.evaluation.baselines import CanonicalCorrelation, MeanCentring, Procrustes, Standardising
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
