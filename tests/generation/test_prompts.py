"""Prompts: parsing, weights and interpolation."""

from __future__ import annotations

import math

import pytest
import torch

from csaligner.checks import InputError
from csaligner.generation.prompts import Prompt, mix, slerp


@pytest.mark.parametrize(
    ("words", "texts", "weights"),
    [
        (" a  red apple ", ("a red apple",), (1.0,)),
        ("apple::0.6 pear::0.2", ("apple", "pear"), (0.75, 0.25)),
        ("apple::1 pear", ("apple", "pear"), (0.5, 0.5)),
        ("apple:: 3 pear ::1", ("apple", "pear"), (0.75, 0.25)),
        ("9:30 o'clock", ("9:30 o'clock",), (1.0,)),
    ],
)
def test_prompts_are_read(words: str, texts: tuple[str, ...], weights: tuple[float, ...]) -> None:
    found = Prompt.parse(words)
    assert found.texts == texts
    assert found.weights == pytest.approx(weights)


@pytest.mark.parametrize("words", ["", "   ", "::0.5", "apple::0.5 ::0.5"])
def test_an_empty_prompt_is_one_line(words: str) -> None:
    with pytest.raises(InputError, match="words"):
        Prompt.parse(words)
    with pytest.raises(InputError, match=r"\b0\b"):
        Prompt.parse("apple::0 pear::0")


def test_slerp_goes_along_the_great_circle_at_even_speed() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = t * math.pi / 2
        torch.testing.assert_close(slerp(a, b, t), torch.tensor([math.cos(angle), math.sin(angle)]))
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    with pytest.raises(InputError, match="opposite"):
        slerp(a, -a, 0.5)


def test_a_mixture_of_three_has_length_one_and_a_weight_of_zero_leaves_its_prompt_out() -> None:
    rows = torch.nn.functional.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(mix(rows, (0.2, 0.3, 0.5)).norm()) == pytest.approx(1)
    torch.testing.assert_close(mix(rows, (0.4, 0.0, 0.6)), slerp(rows[0], rows[2], 0.6))
    torch.testing.assert_close(mix(torch.eye(3), (1 / 3,) * 3).max() < 0.75, torch.tensor(True))
