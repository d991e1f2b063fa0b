"""The meaning of a score: how often a query without an answer finds something as close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.fusion import fuse
from csaligner.search import unanswered as module
from csaligner.search.build import build_index, finish
from csaligner.search.calibration import MODALITIES
from csaligner.search.index import Index
from csaligner.search.lance_table import Items as Tables
from csaligner.search.query import Kind
from csaligner.search.unanswered import LEVEL, Items, Unanswered, best_without_answer, chance, limit
from csaligner.search.weak import WEAK_CHANCE, WeakLimits
from csaligner.types import Modality


def captioned(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of n images and their captions, in clusters, with a gap."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, 32, generator=torch.Generator().manual_seed(9)) * 1.5
    image = centres[torch.randint(40, (n,), generator=g)] + torch.randn(n, 32, generator=g)
    text = image + 0.4 * torch.randn(n, 32, generator=g) + 0.5
    return normalize(image, dim=1), normalize(text, dim=1)


def of_kind(image: Tensor, text: Tensor, kind: Kind) -> Tensor:
    return fuse(image, text, kind) if isinstance(kind, float) else image if kind == "image" else text


@pytest.mark.parametrize("kind", ["image", "text", 0.3, 0.5])
def test_false_alarms_of_held_out_queries_without_an_answer_are_five_percent(kind: Kind) -> None:
    image, text = captioned(4000, 0)
    groups = torch.arange(4000)
    index: dict[Modality, Items] = {"image": Items(image, groups), "text": Items(text, groups)}
    known = best_without_answer(Items(of_kind(image, text, kind), groups), index, kind)
    new = of_kind(*captioned(8000, 1), kind)  # their images and captions are not in the index
    asked = best_without_answer(Items(new, torch.full((8000,), -1)), index, kind)
    false = sum(chance(float(score), known) <= LEVEL for score in asked) / len(asked)
    assert 0.04 <= false <= 0.06


def test_queries_with_an_answer_are_found_more_often() -> None:
    image, text = captioned(2000, 0)
    groups = torch.arange(2000)
    index: dict[Modality, Items] = {"image": Items(image, groups)}
    known = best_without_answer(Items(text, groups), index, "text")
    answered = (text * image).sum(dim=1)
    assert sum(chance(float(score), known) <= LEVEL for score in answered) / 2000 > 0.3


def test_an_index_says_how_likely_a_score_is_without_an_answer(world: Any, tmp_path: Path) -> None:
    world.many(120)
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
    unanswered = Unanswered(index)
    kinds: tuple[Kind, ...] = ("image", "text", 0.5)
    for kind in kinds:
        assert unanswered.chance(-2.0, kind) == 1.0
        assert unanswered.chance(2.0, kind) == pytest.approx(1 / (1 + index.counts["image"]), abs=1e-3)
        weak = WeakLimits(index).limit(kind)
        assert unanswered.chance(weak, kind) > WEAK_CHANCE  # type: ignore[operator]
        assert unanswered.chance(weak + 1e-4, kind) <= WEAK_CHANCE  # type: ignore[operator]
    texts = index.items.first_texts(20)
    chances = [unanswered.chance(index.search(words, only="images")[0].score, "text") for words in texts]
    assert all(value is not None for value in chances)


@pytest.mark.parametrize("level", [0.05, 0.37, 0.8])
def test_the_limit_is_the_largest_score_with_a_higher_chance(level: float) -> None:
    known = torch.randn(150, generator=torch.Generator().manual_seed(0))
    at = limit(known, level)
    assert chance(at, known) > level
    assert chance(at + 1e-6, known) <= level


def test_nothing_is_said_with_few_captions(world: Any, tmp_path: Path) -> None:
    world.many(30)
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
    assert Unanswered(index).chance(0.5, "text") is None


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets an entry whenever queries are asked of an index."""
    asked: list[Any] = []
    measured = module.best_cosines

    def count(*arguments: Any) -> Any:
        asked.append(arguments)
        return measured(*arguments)

    monkeypatch.setattr(module, "best_cosines", count)
    return asked


def test_a_small_update_asks_no_queries_again(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)

    def update() -> Index:
        asked.clear()
        return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]

    world.many(120)
    whole = update()
    assert asked
    before = [Unanswered(whole).limit(kind) for kind in MODALITIES]
    world.picture("another.png", (1, 2, 3))  # one of 241 items
    index = update()
    assert not asked
    again = [Unanswered(index).limit(kind) for kind in MODALITIES]
    (tmp_path / "ix" / "unanswered.safetensors").unlink()
    finish(index, "exact", None)
    assert asked
    for old, kept, now in zip(before, again, [Unanswered(index).limit(kind) for kind in MODALITIES], strict=True):
        assert kept == pytest.approx(now, abs=0.02)
        assert old == pytest.approx(now, abs=0.02)
    for n in range(3):  # with the first, more than 1 %
        world.picture(f"{n}.png", (n, 2, 3))
    update()
    assert asked


def test_an_update_after_a_write_from_elsewhere_asks_again(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.many(120)
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
    Tables.open(index.path).delete(["000"])  # interrupted: nothing is measured
    asked = counted(monkeypatch)
    build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)
    assert asked
