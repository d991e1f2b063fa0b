"""Names of the two spaces that a user gives (eeg and image, old and new), in metrics, errors, tables and pages.

Inside the package the first space is always image and the second text; the names are put in where words leave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .checks import CSAlignerError, InputError

DEFAULT = ("image", "text")
NAME = re.compile(r"[A-Za-z][\w-]{0,30}")
_IN_KEYS = re.compile(r"(?<![A-Za-z])(image|text)(?![A-Za-z])")
_IN_WORDS = re.compile(
    r"(?<![\w./'\"-])(image|text|caption|Image|Text|Caption)(s?)(?=_features\b)|"
    r"(?<![\w./'\"-])(image|text|caption|Image|Text|Caption)(s?)(?![\w/]|\.\w)"
)
_ARROWS = re.compile(r"\b([IT])(→)([IT])\b")
_PARTS = re.compile(r"(<[^>]*>)")
_KEPT = ("style", "script", "td", "code", "pre")  # elements whose text is data


@dataclass(frozen=True)
class Names:
    """first: of the space called image by default; second: text."""

    first: str = DEFAULT[0]
    second: str = DEFAULT[1]

    @classmethod
    def of(cls, names: tuple[str, str] | None) -> Names:
        """Check two names. None: the default. Raises InputError if they are equal or no words."""
        if names is None:
            return cls()
        if len(names) != 2 or names[0] == names[1] or not all(NAME.fullmatch(name) for name in names):
            raise InputError(f"names: got {', '.join(names)}, wanted two different words, for example eeg,image")
        return cls(*names)

    @property
    def default(self) -> bool:
        return (self.first, self.second) == DEFAULT

    def metric(self, key: str) -> str:
        """Rename a metric: text_to_image_recall@1 -> image_to_eeg_recall@1, for the names eeg and image."""
        return key if self.default else _IN_KEYS.sub(lambda found: self._name(found[1]), key)

    def words(self, text: str) -> str:
        """Rename in a sentence: image -> eeg, images -> eeg rows, captions -> rows of the second space."""
        if self.default:
            return text
        text = _IN_WORDS.sub(lambda found: self._word(found[1] or found[3], found[2] or found[4] or ""), text)
        return _ARROWS.sub(lambda found: f"{self._letter(found[1])}{found[2]}{self._letter(found[3])}", text)

    def page(self, html: str) -> str:
        """Rename in the text of a page, except in cells of tables, code and styles."""
        if self.default:
            return html
        parts, kept = [], ""
        for part in _PARTS.split(html):
            if not part.startswith("<"):
                parts.append(part if kept else self.words(part))
                continue
            tag = part.strip("</>").split()[0].lower() if part.strip("</> ") else ""
            if not kept and tag in _KEPT and not part.startswith("</"):
                kept = tag
            elif part.startswith("</") and tag == kept:
                kept = ""
            parts.append(part)
        return "".join(parts)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Rename in the messages of csaligner's errors."""
        try:
            yield
        except CSAlignerError as error:
            if self.default:
                raise
            raise type(error)(self.words(str(error))) from None

    def _name(self, word: str) -> str:
        return self.first if word.lower() == "image" else self.second

    def _letter(self, letter: str) -> str:
        return self.first if letter == "I" else self.second

    def _word(self, word: str, plural: str) -> str:
        name = self._name(word)
        name = name[0].upper() + name[1:] if word[0].isupper() else name
        return f"{name} rows" if plural else name


def checked_names(names: tuple[str, str]) -> tuple[str, str]:
    """Return the names. Raises InputError as Names.of."""
    Names.of(names)
    return names
