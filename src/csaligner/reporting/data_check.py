"""Text output of a DataReport."""

from __future__ import annotations

from collections.abc import Iterator

from csaligner.datasets.check import DataReport, Finding
from csaligner.wording import images_and_captions

WORDS = {
    "broken_records": "invalid records",
    "missing": "missing images",
    "unreadable": "unreadable images",
    "ids_of_two_pictures": "ids shared by two different images",
    "leaked_pictures": "images in train and in another split",
    "leaked_captions": "captions in train and in another split",
    "same_pictures": "images identical to another image",
}


def data_lines(report: DataReport) -> Iterator[str]:
    """Yield the lines of the report: counts, then findings; problems are marked with "!"."""
    low, middle, high = report.captions_per_image
    yield f"{report.dataset}: {images_and_captions(report.images, report.captions)}"
    yield "splits: " + ", ".join(f"{name} {images_and_captions(n, m)}" for name, (n, m) in report.splits.items())
    yield f"captions per image: min {low:g}, median {middle:g}, max {high:g}"
    yield f"images without a caption: {report.without_caption:,}"
    yield f"captions that are empty or not text: {report.empty_captions:,}"
    for name, words in WORDS.items():
        yield ("! " if name in report.problems else "") + _line(words, getattr(report, name))
    if report.max_tokens is not None:
        yield _line(f"captions of more than {report.max_tokens} tokens", report.long_captions)
    yield from report.notes


def _line(words: str, finding: Finding) -> str:
    examples = f" ({'; '.join(finding.examples)}{'; ...' if finding.count > len(finding.examples) else ''})"
    return f"{words}: {finding.count:,}{examples if finding.count else ''}"
