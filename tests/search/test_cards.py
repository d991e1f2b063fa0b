"""Results grouped by image, and the limit of weak results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csaligner.search.build import build_index
from csaligner.search.cards import search_cards
from csaligner.search.index import Index, SearchOptions
from csaligner.search.weak import WeakLimits


@pytest.fixture
def index(world: Any, write: Any, tmp_path: Path) -> Index:
    world.picture("red.png", (255, 0, 0), "250 0 0\n200 60 60\n")
    world.picture("blue.png", (0, 0, 255), "0 0 255")
    world.picture("green.png", (0, 255, 0))
    world.many(40)
    write("notes.md", "120 120 0")
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]


def test_one_card_per_image_with_the_caption_that_matched(index: Index) -> None:
    cards = search_cards(index, "200 60 60", 60)
    images = [card for card in cards if card.modality == "image"]
    assert len({card.id for card in images}) == len(images) == 43
    red = next(card for card in images if card.id == "red")
    assert (red.text, red.matched) == ("200 60 60", "text")
    assert red.path.endswith("red.png")
    assert [card.text for card in cards if card.modality == "text"] == ["120 120 0"]
    assert [card.score for card in cards] == sorted((card.score for card in cards), reverse=True)


def test_an_image_found_by_itself_shows_its_first_caption(index: Index) -> None:
    card = search_cards(index, "255 0 0", 1, SearchOptions(only="images"))[0]
    assert (card.id, card.text, card.matched) == ("red", "250 0 0", "image")


def test_texts_name_the_images_that_they_describe(world: Any, tmp_path: Path) -> None:
    for name in ("red.png", "also-red.png"):
        world.picture(name, (255, 0, 0), "250 0 0")
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
    (card,) = search_cards(index, "250 0 0", 5, SearchOptions(only="texts"))
    assert sorted(card.owners) == ["also-red", "red"]
    assert sorted(Path(path).name for path in card.images) == ["also-red.png", "red.png"]


@pytest.mark.parametrize("space", ["aligned", "raw", "centred"])
def test_pages_continue_the_list(index: Index, space: Any) -> None:
    options = SearchOptions(space=space)
    every = [card.id for card in search_cards(index, "90 10 200", 60, options)]
    pages = [card.id for at in range(0, 60, 7) for card in search_cards(index, "90 10 200", 7, options, offset=at)]
    assert len(every) == 44
    assert pages == every


def test_the_limit_depends_on_space_restriction_and_modality(index: Index) -> None:
    limits = WeakLimits(index)
    limit = limits.limit("text")
    assert limits.limit("text", SearchOptions(only="images")) <= limit
    assert limits.limit("text", SearchOptions(space="raw")) != limit
    assert 0 < limits.limit("image") <= 1


def test_an_empty_index_has_no_weak_results(world: Any, index: Index) -> None:
    from csaligner.search.build import delete

    delete(index, [row["id"] for row in index.items.to_arrow(["id"]).to_pylist()])
    assert WeakLimits(index).limit("text") == -float("inf")
