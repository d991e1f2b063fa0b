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
        if not mine:
            continue
        unit = 1000 if name == "search" else 1
        cells = [f"{unit * mine[n]['seconds']:.3g}" if n in mine else "" for n in sizes]
        slopes = [content["exponents"].get(key) for key in (name, f"{name}, N log N")]
        fitted = ["" if slope is None else f"{slope:.2f}" for slope in slopes]
        rows.append([NAMES.get(name, name), *cells, *fitted, f"{mine[max(mine)]['peak_mb']:,.0f}"])
    m = content["machine"]
    commits = ", ".join(dict.fromkeys(r["commit"][:7] for r in records))
    about = f"{m['cpu']}, one thread; processor seconds; commits {commits}.\n\n"
    head = ["step", *(f"{n:,}" for n in sizes), "exponent", "of N log N", "MB at the largest"]
    skipped = (f"{NAMES.get(name, name).split(',')[0]} ({why})" for name, why in content["skipped"].items())
    left = ", ".join(skipped)
    return about + table(head, rows) + (f"\n\nNot measured at {max(sizes):,}: {left}." if left else "")


TABLES: dict[str, Callable[[], str]] = {"growth": growth_table}
