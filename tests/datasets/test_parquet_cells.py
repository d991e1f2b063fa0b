"""Images in cells of a parquet table."""

from __future__ import annotations

import io
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.datasets import open_dataset
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.datasets.images.parquet_cell import Cell
from csaligner.datasets.images.source import from_uri, stamp_of, to_uri
from csaligner.store.embed import ExtractSettings, embed

SETTINGS = ExtractSettings(shard_size=4, batch_size=2, workers=0, max_bad=0.5)


def png(colour: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def struct(content: bytes | None, path: str | None = None) -> dict[str, bytes | str | None]:
    return {"bytes": content, "path": path}


def table(path: Path, pictures: list[Any], group: int = 2, **columns: list[Any]) -> str:
    data = {"image": pictures, "caption": [f"caption {n}" for n in range(len(pictures))]} | columns
    pq.write_table(pa.table(data), path, row_group_size=group)
    return str(path)


def colours(items: Any) -> list[Any]:
    return [load_image(pickle.loads(pickle.dumps(item.image))).getpixel((0, 0)) for item in items]


@pytest.mark.parametrize("wrap", [bytes, struct])
def test_pictures_in_cells_over_row_groups(tmp_path: Path, wrap: Any) -> None:
    path = table(tmp_path / "t.parquet", [wrap(png((n, 0, 0))) for n in range(5)], pic=["x"] * 5)
    items = open_dataset(path).items()
    assert [item.image_id for item in items] == [f"t/{n}" for n in range(5)]
    assert [item.captions for item in items] == [(f"caption {n}",) for n in range(5)]
    assert colours(items) == [(n, 0, 0) for n in range(5)]
    assert colours(items[::-1]) == [(n, 0, 0) for n in (4, 3, 2, 1, 0)]  # in any order
    assert len({str(stamp_of(item.image)) for item in items}) == 5
    again = [from_uri(to_uri(item.image)) for item in items]
    assert again == [item.image for item in items]
    assert [source.read() for source in again if isinstance(source, Cell)] == [png((n, 0, 0)) for n in range(5)]


def test_a_struct_without_bytes_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png("lime"))
    path = table(tmp_path / "t.parquet", [struct(None, "a.png"), struct(png("red"), "a.png")])
    assert colours(open_dataset(path, image_root=tmp_path / "photos").items()) == [(0, 255, 0), (255, 0, 0)]


def test_ids_of_ones_own_join_rows_of_one_picture(tmp_path: Path) -> None:
    pictures = [png("red"), png("blue"), png("red"), png("red")]
    path = table(tmp_path / "t.parquet", pictures, key=["a", "b", "a", "b"], part=["train", "test", "train", "test"])
    joined, other, wrong = open_dataset(path, id_key="key", split_key="part").items()
    assert (joined.image_id, joined.captions, joined.split) == ("a", ("caption 0", "caption 2"), "train")
    assert (other.image_id, other.captions, other.split) == ("b", ("caption 1",), "test")
    with pytest.raises(ImageError, match=r"row 4.*'b'.*row 2"):
        load_image(wrong.image)


def test_another_table_in_its_place_is_seen(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [png("red")])
    (before,) = open_dataset(path).items()
    assert colours([before]) == [(255, 0, 0)]
    table(tmp_path / "t.parquet", [png("blue"), png("lime")])
    after, _ = open_dataset(path).items()
    assert stamp_of(before.image) != stamp_of(after.image)
    assert colours([after]) == [(0, 0, 255)]


def huge() -> bytes:
    """Return a PNG header with 50,000 x 50,000 pixels."""
    whole = bytearray(png("red"))
    whole[16:24] = (50_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


BAD = {
    "empty": (struct(None), r"t\.parquet#image\[1\]"),
    "no bytes": (struct(b""), r"t\.parquet#image"),
    "no picture": (struct(b"words"), r"t\.parquet#image"),
    "too large": (struct(huge()), "50,000,000"),
    "vanished": (struct(None, "gone.png"), r"t\.parquet#image\[1\]: No such file"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_cell_costs_itself(tmp_path: Path, image_encoder: Any, text_encoder: Any, name: str) -> None:
    cell, reason = BAD[name]
    path = table(tmp_path / "t.parquet", [struct(png("red")), cell, struct(png("blue"))])
    store = embed(open_dataset(path), image_encoder, text_encoder, tmp_path / "store", SETTINGS)
    assert store.n_images == 2
    assert any(re.search(reason, line) for line in store.notes), store.notes
    checked = CliRunner().invoke(app, ["check-data", path, "--workers", "0", "-q", "--json"])
    assert checked.exit_code == 1
    assert re.search(reason, json.loads(checked.stdout)["unreadable"]["examples"][0])


def test_check_data_reads_a_good_table(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [png("red"), png("blue")])
    columns = pq.read_table(path).rename_columns(["jpg", "words"])
    pq.write_table(columns, path)
    checked = CliRunner().invoke(
        app, ["check-data", path, "--csv-img-key", "jpg", "--csv-caption-key", "words", "--workers", "0", "-q"]
    )
    assert checked.exit_code == 0, checked.output


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    cells = pa.table({"image": [bytes(80_000_000)], "caption": ["zeros"]})
    pq.write_table(cells, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"80,\d+,\d+"):
        open_dataset(str(path)).items()
    with pytest.raises(ImageError, match=r"80,\d+,\d+"):
        load_image(Cell(path, "image", 0))
