"""Names of the two spaces that a user gives (eeg and image, old and new), in metrics, errors, tables and pages.

Inside the package the first space is always image and the second text. Sentences for users take the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checks import InputError
from .wording import count_of

DEFAULT = ("image", "text")
NAME = re.compile(r"[A-Za-z][\w-]{0,30}")
_IN_KEYS = re.compile(r"(?<![A-Za-z])(image|text)(?![A-Za-z])")


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
        return key if self.default else _IN_KEYS.sub(lambda found: self._words[found[1]], key)

    def fill(self, sentence: str) -> str:
        """Put the names into a sentence with {image}, {images}, {text}, {texts}, {caption}, {captions}, {Images},
        {Texts}, {I} and {T}: an eeg, eeg rows, an image, image rows ... for the names eeg and image."""
        return sentence.format_map(self._words)

    def counts(self, images: int, captions: int) -> str:
        """Return both numbers in words: 5 images, 7 captions; or 5 eeg rows, 7 image rows."""
        words = self._words
        first = count_of(images, words["image"], words["images"])
        return f"{first}, {count_of(captions, words['caption'], words['captions'])}"

    @property
    def _words(self) -> dict[str, str]:
        rows, others = (f"{name} rows" for name in (self.first, self.second))
        words = {"caption": self.second, "images": rows, "texts": others, "captions": others}
        if self.default:
            words = {word: word for word in words}
        words |= {"image": self.first, "text": self.second}
        words |= {"I": "I", "T": "T"} if self.default else {"I": self.first, "T": self.second}
        return words | {
            word.capitalize(): words[word][0].upper() + words[word][1:] for word in ("images", "texts", "text")
        }


def checked_names(names: tuple[str, str]) -> tuple[str, str]:
    """Return the names. Raises InputError as Names.of."""
    Names.of(names)
    return names
