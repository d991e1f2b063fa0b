"""Reader of the Open Clip Art Library 0.18: about 6,900 public-domain drawings with titles and keywords."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # nosec B405
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import MAX_PIXELS
from csaligner.types import Item

from .near_duplicates import merge_near_duplicates

ROOT = Path("/usr/share/openclipart")
DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
NO_KEYWORD = ("unsorted", "hash(0x")  # artefacts of the library's scripts
MAX_KEYWORDS = 12
MAX_SHARED = 4


class OpenClipart:
    """The clip art of Debian's packages openclipart-png and openclipart-svg.

    Image: the PNG, or the SVG of the same name if the PNG has more than MAX_PIXELS pixels. Caption: the title and the
    keywords of the SVG's metadata, on one line; a caption shared by more than MAX_SHARED images describes a collection
    (1,375 images are "gramastar, stars, shapes, ...") and is dropped. Debian stores some images under several names by
    symbolic links: each is one item with the captions of all its names, so that no image is in two splits.
    Near-duplicates share a group (datasets.near_duplicates); near_duplicates=False: each image is its own group, as in
    version 0.1.
    """

    name = "openclipart"
    attribution = "Clip art from the Open Clip Art Library (openclipart.org), public domain (dedicated by its authors)."

    def __init__(self, root: Path = ROOT, near_duplicates: bool = True) -> None:
        self._near_duplicates = near_duplicates
        if not (root / "png").is_dir() or not (root / "svg").is_dir():
            raise InputError(
                f"openclipart: no folders png and svg in {root}; apt-get install openclipart-png openclipart-svg"
            )
        self._png, self._svg = root.resolve() / "png", root.resolve() / "svg"

    def items(self) -> Sequence[Item]:
        names: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in sorted(self._png.rglob("*.png")):
            names[path.resolve()].append(path)
        items = [self._item(png, paths) for png, paths in names.items()]
        shared = Counter(caption for item in items for caption in item.captions)
        kept = [replace(i, captions=tuple(c for c in i.captions if shared[c] <= MAX_SHARED)) for i in items]
        return merge_near_duplicates(kept) if self._near_duplicates else kept

    def _item(self, png: Path, names: Sequence[Path]) -> Item:
        drawings = [self._svg / path.relative_to(self._png).with_suffix(".svg") for path in names]
        captions = dict.fromkeys(caption for drawing in drawings if (caption := caption_of(drawing)))
        image = png
        if _pixels(png) > MAX_PIXELS:
            image = next((drawing for drawing in drawings if drawing.exists()), png)
        name = "openclipart/" + png.relative_to(self._png).with_suffix("").as_posix()
        return Item(name, image, tuple(captions), name)


def caption_of(drawing: Path) -> str:
    """Return title and keywords of an SVG's metadata, comma-separated; "" if the file cannot be parsed."""
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
    """Return width times height from the first 24 bytes of a PNG; 0 if it cannot be opened (load_image reports it)."""
    try:
        with png.open("rb") as file:
            head = file.read(24)
    except OSError:
        return 0
    return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
