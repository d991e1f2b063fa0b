"""Mixed search metrics: by hand, against scikit-learn's nDCG, and for collapsed embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from csaligner.evaluation import query_chunks
from csaligner.evaluation.mixed_search import mixed_search_metrics, mixed_search_per_query, modality_bias
from csaligner.evaluation.ranking import TIE, ranks
from csaligner.types import PairedFeatures


def measure(f: PairedFeatures) -> dict[str, float]:
    return mixed_search_metrics(f.image, f.text, range(len(f.image)), text_image_ids=f.text_to_image)


def test_equals_scikit_learn_and_a_plain_loop(several: PairedFeatures) -> None:
    n, m = len(several.image), len(several.text)
    points = np.concatenate([several.image.numpy(), several.text.numpy()])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    owner = np.r_[np.arange(n), several.text_to_image.numpy()]
    is_text = np.arange(n + m) >= n
    wanted: dict[str, list[float]] = {}
    for q in range(n + m):
        suffix = "" if is_text[q] else "/image_query"
        others = np.delete(np.arange(n + m), q)
        scores = points[others] @ points[q]
        relevant = owner[others] == owner[q]
        first = others[np.argsort(-scores)[:10]]
        own_share = np.mean(is_text[others] == is_text[q])
        wanted.setdefault(f"mixed_ndcg@10{suffix}", []).append(ndcg_score([relevant], [scores], k=10))
        wanted.setdefault(f"modality_bias@10{suffix}", []).append(np.mean(is_text[first] == is_text[q]) - own_share)
        if is_text[q]:
            allowed = others[~(is_text[others] & relevant)]
            first = allowed[np.argsort(-(points[allowed] @ points[q]))[:10]]
            wanted.setdefault("mixed_image_recall@10", []).append(float(owner[q] in first))
        else:
            wanted.setdefault("mixed_text_recall@10", []).append(float(owner[q] in owner[first]))
    found = measure(several)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(np.mean(values)), name


def test_two_separate_cones_find_their_own_kind_alone() -> None:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(30, 4, generator=g) * 0.01, torch.randn(30, 4, generator=g) * 0.01
    image[:, 0] += 1
    text[:, 0] -= 1
    found = mixed_search_metrics(image, text)
    assert found["mixed_image_recall@10"] == found["mixed_ndcg@10"] == found["mixed_ndcg@10/image_query"] == 0
    assert found["modality_bias@10"] == found["modality_bias@10/image_query"] == pytest.approx(1 - 29 / 59)


def test_pairs_on_one_point_are_found_first() -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    found = mixed_search_metrics(x, x)
    assert found["mixed_ndcg@10"] == found["mixed_ndcg@10/image_query"] == found["mixed_image_recall@10"] == 1


def test_collapsed_embeddings_look_no_better_than_chance(captioned: Callable[..., PairedFeatures]) -> None:
    f = captioned(30, 0, 3)
    found = mixed_search_metrics(torch.ones_like(f.image), torch.ones_like(f.text))
    assert found["mixed_image_recall@10"] == pytest.approx(10 / 59)  # 30 images and the 29 texts of other items
    assert found["mixed_text_recall@10"] == pytest.approx(10 / 59)  # 30 texts and the 29 other images
    assert found["mixed_ndcg@10"] == found["mixed_ndcg@10/image_query"] == 0
    assert found["modality_bias@10"] == pytest.approx(0, abs=1e-12)
    assert found["modality_bias@10/image_query"] == pytest.approx(0, abs=1e-12)


def test_own_texts_are_left_out_of_the_image_recall() -> None:
    # one image with 12 captions that lie closer to each other than to it, and one far image
    captions = torch.tensor([[1.0, 0.01 * i] for i in range(12)] + [[0.0, -1.0]])
    images = torch.tensor([[1.0, 1.0], [0.1, -1.0]])
    found = mixed_search_metrics(images, captions, [0, 1], text_image_ids=[0] * 12 + [1])
    assert found["mixed_image_recall@10"] == 1


def test_chunks_change_nothing(several: PairedFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mixed_search_per_query(several)
    monkeypatch.setattr(query_chunks, "CHUNK", 7)
    parts = mixed_search_per_query(several)
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
    assert len(whole["mixed_ndcg@10"]) == len(several.text)
    assert len(whole["mixed_ndcg@10/image_query"]) == len(several.image)


def test_one_pair_is_found() -> None:
    found = mixed_search_metrics(torch.ones(1, 2), torch.ones(1, 2))
    assert found["mixed_image_recall@10"] == found["mixed_ndcg@10"] == found["mixed_ndcg@10/image_query"] == 1
    assert found["modality_bias@10"] == 0  # the only candidate is of the other modality: no bias


def plain(f: PairedFeatures) -> dict[str, torch.Tensor]:
    """The metrics from all scores at once, with dense masks."""
    n, points = len(f.image), torch.nn.functional.normalize(torch.cat([f.image, f.text]), dim=1)
    owner, is_text = torch.cat([torch.arange(n), f.text_to_image]), torch.arange(len(points)) >= n
    scores = (points @ points.T).fill_diagonal_(-torch.inf)
    same = owner[:, None] == owner
    wanted = {}
    for suffix, rows in (("", is_text), ("/image_query", ~is_text)):
        s, right = scores[rows], same[rows] & (scores[rows] > -torch.inf)
        adjusted = s - 2 * TIE * right
        first = adjusted.topk(min(10, len(points)), dim=1).indices
        discount = 1 / torch.log2(torch.arange(2, first.shape[1] + 2).double())
        best = torch.cat([torch.zeros(1).double(), discount.cumsum(0)])[right.sum(dim=1).clamp(max=10)]
        wanted[f"mixed_ndcg@10{suffix}"] = (right.gather(1, first) * discount).sum(dim=1) / best
        own = (is_text if not suffix else ~is_text).expand_as(s)
        wanted[f"modality_bias@10{suffix}"] = modality_bias(s, own)
        hidden = s if suffix else s.masked_fill(right & is_text, -torch.inf)
        positive = right & is_text if suffix else right & ~is_text
        wanted["mixed_text_recall@10" if suffix else "mixed_image_recall@10"] = ranks(hidden, positive).hit_at(10)
    return wanted


@pytest.mark.parametrize("copies", [1, 12, 40])  # up to all items of a group on one point: ties beyond the nearest
def test_nearest_items_give_what_all_scores_give(captioned: Callable[..., PairedFeatures], copies: int) -> None:
    f = captioned(120, 160, 5, seed=copies)
    group = torch.arange(120) // copies
    image = f.image[group]
    f = replace(f, image=image, text=torch.where((torch.arange(280) % 3 == 0)[:, None], image[f.text_to_image], f.text))
    found, wanted = mixed_search_per_query(f), plain(f)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=0)
