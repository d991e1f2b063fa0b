"""Parser of delimited text (csv, tsv) that skips unreadable records and gives the line number of each record."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from csaligner.datasets.images.load import SUFFIXES

from .records import BadRecord

Cells = list[str]
DECLARED = re.compile(r"sep=(.)\s*", re.DOTALL)  # the first line that Excel writes and reads
CANDIDATES = (",", ";", "\t", "|")
MAX_SPAN = 100  # lines that one quoted cell may span


def separator_of(lines: list[str], usual: str, fits: Callable[[Cells], bool]) -> str:
    """Return the separator that the first line declares (and remove the line), or the first that fits the header."""
    declared = DECLARED.fullmatch(lines[0]) if lines else None
    if declared:
        lines[0] = "\n"
        return declared[1]
    header = next((line for line in lines if line.strip()), "")
    return next((mark for mark in (usual, *CANDIDATES) if fits(_parsed(header, mark) or [])), usual)


def header_of(lines: Sequence[str], separator: str) -> tuple[Cells, int]:
    """Return the column names, and the number of lines up to and including the header."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            return [name.strip() for name in _parsed(line, separator) or []], number
    return [], len(lines)


def records(
    lines: Sequence[str], start: int, separator: str, columns: int, image: int | None
) -> Iterator[tuple[int, Cells | BadRecord]]:
    """Yield (number of the first line, `columns` cells or a BadRecord) for each record after the first `start` lines.

    image: index of the column of image paths. In tab-separated text, a quote that is not closed on its line is an
    ordinary character. Otherwise a quoted cell may hold line ends; if it seems to contain other records, its first
    line is a bad record and parsing resumes on the next line.
    """
    found = _lines(lines, start, separator) if separator == "\t" else _quoted(lines, start, separator, image)
    for number, cells in found:
        if isinstance(cells, BadRecord):
            yield number, cells
        elif any(cell.strip() for cell in cells) or len(cells) > 1:
            yield number, _fitted(cells, columns)


def _fitted(cells: Cells, columns: int) -> Cells | BadRecord:
    if len(cells) > columns and not any(cell.strip() for cell in cells[columns:]):
        return cells[:columns]
    if len(cells) == columns:
        return cells
    if any(cell.startswith("data:image/") for cell in cells):
        return BadRecord("has the image as base64; store it as bytes in parquet")
    more = "; quote the caption" if len(cells) > columns else ""
    return BadRecord(f"has {len(cells)} cell{'s' * (len(cells) != 1)}, the header {columns}{more}")


def _lines(lines: Sequence[str], start: int, separator: str) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(lines[start:], start=start + 1):
        text = line.rstrip("\r\n")
        cells = _parsed(text, separator) if '"' in text else None
        yield number, text.split(separator) if cells is None else cells


def _parsed(line: str, separator: str) -> Cells | None:
    """Return the cells of one line; None if its quotes do not match."""
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator, strict=True), [])
    except csv.Error:
        return None


def _quoted(
    lines: Sequence[str], start: int, separator: str, image: int | None
) -> Iterator[tuple[int, Cells | BadRecord]]:
    at = start
    while at < len(lines):
        reader = csv.reader((lines[n] for n in range(at, len(lines))), delimiter=separator, strict=True)
        first, resumed = at, at
        try:
            for cells in reader:
                end = resumed + reader.line_num
                if end - first > 1 and _swallows(lines[first + 1 : end], separator, image):
                    yield first + 1, BadRecord(f"opens a quote that closes only on line {end}; close it or double it")
                    at = first + 1
                    break
                if cells:
                    yield first + 1, cells
                first = at = end
        except csv.Error as error:
            yield first + 1, _recovered(lines[first], separator, str(error))
            at = first + 1


def _swallows(following: Sequence[str], separator: str, image: int | None) -> bool:
    """Return whether the further lines of a multi-line cell look like records."""
    if len(following) >= MAX_SPAN:
        return True
    if image is None:
        return False
    cells = (line.rstrip("\r\n").split(separator) for line in following)
    return any(len(c) > max(image, 1) and PurePath(c[image].strip(' "')).suffix.lower() in SUFFIXES for c in cells)


def _recovered(line: str, separator: str, error: str) -> Cells | BadRecord:
    """Parse a line with text after a closing quote as spreadsheets do; otherwise explain the error."""
    if "expected after" in error:
        try:
            next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as own:
            if "expected after" in str(own):
                return next(csv.reader([line], delimiter=separator), [])
        error = "unexpected end of data"
    if "end of data" in error:
        return BadRecord("opens a quote that is not closed; close it or double it")
    if "field limit" in error:
        return BadRecord("has a cell that is too long; write images as bytes into parquet")
    return BadRecord(f"cannot be read ({error})")
