"""Tables of docs/migrate.md and of the section on services in docs/data.md."""

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


def service_table() -> str:
    """Return the metrics of each format of text vectors."""
    content = load("service_vectors")
    names = ("text_to_image_recall@1", "image_to_text_recall@1", "mixed_ndcg@10", "mixed_ndcg@10/image_query")
    records = sorted(content["records"], key=lambda r: (r["texts"], r["alignment"] == "default", -r["dims"]))
    rows = [
        [r["texts"], f"{r['dims']:,}", r["format"], r["alignment"], *(f"{r[name]:.1f}" for name in names)]
        for r in records
    ]
    head = ["texts", "dims", "format", "alignment", "R@1, texts", "R@1, images", "mixed, texts", "mixed, images"]
    queries, about = content["queries"], content["provenance"]
    line = f"{queries['clip']} queries of CLIP and {queries['emoji']} of MiniLM (OpenMoji)"
    return f"{line}; csaligner {about['versions']['csaligner']}, commit {about['commit'][:7]}.\n\n" + table(head, rows)


TABLES: Mapping[str, Callable[[], str]] = {"migration": migration_table, "service_vectors": service_table}
