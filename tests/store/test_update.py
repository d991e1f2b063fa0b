"""Update of a finished store: rows of unchanged items are kept, only the others are embedded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.store.update import update
from tests.support.encoders import FakeImageEncoder, Listed, MakeItems

SETTINGS = ExtractSettings(shard_size=4, batch_size=2, workers=0, max_bad=0.4)


@pytest.fixture
def made(tmp_path: Path, make_items: MakeItems, image_encoder: Any, text_encoder: Any) -> Any:
    items = make_items(10)
    embed(Listed(items), image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    image_encoder.seen = 0
    return items


def same(a: Store, b: Store) -> bool:
    x, y = a.features(), b.features()
    pairs = ((x.image, y.image), (x.text, y.text), (x.text_to_image, y.text_to_image))
    return all(map(torch.equal, *zip(*pairs, strict=True))) and (x.image_ids, x.captions) == (y.image_ids, y.captions)


def test_only_what_differs_is_embedded(made: Any, tmp_path: Path, image_encoder: Any, text_encoder: Any) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "new.png")
    new = dataclasses.replace(made[0], image_id="new", image=tmp_path / "new.png", captions=("red",), group="new")
    Image.new("RGB", (4, 4), "blue").save(made[6].image)  # another image at the same path
    words = dataclasses.replace(made[4], captions=("other words",))
    data = Listed([*made[:2], new, made[3], words, *made[5:]])
    store, told = update(data, image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    assert image_encoder.seen == 3
    assert told == "1 new (first: new), 2 changed (first: id4), 1 no longer in the data (first: id2)"
    assert same(store, embed(data, FakeImageEncoder(), text_encoder, tmp_path / "whole", SETTINGS))
    image_encoder.seen = 0
    embed(data, image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    assert image_encoder.seen == 0
    assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(".update")]


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_clock_that_was_changed_hides_no_change(
    made: Any, ahead: int, tmp_path: Path, image_encoder: Any, text_encoder: Any
) -> None:
    """ahead: seconds by which the clock was ahead when the store was finished."""
    manifest = tmp_path / "s" / "csaligner.json"
    then = manifest.stat().st_mtime + ahead
    Image.new("RGB", (4, 4), "blue").save(made[6].image)
    os.utime(manifest, (then, then))
    store, _ = update(Listed(made), image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    assert same(store, embed(Listed(made), FakeImageEncoder(), text_encoder, tmp_path / "whole", SETTINGS))


def test_without_update_the_difference_is_said(
    made: Any, tmp_path: Path, image_encoder: Any, text_encoder: Any
) -> None:
    with pytest.raises(InputError, match=r"1 no longer in the data \(first: id3\).*--update"):
        embed(Listed([*made[:3], *made[4:]]), image_encoder, text_encoder, tmp_path / "s", SETTINGS)


def test_unreadable_images_are_skipped_and_listed(
    made: Any, tmp_path: Path, image_encoder: Any, text_encoder: Any
) -> None:
    bad = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"no image")
        bad.append(dataclasses.replace(made[0], image_id=name, image=tmp_path / f"{name}.png", group=name))
    one = update(Listed([bad[0], *made]), image_encoder, text_encoder, tmp_path / "s", SETTINGS)[0]
    two = update(Listed([bad[0], *made, bad[1]]), image_encoder, text_encoder, tmp_path / "s", SETTINGS)[0]
    assert [entry.image_id for entry in one.manifest.skipped] == ["a"]
    assert [entry.image_id for entry in two.manifest.skipped] == ["a", "b"]
    assert (image_encoder.seen, two.n_images) == (0, 10)
    strict = dataclasses.replace(SETTINGS, max_bad=0.0)
    with pytest.raises(InputError, match="max_bad"):
        update(Listed([bad[0], *made]), image_encoder, text_encoder, tmp_path / "s", strict)
    assert Store.open(tmp_path / "s").n_images == 10


def test_an_interrupted_update_resumes(made: Any, tmp_path: Path, image_encoder: Any, text_encoder: Any) -> None:
    new = []
    for n in range(6):
        path = tmp_path / f"new{n}.png"
        Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
        new.append(dataclasses.replace(made[0], image_id=path.stem, image=path, group=path.stem))
    data = Listed([*made, *new])
    calls = iter([False, False, True])

    class Stops(FakeImageEncoder):
        def encode(self, prepared: Any) -> Any:
            if next(calls):
                raise KeyboardInterrupt
            return super().encode(prepared)

    with pytest.raises(KeyboardInterrupt):
        update(data, Stops(), text_encoder, tmp_path / "s", SETTINGS)
    assert Store.open(tmp_path / "s").n_images == 10
    store = update(data, image_encoder, text_encoder, tmp_path / "s", SETTINGS)[0]
    assert (image_encoder.seen, store.n_images) == (2, 16)


def test_other_encoders_and_stores_of_one_modality(
    made: Any, tmp_path: Path, image_encoder: Any, text_encoder: Any
) -> None:
    with pytest.raises(InputError, match="other encoders"):
        update(Listed(made[1:]), FakeImageEncoder("2"), text_encoder, tmp_path / "s", SETTINGS)
    for name, encoders in {"images": (image_encoder, None), "texts": (None, text_encoder)}.items():
        embed(Listed(made[:8]), *encoders, tmp_path / name, SETTINGS)
        store, told = update(Listed(made), *encoders, tmp_path / name, SETTINGS)
        assert told.startswith("2 new")
        assert store.n_rows == (10 if name == "images" else sum(len(item.captions) for item in made))


def test_a_folder_with_a_new_image(tmp_path: Path, image_encoder: Any, text_encoder: Any) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for n in range(5):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(data / f"{n}.png")
        (data / f"{n}.txt").write_text(f"number {n}")
    embed(open_dataset(str(data)), image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    Image.new("RGB", (4, 4), "red").save(data / "2a.png")
    (data / "2a.txt").write_text("red")
    os.utime(data / "4.png", ns=(1, 1))
    store, told = update(open_dataset(str(data)), image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    assert told == "1 new (first: 2a), 1 changed (first: 4)"
    assert (store.n_images, image_encoder.seen) == (6, 7)
