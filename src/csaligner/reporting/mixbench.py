"""Table of nDCG@10 on MixBench for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .summary import DASH


def print_mixbench(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of search.mixbench.mixbench_record: one row per method, one column per set, and the mean."""
    sets = record["sets"]
    complete = len(sets) > 1
    table = Table(box=SIMPLE_HEAD, header_style="bold", caption=_caption(record), caption_justify="left")
    table.add_column("method")
    for name in [*sets, *(["mean"] if complete else [])]:
        table.add_column(name, justify="right")
    for method, mean in record["mean"].items():
        values = [f"{one['methods'][method]['ndcg']:.3f}" for one in sets.values()]
        table.add_row(method, *values, *([f"{mean:.3f}"] if complete else []))
    if complete:
        for name, mean in record["published_mean"].items():
            table.add_row(f"[dim]{name} (published)[/dim]", *[DASH] * len(sets), f"[dim]{mean:.3f}[/dim]")
    console.print(table)


def _caption(record: Mapping[str, Any]) -> str:
    sets = record["sets"].values()
    widest = max((hi - lo) / 2 for s in sets for m in s["methods"].values() for lo, hi in [m["interval"]])
    return f"nDCG@10; image weight {record['image_weight']:g}; 95 % intervals up to ±{widest:.3f}"
