"""The results of a search as a table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from csaligner.search.cards import Card

SHOWN_CHARACTERS = 160
WEAK = "weak results from here on: queries without an answer often score as high"


def table_of(cards: list[Card], weak: float) -> Any:
    """weak: score up to which results are weak (search/weak.py)."""
    table = Table(box=None, header_style="bold")
    for name, right in (("", True), ("score", True), ("kind", False), ("what", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold" if name == "what" else "ellipsis")
    below = False
    for number, card in enumerate(cards, start=1):
        if card.score <= weak and not below:
            table.add_row("", "", "", f"[dim]{WEAK}[/dim]")
            below = True
        words = _shown(card.text)
        if card.modality == "image":
            lines = [_place(card.path) + (" (file is missing)" if card.missing else ""), *([words] if words else [])]
        else:
            lines = [words, *([_source(card)] if card.path or card.images else [])]
        first, *more = map(escape, lines)
        what = "\n".join([first, *(f"[dim]{line}[/dim]" for line in more)])
        table.add_row(str(number), f"{card.score:.3f}", card.modality, what)
    return table


def _source(card: Card) -> str:
    """Return whose caption a text is, or the file that it comes from."""
    if not card.images:
        return f"in {_place(card.path)}" + (" (file is missing)" if card.missing else "")
    more = f" and {len(card.images) - 1} more" if len(card.images) > 1 else ""
    return f"caption of {_place(card.images[0])}{more}"


def _place(path: str) -> str:
    """Return a path as it is shown: relative to the current folder, if it is below it."""
    here = f"{Path.cwd()}/"
    return plain(path.removeprefix(here))


def _shown(text: str) -> str:
    words = plain(text.strip())
    return words if len(words) <= SHOWN_CHARACTERS else words[: SHOWN_CHARACTERS - 1] + "…"


def plain(text: str) -> str:
    """Return text on one line without control characters, which a terminal would execute."""
    return "".join(c if c.isprintable() else " " for c in text)
