"""One vector of an image and a text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner import CSAligner, InputError
from csaligner.adapters import choose_image_weight, fuse


def unit(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def halves(n: int, seed: int, text_noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Items with two labels of 30 values each: the image shows the first, the text names the second, and the other
    vector has both."""
    table = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(7)) / 8
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(900, generator=g)[:n]  # every combination at most once
    first, second = table[0][order // 30], table[1][order % 30]

    def noise(size: float) -> Tensor:
        return size * torch.randn(n, 64, generator=g) / 8

    rows = first + noise(0.3), second + noise(text_noise), first + second + noise(0.3)
    image, text, other = (normalize(row, dim=1) for row in rows)
    return image, text, other


def recall(fused: Tensor, others: Tensor) -> float:
    return float(((fused @ others.T).argmax(dim=1) == torch.arange(len(fused))).float().mean())


def test_weights_0_and_1_are_the_single_vectors_to_the_bit() -> None:
    image, text = unit(50), unit(50, seed=1)
    assert torch.equal(fuse(image, text, 1), image)
    assert torch.equal(fuse(image, text, 0), text)
    middle = fuse(image, text)
    assert torch.allclose(middle.norm(dim=1), torch.ones(50))
    assert torch.allclose((middle * image).sum(dim=1), (middle * text).sum(dim=1), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_fused_is_better_than_the_better_single_one_if_each_has_half_the_label(seed: int) -> None:
    choice = choose_image_weight(*halves(400, seed))
    image, text, others = halves(400, seed + 10)  # not seen by the choice
    fused = recall(fuse(image, text, choice.image_weight), others)
    assert fused > 0.9
    assert fused > 5 * max(recall(image, others), recall(text, others))
    assert 0.3 <= choice.image_weight <= 0.7


def test_a_text_of_noise_gets_no_weight() -> None:
    image, _, _ = halves(300, 0)
    others = normalize(image + 0.4 * unit(300, 64, 5), dim=1)
    assert choose_image_weight(image, unit(300, 64), others).image_weight >= 0.8


def test_the_choice_is_never_worse_than_a_single_one_on_validation() -> None:
    for noise in (0.0, 1.0, 4.0):
        choice = choose_image_weight(*halves(200, 3, noise))
        assert choice.scores[choice.image_weight] == max(choice.scores.values())
        assert choice.scores[choice.image_weight] >= max(choice.scores[0.0], choice.scores[1.0])


def test_labels_say_what_matches() -> None:
    image, text, others = halves(100, 0)
    names = [f"item {row}" for row in range(100)]
    turned = choose_image_weight(image, text, others.flip(0), names, other_labels=names[::-1])
    assert turned.scores == pytest.approx(choose_image_weight(image, text, others).scores)
    twice = choose_image_weight(image, text, torch.cat([others, others]), names, other_labels=[*names, *names])
    assert twice.scores[0.5] == pytest.approx(turned.scores[0.5], abs=0.05)


def test_the_estimator_fuses_aligned_rows() -> None:
    image, text, _ = halves(200, 1)
    aligner = CSAligner(epochs=0).fit(image, text[:, :48])
    fused = aligner.transform_fused(image, text[:, :48], 0.3)
    parts = aligner.transform_image(image), aligner.transform_text(text[:, :48])
    assert torch.equal(torch.from_numpy(fused), fuse(torch.from_numpy(parts[0]), torch.from_numpy(parts[1]), 0.3))
    assert (aligner.transform_fused(image, text[:, :48], 1) == parts[0]).all()
    assert aligner.transform_fused(image[0], text[0, :48]).shape == fused[0].shape
    with pytest.raises(InputError, match="text_features"):
        aligner.transform_fused(image, text[:9, :48])


def test_wrong_arguments_are_refused() -> None:
    image, text = unit(5), unit(5, seed=1)
    with pytest.raises(InputError, match="weight"):
        fuse(image, text, 1.1)
    with pytest.raises(InputError, match="text"):
        fuse(image, text[:4])
    with pytest.raises(InputError, match="others"):
        choose_image_weight(image, text, unit(4))
    with pytest.raises(InputError, match="others"):
        choose_image_weight(image, text, unit(5, 8))
    with pytest.raises(InputError, match="labels"):
        choose_image_weight(image, text, image, list("abcde"))
    with pytest.raises(InputError, match="labels"):
        choose_image_weight(image, text, image, list("abcde"), other_labels=list("abcdf"))
