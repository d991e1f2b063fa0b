"""Reader of Hugging Face `datasets`: saved folders, streams and generators."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.datasets.huggingface import HuggingFace
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.datasets.images.source import from_uri, stamp_of
from csaligner.store.embed import ExtractSettings, embed

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


def png(colour: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def colours(dataset: HuggingFace) -> list[Any]:
    return [load_image(pickle.loads(pickle.dumps(item.image))).getpixel((0, 0)) for item in dataset.items()]


def saved(tmp_path: Path, **columns: Any) -> Path:
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
        if hasattr(datasets, "List")
        else {"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))}
    )
    data = {"image": [{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": "b.png"}]} | columns
    table = datasets.Dataset.from_dict({"caption": [["one", "uno"], ["two"]]} | data, features=features)
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(str(folder))
    return folder


def test_a_saved_folder(tmp_path: Path) -> None:
    dataset = open_dataset(str(saved(tmp_path)))
    assert isinstance(dataset, HuggingFace)
    assert [(i.image_id, i.captions, i.split) for i in dataset.items()] == [
        ("train/0", ("one", "uno"), "train"),
        ("train/1", ("two",), "train"),
        ("validation/0", ("one", "uno"), "val"),
    ]
    assert colours(dataset) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    again = open_dataset(str(tmp_path / "saved")).items()
    assert [stamp_of(item.image) for item in again] == [stamp_of(item.image) for item in dataset.items()]
    assert len({str(stamp_of(item.image)) for item in again}) == 3


@pytest.mark.parametrize("part", ["", "train"])
def test_a_store_gives_the_pictures_of_a_saved_folder_back(
    tmp_path: Path, image_encoder: Any, text_encoder: Any, part: str
) -> None:
    folder = saved(tmp_path)
    if not part:
        datasets.load_from_disk(str(folder))["train"].save_to_disk(str(folder := tmp_path / "one"))
    store = embed(
        open_dataset(str(folder)), image_encoder, text_encoder, tmp_path / "store", ExtractSettings(workers=0)
    )
    found = store.image_sources
    names = [f"{part}/{n}" if part else str(n) for n in range(2)]
    assert [load_image(found[name]).getpixel((0, 0)) for name in names] == [(255, 0, 0), (0, 0, 255)]
    assert not store.image_paths  # they are not separate files
    with pytest.raises(ImageError, match="read"):
        load_image(from_uri(str(found[names[0]]).replace("[0]", "[9]")))


def test_columns_are_chosen_and_named_where_they_are_not_there(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"pic": [png("red")], "title": ["x"], "nr": [7], "caption": ["not this"]})
    dataset = HuggingFace(table, image_key="pic", caption_key="title", id_key="nr")
    assert [(i.image_id, i.captions) for i in dataset.items()] == [("7", ("x",))]
    with pytest.raises(InputError, match=r"image_key.*'pic'"):
        HuggingFace(table).items()
    with pytest.raises(InputError, match=r"caption_key.*'titel'.*'title'"):
        HuggingFace(table, image_key="pic", caption_key="titel").items()


def rows(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "d.png").write_bytes(png("white"))
    yield {"image": Image.new("RGB", (2, 2), "red"), "text": "pil"}
    yield {"image": png("blue"), "text": "bytes"}
    yield {"image": {"bytes": png("lime"), "path": None}, "text": "dict"}
    yield {"image": "d.png", "text": "path"}
    yield {"image": 3, "text": "a number"}
    yield {"image": png("blue")}


def test_a_generator_of_every_kind_of_picture(tmp_path: Path) -> None:
    dataset = HuggingFace(rows(tmp_path), image_root=tmp_path)
    items = dataset.items()
    assert [item.captions for item in items[:4]] == [("pil",), ("bytes",), ("dict",), ("path",)]
    assert dataset.items() == items  # although the generator is exhausted
    assert [load_image(i.image).getpixel((0, 0)) for i in items[:4]] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 255, 0),
        (255, 255, 255),
    ]
    for item, reason in zip(items[4:], ("row 4.*int", "row 5.*'text'"), strict=True):
        with pytest.raises(ImageError, match=reason):
            load_image(item.image)
    other = HuggingFace(rows(tmp_path), image_root=tmp_path)
    assert [stamp_of(i.image) for i in other.items()] == [stamp_of(i.image) for i in items]


def test_a_stream_and_its_limit() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            yield {"image": {"bytes": png((number, 0, 0)), "path": None}, "caption": f"{number}"}
            number += 1

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(endless, features=features)
    dataset = HuggingFace(stream, limit=3)
    assert colours(dataset) == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [item.captions for item in dataset.items()] == [("0",), ("1",), ("2",)]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="save_to_disk") as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
