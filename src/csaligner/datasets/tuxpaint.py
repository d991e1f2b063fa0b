"""Reader of Tux Paint's stamps: about 950 drawings and photos, each with a sentence in many languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.types import Item

from .near_duplicates import merge_near_duplicates
from .text_files import split_lines

ROOT = Path("/usr/share/tuxpaint/stamps")


class TuxPaint:
    """The stamps of Debian's package tuxpaint-stamps-default; a drawing (svg) takes precedence over a bitmap (png).

    language: "en" or a language code of the stamps' text files, such as "de" or "pt_BR"; a stamp without a text in
    that language has no caption. Near-duplicates share a group (datasets.near_duplicates); near_duplicates=False: each
    image is its own group, as in version 0.1.
    """

    name = "tuxpaint"
    attribution = "Stamps from Tux Paint (tuxpaint.org), copyright 2002-2022 Bill Kendrick, GPL-2.0-or-later."

    def __init__(self, language: str = "en", root: Path = ROOT, near_duplicates: bool = True) -> None:
        self._near_duplicates = near_duplicates
        if not root.is_dir():
            raise InputError(f"tuxpaint: no folder {root}; apt-get install tuxpaint-stamps-default")
        self._language, self._root = language, root

    def items(self) -> Sequence[Item]:
        found = []
        for text in sorted(self._root.rglob("*.txt")):
            image = next((p for p in (text.with_suffix(".svg"), text.with_suffix(".png")) if p.exists()), None)
            if image is not None:
                name = "tuxpaint/" + text.relative_to(self._root).with_suffix("").as_posix()
                found.append(Item(name, image, (_caption(text, self._language),), name))
        return merge_near_duplicates(found) if self._near_duplicates else found


def _caption(path: Path, language: str) -> str:
    """Return the caption in a language: the first line is English, the others have the form `code.utf8=text`."""
    lines = split_lines(path.read_text(encoding="utf-8", errors="replace")) or [""]
    if language == "en":
        return lines[0]
    prefix = f"{language}.utf8="
    return next((line.removeprefix(prefix) for line in lines[1:] if line.startswith(prefix)), "")
