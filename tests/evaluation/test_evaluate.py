"""evaluate(): metric names, intervals and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from csaligner.adapters import moments
from csaligner.checks import InputError
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.gap import gap_metrics
from csaligner.evaluation.mixed_search import mixed_search_metrics
from csaligner.evaluation.retrieval import retrieval_metrics
from csaligner.evaluation.score import derived_metrics
from csaligner.types import PairedFeatures

RECALLS = {f"{d}_recall@{k}" for d in ("image_to_text", "text_to_image", "mean") for k in (1, 5, 10)}
MIXED = {
    "mixed_ndcg@10",
    "mixed_ndcg@10/image_query",
    "mixed_image_recall@10",
    "mixed_text_recall@10",
    "modality_bias@10",
    "modality_bias@10/image_query",
}
MEANS = {"mean_mixed_ndcg@10", "mean_mixed_recall@10", "alignment_score"}


def test_score_is_the_mean_of_recall_and_ndcg_of_both_kinds_of_query(several: PairedFeatures) -> None:
    found = evaluate(several, intervals=False).metrics
    ndcg = (found["mixed_ndcg@10"] + found["mixed_ndcg@10/image_query"]) / 2
    recall = (found["image_to_text_recall@1"] + found["text_to_image_recall@1"]) / 2
    assert found["mean_mixed_ndcg@10"] == pytest.approx(ndcg)
    assert found["alignment_score"] == pytest.approx((recall + ndcg) / 2)
    text, image = found["mixed_image_recall@10"], found["mixed_text_recall@10"]
    assert found["mean_mixed_recall@10"] == pytest.approx((text + image) / 2)


def test_older_results_have_the_derived_metrics_whose_parts_they_have() -> None:
    old = {"mean_recall@1": 0.4, "mixed_ndcg@10": 0.5, "mixed_ndcg@10/image_query": 0.7, "gap/paired_cosine": 0.6}
    assert derived_metrics(old) == pytest.approx({"mean_mixed_ndcg@10": 0.6, "alignment_score": 0.5})


def test_holds_what_the_three_doors_give(several: PairedFeatures) -> None:
    found = evaluate(several, bandwidth=0.3, seed=5).metrics
    arrays = (several.image.numpy(), several.text.numpy(), list(range(len(several.image))))
    owner = several.text_to_image
    apart = retrieval_metrics(*arrays, text_image_ids=owner) | mixed_search_metrics(*arrays, text_image_ids=owner)
    apart |= gap_metrics(*arrays, text_image_ids=owner, bandwidth=0.3, seed=5)
    assert {k: v for k, v in found.items() if not k.startswith(("mean_", "alignment_score"))} == apart
    both = found["image_to_text_recall@5"] + found["text_to_image_recall@5"]
    assert found["mean_recall@5"] == pytest.approx(both / 2)
    assert all(math.isfinite(value) for value in found.values())


def test_intervals_hold_the_values(captioned: Callable[..., PairedFeatures]) -> None:
    found = evaluate(captioned(80, 60, 24))
    assert set(found.intervals) == RECALLS | MIXED | MEANS | {"gap/paired_cosine", "gap/centroid"}
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    low, high = found.intervals["image_to_text_recall@1"]
    share = found.metrics["image_to_text_recall@1"]
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 80) ** 0.5, rel=0.2)
    assert evaluate(captioned(80, 60, 24), intervals=False).intervals == {}


def test_the_order_of_rows_does_not_matter(several: PairedFeatures) -> None:
    rows, columns = torch.randperm(len(several.image)), torch.randperm(len(several.text))
    shuffled = replace(
        several,
        image=several.image[rows],
        text=several.text[columns],
        text_to_image=rows.argsort()[several.text_to_image[columns]],
        image_ids=tuple(several.image_ids[i] for i in rows.tolist()),
    )
    one, two = evaluate(several, intervals=False).metrics, evaluate(shuffled, intervals=False).metrics
    one.pop("gap/probe_accuracy")  # its halves are drawn by row
    two.pop("gap/probe_accuracy")
    assert two == pytest.approx(one, abs=2e-6)


def test_the_same_seed_gives_the_same_numbers(several: PairedFeatures) -> None:
    assert evaluate(several, seed=3) == evaluate(several, seed=3)
    assert evaluate(several, seed=3).intervals != evaluate(several, seed=4).intervals


def test_one_image_with_two_captions(captioned: Callable[..., PairedFeatures]) -> None:
    found = evaluate(captioned(1, 1, 4))
    assert found.metrics["mean_recall@1"] == found.metrics["mixed_image_recall@10"] == 1
    assert found.intervals["mean_recall@1"] == (1, 1)


def test_two_spaces_are_refused(several: PairedFeatures) -> None:
    with pytest.raises(InputError, match=r"6.*text_features.*4"):
        evaluate(replace(several, text=several.text[:, :4]))


def test_more_images_than_the_cap_are_sampled_and_it_is_said(captioned: Callable[..., PairedFeatures]) -> None:
    many = captioned(50, 30, 6)
    with pytest.warns(UserWarning, match="sample of 20 of 50"):
        found = evaluate(many, max_images=20)
    assert (found.sample, found.images, found.metrics["n_images"]) == (20, 50, 20)
    whole = evaluate(many, max_images=None)
    assert (whole.sample, whole.metrics["n_images"]) == (None, 50)


def test_blocks_of_rows_change_nothing(several: PairedFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(several)
    monkeypatch.setattr(moments, "ROWS", 7)
    parts = evaluate(several)
    assert parts.metrics == pytest.approx(whole.metrics, abs=1e-6)
    for name, interval in whole.intervals.items():
        assert parts.intervals[name] == pytest.approx(interval, abs=1e-9)
