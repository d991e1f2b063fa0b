"""Photographs that Debian packages contain.

    apt-get install tuxpaint-stamps-default gcompris-qt-data opencv-doc mate-backgrounds ukui-wallpapers \
        plasma-workspace-wallpapers
    apt-get install scratch tuxpaint-data palapeli-data gnome-taquin puzzle-jigsaw sweethome3d-furniture \
        lomiri-wallpapers-16.04 lomiri-wallpapers-20.04

The first command: photographs for settings and for the gate, with captions written for this project
(photo_captions.csv). The second command and the rest of GCompris: captions are file names (`named`) or names of a
catalogue (`renders`), written by nobody with these results in view, one image for each distinct name. They are not
used in training.
"""

from __future__ import annotations

import csv
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csaligner.datasets.images.load import load_image
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder

SHARE = Path("/usr/share")
CAPTIONS = Path(__file__).with_name("photo_captions.csv")
RCC = "gcompris-qt/rcc"
STAMPS = "tuxpaint/stamps"
PHOTO_FOLDERS = ("erase", "categorization", "explore_", "details")  # activities of GCompris that show photographs
DRAWN = ("alphabets", "cartoon", "space/", "money", "roadsigns", "symbols/")
MOST_COLOURS = 13.0  # distinct colours / sqrt(pixels) from which a stamp counts as a photograph
NAMED = (
    "scratch/Media/Backgrounds/*/*.jpg",
    "tuxpaint/templates/*.jpg",
    "palapeli/collection/*.jpg",
    "gnome-taquin/themes/cats/*.jpg",
    "puzzle-jigsaw/samples/*.jp*g",
    "backgrounds/*_by_*.jpg",  # lomiri-wallpapers: title and author
)

Photo = tuple[Image.Image, str]  # "" without a caption


def captioned(share: Path = SHARE) -> list[Photo]:
    """Photographs with one caption each: animals, buildings, landscapes and things."""
    inside = dict(_resources(share / RCC))
    with CAPTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        name = row["file"].removeprefix(f"{RCC}:")
        image = _open(inside[name]) if name in inside else load_image(share / row["file"])
        found.append((image, row["caption"]))
    return found


def stamps(share: Path = SHARE) -> list[Photo]:
    """Tux Paint's photographic stamps, one for each distinct English caption."""
    found: dict[str, Image.Image] = {}
    for text in sorted((share / STAMPS).rglob("*.txt")):
        image = text.with_suffix(".png")
        name = text.relative_to(share / STAMPS).as_posix()
        if text.with_suffix(".svg").exists() or not image.exists() or any(word in name for word in DRAWN):
            continue
        if _colours(image) > MOST_COLOURS:
            found.setdefault(text.read_text(encoding="utf-8", errors="replace").splitlines()[0], load_image(image))
    return [(image, caption) for caption, image in found.items()]


def named(share: Path = SHARE) -> list[Photo]:
    """Photographs whose captions are their file names, without numbers and authors. Not used in training."""
    found: dict[str, Path] = {}
    for pattern in NAMED:
        for path in sorted(share.glob(pattern)):
            found.setdefault(_words(path.stem), path)
    return [(load_image(path), name) for name, path in found.items() if name]


def named_gcompris(share: Path = SHARE) -> list[Photo]:
    """Photographs of GCompris without a caption in photo_captions.csv, by file name: mostly monuments and tools."""
    with CAPTIONS.open(encoding="utf-8", newline="") as file:
        known = {row["file"].removeprefix(f"{RCC}:") for row in csv.DictReader(file)}
    found: dict[str, bytes] = {}
    for name, data in _resources(share / RCC):
        if name not in known:
            found.setdefault(_words(Path(name).stem), data)
    return [(_open(data), name) for name, data in found.items()]


def renders(share: Path = SHARE) -> list[Photo]:
    """Rendered furniture of Sweet Home 3D with the names of its catalogues."""
    found: dict[str, bytes] = {}
    for path in sorted((share / "sweethome3d/furniture").glob("*.sh3f")):
        with zipfile.ZipFile(path) as catalogue:
            text = catalogue.read("PluginFurnitureCatalog.properties").decode("latin-1")
            names, icons = (
                dict(re.findall(rf"^{key}#(\d+)=(.*?)\s*$", text, re.MULTILINE)) for key in ("name", "icon")
            )
            for number, name in names.items():
                plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), name)
                found.setdefault(plain.lower(), catalogue.read(icons[number].lstrip("/")))
    return [(_open(data), name) for name, data in found.items()]


def _words(stem: str) -> str:
    """Words of a file name: "EiffelTower2_by_N" -> "eiffel tower"."""
    title = re.sub(r"_by_.*$|_?background$", "", stem)
    spaced = re.sub(r"[-_\d]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", title))
    return " ".join(word for word in spaced.lower().split() if word not in ("a", "b"))


def features(photos: Sequence[Photo]) -> tuple[Tensor, Tensor]:
    """Features of the bundled encoders: (N, 1280) and (N, 384)."""
    image, text = open_encoder(IMAGE_ENCODER, "image"), open_encoder(TEXT_ENCODER, "text")
    x = torch.cat([image.encode([image.prepare(photo)]) for photo, _ in photos])
    return x.float(), text.encode([text.prepare(caption) for _, caption in photos]).float()


def _resources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the photographs in the Qt resource files of GCompris."""
    for path in sorted(folder.glob("*.rcc")):
        if not path.name.startswith(PHOTO_FOLDERS):
            continue
        for name, data in _resource_file(path.read_bytes()):
            short = name.removeprefix("gcompris/src/activities/")
            if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) and "/resource/" in short:
                try:
                    if min(Image.open(io.BytesIO(data)).size) >= 100:
                        yield short, data
                except OSError:
                    continue


def _resource_file(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a compiled Qt resource (qt.io, rcc format 1 to 3)."""
    version, tree, contents, names = struct.unpack(">IIII", data[4:20])
    size = 14 + (8 if version >= 2 else 0)

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * size
        place, flags = struct.unpack(">IH", data[at : at + 6])
        length = struct.unpack(">H", data[names + place : names + place + 2])[0] if index else 0
        name = folder + data[names + place + 6 : names + place + 6 + 2 * length].decode("utf-16-be")
        if flags & 2:
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, f"{name}/" if name else "")
        else:
            offset = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
            content = data[offset + 4 : offset + 4 + struct.unpack(">I", data[offset : offset + 4])[0]]
            yield name, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def _colours(path: Path) -> float:
    pixels = np.asarray(Image.open(path).convert("RGBA")).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 200][:, :3]
    return len(np.unique(opaque >> 2, axis=0)) / len(opaque) ** 0.5 if len(opaque) > 500 else 0.0
