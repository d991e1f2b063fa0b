"""Columns of the tables of aligned features: score, recall, nDCG of both kinds of query, gap; paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from table_text import table

from csaligner.evaluation.score import MARGIN, MEAN_NDCG, MEAN_RECALL, SCORE, derived_metrics

Metrics = Mapping[str, float]
Changes = Mapping[str, Mapping[str, str]]  # other -> method -> difference with interval
CENTRED = ", then centred"
NDCG, BIAS = ("mixed_ndcg@10", "mixed_ndcg@10/image_query"), ("modality_bias@10", "modality_bias@10/image_query")
KEY = (
    "Score: mean of R@1 and nDCG@10, each the mean of both kinds of query. nDCG and bias: one index of images and "
    "texts, caption / image queries."
)

# metric, heading, factor, digits; a metric that no record has is left out
COLUMNS = (
    (SCORE, "score", 100, 1),
    (MEAN_RECALL, "R@1 %", 100, 1),
    (MEAN_NDCG, "nDCG@10 % (caption / image)", 100, 1),
    ("bias", "bias, caption / image", 100, 1),
    ("gap/centroid", "gap", 1, 3),
    (MARGIN, "pair margin", 1, 3),
    ("gap/cs", "D_CS", 1, 3),
    ("centred_gap/cs", "D_CS, centred", 1, 3),
    ("centred_gap/frechet", "Frechet, centred", 1, 3),
    ("gap/probe_accuracy", "probe %", 100, 1),
    ("clustering/ami_category", "AMI", 1, 3),
)
# of records of version 0.1 that have caption queries alone
OLD_COLUMNS = (
    *COLUMNS[:3],
    ("mixed_image_recall@10", "mixed image-recall@10 %, caption queries alone", 100, 1),
    *COLUMNS[4:],
)


def with_derived(metrics: Metrics) -> dict[str, float]:
    """Add the metrics that follow from others, for JSON of earlier versions."""
    return derived_metrics(metrics) | dict(metrics)


def cell(metrics: Metrics, key: str, factor: float, digits: int) -> str:
    """Format one metric; both kinds of query for nDCG and bias; "" if not measured."""
    if key == "bias":
        return " / ".join(f"{factor * metrics[k]:+.{digits}f}" for k in BIAS) if all(k in metrics for k in BIAS) else ""
    if key not in metrics:
        return ""
    value = f"{factor * metrics[key]:.{digits}f}"
    if key == MEAN_NDCG and all(k in metrics for k in NDCG):
        return f"{value} ({' / '.join(f'{factor * metrics[k]:.{digits}f}' for k in NDCG)})"
    return value


def measures_table(
    rows: Mapping[str, Metrics], changes: Changes, front: Sequence[str] = (), extra: Mapping[str, str] | None = None
) -> str:
    """Return a table of methods. rows: method -> metrics; a row "X, then centred" becomes two columns of X. changes:
    see Changes. front: methods in bold. extra: method -> text of a last column."""
    full = {name: with_derived(metrics) for name, metrics in rows.items()}
    shown = {name: metrics for name, metrics in full.items() if not name.endswith(CENTRED)}
    twins = any(name.endswith(CENTRED) for name in full)
    known = COLUMNS if any(MEAN_NDCG in m for m in shown.values()) else OLD_COLUMNS
    columns = [c for c in known if any(cell(m, c[0], 1, 1) for m in shown.values())]
    head = ["method", *(heading for _, heading, _, _ in columns)]
    head += [f"score minus {other} (95 %)" for other in changes]
    head += ["then centred: score", "gap"] if twins else []
    head += ["chosen on validation"] if extra else []
    lines = []
    for name, metrics in shown.items():
        line = [f"**{name}**" if name in front else name, *(cell(metrics, *_without_heading(c)) for c in columns)]
        line += [of.get(name, "") for of in changes.values()]
        if twins:
            twin = full.get(name + CENTRED, {})
            line += [cell(twin, SCORE, 100, 1), cell(twin, "gap/centroid", 1, 3)]
        lines.append(line + ([extra.get(name, "")] if extra else []))
    return (f"{KEY}\n\n" if known is COLUMNS else "") + table(head, lines)


def _without_heading(column: tuple[str, str, float, int]) -> tuple[str, float, int]:
    return column[0], column[2], column[3]


def differences(records: Sequence[Mapping[str, Any]], dataset: str, metric: str = SCORE) -> dict[str, dict[str, str]]:
    """Return Changes of one metric, in points: value (low to high), the interval over folds if there are several."""
    found: dict[str, dict[str, str]] = {}
    for d in records:
        if d["dataset"] == dataset and d["metric"] == metric:
            low, high = d["fold_interval"] or d["interval"]
            text = f"{100 * d['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            found.setdefault(d["other"], {})[d["method"]] = text
    return found
