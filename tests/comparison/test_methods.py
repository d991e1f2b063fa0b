"""Registered methods of the comparison: untrained baselines, their settings, and where they do not apply."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from csaligner.comparison.methods import FREE, NotApplicable
from csaligner.comparison.mini_vec2vec import MiniVec2Vec
from csaligner.config import TrainConfig
from csaligner.evaluation.retrieval import retrieval_metrics
from csaligner.paired_features import pair_features
from csaligner.types import PairedFeatures
from tests.support.features import make_pairs

NO_PAIRS = ("coral", "mini-vec2vec")
OF_BUNDLED_ENCODERS = ("class names",)


def middle(name: str) -> dict[str, float]:
    return {key: math.sqrt(low * high) for key, (low, high) in FREE[name].space().items()}


@pytest.mark.parametrize("name", sorted(set(FREE) - set(OF_BUNDLED_ENCODERS)))
def test_an_untrained_method_maps_to_one_space_at_every_setting(name: str) -> None:
    train, test = make_pairs(120, (6, 6), seed=1), make_pairs(20, (6, 6), seed=2)
    chosen = FREE[name].fit(train, TrainConfig(), middle(name))(test)
    assert chosen.image.shape[1] == chosen.text.shape[1]
    assert bool(chosen.image.isfinite().all())
    assert bool(chosen.text.isfinite().all())
    FREE[name].fit(train, TrainConfig(), {})(test)
    for key, bounds in FREE[name].space().items():
        ends = [FREE[name].fit(train, TrainConfig(), {key: bound})(test) for bound in bounds]
        assert not torch.allclose(ends[0].text, ends[1].text, atol=1e-3), key


@pytest.mark.parametrize("name", NO_PAIRS)
def test_a_method_without_pairs_says_so_and_does_not_see_them(name: str) -> None:
    assert "no pairs" in FREE[name].about
    train = make_pairs(120, (6, 6), seed=1)
    shuffled = replace(train, text_to_image=train.text_to_image.roll(7))
    one, two = (FREE[name].fit(pairs, TrainConfig(), {})(train) for pairs in (train, shuffled))
    torch.testing.assert_close(one.image, two.image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.text, two.text, atol=1e-4, rtol=1e-4)


def clusters(n: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    centres, sizes = torch.randn(20, 32, generator=g), torch.rand(20, generator=g) + 0.3
    rows = centres[torch.multinomial(sizes, n, replacement=True, generator=g)]
    return rows + 0.5 * torch.randn(n, 32, generator=g)


def test_mini_vec2vec_finds_a_hidden_rotation_without_pairs() -> None:
    image = clusters(1000)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))[0][:32]
    text = image @ rotation + 0.3
    found = MiniVec2Vec.fit(pair_features(image[:800], text[:800]))
    assert found.known
    held_out = found.transform(pair_features(image[800:], text[800:]))
    assert held_out.image.shape == held_out.text.shape == (200, 40)
    assert retrieval_metrics(held_out.image, held_out.text)["text_to_image_recall@1"] > 0.9


@pytest.mark.parametrize(
    ("name", "pairs", "reason"),
    [
        ("mini-vec2vec", make_pairs(40, (6, 6)), "100"),
        ("gr-clip", make_pairs(40, (6, 5)), "equal"),
        ("coral", make_pairs(40, (6, 5)), "equal"),
        ("i0t", make_pairs(40, (6, 5)), "equal"),
    ],
)
def test_where_a_method_does_not_apply_it_says_why(name: str, pairs: PairedFeatures, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        FREE[name].fit(pairs, TrainConfig(), {})
