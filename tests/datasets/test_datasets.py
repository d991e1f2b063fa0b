"""Dataset readers and open_dataset: images, captions, splits and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csaligner.checks import InputError
from csaligner.datasets import Joined, open_dataset
from csaligner.datasets.clean import clean_items
from csaligner.datasets.folder import Folder
from csaligner.datasets.images.load import ImageError, load_image, read_bytes
from csaligner.datasets.images.source import Unusable
from csaligner.datasets.openclipart import OpenClipart
from csaligner.datasets.openmoji import OpenMoji, base_of, captions_of
from csaligner.datasets.split import item_split
from csaligner.datasets.table import Table
from csaligner.datasets.tuxpaint import TuxPaint
from csaligner.types import Dataset, Item

ROWS = [("a.png", "a cat"), ("b.png", 'ein "Hund", groß 🐕'), ("a.png", "une 猫")]


def pairs(dataset: Dataset) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.image_id, item.captions) for item in dataset.items()]


WANTED = [("a.png", ("a cat", "une 猫")), ("b.png", ('ein "Hund", groß 🐕',))]


def write_table(path: Path) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({"image": [r[0] for r in ROWS], "caption": [r[1] for r in ROWS]}), path)
        case ".jsonl":
            lines = [json.dumps({"image": a, "caption": b}) for a, b in ROWS]
            path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        case suffix:
            separator = "," if suffix == ".csv" else "\t"
            quoted = [(a, '"' + b.replace('"', '""') + '"') for a, b in ROWS]
            text = "\n".join(separator.join(row) for row in [("image", "caption"), *quoted])
            path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_of_each_kind(tmp_path: Path, suffix: str) -> None:
    dataset = open_dataset(str(write_table(tmp_path / f"captions{suffix}")))
    assert pairs(dataset) == WANTED
    first = dataset.items()[0]
    assert first == Item("a.png", tmp_path / "a.png", ("a cat", "une 猫"), group="a.png")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_missing_column_names_the_ones_that_are_there(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"captions{suffix}")
    with pytest.raises(InputError, match=rf"captions\{suffix}.*'text'.*'image', 'caption'"):
        Table(path, caption_key="text").items()


def test_columns_separator_root_and_ids_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "t.csv"
    path.write_text("title;file;key\none;a.png;7\ntwo;a.png;7\nthree;b.png;8\n")
    table = Table(path, "file", "title", "key", separator=";", image_root=tmp_path / "pictures")
    assert pairs(table) == [("7", ("one", "two")), ("8", ("three",))]
    assert table.items()[0].image == tmp_path / "pictures" / "a.png"


def test_options_that_are_none_mean_the_default(tmp_path: Path) -> None:
    options = dict.fromkeys(("image_key", "caption_key", "id_key", "separator", "image_root"))
    assert pairs(open_dataset(str(write_table(tmp_path / "t.csv")), **options)) == WANTED
    assert open_dataset("openmoji", image_key=None).name == "openmoji"


def test_a_tab_as_a_shell_passes_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image\tcaption\na.png\tone, two\n")
    assert pairs(Table(path, separator=r"\t")) == [("a.png", ("one, two",))]


def test_lists_of_captions(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a.png", "caption": ["x", "y"]}\n{"image": "a.png", "caption": "z"}\n')
    assert pairs(Table(path)) == [("a.png", ("x", "y", "z"))]


def test_an_absolute_image_path_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,caption\n/pictures/a.png,x\n")
    assert Table(path).items()[0].image == Path("/pictures/a.png")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.parquet", "no parquet", r"t\.parquet"),
        ("t.xlsx", "x", r"\.xlsx.*\.csv"),
        ("t.csv", "", "'image'"),
    ],
)
def test_a_broken_table(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Table(path).items()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,caption\n,x\na.png,y\n", "line 2.*'image'"),
        ("t.jsonl", '{"image": "a.png", "caption": "y"}\n{oops\n', "line 2.*JSON"),
        ("t.jsonl", '[1]\n{"image": "a.png", "caption": "y"}\n', "line 1.*JSON"),
        ("t.jsonl", '{"image": "a.png", "caption": "y"}\n{"image": "b.png"}\n', "line 2.*'caption'"),
    ],
)
def test_a_broken_row_costs_itself(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    items = Table(path).items()
    assert [(item.image_id, item.captions) for item in items if isinstance(item.image, Path)] == [("a.png", ("y",))]
    (bad,) = (item.image for item in items if isinstance(item.image, Unusable))
    with pytest.raises(ImageError, match=message) as caught:
        load_image(bad)
    assert "\n" not in str(caught.value)


def test_a_caption_that_is_not_text_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a.png", "caption": ["x", 7, null]}\n{"image": "b.png", "caption": {"x": 1}}\n')
    cleaned = clean_items(Table(path))
    assert [item.captions for item in cleaned.items] == [("x",)]
    assert (cleaned.empty_captions, cleaned.without_caption) == (3, ("b.png",))


def test_a_column_of_splits(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,caption,split\na.png,x,validation\nb.png,y,\nc.png,z,other\n")
    items = Table(path, split_key="split").items()
    assert [item.split for item in items] == ["val", None, None]
    with pytest.raises(ImageError, match=r"line 4.*'other'"):
        load_image(items[2].image)


def test_a_table_that_is_not_utf8_is_read_as_cp1252_and_reported(tmp_path: Path) -> None:
    for name, text in (
        ("t.csv", "image,caption\na.png,Hündin\n"),
        ("t.jsonl", '{"image": "a.png", "caption": "Hündin"}'),
    ):
        (tmp_path / name).write_bytes(text.encode("cp1252"))
        table = Table(tmp_path / name)
        assert pairs(table) == [("a.png", ("Hündin",))]
        assert "cp1252: 1" in table.notes[0]


def test_one_id_for_two_pictures_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,caption,id\na.png,x,1\nb.png,y,1\n")
    first, second = Table(path, id_key="id").items()
    assert first.image == tmp_path / "a.png"
    with pytest.raises(ImageError, match=r"line 3.*'1'.*b\.png.*a\.png"):
        load_image(second.image)


def test_no_such_table_root_or_separator(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv"):
        Table(tmp_path / "none.csv")
    path = write_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="image_root"):
        Table(path, image_root=tmp_path / "none")
    with pytest.raises(InputError, match=r"separator.*';;'"):
        Table(path, separator=";;")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/a.svg", "alone.jpg", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("one\n\n  \nzwei ü\n", encoding="utf-8")
    (tmp_path / "deep/a.txt").write_text("three")
    dataset = open_dataset(str(tmp_path))
    assert pairs(dataset) == [("alone", ()), ("b", ("one", "zwei ü")), ("deep/a", ("three",))]
    assert dataset.name == tmp_path.name


def test_a_folder_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes("ü".encode("cp1252"))
    (tmp_path / "b.txt").write_text("ü", encoding="utf-16")
    (tmp_path / "c.txt").write_bytes(b"\0\xff\0")
    folder = Folder(tmp_path)
    assert pairs(folder) == [("a", ("ü",)), ("b", ("ü",)), ("c", ())]
    assert len(folder.notes) == 2
    assert "cp1252: 1" in folder.notes[0]
    assert "c.txt" in folder.notes[1]
    with pytest.raises(InputError, match="folder"):
        Folder(tmp_path / "none")


def test_openmoji_is_complete_and_has_no_skin_tones() -> None:
    dataset = OpenMoji(near_duplicates=False)
    items = {item.image_id: item for item in dataset.items()}
    assert len(items) > 1800
    assert all(Path(str(item.image)).is_file() and item.captions for item in items.values())
    assert not any(tone in name for name in items for tone in ("1F3FB", "1F3FF"))
    assert "OpenMoji" in dataset.attribution
    assert items["openmoji/1F600"].captions == ("grinning face", "grinning")
    assert items["openmoji/2764"].group == "openmoji/2764"  # the selector FE0F is not part of the file's name


def test_identical_drawings_share_a_group_and_so_do_their_bases() -> None:
    items = OpenMoji().items()
    groups: dict[bytes, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(read_bytes(item.image), set()).add(item.group)
        points = [int(p, 16) for p in item.image_id.removeprefix("openmoji/").split("-")]
        bases.setdefault(base_of(points), set()).add(item.group)
    assert len(groups) < len(items)  # such files exist
    assert all(len(shared) == 1 for shared in [*groups.values(), *bases.values()])


def test_near_duplicates_of_openmoji_leave_the_test_set() -> None:
    tests = [
        {item.image_id for item in OpenMoji(near_duplicates=near).items() if item_split(item) == "test"}
        for near in (False, True)
    ]
    assert tests[1] < tests[0]
    assert len(tests[0]) - len(tests[1]) > 20
    assert "openmoji/1F557" in tests[0] - tests[1]  # eight o'clock; four o'clock is in the training set


def test_openmoji_captions_are_cleaned() -> None:
    assert captions_of([":e-mail:", ":e_mail:", ":E-Mail_symbol:"]) == ("e-mail", "E-Mail symbol")


def test_emoji_of_one_base_share_a_group() -> None:
    runner = [[0x1F3C3], [0x1F3C3, 0x200D, 0x2642, 0xFE0F], [0x1F3C3, 0x1F3FD, 0x200D, 0x2640, 0xFE0F]]
    assert {base_of(points) for points in runner} == {"1F3C3"}
    cook = [[p, 0x200D, 0x1F373] for p in (0x1F468, 0x1F469, 0x1F9D1)]
    assert {base_of(points) for points in cook} == {"1F9D1-200D-1F373"}
    assert base_of([0x1F600]) != base_of([0x1F601])


def test_only_line_ends_split_the_languages_of_tuxpaint(tmp_path: Path) -> None:
    (tmp_path / "cow.txt").write_text("A\u2028cow.\nde.utf8=Eine\x85Kuh.\n", encoding="utf-8")
    (tmp_path / "cow.png").write_bytes(b"")
    assert pairs(TuxPaint(root=tmp_path))[0][1] == ("A\u2028cow.",)
    assert pairs(TuxPaint("de", tmp_path))[0][1] == ("Eine\x85Kuh.",)


def test_tuxpaint(tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals/cow.txt").write_text("A cow.\nde.utf8=Eine Kuh.\npt_BR.utf8=Uma vaca.\n", encoding="utf-8")
    (tmp_path / "alone.txt").write_text("No picture.")
    (tmp_path / "empty.txt").write_text("")
    for name in ("animals/cow.png", "animals/cow.svg", "empty.png"):
        (tmp_path / name).write_bytes(b"")
    assert pairs(TuxPaint(root=tmp_path)) == [("tuxpaint/animals/cow", ("A cow.",)), ("tuxpaint/empty", ("",))]
    assert pairs(TuxPaint("de", tmp_path))[0][1] == ("Eine Kuh.",)
    assert pairs(TuxPaint("pt_BR", tmp_path))[0][1] == ("Uma vaca.",)
    assert TuxPaint(root=tmp_path).items()[0].image.name[-4:] == ".svg"


CLIP = """<svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>
<dc:title>{title}</dc:title>
<dc:subject><rdf:Bag><rdf:li/><rdf:li>unsorted</rdf:li><rdf:li>HASH(0x8a0)</rdf:li>{words}</rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata></svg>"""


def write_clip(root: Path, name: str, title: str, *words: str) -> Path:
    for kind in ("png", "svg"):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in words)
    (root / "svg" / f"{name}.svg").write_text(CLIP.format(title=title, words=listed), encoding="utf-8")
    png = root / "png" / f"{name}.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (4).to_bytes(4, "big") + (5).to_bytes(4, "big"))
    return png


def test_openclipart(tmp_path: Path) -> None:
    write_clip(tmp_path, "food/apple", " Green\n apple ", "fruit", "food")
    write_clip(tmp_path, "empty", "")
    broken = write_clip(tmp_path, "broken", "x")
    (tmp_path / "svg/broken.svg").write_text("<svg")
    found = {item.image_id: item for item in OpenClipart(tmp_path).items()}
    assert ", ".join(found["openclipart/food/apple"].captions) == "Green apple, fruit, food"
    assert found["openclipart/food/apple"].image == (tmp_path / "png/food/apple.png").resolve()
    assert found["openclipart/empty"].captions == ()
    assert found["openclipart/broken"].captions == ()
    assert found["openclipart/broken"].image == broken.resolve()


def test_openclipart_takes_a_picture_under_two_names_once(tmp_path: Path) -> None:
    write_clip(tmp_path, "z/apple", "apple", "fruit")
    link = write_clip(tmp_path, "a/apple", "apple", "red")
    link.unlink()
    link.symlink_to("../z/apple.png")
    ((image_id, captions),) = pairs(OpenClipart(tmp_path))
    assert image_id == "openclipart/z/apple"
    assert set(", ".join(captions).split(", ")) == {"apple", "fruit", "red"}


def test_openclipart_leaves_a_dangling_link_to_load_image(tmp_path: Path) -> None:
    png = write_clip(tmp_path, "gone", "gone")
    png.unlink()
    png.symlink_to("nowhere.png")
    (item,) = OpenClipart(tmp_path).items()
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        load_image(item.image)


def test_openclipart_draws_where_the_bitmap_is_too_large(tmp_path: Path) -> None:
    png = write_clip(tmp_path, "huge", "huge")
    png.write_bytes(png.read_bytes()[:16] + (20_000).to_bytes(4, "big") * 2)
    assert OpenClipart(tmp_path).items()[0].image == tmp_path.resolve() / "svg/huge.svg"


@pytest.mark.parametrize(
    ("reader", "packages"),
    [(TuxPaint, "tuxpaint-stamps-default"), (OpenClipart, "openclipart-png openclipart-svg")],
)
def test_a_missing_debian_package_is_named(tmp_path: Path, reader: type[TuxPaint], packages: str) -> None:
    with pytest.raises(InputError, match=f"apt-get install {packages}"):
        reader(root=tmp_path / "none")


def test_datasets_one_after_the_other(tmp_path: Path) -> None:
    one, two = (write_table(tmp_path / name) for name in ("one.csv", "two.tsv"))
    joined = Joined([Table(one), Table(two)])
    assert joined.name == "one.csv+two.tsv"
    assert pairs(joined) == WANTED + WANTED
    assert joined.attribution == ""


def test_what_open_dataset_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'openmoij'.*'openmoji'"):
        open_dataset("openmoij")
    with pytest.raises(InputError, match=r"none\.csv"):
        open_dataset(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="''"):
        open_dataset("")  # an unset shell variable must not mean the current folder
    with pytest.raises(InputError, match=r"folder.*'image_key'"):
        open_dataset(str(tmp_path), image_key="x")
