"""embed: from a dataset to a feature store, with all failures on the way."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from csaligner.checks import CSAlignerError, InputError
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.types import Dataset, EncoderInfo, Item

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]
ONE = ExtractSettings(shard_size=4, batch_size=3, workers=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_content(store: Store, items: Sequence[Item], text_features: Callable[[str], Tensor]) -> None:
    """Check that the store has the images and captions of all items, and nothing else."""
    found = store.features()
    assert found.captions is not None
    rows = zip(found.captions, found.text_to_image.tolist(), found.text, strict=True)
    seen = [(found.image_ids[i], caption) for caption, i, _ in rows]
    assert seen == [(item.image_id, caption) for item in items for caption in item.captions]
    for item, x in zip(items, found.image, strict=True):
        with Image.open(str(item.image)) as picture:
            assert x.tolist() == list(picture.getpixel((0, 0)))  # type: ignore[arg-type]
    for caption, y in zip(found.captions, found.text, strict=True):
        assert torch.equal(y, text_features(caption))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("shard_size", "batch_size"), [(4, 3), (1, 5), (100, 2), (11, 11)])
def test_features_land_beside_their_ids(
    out: Path,
    make_items: MakeItems,
    listed: Listed,
    image_encoder: Any,
    text_encoder: Any,
    workers: int,
    shard_size: int,
    batch_size: int,
) -> None:
    items = make_items(11)
    settings = ExtractSettings(shard_size=shard_size, batch_size=batch_size, workers=workers)
    store = embed(listed(items), image_encoder, text_encoder, out, settings)
    check_content(store, items, lambda text: text_encoder.encode([text])[0])
    store.verify()
    assert (store.n_images, store.n_captions) == (11, 21)
    assert len(store.manifest.shards) == -(-11 // shard_size)
    assert store.attribution == "Drawn by a test."
    assert store.notes == ()
    assert store.image_paths["id3"] == items[3].image


def test_progress_ends_at_the_end(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    seen: list[tuple[int, int]] = []
    embed(listed(make_items(8)), image_encoder, text_encoder, out, ONE, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 8), (3, 8), (4, 8), (7, 8), (8, 8)]


def test_a_finished_store_is_reused(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = make_items(9)
    first = embed(listed(items), image_encoder, text_encoder, out, ONE)
    before, image_encoder.seen = files(out), 0
    again = embed(listed(items), image_encoder, text_encoder, out, ExtractSettings(workers=0))
    assert image_encoder.seen == 0
    assert again.sha256 == first.sha256
    assert files(out) == before


def test_threads_are_given_back(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    before = torch.get_num_threads()
    embed(listed(make_items(2)), image_encoder, text_encoder, out, ExtractSettings(workers=1))
    assert torch.get_num_threads() == before


def test_another_store_in_out_is_left_alone(
    out: Path,
    make_items: MakeItems,
    listed: Listed,
    image_encoder: Any,
    text_encoder: Any,
    fake_image_encoder: Any,
) -> None:
    items = make_items(5)
    embed(listed(items), image_encoder, text_encoder, out, ONE)
    before = files(out)
    changed = [dataclasses.replace(items[0], captions=("new",)), *items[1:]]
    cases = [
        (changed, image_encoder, "of other data"),
        (items[1:], image_encoder, "of other data"),
        ([dataclasses.replace(items[0], split="val"), *items[1:]], image_encoder, "of other data"),
        (items, fake_image_encoder("2"), r"of other image features \(fake-image"),
    ]
    for other, encoder, message in cases:
        with pytest.raises(InputError, match=f"^out.*{out}.*{message}"):
            embed(listed(other), encoder, text_encoder, out, ONE)
    Image.new("RGB", (40, 40), "red").save(str(items[2].image))
    with pytest.raises(InputError, match="data"):
        embed(listed(items), image_encoder, text_encoder, out, ONE)
    assert files(out) == before


def test_a_folder_or_file_of_somebody_else_is_left_alone(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="csaligner store"):
        embed(listed(make_items(2)), image_encoder, text_encoder, out, ONE)
    assert list(files(out)) == ["letter.txt"]
    with pytest.raises(InputError, match=r"^out"):
        embed(listed(make_items(2)), image_encoder, text_encoder, out / "letter.txt", ONE)


def broken_items(make_items: MakeItems, n: int, broken: Sequence[int]) -> list[Item]:
    items = make_items(n)
    for i in broken:
        if i % 2:
            Path(str(items[i].image)).unlink()
        else:
            Path(str(items[i].image)).write_bytes(Path(str(items[i].image)).read_bytes()[:30])
    return items


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_skipped_counted_and_listed(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any, workers: int
) -> None:
    items = broken_items(make_items, 12, [1, 4, 5, 6, 7])  # the whole second shard, and one of the first
    settings = dataclasses.replace(ONE, max_bad=0.5, workers=workers)
    store = embed(listed(items), image_encoder, text_encoder, out, settings)
    good = [item for i, item in enumerate(items) if i not in {1, 4, 5, 6, 7}]
    check_content(store, good, lambda text: text_encoder.encode([text])[0])
    listed_bad = json.loads((out / "csaligner.json").read_text())["skipped"]
    assert [entry["image_id"] for entry in listed_bad] == ["id1", "id4", "id5", "id6", "id7"]
    assert "1.png" in listed_bad[0]["reason"]
    assert str(items[4].image) in listed_bad[1]["reason"]
    (note,) = store.notes
    assert note.startswith("5 of 12")
    assert "1.png" in note


def test_too_many_broken_pictures_stop_the_run_and_lose_nothing(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = broken_items(make_items, 20, [5, 7])
    with pytest.raises(InputError, match=r"2 of 20.*max_bad.*0\.05.*5\.png.*7\.png"):
        embed(listed(items), image_encoder, text_encoder, out, ONE)
    assert image_encoder.seen == 6  # it stopped before the third shard
    with pytest.raises(InputError, match="2 of 20"):  # again, immediately
        embed(listed(items), image_encoder, text_encoder, out, ONE)
    assert image_encoder.seen == 6
    store = embed(listed(items), image_encoder, text_encoder, out, dataclasses.replace(ONE, max_bad=0.1))
    assert (store.n_images, image_encoder.seen) == (18, 18)


def test_exactly_max_bad_is_allowed(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = broken_items(make_items, 20, [7])
    assert embed(listed(items), image_encoder, text_encoder, out, ONE).n_images == 19


def test_not_one_picture(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = broken_items(make_items, 2, [0, 1])
    with pytest.raises(InputError, match=r"0\.png"):
        embed(listed(items), image_encoder, text_encoder, out, dataclasses.replace(ONE, max_bad=1))


def test_left_out_captions_are_told(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = make_items(4)
    items[1] = dataclasses.replace(items[1], captions=("", "x"))
    items[2] = dataclasses.replace(items[2], captions=(" ",))
    store = embed(listed(items), image_encoder, text_encoder, out, ONE)
    dropped, without = store.notes
    assert re.search(r"empty.*\b2\b", dropped)
    assert re.search(r"without a caption.*\b1\b.*id2", without)


class Odd:
    """Encoder with a given output."""

    def __init__(self, modality: Any, returns: Callable[[int], Tensor]) -> None:
        self.info = EncoderInfo("odd", "1", modality, 3, {})
        self._returns = returns

    def prepare(self, item: Any) -> Any:
        return item if isinstance(item, str) else torch.zeros(1)

    def encode(self, prepared: Sequence[Any]) -> Tensor:
        return self._returns(len(prepared))


def with_nan(n: int) -> Tensor:
    return torch.cat([torch.full((1, 3), torch.nan), torch.zeros(n - 1, 3)])


def test_features_that_are_not_finite(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = make_items(4)
    settings = dataclasses.replace(ONE, batch_size=4, max_bad=0.5)
    store = embed(listed(items), Odd("image", with_nan), text_encoder, out, settings)
    assert store.features().image_ids == ("id1", "id2", "id3")
    assert re.search(r"0\.png.*NaN", store.notes[0])
    with pytest.raises(InputError, match=r"odd.*NaN.*'picture 0 caption 0'"):
        embed(listed(items), image_encoder, Odd("text", with_nan), out.with_name("other"), ONE)


def test_features_too_large_for_float16_stop_the_run(
    out: Path, make_items: MakeItems, listed: Listed, text_encoder: Any
) -> None:
    odd = Odd("image", lambda n: torch.full((n, 3), 1e5))
    settings = dataclasses.replace(ONE, dtype="float16")
    with pytest.raises(InputError, match=r"dtype.*float16.*image.*100000.*float32"):
        embed(listed(make_items(3)), odd, text_encoder, out, settings)
    with pytest.raises(InputError, match="finished"):
        Store.open(out)


def test_an_encoder_that_breaks_its_word(
    out: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    odd = Odd("image", lambda n: torch.zeros(n, 4))
    with pytest.raises(CSAlignerError, match=r"odd.*\(3, 4\).*\(3, 3\)"):
        embed(listed(make_items(3)), odd, text_encoder, out, ONE)
    with pytest.raises(InputError, match=r"image_encoder.*fake-text"):
        embed(listed(make_items(3)), text_encoder, image_encoder, out, ONE)


@pytest.mark.parametrize(
    ("name", "value"), [("shard_size", 0), ("batch_size", 0), ("workers", -1), ("max_bad", 1.5), ("max_bad", -0.1)]
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        ExtractSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"dtype.*'int8'"):
        ExtractSettings(dtype="int8")  # type: ignore[arg-type]
