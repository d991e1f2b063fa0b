"""Clustering of the union of images and texts."""

from __future__ import annotations

import torch

from csaligner.evaluation.clustering import clustering_metrics
from csaligner.types import PairedFeatures


def made(gap: float, folders: tuple[str, str] = ("birds", "cars")) -> PairedFeatures:
    g = torch.Generator().manual_seed(0)
    content = torch.tensor([[4.0, 0, 0], [0, 4.0, 0]]).repeat_interleave(20, dim=0)
    shift = torch.tensor([0.0, 0.0, gap])
    image, text = (content + sign * shift + 0.1 * torch.randn(40, 3, generator=g) for sign in (1, -1))
    ids = tuple(f"{folders[i // 20]}/{i}" for i in range(40))
    return PairedFeatures(image, text, torch.arange(40), ids)


def test_content_rules_without_a_gap_and_modality_with_one() -> None:
    mixed, apart = clustering_metrics(made(0.0)), clustering_metrics(made(40.0))
    assert mixed["clustering/ami_category"] == 1.0
    assert abs(mixed["clustering/ami_modality"]) < 0.05
    assert apart["clustering/ami_modality"] == 1.0
    assert abs(apart["clustering/ami_category"]) < 0.05


def test_one_category_says_nothing() -> None:
    assert clustering_metrics(made(0.0, ("birds", "birds"))) == {}
