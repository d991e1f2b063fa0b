"""An index whose images and captions are one item each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from csaligner import InputError
from csaligner.adapters.fusion import fuse
from csaligner.datasets.documents import Entry
from csaligner.search import FusedQuery, Index, search_cards
from csaligner.search.build import BuildSettings, build_index, delete
from csaligner.search.calibration import MIN_ITEMS, Calibration, bias_of
from csaligner.search.export import export_index
from csaligner.search.fused import Fuse, fuse_entries
from csaligner.search.lance_table import PARTS, ItemKind
from csaligner.search.mixbench import ndcg_at
from csaligner.search.unanswered import LEVEL, Unanswered
from csaligner.search.weak import WeakLimits
from csaligner.spaces.read import read_spaces


def build(world: Any, out: Path, weight: Fuse = 0.5, **words: Any) -> Index:
    settings = BuildSettings(fuse=weight, **words)
    return build_index(str(world.folder), out, str(world.run), encoders=world.encoders, settings=settings)[0]


def rows(index: Index, kind: ItemKind, column: str = "vector") -> dict[str, list[float]]:
    matrix = index.items.matrix(kind, column)
    ids = [row.id for row in index.items.by_row(kind, matrix.rows.tolist())]
    return dict(zip(ids, matrix.vectors.tolist(), strict=True))


@pytest.fixture
def mixed(world: Any) -> Any:
    """Images with a caption, images without one, and texts."""
    world.many(120)
    for n, colour in enumerate(np.random.default_rng(5).integers(1, 255, (40, 3)).tolist()):
        world.picture(f"bare{n:02}.png", tuple(colour))
    for n, colour in enumerate(np.random.default_rng(6).integers(1, 255, (40, 3)).tolist()):
        world.write(f"note{n:02}.md", " ".join(map(str, colour)))
    return world


def test_an_image_and_its_caption_are_one_item(mixed: Any, tmp_path: Path) -> None:
    index = build(mixed, tmp_path / "ix")
    assert {kind: index.items.count(kind) for kind in index.items.kinds} == {"image": 40, "text": 40, "fused": 120}
    assert index.counts == {"image": 160, "text": 40}
    (hit,) = [hit for hit in index.search("10 20 30", k=200) if hit.id == "007"]
    assert (hit.modality, hit.fused, hit.text) == ("image", True, hit.caption)
    assert hit.path.endswith("007.png")
    cards = search_cards(index, hit.text, k=200)
    assert len({card.id for card in cards}) == len(cards) == 200
    (card,) = [card for card in cards if card.id == "007"]
    assert (card.modality, card.matched, card.text) == ("image", "both", hit.caption)
    assert {h.id for h in index.search("1 2 3", k=200, only="images")} >= {"007", "bare00"}
    assert all(h.modality == "text" for h in index.search("1 2 3", k=200, only="texts"))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_vectors_are_the_weighted_parts_and_at_0_and_1_the_single_ones_to_the_bit(
    world: Any, tmp_path: Path, weight: float
) -> None:
    world.many(20)
    fused = build(world, tmp_path / "ix", weight)
    single = build(world, tmp_path / "single", None)
    image, text = rows(single, "image"), rows(single, "text")
    assert rows(fused, "fused", PARTS["image"]) == image
    assert rows(fused, "fused", PARTS["text"]) == {i: text[f"{i}#caption-1"] for i in image}
    found = rows(fused, "fused")
    if weight in (0, 1):
        assert found == (image if weight else {i: text[f"{i}#caption-1"] for i in image})
    else:
        for i, row in found.items():
            expected = fuse(torch.tensor(image[i]), torch.tensor(text[f"{i}#caption-1"]), weight)
            assert torch.allclose(torch.tensor(row), expected, atol=1e-6)


def test_only_what_changed_is_embedded_again(world: Any, tmp_path: Path) -> None:
    world.many(5)
    red = world.picture("red.png", (255, 0, 0), "255 0 0")
    build(world, tmp_path / "ix")
    seen = world.images.seen, world.texts.seen
    assert seen == (6, 6)
    build(world, tmp_path / "ix", None)  # the weight is recorded
    assert (world.images.seen, world.texts.seen) == seen
    red.with_suffix(".txt").write_text("0 255 0")
    index = build(world, tmp_path / "ix")
    assert (world.images.seen, world.texts.seen) == (7, 7)
    row = index.row("red")
    assert row is not None
    assert (row.text, row.caption) == ("0 255 0", "0 255 0")
    red.with_suffix(".txt").unlink()  # an image without a caption is no longer fused
    index = build(world, tmp_path / "ix")
    assert (index.items.count("fused"), index.items.count("image"), len(index)) == (5, 1, 6)
    assert delete(index, ["000", "red"]) == 2
    assert (index.items.count("fused"), index.items.count("image")) == (4, 0)
    assert len(Index.open(tmp_path / "ix", world.encoders)) == 4


def test_several_captions_are_one_text_part(world: Any, tmp_path: Path) -> None:
    world.picture("a.png", (9, 9, 9))
    world.write("captions.csv", "image,caption\na.png,255 0 0\na.png,0 0 255\n")
    table = str(world.folder / "captions.csv")
    index = build_index(
        table, tmp_path / "ix", str(world.run), encoders=world.encoders, settings=BuildSettings(fuse=0.5)
    )[0]
    (row,) = index.items.by_id(["a"]) or index.items.by_id(["a.png"])
    assert row.text == "255 0 0\n0 0 255"
    both = torch.from_numpy(index.model.encode_text(["255 0 0", "0 0 255"]))
    part = index.items.matrix("fused", PARTS["text"]).vectors[0]
    assert torch.allclose(part, normalize(both.mean(dim=0), dim=0), atol=1e-6)
    assert search_cards(index, "0 0 255", k=1)[0].text == "255 0 0"


def test_scores_of_three_kinds_are_comparable(mixed: Any, tmp_path: Path) -> None:
    index = build(mixed, tmp_path / "ix")
    vectors, parts = index.space("aligned").vectors, index.parts
    assert index.calibration is not None
    assert set(index.calibration.curves["text"]) == {"image", "text", "fused"}
    after = bias_of(vectors, index.calibration, parts)
    assert max(map(abs, after.values())) < 0.1
    read = Index.open(tmp_path / "ix", mixed.encoders)
    assert read.calibration == index.calibration
    assert read.bias == index.bias


def cones(n: int, seed: int) -> tuple[dict[ItemKind, torch.Tensor], dict[Any, torch.Tensor]]:
    """Return items of three kinds with a gap, and the parts of the fused ones."""
    g = torch.Generator().manual_seed(seed)

    def cone(axis: int, count: int) -> torch.Tensor:
        return normalize(torch.randn(count, 16, generator=g) * 0.7 + 2 * torch.eye(16)[axis], dim=1)

    parts = {"image": cone(0, n), "text": cone(1, n)}
    return {"image": cone(0, n), "text": cone(1, n), "fused": fuse(parts["image"], parts["text"])}, parts


def test_the_bias_of_new_queries_is_gone_with_a_gap() -> None:
    vectors, parts = cones(300, 0)
    assert min(bias_of(vectors, None, parts).values()) > 0.3
    new, new_parts = cones(300, 1)
    after = bias_of(new, Calibration.fit(vectors, parts), new_parts)
    assert max(map(abs, after.values())) < 0.08


def test_where_all_images_are_fused_these_are_the_images() -> None:
    vectors, parts = cones(300, 0)
    del vectors["image"]
    calibration = Calibration.fit(vectors, parts)
    assert calibration is not None
    new, new_parts = cones(300, 1)
    del new["image"]
    assert max(map(abs, bias_of(new, calibration, new_parts).values())) < 0.08
    alone: dict[ItemKind, torch.Tensor] = {"fused": vectors["fused"]}
    assert bias_of(alone, None, parts) == {}
    few: dict[ItemKind, torch.Tensor] = {**vectors, "image": vectors["text"][: MIN_ITEMS - 1]}
    calibration = Calibration.fit(few, parts)
    assert calibration is not None
    cosines = torch.linspace(-1, 1, 5)
    assert torch.equal(calibration.apply("text", "image", cosines), cosines)  # too few to calibrate


def test_no_good_match_is_told_for_both_kinds_of_query(mixed: Any, tmp_path: Path) -> None:
    index = build(mixed, tmp_path / "ix")
    unanswered = Unanswered(index)
    for modality in ("image", "text"):
        count = 120 + (40 if modality == "image" else 0)  # the notes are no captions
        assert unanswered.chance(-2.0, modality) == 1.0
        assert unanswered.chance(2.0, modality) == pytest.approx(1 / (1 + count))
        assert math.isfinite(WeakLimits(index).limit(modality))


@pytest.mark.parametrize("seed", range(3))
def test_false_alarms_are_five_percent_with_fused_items(seed: int) -> None:
    from csaligner.search.unanswered import Items, best_without_answer, chance

    def items(count: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(number)
        centres = torch.randn(40, 32, generator=torch.Generator().manual_seed(9)) * 1.5
        image = centres[torch.randint(40, (count,), generator=g)] + torch.randn(count, 32, generator=g)
        return normalize(image, dim=1), normalize(image + 0.4 * torch.randn(count, 32, generator=g), dim=1)

    image, text = items(3000, seed)
    groups = torch.arange(3000)
    index: dict[ItemKind, Items] = {"fused": Items(fuse(image, text), groups)}
    known = best_without_answer(Items(text, groups), index, "text")
    asked = best_without_answer(Items(items(6000, seed + 50)[1], torch.full((6000,), -1)), index, "text")
    false = sum(chance(float(score), known) <= LEVEL for score in asked) / len(asked)
    assert 0.035 <= false <= 0.065


def test_a_query_of_words_and_image_finds_its_fused_item(mixed: Any, tmp_path: Path) -> None:
    index = build(mixed, tmp_path / "ix")
    row = index.row("033")
    assert row is not None
    query = FusedQuery(row.caption, Path(row.path), 0.5)
    assert index.search(query, k=1)[0].id == "033"
    assert index.search(query, k=1)[0].cosine == pytest.approx(1, abs=1e-5)


def test_export_and_approximate_search_have_the_fused_items(mixed: Any, tmp_path: Path) -> None:
    index = build(mixed, tmp_path / "ix", approximate="ivf_sq")
    assert index.manifest.approximate is not None
    assert index.manifest.approximate.recall > 0.9
    assert index.search("1 2 3", k=3)
    export_index(index, tmp_path / "npy", "npy")
    exported = [json.loads(line) for line in (tmp_path / "npy" / "items.jsonl").read_text().splitlines()]
    assert len(exported) == len(index) == len(np.load(tmp_path / "npy" / "vectors.npy")) == 200
    (row,) = [row for row in exported if row["id"] == "007"]
    assert (row["modality"], bool(row["text"]), row["owner"]) == ("image", True, "")


def test_diagnose_reads_the_parts_of_fused_items(world: Any, tmp_path: Path) -> None:
    world.many(8)
    world.write("note.md", "1 2 3")
    build(world, tmp_path / "ix")
    image, text = read_spaces([str(tmp_path / "ix")])
    assert (image.name, len(image.rows), text.name, len(text.rows)) == ("image", 8, "text", 9)
    assert image.ids is not None
    assert text.ids is not None
    assert set(image.ids) < set(text.ids)


def test_a_wrong_weight_is_one_line(world: Any, tmp_path: Path) -> None:
    world.many(3)
    for weight in (1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match="fuse"):
            build(world, tmp_path / "ix", weight)
    build(world, tmp_path / "ix", 0.5)
    with pytest.raises(InputError, match=r"weight 0\.5"):
        build(world, tmp_path / "ix", 0.4)
    build(world, tmp_path / "single", None)
    with pytest.raises(InputError, match="separate items"):
        build(world, tmp_path / "single", 0.5)


def test_an_index_of_fused_items_is_not_for_earlier_versions(world: Any, tmp_path: Path) -> None:
    world.many(3)
    build(world, tmp_path / "ix", 0.5)
    build(world, tmp_path / "single", None)
    versions = [json.loads((tmp_path / n / "index.json").read_text())["format_version"] for n in ("ix", "single")]
    assert versions == [2, 1]
    assert "fused" not in json.loads((tmp_path / "single" / "index.json").read_text())


def test_auto_chooses_the_weight_on_captions_that_are_left_out(world: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = ["image,caption"]
    for n in range(60):
        colour = rng.integers(1, 255, 3)
        world.picture(f"{n:03}.png", tuple(colour.tolist()))
        # a caption names the colour inexactly, so that the image says more
        table += [f"{n:03}.png,{' '.join(map(str, np.clip(colour + rng.integers(-60, 60, 3), 1, 254)))}" for _ in "ab"]
    path = world.write("captions.csv", "\n".join(table))
    settings = BuildSettings(fuse="auto")
    index, report = build_index(str(path), tmp_path / "ix", str(world.run), encoders=world.encoders, settings=settings)
    assert index.manifest.fused is not None
    assert index.manifest.fused > 0.5
    assert any("chosen on 60 images" in note for note in report.notes)
    again = build_index(str(path), tmp_path / "ix", str(world.run), encoders=world.encoders, settings=settings)[0]
    assert again.manifest.fused == index.manifest.fused


def test_auto_with_one_caption_each_is_a_half(world: Any, tmp_path: Path) -> None:
    world.many(40)
    settings = BuildSettings(fuse="auto")
    index, report = build_index(
        str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders, settings=settings
    )
    assert index.manifest.fused == 0.5
    assert any("too few" in note for note in report.notes)


def test_texts_of_no_image_stay_texts() -> None:
    image, note = Entry("a", "image", Path("a.png"), caption="x"), Entry("n", "text", text="a note")
    bare, caption = Entry("b", "image", Path("b.png")), Entry("a#caption-1", "text", text="x", owner="a")
    found = fuse_entries([image, caption, note, bare])
    assert [(entry.id, entry.text) for entry in found] == [("a", "x"), ("n", "a note"), ("b", "")]


@pytest.mark.parametrize("seed", range(4))
def test_fused_items_are_better_than_the_better_part_if_each_has_half_the_label(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(2, 25, 64, generator=torch.Generator().manual_seed(3)) / 8
    first, second = table[0].repeat_interleave(25, dim=0), table[1].repeat(25, 1)  # every combination once

    def noisy(rows: torch.Tensor) -> torch.Tensor:
        return normalize(rows + 0.5 * torch.randn(rows.shape, generator=g) / 8, dim=1)

    image, text, query = noisy(first), noisy(second), noisy(first + second)
    gains = torch.eye(625)
    ndcg = {w: float(ndcg_at(query @ fuse(image, text, w).T, gains).mean()) for w in (0.0, 0.5, 1.0)}
    assert ndcg[0.5] > 2 * max(ndcg[0.0], ndcg[1.0])
