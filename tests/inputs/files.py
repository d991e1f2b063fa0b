"""Situations of folders, names, texts, tables, JSON, parquet and tars."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support import odd_files

from .situation import Make, Situation, check, folder_with, table_with, tar_with

FOLDERS, TEXT, TABLES, JSON, PARQUET, TARS = "folders", "text", "delimited text", "JSON", "parquet", "tar files"
HEAD = "image,caption\n"
ROWS = "img00.jpg,one\nimg01.jpg,two\n"
JPEG = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(JPEG, "JPEG")
RED = JPEG.getvalue()


def _copy(name: str | bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        target = os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name))
        shutil.copy(folder / "img00.jpg", target)

    return change


def _mac(root: Path) -> list[object]:
    odd_files.mac(root / "mac")
    return check("mac")


def _twins(root: Path) -> list[object]:
    odd_files.twins(root / "twins")
    return check("twins")


def _links(root: Path) -> list[object]:
    odd_files.linked(root / "links")
    return check("links")


def _followed(root: Path) -> list[object]:
    return [*_links(root), "--follow-links"]


def _videos(folder: Path) -> None:
    for number in range(12):
        (folder / f"{number}.mov").write_bytes(b"video")


def _only_videos(root: Path) -> list[object]:
    (root / "videos").mkdir()
    _videos(root / "videos")
    return check("videos")


def _nfd(root: Path) -> list[object]:
    odd_files.patterns(root / "p")
    os.rename(root / "p/img00.jpg", root / "p" / unicodedata.normalize("NFD", "café.jpg"))
    (root / "t.csv").write_text(f"{HEAD}{unicodedata.normalize('NFC', 'café.jpg')},one\n", encoding="utf-8")
    return check("t.csv", "--image-root", "p")


def _parquet(**columns: object) -> Make:
    def make(root: Path) -> list[object]:
        odd_files.patterns(root / "p")
        pq.write_table(pa.table(columns), root / "t.parquet")
        return check("t.parquet", "--image-root", "p")

    return make


def _shards(root: Path) -> list[object]:
    odd_files.patterns(root / "p")
    (root / "shards").mkdir()
    for n in range(3):
        rows = {"image": [f"img0{n}.jpg"], "caption": ["x"]}
        pq.write_table(pa.table(rows).slice(0, n != 1), root / f"shards/train-{n}.parquet")
    return check("shards", "--image-root", "p")


def _windows(root: Path) -> list[object]:
    odd_files.patterns(root / "p/sub")
    (root / "t.csv").write_text(f"{HEAD}sub\\img00.jpg,one\n")
    return check("t.csv", "--image-root", "p")


def _tar_of(*kinds: str) -> Make:
    """Return a maker of a tar with a folder, an image, and other members or damage."""

    def make(root: Path) -> list[object]:
        with tarfile.open(root / "a.tar", "w") as file:
            info = tarfile.TarInfo("dir")
            info.type = tarfile.DIRTYPE
            file.addfile(info)
            for name, content in {"dir/a.jpg": RED, "dir/a.txt": b"x", "é ü/b.jpg": RED}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            if "link" in kinds:
                info = tarfile.TarInfo("dir/c.jpg")
                info.type, info.linkname = tarfile.LNKTYPE, "dir/a.jpg"
                file.addfile(info)
        if "cut" in kinds:
            (root / "a.tar").write_bytes((root / "a.tar").read_bytes()[:4000])
        return check("a.tar")

    return make


def _file(name: str, content: bytes) -> Make:
    def make(root: Path) -> list[object]:
        (root / name).write_bytes(content)
        return check(name)

    return make


def _packed_tar(root: Path) -> list[object]:
    tar_with(("a.jpg", "jpg"))(root)
    (root / "a.tar").rename(root / "a.tar.gz")
    return check("a.tar.gz")


LINES = "".join(f"img{n:02}.jpg\tp {n}\n" for n in range(20))
OPEN_TSV = "image\tcaption\n" + LINES.replace("p 5\n", '"Second one\n')
DICTIONARY = pa.array(["img00.jpg", "img01.jpg"]).dictionary_encode()
SITUATIONS = [
    Situation(FOLDERS, "resource forks, `__MACOSX`, `@eaDir`, thumbnails", _mac, (20, 20, 0), "ignored: 41 hidden"),
    Situation(FOLDERS, "twin stems (`a.jpg`, `a.png`)", _twins, (22, 21, 0)),
    Situation(FOLDERS, "links to folders", _links, None, "2 linked folders not followed.*--follow-links"),
    Situation(FOLDERS, "links to folders that form a cycle, `--follow-links`", _followed, (20, 20, 0)),
    Situation(
        FOLDERS,
        "a broken link",
        folder_with("f", lambda f: (f / "a.jpg").symlink_to("x")),
        (20, 20, 0),
        "link to nothing",
    ),
    Situation(FOLDERS, "a named pipe", folder_with("f", lambda f: os.mkfifo(f / "a.jpg")), (20, 20, 0), "special file"),
    Situation(FOLDERS, "files of other kinds", folder_with("f", _videos), (20, 20, 0), "ignored: 12 .mov"),
    Situation(FOLDERS, "no images at all", _only_videos, None, "no samples.*12 .mov"),
    Situation(
        FOLDERS,
        "`.jfif`, `.jpe`",
        folder_with("f", lambda f: [(f / n).write_bytes(RED) for n in ("a.jfif", "b.JPE")]),
        (22, 20, 0),
    ),
    Situation(
        FOLDERS,
        "HEIC without pillow-heif",
        folder_with("f", lambda f: (f / "a.heic").write_bytes(b"x" * 99)),
        None,
        "heic",
    ),
    Situation(FOLDERS, "a name that is not UTF-8", folder_with("f", _copy(b"caf\xe9.jpg")), (21, 20, 0)),
    Situation(FOLDERS, "a name with a line break", folder_with("f", _copy("a\nb.jpg")), (21, 20, 0)),
    Situation(FOLDERS, "a name with emoji", folder_with("f", _copy("\U0001f600.jpg")), (21, 20, 0)),
    Situation(FOLDERS, "a name with a leading dash", folder_with("f", _copy("-rf.jpg")), (21, 20, 0)),
    Situation(FOLDERS, "a name of 250 characters", folder_with("f", _copy("x" * 246 + ".jpg")), (21, 20, 0)),
    Situation(FOLDERS, "a name that ends in a dot", folder_with("f", _copy("a.jpg.")), (20, 20, 0), "ignored: 1 "),
    Situation(
        TEXT,
        "a caption file in cp1252",
        folder_with("f", lambda f: (f / "img03.txt").write_bytes(b"caf\xe9\n")),
        (20, 20, 0),
        "cp1252: 1",
    ),
    Situation(
        TEXT,
        "a caption file in UTF-16",
        folder_with("f", lambda f: (f / "img03.txt").write_text("café", "utf-16")),
        (20, 20, 0),
    ),
    Situation(
        TEXT,
        "a caption file with a byte order mark",
        folder_with("f", lambda f: (f / "img03.txt").write_text("a", "utf-8-sig")),
        (20, 20, 0),
    ),
    Situation(
        TEXT,
        "a caption file that is not text",
        folder_with("f", lambda f: (f / "img03.txt").write_bytes(b"\xff\0\1\0\0")),
        (20, 19, 0),
        "not text: 1 file",
    ),
    Situation(
        TEXT,
        "U+2028 inside a caption",
        folder_with("f", lambda f: (f / "img03.txt").write_text("a\u2028b\n", "utf-8")),
        (20, 20, 0),
    ),
    Situation(
        TEXT,
        "line ends of all kinds",
        folder_with("f", lambda f: (f / "img03.txt").write_bytes(b"a\r\nb\rc\nd")),
        (20, 23, 0),
    ),
    Situation(
        TEXT, "an empty caption file", folder_with("f", lambda f: (f / "img03.txt").write_bytes(b"")), (20, 19, 0)
    ),
    Situation(
        TEXT,
        "a caption of 1 MB",
        folder_with("f", lambda f: (f / "img03.txt").write_text("word " * 200_000)),
        (20, 20, 0),
    ),
    Situation(TABLES, "a quote that never closes, tabs", table_with("t.tsv", OPEN_TSV), (20, 20, 0)),
    Situation(
        TABLES,
        "a quote that never closes, commas",
        table_with("t.csv", OPEN_TSV.replace("\t", ",")),
        (19, 19, 1),
        "line 7 opens a quote",
    ),
    Situation(
        TABLES,
        "an unquoted comma in a caption",
        table_with("t.csv", f"{HEAD}img00.jpg,A man, a dog\n{ROWS}"),
        (2, 2, 1),
        "line 2 has 3 cells, the header 2",
    ),
    Situation(TABLES, "too few cells", table_with("t.csv", f"{HEAD}img02.jpg\n{ROWS}"), (2, 2, 1), "line 2 has 1 cell"),
    Situation(TABLES, "semicolons", table_with("t.csv", f"{HEAD}{ROWS}".replace(",", ";")), (2, 2, 0)),
    Situation(
        TABLES,
        "`sep=;` of Excel after a byte order mark",
        table_with("t.csv", ("\ufeffsep=;\r\n" + f"{HEAD}{ROWS}".replace(",", ";")).encode()),
        (2, 2, 0),
    ),
    Situation(
        TABLES,
        "UTF-16 with tabs, as Excel writes",
        table_with("t.txt", f"{HEAD}{ROWS}".replace(",", "\t").encode("utf-16"), "--data-format", "table"),
        (2, 2, 0),
    ),
    Situation(TABLES, "cp1252", table_with("t.csv", f"{HEAD}img00.jpg,café\n".encode("cp1252")), (1, 1, 0), "cp1252"),
    Situation(
        TABLES,
        "mixed line ends",
        table_with("t.csv", "image,caption\r\nimg00.jpg,a\rimg01.jpg,b\nimg02.jpg,c"),
        (3, 3, 0),
    ),
    Situation(TABLES, "a quoted line break", table_with("t.csv", f'{HEAD}img02.jpg,"a\nb"\n{ROWS}'), (3, 3, 0)),
    Situation(TABLES, "NUL bytes", table_with("t.csv", f"{HEAD}img02.jpg,a\0b\n{ROWS}"), (3, 3, 0)),
    Situation(
        TABLES,
        "a cell of 1 MB",
        table_with("t.csv", f"{HEAD}img02.jpg,{'x' * 1_000_000}\n{ROWS}"),
        (2, 2, 1),
        "cell that is too long",
    ),
    Situation(
        TABLES,
        "two columns of one name",
        table_with("t.csv", "image,caption,caption\nimg00.jpg,a,b\n"),
        None,
        "'caption'.*twice",
    ),
    Situation(TABLES, "one column", table_with("t.csv", "image\nimg00.jpg\n"), None, "no column 'caption'"),
    Situation(TABLES, "a header alone", table_with("t.csv", HEAD), None, "no samples"),
    Situation(TABLES, "an empty file", table_with("t.csv", ""), None, "no column|empty"),
    Situation(
        TABLES,
        "a name of 300 characters",
        table_with("t.csv", f"{HEAD}{'x' * 300}.jpg,b\n{ROWS}"),
        (2, 2, 1),
        "file name of 304 bytes",
    ),
    Situation(TABLES, "a name in the other Unicode form", _nfd, (1, 1, 0)),
    Situation(
        TABLES, "a URL", table_with("t.csv", f"{HEAD}https://a.b/c.jpg,b\n{ROWS}"), (2, 2, 1), "URL.*img2dataset"
    ),
    Situation(
        TABLES,
        "an image as base64",
        table_with("t.csv", f"{HEAD}data:image/png;base64,iVBORw0KGgo=,b\n{ROWS}"),
        (2, 2, 1),
        "base64",
    ),
    Situation(
        TABLES, "a file that is missing", table_with("t.csv", f"{HEAD}gone.jpg,b\n{ROWS}"), (3, 3, 1), "no such file"
    ),
    Situation(TABLES, "a table named `.txt`", table_with("t.txt", f"{HEAD}{ROWS}"), None, "data_format table"),
    Situation(TABLES, "a spreadsheet", table_with("t.xlsx", b"PK\3\4"), None, "xlsx"),
    Situation(
        JSON,
        "half a line",
        table_with("t.jsonl", '{"image":"img00.jpg","caption":"a"}\n{"image":\n'),
        (1, 1, 1),
        "line 2 is not JSON",
    ),
    Situation(
        JSON,
        "a trailing comma",
        table_with("t.jsonl", '{"image":"img00.jpg","caption":"a",}\n{"image":"img01.jpg","caption":"a"}\n'),
        (1, 1, 1),
        "line 1 is not JSON",
    ),
    Situation(
        JSON, "a lone surrogate", table_with("t.jsonl", '{"image":"img00.jpg","caption":"cut \\ud83d"}\n'), (1, 1, 0)
    ),
    Situation(
        JSON,
        "NaN, numbers and null as captions",
        table_with(
            "t.jsonl",
            "".join(
                f'{{"image":"img0{n}.jpg","caption":{v}}}\n' for n, v in enumerate(("NaN", "7", "null", '["a", 5]'))
            ),
        ),
        (4, 1, 0),
    ),
    Situation(
        JSON, "UTF-16", table_with("t.jsonl", '{"image":"img00.jpg","caption":"café"}\n'.encode("utf-16")), (1, 1, 0)
    ),
    Situation(
        JSON, "a key twice", table_with("t.jsonl", '{"image":"x.jpg","image":"img00.jpg","caption":"a"}\n'), (1, 1, 0)
    ),
    Situation(
        JSON,
        "a list of records",
        table_with("t.json", json.dumps([{"image": "img00.jpg", "caption": "a"}, 5])),
        (1, 1, 1),
        "not an object",
    ),
    Situation(
        JSON,
        "records without a field",
        table_with("t.jsonl", '{"image":"img00.jpg","caption":"a"}\n{"image":"img01.jpg"}\n'),
        (1, 1, 1),
        "no 'caption'",
    ),
    Situation(PARQUET, "a folder of shards, one of them empty", _shards, (2, 2, 0)),
    Situation(
        PARQUET, "dictionary columns (pandas' categories)", _parquet(image=DICTIONARY, caption=DICTIONARY), (2, 2, 0)
    ),
    Situation(
        PARQUET,
        "lists of captions, some null",
        _parquet(image=["img00.jpg", "img01.jpg"], caption=[["a", None], None]),
        (2, 1, 0),
    ),
    Situation(
        PARQUET, "images as bytes, one null", _parquet(image=[RED, None], caption=["a", "b"]), (2, 2, 1), "no image"
    ),
    Situation(PARQUET, "nested captions", _parquet(image=["img00.jpg"], caption=[{"en": "a"}]), (1, 0, 0)),
    Situation(
        PARQUET, "a truncated file", table_with("t.parquet", b"PAR1" + bytes(50)), None, "cannot be read as parquet"
    ),
    Situation(
        TARS,
        "a second image of one key",
        tar_with(("z.jpg", "jpg"), ("z.txt", "c"), ("z.jpg", "jpg")),
        (1, 1, 1),
        "second z.jpg",
    ),
    Situation(TARS, "dots in the key", tar_with(("IMG_2024.01.05.jpg", "jpg"), ("IMG_2024.01.05.txt", "c")), (1, 1, 0)),
    Situation(TARS, "suffixes in capitals", tar_with(("a.JPG", "jpg"), ("a.TXT", "c")), (1, 1, 0)),
    Situation(
        TARS,
        "folders of macOS, hidden members",
        tar_with(("__MACOSX/._a.jpg", "x"), ("._a.jpg", "x"), ("a.jpg", "jpg"), ("a.txt", "c")),
        (1, 1, 0),
    ),
    Situation(TARS, "a caption that is not UTF-8", tar_with(("a.jpg", "jpg"), ("a.txt", b"caf\xe9")), (1, 1, 0)),
    Situation(TARS, "broken JSON", tar_with(("a.jpg", "jpg"), ("a.json", "{"), ("b.jpg", "jpg")), (1, 0, 1), "a.json"),
    Situation(TARS, "no image of a key", tar_with(("a.jpg", "jpg"), ("b.mp4", "x")), (1, 0, 1), "has .mp4"),
    Situation(TARS, "names of 300 characters", tar_with(("x/" * 100 + "y" * 100 + ".jpg", "jpg")), (1, 0, 0)),
    Situation(TARS, "a compressed tar", _packed_tar, None, "compressed"),
    Situation(TARS, "folders, names that are not ASCII", _tar_of(), (2, 1, 0)),
    Situation(TARS, "a hard link", _tar_of("link"), (2, 1, 1), "is a link"),
    Situation(TARS, "a truncated tar", _tar_of("cut"), None, "damaged"),
    Situation(FOLDERS, "one image instead of a folder", _file("a.jpg", RED), None, "is one image"),
    Situation(FOLDERS, "a zip file", _file("a.zip", b"PK"), None, "unpack"),
    Situation(TABLES, "paths of Windows", _windows, (1, 1, 0)),
    Situation(
        TABLES, "UTF-16 without a byte order mark", table_with("t.csv", f"{HEAD}{ROWS}".encode("utf-16-le")), (2, 2, 0)
    ),
    Situation(TABLES, "a pipe as separator", table_with("t.csv", f"{HEAD}{ROWS}".replace(",", "|")), (2, 2, 0)),
    Situation(TABLES, "empty columns at the end", table_with("t.csv", "image,caption,,\nimg00.jpg,a,,\n"), (1, 1, 0)),
    Situation(
        TABLES,
        "quotes escaped by backslashes",
        table_with("t.csv", f'{HEAD}img00.jpg,"a \\"b\\" c"\n{ROWS}'),
        (2, 3, 0),
    ),
    Situation(
        JSON,
        "lists and objects as file names",
        table_with("t.jsonl", '{"image":["img00.jpg"],"caption":"a"}\n{"image":{"a":1},"caption":"a"}\n'),
        (0, 0, 2),
        "wanted a file name",
    ),
    Situation(
        JSON,
        "nested 50,000 deep",
        table_with("t.jsonl", "[" * 50_000 + '\n{"image":"img00.jpg","caption":"a"}\n'),
        (1, 1, 1),
        "nested too deeply",
    ),
    Situation(
        PARQUET,
        "images in a dictionary column",
        _parquet(image=pa.array([RED, RED]).dictionary_encode(), caption=["a", "b"]),
        (2, 2, 0),
    ),
    Situation(
        PARQUET,
        "images of a fixed size",
        _parquet(image=pa.array([RED], pa.binary(len(RED))), caption=["a"]),
        (1, 1, 0),
    ),
    Situation(PARQUET, "captions as bytes", _parquet(image=["img00.jpg"], caption=["café".encode()]), (1, 1, 0)),
    Situation(
        PARQUET,
        "numbers and dates as captions",
        _parquet(image=["img00.jpg", "img01.jpg"], caption=[1.5, None]),
        (2, 0, 0),
    ),
]
