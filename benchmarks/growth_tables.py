"""Table of benchmarks/growth.py: processor seconds of each step by number of items, with the fitted exponents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_text import load, table

NAMES = {"check_data": "check-data", "search": "search, ms per query"}
ORDER = ("embed", "train", "index", "search", "eval", "check_data")


def growth_table() -> str:
    content = load("growth")
    records: list[dict[str, Any]] = content["records"]
    sizes = sorted({r["items"] for r in records})
    rows = []
    for name in ORDER:
        mine = {r["items"]: r for r in records if r["step"] == name}
        unit = 1000 if name == "search" else 1
        cells = [f"{unit * mine[n]['seconds']:.3g}" if n in mine else "" for n in sizes]
        fitted = [f"{content['exponents'][key]:.2f}" for key in (name, f"{name}, N log N")]
        rows.append([NAMES.get(name, name), *cells, *fitted, f"{mine[max(mine)]['peak_mb']:,.0f}"])
    m = content["machine"]
    about = f"{m['cpu']}, one thread, load {m['load']:.0f}; processor seconds; commit {records[0]['commit'][:7]}.\n\n"
    head = ["step", *(f"{n:,}" for n in sizes), "exponent", "of N log N", "MB at the largest"]
    skipped = "".join(f" {step}: {reason}." for step, reason in content.get("skipped", {}).items())
    return about + table(head, rows) + (f"\n\nNot measured:{skipped}" if skipped else "")


TABLES: dict[str, Callable[[], str]] = {"growth": growth_table}
