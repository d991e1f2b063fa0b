"""Unusual files, rows and archive members: skipped and counted, without losing the others."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.datasets.check import check_data
from csaligner.datasets.clean import clean_items
from csaligner.datasets.documents import EntrySettings, find_entries
from csaligner.datasets.images.load import load_image
from csaligner.datasets.images.source import Unusable, from_uri, to_uri
from csaligner.datasets.split import split_of
from csaligner.store.embed import ExtractSettings, embed
from csaligner.types import Item
from tests.support import odd_files

SETTINGS = ExtractSettings(shard_size=8, batch_size=4, workers=0, max_bad=0.5)
COUNT = odd_files.COUNT


def items(data: Path, **options: Any) -> tuple[list[Item], list[str], tuple[str, ...]]:
    """Return valid items, reasons of skipped ones, notes; checks that check-data and index (ids) agree."""
    found = clean_items(open_dataset(str(data), **options), sides=("image",))
    good = [item for item in found.items if not isinstance(item.image, Unusable)]
    bad = [item.image.reason for item in found.items if isinstance(item.image, Unusable)]
    report = check_data(open_dataset(str(data), **options), workers=0)
    assert (report.images, report.broken_records.count) == (len(good), len(bad))
    assert report.captions == sum(len(item.captions) for item in good)
    assert report.notes == found.notes
    settings = EntrySettings(
        separator=options.get("separator"),
        encoding=options.get("encoding"),
        image_root=options.get("image_root"),
        data_format=options.get("data_format"),
        follow_links=options.get("follow_links", False),
    )
    indexed = find_entries(str(data), settings)
    assert [entry.id for entry in indexed.entries if entry.modality == "image"] == [item.image_id for item in good]
    assert not any("\n" in line or len(line) > 600 for line in (*bad, *found.notes, *indexed.skipped))
    return good, bad, found.notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return odd_files.patterns(tmp_path / "p")


def test_what_systems_write_is_ignored_and_counted(tmp_path: Path) -> None:
    good, bad, notes = items(odd_files.mac(tmp_path / "mac"))
    assert (len(good), bad) == (COUNT, [])
    assert notes == ("ignored: 41 hidden or system files, 3 hidden or system folders",)


def test_twin_stems_keep_their_suffix_and_share_a_split(tmp_path: Path) -> None:
    good, bad, _ = items(odd_files.twins(tmp_path / "twins"))
    groups = {item.image_id: item.group for item in good}
    assert (len(good), bad) == (COUNT + 2, [])
    assert groups["img00.jpg"] == groups["img00.png"] == "img00"
    assert groups["img00.jpg.gif"] == "img00.jpg"
    assert groups["img01"] == "img01"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_captions_in_any_encoding(folder: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (folder / "img03.txt").write_bytes(mark + "café €\n".encode(encoding))
    good, bad, notes = items(folder)
    assert (good[3].captions, bad) == (("café €",), [])
    assert bool(notes) == (encoding == "cp1252")


def test_a_caption_file_that_is_no_text_costs_its_captions(folder: Path) -> None:
    (folder / "img03.txt").write_bytes(b"\xff\0\xfe\0\0")
    good, _, notes = items(folder)
    assert len(good) == COUNT
    assert good[3].captions == ()
    assert "img03.txt" in notes[0]


def test_only_line_ends_end_a_caption(folder: Path) -> None:
    (folder / "img00.txt").write_bytes("one\r\ntwo\u2028still two\rthree\x0bstill\n".encode())
    assert items(folder)[0][0].captions == ("one", "two still two", "three still")


def test_a_name_that_is_not_utf8_is_read_and_escaped(tmp_path: Path, image_encoder: Any, text_encoder: Any) -> None:
    data = odd_files.not_utf8_names(tmp_path / "odd")
    good, bad, _ = items(data)
    assert bad == []
    assert good[0].image_id == "caf\\xe9"
    assert from_uri(to_uri(good[0].image)) == good[0].image
    assert split_of(good[0].group) in {"train", "val", "test"}
    (data / "img00.txt").rename(os.fsdecode(os.fsencode(data) + b"/caf\xe9.txt"))
    store = embed(open_dataset(str(data)), image_encoder, text_encoder, tmp_path / "s", SETTINGS)
    assert load_image(store.image_sources["caf\\xe9"]).size == (32, 24)


def test_lone_surrogates_in_json(folder: Path, image_encoder: Any, text_encoder: Any) -> None:
    lines = [r'{"image": "img00.jpg", "caption": "cut \ud83d"}', r'{"image": "img\udce9\ud83d.jpg", "caption": "x"}']
    (folder / "t.jsonl").write_text("\n".join(lines))
    found = clean_items(open_dataset(str(folder / "t.jsonl"))).items
    assert [item.image_id for item in found] == ["img00.jpg", "img\\xe9\\ud83d.jpg"]
    assert found[0].captions == ("cut \ufffd",)
    assert check_data(open_dataset(str(folder / "t.jsonl")), workers=0).missing.count == 1
    assert "no such file" in find_entries(str(folder / "t.jsonl")).skipped[0]
    store = embed(open_dataset(str(folder / "t.jsonl")), image_encoder, text_encoder, folder / "s", SETTINGS)
    assert (store.n_images, len(store.manifest.skipped)) == (1, 1)


def test_links_to_folders_are_reported_and_followed_once_where_asked(tmp_path: Path) -> None:
    data = odd_files.linked(tmp_path / "lf")
    with pytest.raises(InputError, match=r"2 linked folders not followed \(first: class1"):
        clean_items(open_dataset(str(data)))
    good, _, notes = items(data, follow_links=True)
    assert [item.image_id for item in good] == [f"class1/img{n:02}" for n in range(COUNT)]
    assert notes == ()


def test_other_names_of_images_and_what_is_ignored(tmp_path: Path, folder: Path) -> None:
    data = tmp_path / "h"
    data.mkdir()
    for name in ("a.jfif", "b.JPE", "c.mov", "d.mov", "notes"):
        shutil.copy(folder / "img00.jpg", data / name)
    good, _, notes = items(data)
    assert [item.image_id for item in good] == ["a", "b"]
    assert notes == ("ignored: 2 .mov, 1 without suffix",)
    for name in ("a.jfif", "b.JPE"):
        (data / name).unlink()
    for use in (lambda: clean_items(open_dataset(str(data))), lambda: find_entries(str(data))):
        with pytest.raises(InputError, match=r"2 \.mov"):
            use()


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, BmpImagePlugin as bmp\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', bmp.BmpImageFile, lambda head: head[:2] == b'BM')\n"
    )
    Image.new("RGB", (3, 2), "blue").save(tmp_path / "a.bmp")
    (tmp_path / "f").mkdir()
    (tmp_path / "a.bmp").rename(tmp_path / "f/a.heic")
    code = (
        "import sys; from csaligner.datasets import open_dataset; from csaligner.datasets.images import load\n"
        "load.FORMATS = ('HEIF',); (item,) = open_dataset(sys.argv[1]).items(); print(load.load_image(item.image).size)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["(3,", "2)"]


def test_a_quote_that_never_closes_costs_its_row(folder: Path) -> None:
    data = odd_files.table(folder / "q.csv", ",", 'img05.jpg,"Second one')
    good, bad, _ = items(data)
    assert [item.image_id for item in good] == [f"img{n:02}.jpg" for n in range(COUNT) if n != 5]
    assert len(bad) == 1
    assert "line 7 opens a quote" in bad[0]


def test_a_quote_that_closes_in_another_row_costs_its_row(folder: Path) -> None:
    data = odd_files.table(folder / "q.csv", ",", 'img05.jpg,"Second one')
    data.write_text(data.read_text().replace("p 9", '"nine'))
    good, bad, _ = items(data)
    assert len(good) == COUNT - 2
    assert "line 7 opens a quote" in bad[0]
    assert "line 11 opens a quote" in bad[1]
    data.write_text(data.read_text().replace('"nine', 'nine",'))
    good, bad, _ = items(data)
    assert (len(good), len(bad)) == (COUNT - 1, 1)
    assert "line 7 opens a quote that closes only on line 11" in bad[0]


def test_a_cell_may_hold_line_ends_and_quotes(folder: Path) -> None:
    data = odd_files.table(folder / "q.csv", ",", 'img05.jpg,"two\nlines, ""quoted"""')
    good, bad, _ = items(data)
    assert (len(good), bad) == (COUNT, [])
    assert good[5].captions == ('two lines, "quoted"',)


def test_between_tabs_a_lone_quote_is_a_letter(folder: Path) -> None:
    data = odd_files.table(folder / "q.tsv", "\t", 'img05.jpg\t"Second one')
    good, bad, _ = items(data)
    assert (len(good), bad) == (COUNT, [])
    assert good[5].captions == ('"Second one',)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("img05.jpg,A man, a dog and a cat", "line 7 has 3 cells, the header 2; quote the caption"),
        ("img05.jpg", "line 7 has 1 cell, the header 2"),
        (f"img05.jpg,{'x' * 200_000}{'y' * 200_000}", "line 7 has a cell that is too long"),
        ("https://example.org/a.jpg,x", "line 7 has the URL .*img2dataset"),
        ("data:image/png;base64;AAAA,x", "line 7 has the image as base64"),
        (f"{'QUJD' * 80},x", "line 7 has the image as base64"),
        (f"{'x-' * 150}.jpg,x", "line 7 has a file name of 304 bytes"),
    ],
)
def test_a_row_that_cannot_be_used_names_its_line(folder: Path, odd: str, reason: str) -> None:
    good, bad, _ = items(odd_files.table(folder / "c.csv", ",", odd))
    assert len(good) == COUNT - 1
    assert len(bad) == 1
    assert len(bad[0]) < len(str(folder)) + 300
    assert re.search(reason, bad[0])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_line_ends(folder: Path, separator: str, encoding: str, ends: str) -> None:
    data = odd_files.table(folder / "t.csv", separator, f"img05.jpg{separator}café")
    data.write_bytes(data.read_text(encoding="utf-8").replace("\n", ends).encode(encoding))
    good = clean_items(open_dataset(str(data))).items
    assert len(good) == COUNT
    assert good[5].captions == ("café",)


def test_the_separator_that_excel_declares_and_an_encoding_that_is_given(folder: Path) -> None:
    data = odd_files.table(folder / "t.csv", ";", "img05.jpg;ж, ж", "cp1251")
    data.write_bytes(b"sep=;\r\n" + data.read_bytes())
    good, bad, notes = items(data, encoding="cp1251")
    assert (len(good), bad, notes) == (COUNT, [], ())
    assert good[5].captions == ("ж, ж",)
    with pytest.raises(InputError, match="encoding: 'cp0'"):
        open_dataset(str(data), encoding="cp0")


def test_a_bad_line_of_json_is_one_bad_record(folder: Path) -> None:
    lines = ['{"image":"img00.jpg","caption":"a"}', '{"image":', "7", '{"image":"img02.jpg","caption":["c", "d"]}']
    (folder / "bad.jsonl").write_text("\n".join(lines))
    good, bad, _ = items(folder / "bad.jsonl")
    assert [item.captions for item in good] == [("a",), ("c", "d")]
    assert ["line 2 is not JSON" in bad[0], "line 3 is not a JSON object" in bad[1]] == [True, True]


def test_lists_of_every_kind_in_parquet(folder: Path) -> None:
    captions = [["x", "y"], None, []]
    for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        if kind is pa.large_list_view or kind is pa.list_view:
            continue  # parquet does not hold them
        column = pa.array(captions, kind(pa.large_string()))
        names = pa.array([f"img0{n}.jpg" for n in range(3)]).dictionary_encode()
        pq.write_table(pa.table({"image": names, "caption": column}), folder / "t.parquet")
        good, _, _ = items(folder / "t.parquet")
        assert [item.captions for item in good] == [("x", "y"), (), ()]


def test_names_in_the_other_unicode_form(folder: Path) -> None:
    name = unicodedata.normalize("NFD", "café.jpg")
    (folder / "img00.jpg").rename(folder / name)
    (folder / "img00.txt").rename(folder / "café.txt")
    odd_files.table(folder / "t.csv", ",", "café.jpg,x")
    good, _, _ = items(folder)
    assert next(i for i in good if "caf" in i.image_id).captions == ("pattern number 0",)
    table = next(i for i in items(folder / "t.csv")[0] if "caf" in i.image_id)
    assert load_image(table.image).size == (32, 24)


def test_a_table_under_another_name(folder: Path) -> None:
    data = odd_files.table(folder.with_name("captions.txt"), ",", "img05.jpg,x")
    with pytest.raises(InputError, match=r"looks like a table.*--data-format table"):
        open_dataset(str(data)).items()
    good, bad, _ = items(data, data_format="table", image_root=folder)
    assert (len(good), bad) == (COUNT, [])


def test_keys_of_a_tar_with_dots_and_twice(tmp_path: Path, folder: Path) -> None:
    one, two = ((folder / f"img0{n}.jpg").read_bytes() for n in range(2))
    members = [
        ("z.jpg", one),
        ("IMG_2024.01.05.jpg", two),
        ("IMG_2024.01.05.txt", b"c"),
        ("z.txt", b"c"),
        ("z.jpg", two),
    ]
    members += [("y.left.jpg", one), ("y.txt", b"y"), ("._z.jpg", b"\0"), ("__MACOSX/._z.jpg", b"\0")]
    data = odd_files.tar(tmp_path / "w.tar", members)
    good, bad, _ = items(data)
    assert [(item.image_id, item.captions) for item in good] == [("w/z", ("c",)), ("w/IMG_2024.01.05", ("c",))]
    assert good[0].image.read() == one  # type: ignore[union-attr]
    assert "has a second z.jpg" in bad[0]
    assert "has .left.jpg, wanted .jpg" in bad[1]


def test_a_compressed_tar_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    data = odd_files.tar(tmp_path / "w.tar", [("a.jpg", (folder / "img00.jpg").read_bytes())])
    (tmp_path / "w.tar.gz").write_bytes(gzip.compress(data.read_bytes()))
    with pytest.raises(InputError, match=r"w\.tar\.gz: is compressed"):
        open_dataset(str(tmp_path / "w.tar.gz"))


def test_values_that_are_no_text_are_no_texts_of_an_index(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": "", "caption": value} for value in ("nan", 7, None, ["x", 7], {"a": 1})]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [entry.text for entry in find_entries(str(folder / "t.jsonl")).entries] == ["nan", "x"]


def test_messages_quote_at_most_160_characters_of_a_value(folder: Path) -> None:
    name = "x" * 240 + ".jpg"
    lines = [{"image": name, "caption": "a"}, {"image": "img00.jpg", "caption": "word " * 900}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[1] | {"image": "img01.jpg"}])))
    report = check_data(open_dataset(str(folder / "t.jsonl")), workers=0)
    (example,) = report.missing.examples
    assert "x" * 150 in example
    assert "x" * 161 not in example


def test_rows_without_an_image_are_texts_of_a_store_of_texts(folder: Path, text_encoder: Any) -> None:
    (folder / "t.csv").write_text("image,caption\nimg00.jpg,one\n,two\n,three\n")
    store = embed(open_dataset(str(folder / "t.csv")), None, text_encoder, folder / "s", SETTINGS)
    assert store.n_captions == 3
