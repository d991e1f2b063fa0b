"""Readers of published dataset formats, with the special cases in their files."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.datasets.clean import clean_items
from csaligner.datasets.formats import format_of
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.datasets.images.source import FilePart, Unusable, from_uri, stamp_of, to_uri
from csaligner.datasets.karpathy import Karpathy
from csaligner.types import Dataset, Item

Found = list[tuple[str, str, tuple[str, ...], str | None]]


def good(dataset: Dataset) -> list[Item]:
    return [item for item in dataset.items() if not isinstance(item.image, Unusable)]


def bad(dataset: Dataset) -> list[str]:
    return [item.image.reason for item in dataset.items() if isinstance(item.image, Unusable)]


def found(dataset: Dataset, root: Path) -> Found:
    return [(i.image_id, str(i.image).removeprefix(f"{root}/"), i.captions, i.split) for i in good(dataset)]


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def picture(colour: Any = "red", kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(stream, kind)
    return stream.getvalue()


def check(reasons: Sequence[str], patterns: Sequence[str]) -> None:
    """Check that there is one reason per pattern, in order."""
    assert len(reasons) == len(patterns), reasons
    for reason, pattern in zip(reasons, patterns, strict=True):
        assert re.search(pattern, reason), reason


def sentences(*texts: Any) -> list[dict[str, Any]]:
    return [{"tokens": [], "raw": text, "imgid": 0, "sentid": 0} for text in texts]


def test_karpathy_coco(tmp_path: Path) -> None:
    def entry(name: str, split: str, *texts: Any) -> dict[str, Any]:
        folder = name.split("_")[1]
        return {"filepath": folder, "sentids": [0], "filename": name, "imgid": 0, "split": split, "cocoid": 1} | {
            "sentences": sentences(*texts)
        }

    seven = tuple(f"caption {k}" for k in range(7))
    images = [
        entry("COCO_val2014_1.jpg", "test", *seven),
        entry("COCO_train2014_2.jpg", "train", "a"),
        entry("COCO_val2014_3.jpg", "restval", "b", 5),
        entry("COCO_val2014_4.jpg", "val", "c"),
        entry("COCO_val2014_5.jpg", "extra", "d"),
        {"filename": "COCO_val2014_6.jpg", "split": "val"},
        {"split": "val", "sentences": []},
        "x",
    ]
    dataset = open_dataset(str(write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})))
    assert isinstance(dataset, Karpathy)
    assert found(dataset, tmp_path) == [
        ("COCO_val2014_1.jpg", "val2014/COCO_val2014_1.jpg", seven, "test"),
        ("COCO_train2014_2.jpg", "train2014/COCO_train2014_2.jpg", ("a",), "train"),
        ("COCO_val2014_3.jpg", "val2014/COCO_val2014_3.jpg", ("b", ""), "train"),
        ("COCO_val2014_4.jpg", "val2014/COCO_val2014_4.jpg", ("c",), "val"),
    ]
    start = f"{tmp_path}/dataset_coco.json: images"
    assert all(reason.startswith(start) for reason in bad(dataset))
    check(bad(dataset), [r"\[4\].*'extra'", r"\[5\].*'sentences'", r"\[6\].*'filename'", r"\[7\].*str"])


def test_karpathy_flickr30k_has_no_filepath(tmp_path: Path) -> None:
    images = [{"sentids": [0], "imgid": 0, "sentences": sentences("x"), "split": "test", "filename": "1.jpg"}]
    path = write(tmp_path / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    assert found(open_dataset(str(path)), tmp_path) == [("1.jpg", "1.jpg", ("x",), "test")]
    (tmp_path / "flickr30k-images").mkdir()
    assert found(open_dataset(str(path)), tmp_path)[0][1] == "flickr30k-images/1.jpg"
    (tmp_path / "mine").mkdir()
    assert found(open_dataset(str(path), image_root=tmp_path / "mine"), tmp_path)[0][1] == "mine/1.jpg"
    with pytest.raises(InputError, match="image_root"):
        open_dataset(str(path), image_root=tmp_path / "none")


def test_coco_captions(tmp_path: Path) -> None:
    value = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": 397133, "file_name": "000000397133.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 3}],
        "annotations": [
            {"image_id": 2, "id": 1, "caption": "two"},
            {"image_id": 397133, "id": 2, "caption": "one"},
            {"image_id": 397133, "id": 3, "caption": "uno"},
            {"image_id": 397133, "id": 4},
            {"image_id": 99, "id": 5, "caption": "nobody's"},
        ],
    }
    path = write(tmp_path / "annotations/captions_val2017.json", value)
    dataset = open_dataset(str(path))
    wanted = [("397133", ("one", "uno")), ("2", ("two",))]
    assert [(item.image_id, item.captions) for item in good(dataset)] == wanted
    check(bad(dataset), [r"images\[2\].*'file_name'", r"annotations\[3\]", r"annotations\[4\]"])
    (tmp_path / "val2017").mkdir()
    assert good(open_dataset(str(path)))[0].image == tmp_path / "val2017/000000397133.jpg"


def test_flickr_tokens(tmp_path: Path) -> None:
    lines = ["1.jpg#0\tOne dog .", "1.jpg#1\tUn chien\tnoir", "", "2.jpg#0 no tab", "3.jpg\tno number", "4.jpg.1#2\tx"]
    path = write(tmp_path / "results_20130124.token", "\n".join(lines) + "\n")
    dataset = open_dataset(str(path))
    assert found(dataset, tmp_path) == [
        ("1.jpg", "1.jpg", ("One dog .", "Un chien\tnoir"), None),
        ("4.jpg.1", "4.jpg.1", ("x",), None),
    ]
    check(bad(dataset), ["line 4.*#0<tab>", "line 5.*#0<tab>"])


def test_urban1k(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "notes.md"):
        write(tmp_path / "image" / name, "")
    write(tmp_path / "caption/a.txt", "A long caption\nin two lines.")
    write(tmp_path / "caption/lost.txt", "x")
    dataset = open_dataset(str(tmp_path))
    assert found(dataset, tmp_path) == [
        ("a", "image/a.jpg", ("A long caption\nin two lines.",), "test"),
        ("b", "image/b.jpg", (), "test"),
    ]
    check(bad(dataset), [r"caption/lost\.txt.*image/"])


def test_docci(tmp_path: Path) -> None:
    def line(name: str, split: str, **more: Any) -> str:
        return json.dumps(
            {"type": "qualification", "split": split, "example_id": name, "image_file": f"{name}.jpg"} | more
        )

    lines = [
        line("test_00000", "test", description="An outdoor view."),
        line("train_00000", "train", description="b"),
        line("qual_dev_00000", "qual_dev", description="c"),
        line("qual_test_00000", "qual_test", description="d"),
        line("odd", "test"),
    ]
    write(tmp_path / "docci_descriptions.jsonlines", "\n".join(lines))
    (tmp_path / "images").mkdir()
    for spec in (tmp_path, tmp_path / "docci_descriptions.jsonlines"):
        dataset = open_dataset(str(spec))
        assert found(dataset, tmp_path) == [
            ("test_00000", "images/test_00000.jpg", ("An outdoor view.",), "test"),
            ("train_00000", "images/train_00000.jpg", ("b",), "train"),
            ("qual_dev_00000", "images/qual_dev_00000.jpg", ("c",), "val"),
            ("qual_test_00000", "images/qual_test_00000.jpg", ("d",), "val"),
        ]
        assert re.search("line 5.*'description'", bad(dataset)[0])


def test_sharegpt4v(tmp_path: Path) -> None:
    def record(image: str, *turns: tuple[str, Any]) -> dict[str, Any]:
        return {"id": "0", "image": image, "conversations": [{"from": who, "value": what} for who, what in turns]}

    records = [
        record("coco/train2017/1.jpg", ("human", "What?\n<image>"), ("gpt", "In the centre ..."), ("gpt", "more")),
        record("sam/images/2.jpg", ("gpt", "b")),
        record("coco/train2017/1.jpg", ("human", "<image>"), ("gpt", "again")),
        record("3.jpg", ("human", "nobody answers")),
        {"id": "text only", "conversations": []},
    ]
    path = write(tmp_path / "share-captioner.json", records)
    dataset = open_dataset(str(path))
    assert found(dataset, tmp_path) == [
        ("coco/train2017/1.jpg", "coco/train2017/1.jpg", ("In the centre ...", "again"), None),
        ("sam/images/2.jpg", "sam/images/2.jpg", ("b",), None),
    ]
    check(bad(dataset), [r"records\[3\].*gpt.*'conversations'", r"records\[4\].*'image'"])


def write_tar(path: Path, members: Sequence[tuple[str, bytes | None]]) -> Path:
    """Write a tar file; content None: a symbolic link to /etc/passwd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def test_webdataset(tmp_path: Path) -> None:
    members = [
        ("000.jpg", picture("red")),
        ("000.txt", "ein Hund 🐕".encode()),
        ("000.json", b'{"caption": "not this one", "width": 6}'),
        ("deep/001.a.b.png", b"no picture suffix of ours"),
        ("deep/001.PNG", picture("blue", "PNG")),
        ("deep/001.json", b'{"captions": ["x", "y", 3]}'),
        ("002.webp", picture("green", "WEBP")),
        ("003.txt", b"no picture"),
        ("004.jpg", b""),
        ("005.jpg", picture()),
        ("005.json", b"{oops"),
        ("../006.jpg", picture()),
        ("007.jpg", None),
    ]
    write_tar(tmp_path / "shards/00000.tar", members)
    write_tar(tmp_path / "shards/00001.tar", [("000.jpg", picture("white")), ("000.txt", b"same key, other tar")])
    dataset = open_dataset(str(tmp_path / "shards"))
    assert [(item.image_id, item.captions) for item in good(dataset)] == [
        ("00000/000", ("ein Hund 🐕",)),
        ("00000/deep/001", ("x", "y", "")),
        ("00000/002", ()),
        ("00001/000", ("same key, other tar",)),
    ]
    wanted = [r"\b003\b", r"004\.jpg.*empty", r"005\.json.*Expecting", r"'\.\./006\.jpg'.*outside", r"007\.jpg.*link"]
    check(bad(dataset), wanted)
    again = pickle.loads(pickle.dumps(good(dataset)[1].image))  # as for a worker
    assert load_image(again).getpixel((0, 0)) == (0, 0, 255)
    assert from_uri(to_uri(again)) == again
    for spec in ("shards/00000.tar", "shards/{00000..00001}.tar"):
        assert len(open_dataset(str(tmp_path / spec)).items()) == (8 if "{" not in spec else 9)
    with pytest.raises(InputError, match=r"00002\.tar"):
        open_dataset(str(tmp_path / "shards/{00000..00002}.tar"))


def test_a_tar_that_webdataset_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    with webdataset.TarWriter(str(tmp_path / "w-000000.tar")) as sink:
        sink.write({"__key__": "sample/1", "png": Image.new("RGB", (3, 3), "blue"), "txt": "Straße", "json": {"a": 1}})
        sink.write({"__key__": "2", "jpg": Image.new("RGB", (3, 3), "red"), "json": {"caption": "two"}})
    one, two = open_dataset(str(tmp_path / "w-000000.tar")).items()
    assert (one.image_id, one.captions) == ("w-000000/sample/1", ("Straße",))
    assert (two.image_id, two.captions) == ("w-000000/2", ("two",))
    assert load_image(one.image).getpixel((0, 0)) == (0, 0, 255)


def five(tmp_path: Path) -> tuple[Path, bytes]:
    members = [
        (f"{k}.{kind}", picture((k, k, k), "PNG") if kind == "png" else b"x")
        for k in range(5)
        for kind in ("png", "txt")
    ]
    path = write_tar(tmp_path / "a.tar", members)
    return path, path.read_bytes()


def test_a_tar_that_is_cut_short_gives_what_comes_before(tmp_path: Path) -> None:
    path, content = five(tmp_path)
    with tarfile.open(path) as file:
        third = file.getmembers()[4]
    path.write_bytes(content[: third.offset_data + 10])
    dataset = open_dataset(str(path))
    assert [item.image_id for item in good(dataset)] == ["a/0", "a/1", "a/2"]
    with pytest.raises(ImageError, match="ends before"):
        load_image(good(dataset)[2].image)
    (reason,) = bad(dataset)
    assert re.search("after 2.*unexpected end of data", reason)
    path.write_bytes(b"")
    assert "empty file" in bad(open_dataset(str(path)))[0]


def test_a_broken_member_costs_itself(tmp_path: Path) -> None:
    path, content = five(tmp_path)
    with tarfile.open(path) as file:
        members = file.getmembers()
    start = members[2].offset  # 1.png
    path.write_bytes(content[:start] + b"\xff" * 512 + content[start + 512 :])
    dataset = open_dataset(str(path))
    assert [item.image_id for item in good(dataset)] == ["a/0", "a/2", "a/3", "a/4"]
    check(bad(dataset), [rf"after 0.*\b{start}\b", r"\.tar: 1\b"])


def test_a_part_of_a_file_is_told_apart_from_another(tmp_path: Path) -> None:
    parts = [FilePart(tmp_path / "a.tar", 512, 10, "x.jpg"), FilePart(tmp_path / "a.tar", 1024, 10, "x.jpg")]
    assert stamp_of(parts[0]) != stamp_of(parts[1])
    assert stamp_of(FilePart(Path("/tmp1"), 0, 1, "x", "d")) == stamp_of(FilePart(Path("/tmp2"), 9, 1, "y", "d"))
    odd = FilePart(tmp_path / "b#1@2+3", 5, 6, "n@7+8")
    assert from_uri(to_uri(odd)) == odd
    assert from_uri("/pictures/a#b.jpg") == Path("/pictures/a#b.jpg")


@pytest.mark.parametrize("mode", ["webdataset", "files"])
def test_img2dataset(tmp_path: Path, mode: str) -> None:
    rows = [
        {"key": "000000000", "url": "u", "caption": "one", "status": "success", "error_message": None},
        {"key": "000000001", "url": "u", "caption": "dead", "status": "failed_to_download", "error_message": "404"},
        {"key": "000000002", "url": "u", "caption": None, "status": "success", "error_message": None},
        {"key": "000000003", "url": "u", "caption": "lost", "status": "success", "error_message": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    write(tmp_path / "00000_stats.json", {"count": 4})
    members: list[tuple[str, bytes | None]] = [
        ("000000000.jpg", picture("red")),
        ("000000000.txt", b"one"),
        ("000000000.json", b"{}"),
        ("000000002.jpg", picture("blue")),
        ("000000002.txt", b"from the text"),
    ]
    if mode == "webdataset":
        write_tar(tmp_path / "00000.tar", members)
        write_tar(tmp_path / "00001.tar", [("000010000.jpg", picture()), ("000010000.txt", b"no table")])
    else:
        for number, files in (
            ("00000", members),
            ("00001", [("000010000.jpg", picture()), ("000010000.txt", b"no table")]),
        ):
            (tmp_path / number).mkdir()
            for name, content in files:
                (tmp_path / number / name).write_bytes(content or b"")
    dataset = open_dataset(str(tmp_path))
    assert [(item.image_id, item.captions) for item in good(dataset)] == [
        ("000000000", ("one",)),
        ("000000002", ("from the text",)),
        ("000010000", ("no table",)),
    ]
    assert re.search("000000003.*success", bad(dataset)[0])
    check(clean_items(dataset).notes, [r"downloads.*\b1\b.*404 \(1\)"])
    assert load_image(good(dataset)[0].image).getpixel((0, 0)) == (254, 0, 0)


def test_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.txt", "one\n\n zwei \n")
    items = open_dataset(str(path)).items()
    assert [(item.image_id, item.captions) for item in items] == [
        ("captions.txt:1", ("one",)),
        ("captions.txt:3", ("zwei",)),
    ]
    with pytest.raises(ImageError, match=r"captions\.txt.*--text-only"):
        load_image(items[0].image)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{oops", "--data-format"),
        ("a.json", '{"images": 3, "x": "sentences"', "JSON"),
        ("a.json", '{"images": {"sentences": 1}}', "images.*--data-format"),
        ("a.json", '["conversations"', "JSON"),
        ("a.xyz", "", r"\.xyz.*--data-format"),
    ],
)
def test_a_file_of_another_format(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(str(write(tmp_path / name, text))).items()
    assert "\n" not in str(caught.value)


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "captions", "1.jpg#0\tx\n")
    assert good(open_dataset(str(path), "flickr"))[0].image_id == "1.jpg"
    with pytest.raises(InputError, match=r"data_format.*'fliker'.*'flickr'"):
        open_dataset(str(path), "fliker")
    (tmp_path / "image").mkdir()
    assert format_of(tmp_path) == "folder"
    (tmp_path / "caption").mkdir()
    assert format_of(tmp_path) == "urban1k"
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(InputError, match="features"):
        format_of(tmp_path)
