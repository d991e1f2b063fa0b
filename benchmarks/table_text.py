"""Helpers of the table scripts: read the JSON of a benchmark, and format a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

# titles of the data sets and stores
TITLES = {
    "clip_coco_500": "CLIP, COCO",
    "convirt_500": "radiology",
    "videoclip_100": "video",
    "openmoji": "OpenMoji",
    "tuxpaint": "Tux Paint",
    "openclipart": "Open Clip Art",
}


def title_of(data: str) -> str:
    return TITLES.get(data, data)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def table_of(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per record and the keys as heading."""
    return table(list(records[0]), [record.values() for record in records])
