"""Open Clip Art Library 0.18: about 6,900 public-domain drawings with titles and keywords."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # nosec B405
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import MAX_PIXELS
from csaligner.types import Item

ROOT = Path("/usr/share/openclipart")
DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
NO_KEYWORD = ("unsorted", "hash(0x")  # left behind by the library's own scripts
MAX_KEYWORDS = 12
MAX_SHARED = 4


class OpenClipart:
    """The clip art of Debian's packages openclipart-png and openclipart-svg.

    Picture: the PNG, or the SVG beside it where the PNG is larger than images.MAX_PIXELS. Caption: the title and
    the keywords in the SVG's metadata, in one line; one that more than MAX_SHARED pictures bear names a collection
    (1,375 are "gramastar, stars, shapes, ...") and is dropped. Debian files one picture under several names by
    symbolic links: it is one item here, with the captions of all its names, so that no picture straddles the split.
    """

    name = "openclipart"
    attribution = "Clip art from the Open Clip Art Library (openclipart.org), public domain (dedicated by its authors)."

    def __init__(self, root: Path = ROOT) -> None:
        if not (root / "png").is_dir() or not (root / "svg").is_dir():
            raise InputError(
                f"openclipart: no folders png and svg in {root}; apt-get install openclipart-png openclipart-svg"
            )
        self._png, self._svg = root.resolve() / "png", root.resolve() / "svg"

    def items(self) -> Sequence[Item]:
        names: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in sorted(self._png.rglob("*.png")):
            names[path.resolve()].append(path)
        items = [self._item(picture, paths) for picture, paths in names.items()]
        shared = Counter(caption for item in items for caption in item.captions)
        return [replace(i, captions=tuple(c for c in i.captions if shared[c] <= MAX_SHARED)) for i in items]

    def _item(self, picture: Path, names: Sequence[Path]) -> Item:
        drawings = [self._svg / path.relative_to(self._png).with_suffix(".svg") for path in names]
        captions = dict.fromkeys(caption for drawing in drawings if (caption := caption_of(drawing)))
        image = picture
        if _pixels(picture) > MAX_PIXELS:
            image = next((drawing for drawing in drawings if drawing.exists()), picture)
        name = "openclipart/" + picture.relative_to(self._png).with_suffix("").as_posix()
        return Item(name, image, tuple(captions), name)


def caption_of(drawing: Path) -> str:
    """Title and keywords of an SVG's metadata, commas between; empty where the file cannot be parsed."""
    try:
        root = ET.parse(drawing).getroot()  # nosec B314
    except (OSError, ET.ParseError):
        return ""
    work = next((element for element in root.iter() if element.tag.endswith("}Work")), None)
    if work is None:
        return ""
    title = _text(work.find(f"{DC}title"))
    entries = (_text(entry) for subject in work.findall(f"{DC}subject") for entry in subject.iter(f"{RDF}li"))
    keywords = [word for word in entries if word and not word.lower().startswith(NO_KEYWORD)]
    return ", ".join(part for part in dict.fromkeys([title, *keywords[:MAX_KEYWORDS]]) if part)


def _text(element: ET.Element | None) -> str:
    return " ".join((element.text or "").split()) if element is not None else ""


def _pixels(png: Path) -> int:
    """Width times height, from the 24 bytes at the start of a PNG; 0 where it cannot be opened (load_image says so)."""
    try:
        with png.open("rb") as file:
            head = file.read(24)
    except OSError:
        return 0
    return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
