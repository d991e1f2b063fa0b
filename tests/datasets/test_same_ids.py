"""The same files have the same ids and splits in embed, index, check-data and quickstart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csaligner.datasets import open_dataset
from csaligner.datasets.check import check_data
from csaligner.datasets.documents import Entry, find_entries
from csaligner.datasets.split import split_of
from csaligner.store.embed import ExtractSettings, embed

NAMES = ["a.png", "b.jpg", "deep/a.png", "twin.png", "twin.jpg", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"]
SETTINGS = ExtractSettings(shard_size=4, batch_size=2, workers=0)
Make = Callable[[Path], Path]


def images(folder: Path) -> list[dict[str, str]]:
    for n, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * n, 0, 0)).save(path)
    return [{"image": name, "caption": f"caption of {name}"} for name in NAMES]


def folder(path: Path) -> Path:
    for row in images(path / "f"):
        (path / "f" / row["image"]).with_suffix(".txt").write_text(row["caption"])
    return path / "f"


def csv(path: Path) -> Path:
    rows = images(path)
    (path / "t.csv").write_text("\n".join(["image,caption", *(f"{r['image']},{r['caption']}" for r in rows)]))
    return path / "t.csv"


def jsonl(path: Path) -> Path:
    (path / "t.jsonl").write_text("\n".join(map(json.dumps, images(path))))
    return path / "t.jsonl"


def json_list(path: Path) -> Path:
    (path / "t.json").write_text(json.dumps(images(path)))
    return path / "t.json"


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(images(path)), path / "t.parquet")
    return path / "t.parquet"


def cells(path: Path) -> Path:
    rows = [row | {"image": (path / row["image"]).read_bytes()} for row in images(path)]
    pq.write_table(pa.Table.from_pylist(rows), path / "t.parquet")
    return path / "t.parquet"


def shards(path: Path) -> Path:
    (path / "s").mkdir()
    shutil.move(cells(path), path / "s/part-0.parquet")
    shutil.copy(path / "s/part-0.parquet", path / "s/part-1.parquet")
    return path / "s"


@pytest.mark.parametrize("make", [folder, csv, jsonl, json_list, parquet, cells, shards])
def test_ids_and_splits_of_a_store_are_those_of_the_index(
    tmp_path: Path, image_encoder: Any, text_encoder: Any, make: Make
) -> None:
    data = make(tmp_path)
    store = embed(open_dataset(str(data)), image_encoder, text_encoder, tmp_path / "store", SETTINGS)
    found: list[Entry] = [entry for entry in find_entries(str(data)).entries if entry.modality == "image"]
    assert sorted(store.image_sources) == sorted(entry.id for entry in found)
    assert len(found) == len(NAMES) * (2 if make is shards else 1)
    captions = {e.owner: e.text for e in find_entries(str(data)).entries if e.modality == "text"}
    assert captions.keys() == {entry.id for entry in found}
    groups = [item.group for item in open_dataset(str(data)).items()]
    wanted = {split: (n, n) for split in ("train", "val", "test") if (n := [split_of(g) for g in groups].count(split))}
    assert store.counts == wanted == check_data(open_dataset(str(data)), workers=0).splits
    assert all(Path(str(entry.path).partition("#")[0]).is_file() for entry in found)
