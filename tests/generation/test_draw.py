"""Images drawn from the texts of the search page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from csaligner.adapters.aligner import Aligner
from csaligner.app.draw import drawer
from csaligner.checks import InputError
from csaligner.model import AlignedModel
from csaligner.types import Encoder


def test_the_aligner_of_the_index_is_used(
    encoders: None, decoder: str, aligner: Callable[..., Aligner], letters: Encoder
) -> None:
    told: list[str] = []
    model = AlignedModel(aligner(), [letters])
    first = drawer(model, decoder, told.append)("aaa", 0)
    assert max(first.size) == 256
    other = aligner()
    for parameter in other.text_adapter.parameters():
        parameter.data.neg_()
    second = drawer(AlignedModel(other, [letters]), decoder, told.append)("aaa", 0)
    assert first.tobytes() != second.tobytes()
    assert told == []


def test_an_aligner_that_does_not_fit_is_told(letters: Encoder, aligner: Callable[..., Aligner], decoder: str) -> None:
    told: list[str] = []
    unfit = AlignedModel(aligner(image_adapter="linear"), [letters])
    assert drawer(unfit, "micro", told.append)("a red circle", 0).size == (256, 256)
    assert "standardise" in told[0]
    with pytest.raises(InputError, match="standardise"):
        drawer(unfit, decoder, told.append)
