"""Optional attributes of encoders and datasets, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.checks import InputError
from csaligner.datasets.check import check_data
from csaligner.datasets.clean import clean_items
from csaligner.encoders import open_encoder
from csaligner.store.streams import streams_of
from csaligner.types import ConcurrentEncoder, Dataset, Item, TokenCounter, TruncatingEncoder, notes_of

Listed = Callable[[Sequence[Item]], Dataset]
ITEMS = [Item("a", Path("a.png"), ("x",), group="a")]


def test_an_encoder_that_offers_nothing_gets_the_defaults(
    image_encoder: Any, text_encoder: Any, listed: Listed
) -> None:
    assert streams_of(image_encoder) == 1
    assert not isinstance(text_encoder, (TokenCounter, TruncatingEncoder, ConcurrentEncoder))
    with pytest.raises(InputError, match="tokens"):
        check_data(listed(ITEMS), text_encoder, workers=0)
    assert notes_of(listed(ITEMS)) == ()


def test_what_an_encoder_and_a_dataset_offer_is_used(image_encoder: Any, listed: Listed) -> None:
    image_encoder.concurrent = True
    assert streams_of(image_encoder) == torch.get_num_threads()
    dataset: Any = listed(ITEMS)
    dataset.notes = ("a note",)
    assert notes_of(dataset) == ("a note",)
    assert clean_items(dataset).notes == ("a note",)


def test_the_bundled_encoders_offer_all_of_it() -> None:
    text = open_encoder("bundled:all-MiniLM-L6-v2", "text")
    assert isinstance(text, TokenCounter)
    assert isinstance(text, TruncatingEncoder)
    assert text.token_count("two words") == 4
    assert isinstance(open_encoder("bundled:efficientnet-lite0", "image"), ConcurrentEncoder)
