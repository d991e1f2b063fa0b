"""Tables and page of the alignment of more than two named spaces (spaces/joint.py), from its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .diagnosis import Record, TextTable, shown
from .page import write_page


def joint_tables(record: Record) -> list[TextTable]:
    """Return the tables of one result: recall of every pair in both directions, and its gap."""
    methods = list(next(iter(record["pairs"].values())))
    heads = ["", *(f"{method} R@{k} %" for method in methods for k in (1, 10))]
    recalls, gaps = [], []
    for pair, found in record["pairs"].items():
        keys = [key for key in next(iter(found.values())) if key.endswith("_recall@1")]
        for key in keys:
            name = key.removesuffix("_recall@1")
            values = [found[method][f"{name}_recall@{k}"] for method in methods for k in (1, 10)]
            recalls.append([name.replace("_to_", " → "), *(f"{100 * value:.1f}" for value in values)])
        gaps.append([pair, *(shown(found[m][key]) for m in methods for key in ("gap/centroid", "gap/cs"))])
    rows = ", ".join(
        f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
        for split, counts in record["rows"].items()
    )
    gap_heads = ["", *(f"{method} {what}" for method in methods for what in ("distance of the means", "D_CS"))]
    return [
        TextTable("Held-out items found", heads, recalls, f"Rows: {rows}."),
        TextTable("Between the spaces", gap_heads, gaps),
    ]


def write_joint_report(record: Record, path: Path) -> None:
    """Write the page (UTF-8, atomically); it loads nothing from the network."""
    names = ", ".join(record["spaces"])
    section: dict[str, Any] = {
        "name": names,
        "sentence": record["sentence"],
        "command": "",
        "tables": joint_tables(record),
    }
    intro = "One aligner of several named spaces, measured pair by pair on held-out items."
    write_page(
        "diagnosis.html", {"title": f"Alignment of {names}", "intro": intro, "names": [], "sections": [section]}, path
    )
