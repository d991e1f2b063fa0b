"""Random feature alignment against explicit sums with known references."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner import CSAligner
from csaligner.losses.objective import Objective
from csaligner.losses.random_alignment import random_alignment

RAFA = Objective({"random_alignment": 1.0})


def cloud(rows: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 4, generator=g, dtype=torch.float64), dim=1)


def value(x: Tensor, y: Tensor, images: Tensor | None = None, texts: Tensor | None = None, seed: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return RAFA(x, y, 1.0, images, texts).total


def test_both_modalities_of_a_pair_are_drawn_to_one_reference() -> None:
    x, y = cloud(3), cloud(4, 1)
    texts = torch.tensor([0, 1, 1, 2])
    torch.manual_seed(5)
    z = torch.randn(3, 4, dtype=torch.float64) / 2
    of_images = ((x - z) ** 2).sum(dim=1)
    of_texts = ((y - z[texts]) ** 2).sum(dim=1)
    captions = of_texts[0] + (of_texts[1] + of_texts[2]) / 2 + of_texts[3]
    torch.testing.assert_close(value(x, y, torch.arange(3), texts), (of_images.sum() + captions) / 6)


def test_the_gradient_is_the_slope_of_its_value() -> None:
    x, y = (side.clone().requires_grad_() for side in (cloud(5), cloud(6, 1)))
    texts = torch.tensor([0, 1, 2, 3, 4, 4])
    assert torch.autograd.gradcheck(lambda a, b: value(a, b, torch.arange(5), texts), (x, y))


def test_a_pair_moves_together_whichever_reference_is_drawn() -> None:
    x = cloud(5)
    one, two = (x.clone().requires_grad_() for _ in range(2))
    of_one, of_two = torch.autograd.grad(value(one, two), (one, two))
    torch.testing.assert_close(of_one, of_two)
    assert float(of_one.abs().max()) > 0
    assert not torch.equal(value(x, x), value(x, x, seed=6))


def test_order_repeated_captions_and_unpaired_rows_change_nothing() -> None:
    x, y, n = cloud(5), cloud(5, 1), torch.arange(5)
    alone = value(x, y, n, n)
    again = torch.tensor([4, 0, 1, 2, 2, 3])
    torch.testing.assert_close(value(x, y[again], n, again), alone)
    texts = torch.tensor([0, 1, 2, 3, 4, -1, 9])  # 9: its image is not in this batch
    torch.testing.assert_close(value(x, torch.cat([y, cloud(2, 2)]), n, texts), alone)
    nothing = random_alignment(x.requires_grad_(), y, torch.tensor(1.0), n, n + 10)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, x)[0].abs().max() == 0


def test_training_with_it_repeats_to_the_bit() -> None:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(40, 6, generator=g), torch.randn(40, 6, generator=g)
    terms = {"info_nce": 1.0, "random_alignment": 0.3}
    first, second, without = (
        CSAligner(epochs=2, gate=False, start={"kind": "auto"}, objective={"terms": used}, verbose=False)
        .fit(image, text)
        .transform_image(image)
        for used in (terms, terms, {"info_nce": 1.0})
    )
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    assert not torch.equal(torch.as_tensor(first), torch.as_tensor(without))
