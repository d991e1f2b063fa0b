"""InfoNCE."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from csaligner.checks import InputError
from csaligner.losses.infonce import info_nce

IMPLEMENTATIONS = ["reference", "dense", "tiled"]


def cloud(rows: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 4, generator=g, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_ids_it_is_clips_loss_with_its_gradients(impl: str) -> None:
    leaves = [cloud(9).requires_grad_(), cloud(9, 1).requires_grad_(), torch.tensor(7.0).requires_grad_()]
    value = info_nce(*leaves, impl=impl)
    x, y, scale = leaves
    logits, target = scale * x @ y.T, torch.arange(9)
    wanted = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(value, wanted)
    for got, want in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_chance_and_perfection(impl: str) -> None:
    same = torch.ones(8, 4)
    assert math.isclose(info_nce(same, same, 5.0, impl=impl).item(), math.log(8), rel_tol=1e-6)
    apart = torch.eye(8)
    assert info_nce(apart, apart, 200.0, impl=impl).item() < 1e-6


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_repeating_a_caption_or_a_pair_changes_nothing(impl: str) -> None:
    x, y, n = cloud(6), cloud(6, 1), torch.arange(6)
    value = info_nce(x, y, 7.0, n, impl=impl).item()
    again = torch.tensor([0, 1, 2, 3, 3, 3, 4, 5])
    captions = info_nce(x, y[again], 7.0, n, text_ids=again, impl=impl).item()
    pairs = info_nce(x[again], y[again], 7.0, again, impl=impl).item()
    assert math.isclose(value, captions, rel_tol=1e-12)
    assert math.isclose(value, pairs, rel_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_captions_of_one_image_are_no_negatives_of_each_other(impl: str) -> None:
    x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    right = info_nce(x, y, 50.0, [0, 1], text_ids=[0, 0, 1], impl=impl).item()
    assert right < 1e-6
    assert info_nce(x[[0, 0, 1]], y, 50.0, [0, 1, 2], impl=impl).item() > 0.1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_order_of_rows_and_kind_of_ids_do_not_matter(impl: str) -> None:
    x, y = cloud(5), cloud(7, 1)
    image_ids, text_ids = [3, 1, 4, 0, 2], [0, 1, 1, 2, 3, 3, 4]
    value = info_nce(x, y, 7.0, image_ids, text_ids=text_ids, impl=impl).item()
    names = [f"img{i}.jpg" for i in image_ids], tuple(f"img{i}.jpg" for i in text_ids)
    tensors = torch.tensor(image_ids, dtype=torch.int32), torch.tensor(text_ids)
    for a, b in (names, tensors):
        assert math.isclose(info_nce(x, y, 7.0, a, text_ids=b, impl=impl).item(), value, rel_tol=1e-12)
    flipped = info_nce(x.flip(0), y.flip(0), 7.0, image_ids[::-1], text_ids=text_ids[::-1], impl=impl).item()
    assert math.isclose(flipped, value, rel_tol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("unpaired", [(-1, -1), (None, None)])
def test_unpaired_rows_take_no_part(impl: str, unpaired: tuple[Any, Any]) -> None:
    x, y = cloud(5), cloud(5, 1)
    wanted = info_nce(x[:4], y[1:], 7.0, impl=impl)
    names: list[Any] = [0, 1, 2, 3] if unpaired[0] == -1 else ["a", "b", "c", "d"]
    leaf = x.clone().requires_grad_()
    value = info_nce(leaf, y, 7.0, [*names, unpaired[0]], text_ids=[unpaired[1], *names], impl=impl)
    assert math.isclose(value.item(), wanted.item(), rel_tol=1e-12)
    (grad,) = torch.autograd.grad(value, leaf)
    assert not grad[4].any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_finite_at_extreme_temperatures(impl: str) -> None:
    x = torch.eye(6).requires_grad_()
    for y in (torch.eye(6), -torch.eye(6), torch.eye(6).roll(1, 0)):
        for scale in (1e-3, 100.0, 1e4):
            value = info_nce(x, y, scale, impl=impl)
            (grad,) = torch.autograd.grad(value, x)
            assert torch.isfinite(value)
            assert torch.isfinite(grad).all()
    swapped = info_nce(torch.eye(6), torch.eye(6).roll(1, 0), 100.0, impl=impl).item()
    assert math.isclose(swapped, 100.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((cloud(3), cloud(2), 1.0), "3 image.*2 text.*image_ids.*text_ids"),
        ((cloud(3), cloud(3), 0.0), "logit_scale.*0"),
        ((cloud(3), cloud(3), torch.tensor(math.inf)), "logit_scale.*inf"),
        ((cloud(3), cloud(3), 1.0, [1, 2]), "image_ids.*2.*3"),
        ((cloud(3), cloud(3), 1.0, [-1, -2, 3]), "ids: .*integers"),
        ((cloud(3), cloud(3), 1.0, torch.tensor([0.0, 1.0, 2.0])), "both as whole numbers"),
        ((cloud(3)[:, :2], cloud(3), 1.0), "image_features.*2.*text_features.*4"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        info_nce(*arguments)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_bad_text_ids() -> None:
    x = cloud(3)
    with pytest.raises(InputError, match=r"text_ids.*2.*3"):
        info_nce(x, x, 1.0, [0, 1, 2], text_ids=[0, 1])
    with pytest.raises(InputError, match=r"\bids?\b"):
        info_nce(x, x, 1.0, [0, 1, 2], text_ids=[3, 4, 5])
    with pytest.raises(InputError, match=r"^image_ids"):
        info_nce(x, x, 1.0, text_ids=[3, 4, 5])
