"""Contract of registered dataset readers; each reader needs a small sample here."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import ALL, open_dataset
from csaligner.datasets.images.load import load_image
from csaligner.datasets.images.source import Unusable, from_uri, stamp_of, to_uri
from csaligner.registry import DATASETS, load


def picture(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)
    return path.read_bytes()


def text(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def _table(folder: Path) -> Path:
    picture(folder / "a.png")
    return text(folder / "t.csv", "image,caption\na.png,x\n")


def _folder(folder: Path) -> Path:
    picture(folder / "f/a.png")
    text(folder / "f/a.txt", "x")
    return folder / "f"


def _captioned(folder: Path) -> Path:
    picture(folder / "n/a.png")
    text(folder / "n/captions.csv", "image,caption\na.png,x\n")
    return folder / "n"


def _karpathy(folder: Path) -> Path:
    picture(folder / "a.png")
    entry = {"filename": "a.png", "split": "val", "sentences": [{"raw": "x"}]}
    return text(folder / "dataset_flickr30k.json", {"images": [entry]})


def _coco(folder: Path) -> Path:
    picture(folder / "a.png")
    annotations = [{"image_id": 1, "caption": "x"}]
    return text(folder / "c.json", {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations})


def _flickr(folder: Path) -> Path:
    picture(folder / "a.png")
    return text(folder / "r.token", "a.png#0\tx\n")


def _urban1k(folder: Path) -> Path:
    picture(folder / "u/image/a.png")
    text(folder / "u/caption/a.txt", "x")
    return folder / "u"


def _docci(folder: Path) -> Path:
    picture(folder / "images/a.png")
    line = {"split": "test", "image_file": "a.png", "description": "x"}
    return text(folder / "docci_descriptions.jsonlines", json.dumps(line))


def _sharegpt4v(folder: Path) -> Path:
    picture(folder / "a.png")
    return text(folder / "s.json", [{"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}]}])


def _webdataset(folder: Path) -> Path:
    content = picture(folder / "a.png")
    with tarfile.open(folder / "a.tar", "w") as file:
        for name, value in (("a.png", content), ("a.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(value)
            file.addfile(info, io.BytesIO(value))
    return folder / "a.tar"


def _img2dataset(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture(folder / "i/00000/a.png")
    pq.write_table(pa.table({"key": ["a"], "caption": ["x"], "status": ["success"]}), folder / "i/00000.parquet")
    return folder / "i"


def _huggingface(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    content = picture(folder / "a.png")
    datasets.Dataset.from_dict({"image": [content], "caption": ["x"]}).save_to_disk(str(folder / "h"))
    return folder / "h"


def _texts(folder: Path) -> Path:
    return text(folder / "c.txt", "x\n")


SAMPLES: Mapping[str, Callable[[Path], Path]] = {
    "table": _table,
    "folder": _folder,
    "captioned": _captioned,
    "karpathy": _karpathy,
    "coco": _coco,
    "flickr": _flickr,
    "urban1k": _urban1k,
    "docci": _docci,
    "sharegpt4v": _sharegpt4v,
    "webdataset": _webdataset,
    "img2dataset": _img2dataset,
    "huggingface": _huggingface,
    "texts": _texts,
}
BY_PATH = sorted(set(DATASETS) - set(ALL))


@pytest.mark.parametrize("name", BY_PATH)
def test_one_sample_found_by_its_path_alone(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path)
    dataset = open_dataset(str(path))
    assert type(dataset) is load("dataset", DATASETS, name)
    assert dataset.name
    assert dataset.attribution == ""
    (item,) = dataset.items()
    assert item.captions == ("x",)
    assert item.group
    travelled = pickle.loads(pickle.dumps(item))  # as for a worker
    assert travelled == item
    assert stamp_of(travelled.image) == stamp_of(open_dataset(str(path)).items()[0].image)
    if name == "texts":
        assert isinstance(item.image, Unusable)
        return
    assert load_image(travelled.image).getpixel((0, 0)) == (255, 0, 0)
    assert name == "huggingface" or from_uri(to_uri(item.image)) == item.image


@pytest.mark.parametrize("name", BY_PATH)
def test_what_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    reader = load("dataset", DATASETS, name)
    with pytest.raises(InputError) as caught:
        reader(tmp_path / "none.tar").items()
    assert "none" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_option_has_a_default(name: str) -> None:
    parameters = list(inspect.signature(load("dataset", DATASETS, name)).parameters.values())
    first = 0 if name in ALL else 1
    assert all(p.default is not inspect.Parameter.empty for p in parameters[first:])
