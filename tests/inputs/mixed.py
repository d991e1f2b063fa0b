"""A folder of mixed files, some of them unusual in every way, and the account of a store and an index made of it."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from csaligner.search.build import BuildReport
from csaligner.search.index import Index
from csaligner.store.store import Store

IMAGE, UNREADABLE, CAPTIONS, DOCUMENT, IGNORED = "image", "unreadable", "captions", "document", "ignored"
Odd = Callable[[Path, str, Image.Image], str]  # folder, number, an image -> what the file is
ODD_SHARE = 0.05


def _bytes(suffix: str, content: bytes, what: str) -> Odd:
    def make(folder: Path, name: str, _: Image.Image) -> str:
        (folder / f"{name}{suffix}").write_bytes(content)
        return what

    return make


def _saved(suffix: str, mode: str = "RGB", **options: Any) -> Odd:
    def make(folder: Path, name: str, image: Image.Image) -> str:
        image.convert(mode).save(folder / f"{name}{suffix}", **options)
        return IMAGE

    return make


def _named(pattern: str) -> Odd:
    def make(folder: Path, name: str, image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        (folder / pattern.format(name)).write_bytes(buffer.getvalue())
        return IMAGE

    return make


def _cut(folder: Path, name: str, image: Image.Image) -> str:
    path = folder / f"{name}.jpg"
    image.save(path)
    path.write_bytes(path.read_bytes()[:400])
    return UNREADABLE


def _text_chunk(folder: Path, name: str, image: Image.Image) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    image.save(folder / f"{name}.png", pnginfo=info)
    return IMAGE


def _twelve_bits(folder: Path, name: str, _: Image.Image) -> str:
    Image.fromarray(np.linspace(0, 4095, 768).reshape(24, 32).astype(np.uint16)).save(folder / f"{name}.png")
    return IMAGE


def _broken_link(folder: Path, name: str, _: Image.Image) -> str:
    (folder / f"{name}.jpg").symlink_to("nowhere")
    return IGNORED


def _pipe(folder: Path, name: str, _: Image.Image) -> str:
    os.mkfifo(folder / f"{name}.png")
    return IGNORED


BOMB = io.BytesIO()
Image.new("1", (10_000, 10_000)).save(BOMB, "PNG")
ODD: Sequence[Odd] = (
    _cut,
    _text_chunk,
    _twelve_bits,
    _broken_link,
    _pipe,
    _bytes(".jpg", b"", UNREADABLE),
    _bytes(".jpeg", b"<html>not found</html>", UNREADABLE),
    _bytes(".png", bytes(range(256)) * 8, UNREADABLE),
    _bytes(".png", BOMB.getvalue(), UNREADABLE),
    _bytes(".svg", b"<svg", UNREADABLE),
    _bytes(".heic", b"x" * 99, IGNORED),
    _bytes(".mov", b"video", IGNORED),
    _bytes(".zip", b"PK\3\4", IGNORED),
    _bytes("", b"no suffix", IGNORED),
    _bytes(".jpg.", b"ends in a dot", IGNORED),
    _bytes(".md", "# Café\n\nSome words.".encode("cp1252"), DOCUMENT),
    _bytes(".txt", b"\xff\xfe\0\0\1", UNREADABLE),
    _bytes(".txt", "ein Käse".encode("utf-16"), DOCUMENT),
    _saved(".png", exif=b"junkjunk"),
    _saved(".png", icc_profile=b"junk" * 40),
    _saved(".jpg", "CMYK"),
    _saved(".tif", "1"),
    _saved(".gif", "P"),
    _saved(".jfif", format="JPEG"),
    _saved(".png", save_all=True, append_images=[Image.new("RGB", (32, 24))]),
    _saved(".jpg", format="WEBP"),
    _named("caf\udce9-{}.jpg"),
    _named("a\nb-{}.jpg"),
    _named("\U0001f600-{}.jpg"),
    _named("-{}.jpg"),
    _named("x" * 230 + "-{}.jpg"),
    lambda folder, name, _: _bytes("", b"\0\5\x16\7", IGNORED)(folder, f"._{name}.jpg", _),
    lambda folder, name, _: _bytes(".db", b"\0", IGNORED)(folder, f".{name}", _),
)


def mixed(folder: Path, files: int) -> Counter[str]:
    """Write `files` files, ODD_SHARE of them odd, each kind in turn, into ten folders; return the number of each kind.

    Two of three usual files are an image with its captions, one is an image without or a document.
    """
    rng = np.random.default_rng(0)
    made: Counter[str] = Counter()
    odd = 0
    while (number := made.total()) < files:
        place = folder / f"class {number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        tiles = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(np.kron(tiles, np.ones((8, 8, 1), np.uint8)))
        if odd < ODD_SHARE * (number + 1):
            made[ODD[odd % len(ODD)](place, f"odd{odd}", image)] += 1
            odd += 1
        elif number % 7 == 0:
            (place / f"note {number}.md").write_text(f"Note number {number}.")
            made[DOCUMENT] += 1
        else:
            image.save(place / f"{number}.{('jpg', 'png', 'webp')[number % 3]}")
            made[IMAGE] += 1
            if number % 5 and made.total() < files:
                (place / f"{number}.txt").write_text(f"pattern number {number}\nthe same again\n")
                made[CAPTIONS] += 1
    return made


def account_of_index(index: Index, report: BuildReport) -> Counter[str]:
    """Return the number of files of each kind, from what `index` reports."""
    rows = index.items.by_id(list(index.items.stamps()))
    captions = {row.owner for row in rows if row.owner}
    documents = {row.path for row in rows if row.modality == "text" and not row.owner}
    return Counter(
        {
            IMAGE: index.counts["image"],
            CAPTIONS: len(captions),
            DOCUMENT: len(documents),
            UNREADABLE: len(report.skipped),
            IGNORED: _ignored(report.notes),
        }
    )


def account_of_store(store: Store) -> Counter[str]:
    """Return the number of files of each kind, from what `embed` reports. Each image in the store has a file of
    captions; images without captions are not read; documents are ignored."""
    manifest = store.manifest
    without = len(manifest.without_caption)
    found = {IMAGE: store.n_images + without, CAPTIONS: store.n_images, UNREADABLE: len(manifest.skipped)}
    return Counter(found | {IGNORED: _ignored(manifest.notes)})


def _ignored(notes: Sequence[str]) -> int:
    (note,) = (note for note in notes if note.startswith("ignored: "))
    return sum(map(int, re.findall(r"(?:^ignored: |, )(\d+) ", note)))
