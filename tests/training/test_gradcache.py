"""Gradient caching: large batches in chunks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.distributed.processes import rank
from csaligner.training.gradcache import cached_features
from tests.ranks import on_ranks

SCALE = 5.0


class Tower(nn.Module):
    def __init__(self, seed: int, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4)).double()
        self.alive: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body[0](x)
        self.alive.append(weakref.ref(hidden))
        return normalize(self.body[3](self.body[2](self.body[1](hidden))), dim=1)


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(11, 6, dtype=torch.float64, generator=g), torch.randn(11, 6, dtype=torch.float64, generator=g)


def kept(encode: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Reference of cached_features, with all activations kept."""
    return torch.cat([encode(chunk) for chunk in torch.split(x, size)])


def run(features: Callable[..., Tensor], towers: Sequence[Tower], size: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(9)
    image, text = inputs()
    total = CSAlignerLoss()(features(towers[0], image, size), features(towers[1], text, size), SCALE).total
    parameters = [p for tower in towers for p in tower.parameters()]
    return total, list(torch.autograd.grad(total, parameters))


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_dropout_included_it_is_the_batch_with_all_activations_kept(size: int) -> None:
    towers = Tower(1), Tower(2)
    total, gradients = run(kept, towers, size)
    after = torch.rand(3)
    cached_total, cached_gradients = run(cached_features, towers, size)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)  # the random state is not changed
    torch.testing.assert_close(cached_total, total, rtol=0, atol=0)
    assert_same(cached_gradients, gradients)


def test_without_dropout_it_is_the_whole_batch_and_not_a_sum_of_small_ones() -> None:
    towers = Tower(1, dropout=0), Tower(2, dropout=0)
    total, gradients = run(lambda tower, x, _: tower(x), towers, 0)
    cached_total, cached_gradients = run(cached_features, towers, 3)
    torch.testing.assert_close(cached_total, total, rtol=1e-12, atol=0)
    assert_same(cached_gradients, gradients)
    image, text = inputs()
    small = [
        CSAlignerLoss()(towers[0](x), towers[1](y), SCALE).total
        for x, y in zip(torch.split(image, 3), torch.split(text, 3), strict=True)
    ]
    assert not torch.isclose(torch.stack(small).mean(), total, rtol=0.01)


def test_no_activation_outlives_its_chunk() -> None:
    tower = Tower(1)
    cached_features(tower, inputs()[0], 4)
    assert [ref() for ref in tower.alive] == [None, None, None]
    tower.alive.clear()
    features = kept(tower, inputs()[0], 4)
    assert features.requires_grad
    assert None not in [ref() for ref in tower.alive]


def test_gradients_reach_the_inputs() -> None:
    tower, x = Tower(1, dropout=0), inputs()[0].requires_grad_()
    (wanted,) = torch.autograd.grad(tower(x).square().sum() + tower(x)[0, 0], x)
    features = cached_features(tower, x, 4)
    assert_same(torch.autograd.grad(features.square().sum() + features[0, 0], x), [wanted])


def test_autocast_is_replayed() -> None:
    tower, x = Tower(1).float(), inputs()[0].float()
    results = []
    for features in (kept, cached_features):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            found = features(tower, x, 4)
        results.append(torch.autograd.grad(found.float()[:, 0].sum(), list(tower.parameters())))
    assert_same(results[1], results[0])
    exact = torch.autograd.grad(kept(tower.eval(), x, 4)[:, 0].sum(), list(tower.parameters()))
    assert not torch.equal(exact[0], results[0][0])


def test_texts_and_the_mappings_of_tokenizers_are_cut_into_chunks() -> None:
    weight = torch.ones(3, requires_grad=True)
    sizes: list[int] = []

    def encode_texts(texts: list[str]) -> Tensor:
        sizes.append(len(texts))
        return torch.tensor([[len(text)] for text in texts]) * weight

    features = cached_features(encode_texts, ["a", "bb", "ccc"], 2)
    assert features[:, 0].tolist() == [1, 2, 3]
    features.sum().backward()  # type: ignore[no-untyped-call]
    assert sizes == [2, 1, 1, 2]
    tokens = {"input_ids": torch.arange(6).reshape(3, 2), "attention_mask": torch.tensor([[1, 1], [1, 0], [1, 1]])}
    summed = cached_features(lambda t: (t["input_ids"] * t["attention_mask"]).sum(1, keepdim=True) * weight, tokens, 2)
    assert summed[:, 0].tolist() == [1, 2, 9]


def test_bad_input_is_one_line() -> None:
    def identity(chunk: Tensor) -> Tensor:
        return chunk

    x = torch.ones(3, 2)
    bad: list[tuple[Any, Any, int, str]] = [
        (identity, x, 0, "chunk_size.*0"),
        (identity, x[:0], 2, "rows"),
        (lambda chunk: chunk.mean(0, keepdim=True), x, 2, r"returned \(1, 2\) for 2 inputs"),
        (lambda chunk: (chunk, chunk), x, 2, "returned tuple for 2 inputs"),
        (identity, {"a": x, "b": x[:2]}, 2, r"\[2, 3\] rows"),
    ]
    for encode, inputs_, size, message in bad:
        with pytest.raises(InputError, match=message):
            cached_features(encode, inputs_, size)


def two_ranks_equal_one_process() -> None:
    towers = Tower(1, dropout=0), Tower(2, dropout=0)
    _, wanted = run(lambda tower, x, _: tower(x), towers, 0)
    own = slice(0, 4) if rank() == 0 else slice(4, 11)
    image, text = (DistributedDataParallel(tower) for tower in towers)
    x, y = inputs()
    loss = CSAlignerLoss()(cached_features(image, x[own], 2), cached_features(text, y[own], 2), SCALE)
    loss.total.backward()
    found = [p.grad for tower in towers for p in tower.parameters() if p.grad is not None]
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-6, atol=1e-10)


def test_under_ddp_on_two_ranks_it_is_the_whole_batch_of_one_process() -> None:
    on_ranks(2, two_ranks_equal_one_process)
