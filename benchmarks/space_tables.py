"""Table of docs/migrate.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean

from table_text import load, table

METHODS = {"chosen": "csaligner migrate", "linear": "linear regression", "procrustes": "Procrustes"}


def migration_table() -> str:
    """Return recall@10 and neighbours@10 of each pair of models and method, means over samples."""
    records, rows = load("migration")["records"], []
    for name in dict.fromkeys(r["name"] for r in records):
        runs = [r["quality"] for r in records if r["name"] == name]
        for method, label in METHODS.items():
            values = [
                100 * mean(run[method][key] for run in runs) for key in ("recall@1", "recall@10", "neighbours@10")
            ]
            old = 100 * mean(run["old queries"]["neighbours@10"] for run in runs)
            rows.append([name, label, *(f"{value:.1f}" for value in values), f"{old:.1f}"])
    head = ["new on old", "map", "recall@1 %", "recall@10 %", "neighbours@10 %", "of the old model's own queries %"]
    return table(head, rows)


TABLES: Mapping[str, Callable[[], str]] = {"migration": migration_table}
