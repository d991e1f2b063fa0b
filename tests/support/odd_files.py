"""Generators of folders, tables and tar files with one unusual member among valid ones."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 20


def patterns(folder: Path) -> Path:
    """img00.jpg to img19.jpg, each with a .txt that says "pattern number n"."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(COUNT):
        tiles = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(tiles, np.ones((8, 8, 1), np.uint8))).save(folder / f"img{n:02}.jpg")
        (folder / f"img{n:02}.txt").write_text(f"pattern number {n}\n")
    return folder


def mac(folder: Path) -> Path:
    """Write a folder as macOS does on other file systems: resource forks, and folders of archives."""
    patterns(folder)
    for path in sorted(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0\xff")
    for name in ("__MACOSX", "@eaDir", ".thumbnails"):
        shutil.copytree(folder, folder / name, ignore=shutil.ignore_patterns("__MACOSX", "@eaDir"))
    (folder / "Thumbs.db").write_bytes(b"\0")
    return folder


def twins(folder: Path) -> Path:
    """Write two images with equal stems, and a name equal to the id of one of them."""
    patterns(folder)
    Image.open(folder / "img00.jpg").save(folder / "img00.png")
    Image.open(folder / "img01.jpg").save(folder / "img00.jpg.gif")
    return folder


def not_utf8_names(folder: Path) -> Path:
    patterns(folder)
    shutil.copy(folder / "img00.jpg", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    return folder


def linked(folder: Path) -> Path:
    """Write links class1 and class2 to a folder elsewhere, which links back."""
    folder.mkdir()
    other = patterns(folder.with_name(f"{folder.name}-other"))
    for name in ("class1", "class2"):
        (folder / name).symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    return folder


def table(path: Path, separator: str, odd: str, encoding: str = "utf-8") -> Path:
    """Write a table with one row per image of `patterns`, `odd` instead of the row of img05."""
    rows = [odd if n == 5 else f"img{n:02}.jpg{separator}p {n}" for n in range(COUNT)]
    path.write_bytes("\n".join([f"image{separator}caption", *rows, ""]).encode(encoding))
    return path


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path
