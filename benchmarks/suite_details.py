"""Ranks of the suite with one row of CS-Aligner at a time, and every method minus the default, added to its JSON.

    python benchmarks/suite_details.py --run runs/suite --out benchmarks/results/suite.json

Differences from the default are paired: both methods are measured on the same bootstrap samples of test images. Seven
rows of the suite are variants of csaligner, and similar rows that are all better than a method push its rank
down. Each of them is therefore ranked alone among the methods of others. --run: the folder of `csaligner compare
--suite`, whose finished tasks hold the values of every test query.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from csaligner.comparison.differences import FoldQueries
from csaligner.comparison.ranks import Values, rank_methods, resampled_values
from csaligner.comparison.suite import TASKS, one_line_per_item
from csaligner.evaluation.score import MEAN_RECALL, SCORE
from csaligner.files import write_text

DEFAULT = "defaults"
OURS = (DEFAULT, "chosen start", "cs-auto", "cs-aligner-weight", "cs-aligner-default", "cs-aligner", "cs-alone")


def read_queries(tasks: Path, datasets: dict[str, Any]) -> dict[str, dict[str, list[FoldQueries]]]:
    """Return dataset -> method -> one entry per fold, of the datasets and folds of the suite."""
    found: dict[str, dict[str, list[FoldQueries]]] = {name: {} for name in datasets}
    for path in sorted(tasks.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        dataset = content["measured"][0]["dataset"] if content.get("measured") else None
        if dataset in found:
            for method, values in content["queries"].items():
                if "," not in method:  # not a row of centred output
                    found[dataset].setdefault(method, []).append(FoldQueries(**values))
    for dataset, methods in found.items():
        numbers = {tuple(sorted(fold.fold for fold in folds)) for folds in methods.values()}
        if numbers != {tuple(range(datasets[dataset]["folds"]))}:
            raise SystemExit(f"suite: the tasks of {dataset} have folds {sorted(numbers)}; give the folder of this run")
    return found


def family_records(values: Values) -> list[dict[str, Any]]:
    """Return one record per row of OURS: its mean rank, and that minus the best of all other methods."""
    records = []
    for ours in OURS:
        alone = {
            dataset: {method: v for method, v in methods.items() if method == ours or method not in OURS}
            for dataset, methods in values.items()
        }
        ranks = rank_methods(alone)
        own, other = (next(r for r in ranks if (r.method == ours) == wanted) for wanted in (True, False))
        minus = own.behind if any(own.behind) else tuple(-v for v in (other.behind[0], *other.behind[:0:-1]))
        records.append(
            {
                "method": ours,
                "mean_rank": round(own.mean_rank, 4),
                "best_other": other.method,
                "other_rank": round(other.mean_rank, 4),
                "minus_other": [round(v, 4) for v in minus],
                "score_rank": round(own.score_rank, 4),
                "best_score_rank_of_others": round(min(r.score_rank for r in ranks if r.method != ours), 4),
            }
        )
    return records


def minus_default(values: Values) -> list[dict[str, Any]]:
    """Return one record per dataset and method: score and R@1 minus those of the default, with 95 % intervals."""
    records = []
    for dataset, methods in values.items():
        for method, own in methods.items():
            if method != DEFAULT:
                found = {m: own[m] - methods[DEFAULT][m] for m in (SCORE, MEAN_RECALL)}
                ends = {m: (x[0], *np.quantile(x[1:], (0.025, 0.975))) for m, x in found.items()}
                rounded = {m: [round(float(v), 5) for v in x] for m, x in ends.items()}
                records.append({"dataset": dataset, "method": method} | rounded)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/tables/suite"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/suite.json"))
    options = parser.parse_args()
    content = json.loads(options.out.read_text(encoding="utf-8"))
    values = resampled_values(read_queries(options.run / TASKS, content["datasets"]))
    write_text(
        options.out,
        one_line_per_item(content | {"families": family_records(values), "minus_default": minus_default(values)}),
    )


if __name__ == "__main__":
    main()
