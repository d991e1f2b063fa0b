"""Decoding of text files, line splitting, and formatting of values in messages."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from csaligner.checks import InputError

BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK = "cp1252"
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN = 160  # characters of a value that a message quotes


class NotText(ValueError):
    """A file that is not text in the expected encoding; the message names the encoding."""


class TextFiles:
    """Read text files: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, UTF-16 without one if its
    zero bytes show it, and anything else as cp1252, which `notes` reports.

    encoding: read every file in this encoding instead. Raises InputError for an encoding unknown to Python.
    """

    def __init__(self, encoding: str | None = None) -> None:
        self._encoding = encoding
        self._guessed: list[Path] = []
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError:
                raise InputError(
                    f"encoding: {encoding!r} is not known; wanted for example utf-8, utf-16 or cp1252"
                ) from None

    @property
    def notes(self) -> tuple[str, ...]:
        """One line if any file was read in the fallback encoding."""
        if not self._guessed:
            return ()
        return (f"text files that are not UTF-8, read as {FALLBACK}: {len(self._guessed)} (first: {self._guessed[0]})",)

    def clear(self) -> None:
        """Clear the list of files with a guessed encoding."""
        self._guessed.clear()

    def read(self, path: Path) -> str:
        """Return the text of a file. Raises OSError if it cannot be read, and NotText if it is not text."""
        return decoded(path.read_bytes(), self._encoding, lambda: self._guessed.append(path))

    def read_all(self, path: Path) -> str:
        """Like read, but every failure is an InputError that names the file."""
        try:
            return self.read(path)
        except NotText as error:
            raise InputError(f"{path}: {error}") from None
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None


def decoded(content: bytes, encoding: str | None = None, guessed: Callable[[], object] | None = None) -> str:
    """Decode the bytes of a text file, as TextFiles does. guessed: called if FALLBACK is used."""
    name = encoding or next((name for mark, name in BOMS if content.startswith(mark)), None) or _by_zeros(content)
    try:
        return content.decode(name)
    except UnicodeDecodeError as error:
        if encoding or name != "utf-8" or b"\0" in content:
            raise NotText(f"is not {name.removesuffix('-sig').upper()} text ({error.reason})") from None
    if guessed is not None:
        guessed()
    return content.decode(FALLBACK, errors="replace")


def _by_zeros(content: bytes) -> str:
    """Return the encoding without a byte order mark: UTF-16 if every second byte is mostly zero (Latin text)."""
    head = content[:1000]
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = head[start::2].count(0), head[1 - start :: 2].count(0)
        if len(head) >= 4 and zeros > 0.7 * (len(head) // 2) and not others:
            return name
    return "utf-8"


def split_lines(text: str, *, keep_ends: bool = False) -> list[str]:
    r"""Split text at \n, \r\n and \r only; other line separators, such as U+2028, may be part of a caption."""
    if keep_ends:
        return list(io.StringIO(text, newline=""))
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return SURROGATE.sub("\ufffd", text)


def escaped(text: str) -> str:
    r"""Escape lone surrogates: a byte of a file name that is not UTF-8 becomes, for example, \xe9."""
    return SURROGATE.sub(lambda match: _escape(ord(match[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def shown(value: object) -> str:
    """Return repr(value), truncated to SHOWN characters, for a message."""
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[: SHOWN - 3]!r}..."
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def cut(text: str, most: int = 4 * SHOWN) -> str:
    """Truncate a text to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def counted(counts: Counter[str], most: int = 8) -> str:
    """Format counts, the most frequent first: "12 .heic, 3 .mov, 9 of 4 other kinds"."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    listed, rest = [f"{number} {name}" for name, number in ordered[:most]], ordered[most:]
    if rest:
        listed.append(f"{sum(number for _, number in rest)} of {len(rest)} other kinds")
    return ", ".join(listed)
