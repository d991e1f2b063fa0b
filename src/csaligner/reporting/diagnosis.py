"""Tables and page of a diagnosis of two or more spaces (csaligner.spaces), from its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .page import write_page
from .summary import DASH, MINUS

Record = Mapping[str, Any]


@dataclass(frozen=True)
class TextTable:
    """title, column heads, rows of cells (the first is the head of the row), and a note."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def diagnosis_tables(record: Record) -> list[TextTable]:
    """Return the tables of one comparison, in the order of the page."""
    tables = [health_table(record["health"])]
    if record["gap"] is not None:
        tables.append(_gap_table(record["gap"]))
    for key, found in record.items():
        if key.startswith("held_out_recall@") and found is not None:
            tables.append(_recall_table(key, found))
    return tables


def health_table(spaces: Sequence[Record]) -> TextTable:
    """Return the condition of each space, one column per space."""
    labels = {
        "rows": "rows",
        "dimensions": "dimensions",
        "non_finite": "rows with NaN or infinity",
        "zero": "zero rows",
        "duplicates": "duplicate rows",
        "packed_bits": "looks like packed bits",
        "unit": "all rows of length 1",
        "anisotropy": "anisotropy (mean cosine)",
        "effective_rank": "effective rank",
        "hubness": "hubness (skewness of k-occurrence)",
    }
    rows = [[label, *(shown(space[key]) for space in spaces)] for key, label in labels.items()]
    return TextTable("Each space", ["", *(space["name"] for space in spaces)], rows)


def _gap_table(gap: Record) -> TextTable:
    rows = []
    for key, label in (("gap/cs", "D_CS"), ("centred_gap/cs", "D_CS after centring")):
        rows.append([label, *_tested(gap[key])])
    for key, after in (("modality_bias@10", ""), ("centred_modality_bias@10", " after centring")):
        for name, bias in gap[key].items():
            rows.append([f"bias@10 of {name} queries{after}", *_tested(bias)])
    rows.append(["distance of the means", shown(gap["gap/centroid"]), "", ""])
    rows += [[f"hubness, {name}", shown(value), "", ""] for name, value in gap["hubness"].items()]
    if math.isfinite(gap["gap/paired_cosine"] or math.nan):
        rows.append(["cosine of pairs", shown(gap["gap/paired_cosine"]), "", ""])
        rows.append(["cosine of other rows", shown(gap["gap/unpaired_cosine"]), "", ""])
    note = "Labels permuted: the central 95 % of the values if rows are assigned to the two spaces at random."
    return TextTable("Between the spaces", ["", "value", "labels permuted", "p"], rows, note)


def _recall_table(key: str, found: Record) -> TextTable:
    rows = [[name, _percent(f["value"]), _percent(f["chance"]), f"{f['p']:.3f}"] for name, f in found["found"].items()]
    gain = found["gain"]
    compared = len(rows) > 1  # spaces of different dimensions can only be compared after a map
    others = "the better of the others" if compared else "chance (no other row: the dimensions differ)"
    note = (
        f"{found['test_pairs']} held-out pairs, {found['train_pairs']} to fit. The map finds "
        f"{_points(gain['value'])} ({_points(gain['low'])} to {_points(gain['high'])}) points more than {others}; "
        "95 % bootstrap interval."
    )
    return TextTable(f"Pairs found, {key.removeprefix('held_out_')}", ["", "found", "chance", "p"], rows, note)


def write_diagnosis(records: Sequence[Record], path: Path) -> None:
    """Write the page (UTF-8, atomically); it loads nothing from the network."""
    sections = [
        {
            "name": " and ".join(record["spaces"]),
            "sentence": record["sentence"],
            "command": record["command"],
            "tables": diagnosis_tables(record),
        }
        for record in records
    ]
    values = {
        "title": "csaligner diagnose",
        "intro": "What is wrong between vectors of different models, measured without training.",
        "names": [section["name"] for section in sections] if len(sections) > 1 else [],
        "sections": sections,
    }
    write_page("diagnosis.html", values, path)


def _tested(found: Record) -> list[str]:
    return [shown(found["value"]), f"{shown(found['null_low'])} to {shown(found['null_high'])}", f"{found['p']:.3f}"]


def shown(value: Any) -> str:
    """Return a cell: yes or no, a whole number, or three decimals; a dash for NaN and None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or not math.isfinite(value):
        return DASH
    return f"{round(value, 3) + 0.0:.3f}".replace("-", MINUS)  # + 0.0: no minus sign before 0


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", MINUS)
