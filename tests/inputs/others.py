"""Situations of images, feature arrays, moved data, simultaneous writers and terminals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from csaligner.locks import only_writer
from tests.support import odd_files
from tests.support.commands import csaligner

from .situation import Make, Situation, check, folder_with

IMAGES, ARRAYS, FOLDERS, TERMINALS = "images", "arrays", "moves and writers", "arguments and terminals"
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))


def _image(name: str, write: Callable[[Path], object]) -> Make:
    return folder_with("f", lambda folder: write(folder / name))


def _saved(name: str, mode: str = "RGB", **options: Any) -> Make:
    return _image(name, lambda path: COLOURS.convert(mode).save(path, **options))


def _text_chunk(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    COLOURS.save(path, pnginfo=info)


def _cut(path: Path) -> None:
    COLOURS.save(path)
    path.write_bytes(path.read_bytes()[:400])


def _twelve_bits(path: Path) -> None:
    Image.fromarray(np.linspace(0, 4095, 4096).reshape(64, 64).astype(np.uint16)).save(path)


def _gap(name: str, write: Callable[[Path], object], *options: str) -> Make:
    """Return a maker of a feature file, compared with a plain one."""

    def make(root: Path) -> Sequence[object]:
        write(root / name)
        np.save(root / "plain.npy", X)
        return ["gap", "--image-features", name, "--text-features", "plain.npy", *options]

    return make


def _array(value: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path, value)


def _lists(column: Any) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.table({"id": list(range(len(column))), "v": column}), path)


def _with(rows: Sequence[int], value: float) -> Any:
    changed = X.copy()
    changed[rows] = value
    return changed


def _moved(root: Path) -> Sequence[object]:
    odd_files.patterns(root / "here")
    (root / "t.csv").write_text("image,caption\nimg00.jpg,a\n")
    index = ["index", "--run", "bundled", "--out", "i", "-q", "--data"]
    csaligner(*index, "here", folder=root)
    (root / "here").rename(root / "there")
    return [*index, "there"]


def _grown(*more: str) -> Make:
    """Return a maker of a store of texts and a text more."""

    def make(root: Path) -> Sequence[object]:
        (root / "t.txt").write_text("one\ntwo\n")
        embed = ["embed", "--data", "t.txt", "--text-only", "--out", "s", "-q"]
        csaligner(*embed, folder=root)
        (root / "t.txt").write_text("one\ntwo\nthree\n")
        return [*embed, *more]

    return make


def _written(command: Sequence[str]) -> Make:
    """Return a maker of a folder that another process writes to."""

    def make(root: Path) -> Sequence[object]:
        odd_files.patterns(root / "p")
        out = root / "out"
        holder = only_writer(out)
        holder.__enter__()  # until the test process ends
        HELD.append(holder)
        return command

    return make


HELD: list[Any] = []


def _program(words: Sequence[str | bytes], encoding: str) -> Make:
    """Return a maker that runs the program with a terminal of an encoding and shows the bytes it printed."""

    def make(root: Path) -> Sequence[object]:
        odd_files.patterns(root / "café")
        environment = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
        command = [sys.executable, "-m", "csaligner.cli", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1), done.stderr
        return check("café")

    return make


SITUATIONS = [
    Situation(IMAGES, "a text chunk of 3 MB", _image("a.png", _text_chunk), (21, 20, 0)),
    Situation(IMAGES, "EXIF that is not EXIF", _saved("a.png", exif=b"junkjunk"), (21, 20, 0)),
    Situation(IMAGES, "a broken colour profile", _saved("a.png", icc_profile=b"junk" * 40), (21, 20, 0)),
    Situation(IMAGES, "CMYK", _saved("a.jpg", "CMYK"), (21, 20, 0)),
    Situation(IMAGES, "a palette", _saved("a.gif", "P"), (21, 20, 0)),
    Situation(IMAGES, "1 bit", _saved("a.tif", "1"), (21, 20, 0)),
    Situation(IMAGES, "grey values of 12 bits", _image("a.png", _twelve_bits), (21, 20, 0)),
    Situation(
        IMAGES, "an animation", _saved("a.webp", save_all=True, append_images=[Image.new("RGB", (32, 24))]), (21, 20, 0)
    ),
    Situation(
        IMAGES, "several pages", _saved("a.tif", save_all=True, append_images=[Image.new("RGB", (32, 24))]), (21, 20, 0)
    ),
    Situation(IMAGES, "another suffix than the format", _saved("a.jpg", format="PNG"), (21, 20, 0)),
    Situation(IMAGES, "a truncated file", _image("a.jpg", _cut), (21, 20, 1), "(?i)truncated"),
    Situation(
        IMAGES, "an empty file", _image("a.jpg", lambda path: path.write_bytes(b"")), (21, 20, 1), "cannot be read"
    ),
    Situation(
        IMAGES, "a page of HTML", _image("a.jpg", lambda path: path.write_text("<html>")), (21, 20, 1), "cannot be read"
    ),
    Situation(
        IMAGES, "65,500 x 1 pixels", _image("a.png", lambda path: Image.new("RGB", (65500, 1)).save(path)), (21, 20, 0)
    ),
    Situation(
        IMAGES,
        "100 million pixels",
        _image("a.png", lambda path: Image.new("1", (10_000, 10_000)).save(path)),
        (21, 20, 1),
        "limit",
    ),
    Situation(ARRAYS, "big-endian numbers", _gap("a.npy", _array(X.astype(">f4"))), None),
    Situation(ARRAYS, "big-endian half precision", _gap("a.npy", _array(X.astype(">f2"))), None),
    Situation(ARRAYS, "column order (Fortran)", _gap("a.npy", _array(np.asfortranarray(X))), None),
    Situation(ARRAYS, "extended precision", _gap("a.npy", _array(X.astype(np.longdouble))), None),
    Situation(ARRAYS, "(2, N, d) without a key", _gap("a.npy", _array(np.stack([X, X]))), None, r"image_key.*0, 1"),
    Situation(
        ARRAYS, "(2, N, d) with `--image-key 1`", _gap("a.npy", _array(np.stack([X, X])), "--image-key", "1"), None
    ),
    Situation(ARRAYS, "one dimension", _gap("a.npy", _array(X[0])), None, "shape"),
    Situation(ARRAYS, "no dimension", _gap("a.npy", _array(X[0, 0])), None, "shape"),
    Situation(ARRAYS, "no rows", _gap("a.npy", _array(X[:0])), None, "shape"),
    Situation(ARRAYS, "zero rows", _gap("a.npy", _array(_with([9, 11], 0))), None, "2 of 40 rows are zero.*row 9"),
    Situation(ARRAYS, "NaN", _gap("a.npy", _array(_with([9], np.nan))), None, "NaN.*row 9"),
    Situation(
        ARRAYS,
        "packed bits",
        _gap("a.npy", _array(np.random.default_rng(0).integers(0, 256, (40, 6)).astype(np.uint8))),
        None,
        "packed bits",
    ),
    Situation(ARRAYS, "texts", _gap("a.npy", _array(X.astype(str))), None, "wanted numbers"),
    Situation(
        ARRAYS,
        "Python objects",
        _gap("a.npy", lambda path: np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)),
        None,
        "pickle",
    ),
    Situation(ARRAYS, "another number of rows", _gap("a.npy", _array(X[:30])), None, "30 rows.*40"),
    Situation(
        ARRAYS,
        "several arrays in an `.npz`",
        _gap("a.npz", lambda path: np.savez(path, a=X, b=X)),
        None,
        "image_key.*a, b",
    ),
    Situation(
        ARRAYS,
        "`large_list` columns (Polars)",
        _gap("a.parquet", _lists(pa.array(X.tolist(), pa.large_list(pa.float32())))),
        None,
    ),
    Situation(
        ARRAYS, "ragged rows", _gap("a.parquet", _lists(pa.array([*X[:39].tolist(), [1.0]]))), None, "row 39 has 1"
    ),
    Situation(ARRAYS, "a null row", _gap("a.parquet", _lists(pa.array([*X[:39].tolist(), None]))), None, "row 39"),
    Situation(
        ARRAYS,
        "a column per dimension",
        _gap("a.parquet", lambda path: pq.write_table(pa.table({f"d{i}": X[:, i] for i in range(6)}), path)),
        None,
        "no column of lists",
    ),
    Situation(FOLDERS, "an index of a folder that was moved", _moved, None, "no change"),
    Situation(FOLDERS, "a finished store, a text added", _grown(), None, r"1 new \(first: t.txt:3\).*--update"),
    Situation(FOLDERS, "a finished store, a text added, `--update`", _grown("--update"), None, "3 captions"),
    Situation(
        FOLDERS,
        "an index that another process writes",
        _written(["index", "--data", "p", "--run", "bundled", "--out", "out"]),
        None,
        "another process",
    ),
    Situation(
        FOLDERS,
        "a store that another process writes",
        _written(["embed", "--data", "p", "--out", "out", "-q"]),
        None,
        "another process",
    ),
    Situation(TERMINALS, "an ASCII terminal", _program(["check-data", "café"], "ascii"), (20, 20, 0)),
    Situation(TERMINALS, "a cp1252 terminal", _program(["check-data", "café"], "cp1252"), (20, 20, 0)),
    Situation(
        TERMINALS, "an argument that is not UTF-8", _program(["search", "nowhere", b"caf\xe9"], "utf-8"), (20, 20, 0)
    ),
]
