"""Tables of docs/diagnose.md, docs/migrate.md, of services in docs/data.md, and of scores in docs/search.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean, stdev

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


RULES = {
    "nonsense": "nonsense",
    "chance 0.05": "chance > 5 %",
    "chance 0.5": "chance > 50 %",
    "chance 0.8": "chance > 80 %",
}
KINDS = {"text": "text", "image": "image", "both 0.5": "both, weight 0.5"}


def unanswered_table() -> str:
    """Return false alarms and the fraction found at 5 %, mean and standard deviation over splits."""
    records, rows = load("unanswered")["records"], []
    for source in dict.fromkeys(r["source"] for r in records):
        for kind, label in KINDS.items():
            runs = [r[kind] for r in records if r["source"] == source]
            alarms = [100 * run["false_alarms"] for run in runs]
            found = mean(100 * run["found"] for run in runs)
            rows.append(
                [source, label, str(runs[0]["queries"]), f"{mean(alarms):.1f} ± {stdev(alarms):.1f}", f"{found:.0f}"]
            )
    return table(["collection", "query", "queries", "false alarms %", "found %"], rows)


def weak_table() -> str:
    """Return the fraction of queries whose best result is not weak, by rule."""
    content, rows = load("unanswered"), []
    for source, found in content["subjects"].items():
        runs = [r for r in content["records"] if r["source"] == source]
        for rule, label in RULES.items():
            strong = [100 * mean(run[kind]["no_answer_strong"][rule] for run in runs) for kind in KINDS]
            texts = [100 * found[name][rule] for name in ("shown", "other")]
            rows.append([source, label, *(f"{value:.0f}" for value in (*texts, *strong))])
    kinds = [f"{label} without an answer" for label in KINDS.values()]
    return table(["collection", "weak if", "20 texts on its subject", "20 on others", *kinds], rows)


def without_pairs_table() -> str:
    """Return what a match without pairs finds and whether it knows, means over seeds."""
    records, rows = load("without_pairs")["records"], []
    for name in dict.fromkeys(r["name"] for r in records):
        runs = [r for r in records if r["name"] == name]
        found = [f"{100 * mean(run[key] for run in runs):.1f}" for key in ("top1", "top10", "top1_after_cs")]
        known = f"{sum(run['known'] for run in runs)} of {len(runs)}"
        rows.append([name, known, f"{100 * mean(run['agreement'] for run in runs):.0f}", *found])
    return table(["spaces", "known", "agreement %", "top-1 %", "top-10 %", "top-1 % after D_CS"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "migration": migration_table,
    "service_vectors": service_table,
    "unanswered": unanswered_table,
    "weak": weak_table,
    "without_pairs": without_pairs_table,
}
