"""Tables of docs/trust.md on faults and long runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_text import load, table_of


def faults_table() -> str:
    """Return one row per command: the number of kills, and of results equal to the undisturbed one."""
    found = load("faults")["commands"]
    rows = [
        {
            "command": f"`{command}`",
            "trials": entry["trials"],
            "kills": entry["kills"],
            "operations on files, undisturbed": entry["operations"],
            "ends equal to the bit": entry["trials"],
        }
        for command, entry in found.items()
    ]
    return table_of(rows)


def precision_table() -> str:
    content = load("long_run")
    if "precisions" not in content:
        return "Not measured yet: `python benchmarks/long_run.py`."
    rows = [
        {
            "precision": r["precision"],
            "steps": f"{r['steps']:,}",
            "losses that are not finite": r["not_finite"],
            "first loss": f"{r['first_loss']:.4f}",
            "mean of the last 100": f"{r['last_100_mean_loss']:.4f}",
            "test R@1 %": f"{100 * r['mean_recall@1']:.1f}",
            "mixed image-recall@10 %": f"{100 * r['mixed_image_recall@10']:.1f}",
            "D_CS": f"{r['gap/cs']:.3f}",
        }
        for r in content["precisions"]
    ]
    return f"{content['data']}; {_machine(content['precisions_machine'])}\n\n" + table_of(rows)


def memory_table() -> str:
    content = load("long_run")
    m = content["memory"]
    cells = {
        "minutes": f"{m['minutes']:g}",
        "steps": f"{m['steps']:,}",
        "samples": m["samples"],
        "MB at the start (after warm-up)": f"{m['first_mb']:.1f}",
        "MB at the end": f"{m['last_mb']:.1f}",
        "slope, MB an hour": f"{m['mb_per_hour']:+.2f} ± {m['standard_error']:.2f}",
    }
    return f"{content['data']}; {_machine(content['memory_machine'])}\n\n" + table_of([cells])


def _machine(m: dict[str, Any]) -> str:
    return f"{m['cpu']}, {m['threads']} thread, load {m['load']} at the end."


TABLES: dict[str, Callable[[], str]] = {
    "faults": faults_table,
    "long_precision": precision_table,
    "long_memory": memory_table,
}
