"""Recall and ranks: by hand, against all orders of ties, and for constant scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csaligner.checks import InputError
from csaligner.evaluation import query_chunks
from csaligner.evaluation.mixed_search import mixed_search_per_query
from csaligner.evaluation.one_pass import search_per_query
from csaligner.evaluation.ranking import TIE, ranks
from csaligner.evaluation.retrieval import retrieval_metrics, retrieval_per_query
from csaligner.types import PairedFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are zero:UserWarning")

KS = (1, 5, 10)


def directions(angles: list[float]) -> torch.Tensor:
    a = torch.tensor(angles, dtype=torch.float64) * math.pi / 180
    return torch.stack([a.cos(), a.sin()], dim=1)


def test_by_hand_with_two_captions_for_one_image() -> None:
    # images at 0 and 90 degrees; captions of the first at 10 and 80, of the second at 60
    found = retrieval_metrics(directions([0, 90]), directions([10, 80, 60]), [1, 2], text_image_ids=[1, 1, 2])
    assert found["image_to_text_recall@1"] == 0.5  # the second image finds the 80 degree caption first
    assert found["text_to_image_recall@1"] == pytest.approx(2 / 3)  # the 80 degree caption finds the other image
    assert found["image_to_text_mean_rank"] == 1.5
    assert found["text_to_image_mean_rank"] == pytest.approx(4 / 3)
    assert (found["image_to_text_median_rank"], found["text_to_image_median_rank"]) == (1.5, 1.0)
    assert (found["n_images"], found["n_captions"]) == (2, 3)
    assert found["image_to_text_recall@5"] == found["text_to_image_recall@10"] == 1


def test_ties_are_the_mean_over_all_their_orders() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    positive = torch.tensor([[False, True, False, True, False, False]])
    found = ranks(scores, positive)
    first = [1 + 1 + min(order.index(1), order.index(3)) for order in itertools.permutations([1, 2, 3, 4])]
    assert found.expected().item() == pytest.approx(np.mean(first))
    for k in range(1, 7):
        assert found.hit_at(k).item() == pytest.approx(np.mean([rank <= k for rank in first]))


@pytest.mark.parametrize("n", [1, 4, 30])
def test_collapsed_embeddings_score_chance(n: int) -> None:
    same = torch.ones(n, 3) + 1e-8 * torch.randn(n, 3)
    for features in (same, torch.zeros(n, 3)):
        found = retrieval_metrics(features, same)
        for k in KS:
            assert found[f"image_to_text_recall@{k}"] == pytest.approx(min(1, k / n))
            assert found[f"text_to_image_recall@{k}"] == pytest.approx(min(1, k / n))
        assert found["text_to_image_mean_rank"] == pytest.approx((n + 1) / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 15), st.integers(1, 3), st.integers(0, 2**31))
def test_equals_a_plain_loop(n: int, extra: int, d: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    owner = random.permutation(np.r_[np.arange(n), random.randint(n, size=extra)])
    image, text = (random.randint(-1, 2, size=(rows, d)).astype(float) for rows in (n, len(owner)))  # many ties
    found = retrieval_metrics(image, text, list(range(n)), text_image_ids=owner)
    unit_image, unit_text = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (image, text))
    scores, match = unit_image @ unit_text.T, np.arange(n)[:, None] == owner
    for name, s, positive in (("image_to_text", scores, match), ("text_to_image", scores.T, match.T)):
        rows = [_one_query(a, b) for a, b in zip(s, positive, strict=True)]
        for column, k in enumerate(KS):
            assert found[f"{name}_recall@{k}"] == pytest.approx(np.mean([hits[column] for hits, _ in rows]))
        assert found[f"{name}_mean_rank"] == pytest.approx(np.mean([rank for _, rank in rows]))
        assert found[f"{name}_median_rank"] == pytest.approx(np.median([rank for _, rank in rows]))


def _one_query(scores: np.ndarray, positive: np.ndarray) -> tuple[list[float], float]:
    best = max(s for s, p in zip(scores, positive, strict=True) if p)
    above = sum(s > best + TIE for s in scores)
    tied = [p for s, p in zip(scores, positive, strict=True) if abs(s - best) <= TIE]
    t, p = len(tied), sum(tied)
    hits = []
    for k in KS:
        places = min(max(k - above, 0), t)
        hits.append(1 - math.comb(t - p, places) / math.comb(t, places))
    return hits, above + (t + 1) / (p + 1)


def test_chunks_change_nothing(several: PairedFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieval_per_query(several)
    monkeypatch.setattr(query_chunks, "CHUNK", 7)
    parts = retrieval_per_query(several)
    for direction, values in whole.items():
        for name, value in values.items():
            assert torch.equal(value, parts[direction][name])


def test_order_and_length_of_rows_do_not_matter(captioned: Callable[..., PairedFeatures]) -> None:
    f = captioned(30, 20, 5)
    rows, columns = torch.randperm(30), torch.randperm(50)
    lengths = torch.rand(30, 1).double() * 100 + 0.01
    one = retrieval_metrics(f.image, f.text, range(30), text_image_ids=f.text_to_image)
    two = retrieval_metrics(
        (f.image * lengths)[rows], f.text[columns], rows.tolist(), text_image_ids=f.text_to_image[columns]
    )
    assert one == pytest.approx(two)


def test_mixed_dtypes_are_measured() -> None:
    image = torch.eye(3)
    assert retrieval_metrics(image, image.double().numpy())["image_to_text_recall@1"] == 1
    assert retrieval_metrics(image.half(), image.bfloat16())["image_to_text_recall@1"] == 1


def test_two_spaces_cannot_be_searched() -> None:
    with pytest.raises(InputError, match=r"image_features.*3.*text_features.*4"):
        retrieval_metrics(torch.ones(2, 3), torch.ones(2, 4))


def test_one_pass_gives_what_both_searches_give(several: PairedFeatures) -> None:
    directions, mixed = search_per_query(several)
    for direction, values in retrieval_per_query(several).items():
        for name, value in values.items():
            assert torch.equal(value, directions[direction][name])
    apart = mixed_search_per_query(several)
    assert set(mixed) == set(apart)
    assert all(torch.equal(mixed[name], value) for name, value in apart.items())
