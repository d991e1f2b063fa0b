"""From paths to compare.json and compare.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.files import write_json
from csaligner.reporting.comparison import DatasetComparison, write_comparison
from csaligner.reporting.record import MethodResult
from csaligner.runs import provenance

from .compare import Budget, Comparison, Report, averages, compare, score
from .folds import open_folds
from .methods import TRAINED

JSON, PAGE = "compare.json", "compare.html"


def compare_and_write(
    data: Sequence[Path], methods: Sequence[str], budget: Budget, out: Path, report: Report
) -> Comparison:
    """Compare on every data set and write both files to `out`. Raises InputError before any work is done."""
    folds = [fold for path in data for fold in open_folds(path)]
    comparison = compare(folds, methods, budget, report)
    record = {
        "provenance": provenance(budget.seeds - 1),
        "budget": {"trials": budget.trials, "seeds": budget.seeds, "base": budget.base.model_dump(mode="json")},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON, record | comparison.as_json())
    intro = (
        f"One trainer, one adapter, one budget; {budget.trials} settings of each method tried on validation, "
        f"{budget.seeds} seeds measured on test. Chosen by: {(score.__doc__ or '').partition(': ')[2]}"
    )
    write_comparison("csaligner compare", intro, datasets(comparison), out / PAGE)
    return comparison


def datasets(comparison: Comparison) -> list[DatasetComparison]:
    """The page's view: one result for each method and seed, the mean over folds."""
    found = []
    for name in dict.fromkeys(m.dataset for m in comparison.measured):
        here = [m for m in comparison.measured if m.dataset == name]
        keys = dict.fromkeys(key for m in here for key in m.metrics)
        table = {key: averages(here, key) for key in keys}
        results, settings = [], {}
        for method in dict.fromkeys(m.method for m in here):
            chosen = [m.settings for m in here if m.method == method and m.seed == 0]
            settings[method] = ", ".join(_range(key, [s[key] for s in chosen]) for key in chosen[0])
            for seed in range(len(table["mean_recall@1"][name, method])):
                metrics = {k: cells[name, method][seed] for k, cells in table.items() if (name, method) in cells}
                results.append(MethodResult(method, seed, metrics))
        about = {method: trained.about for method, trained in TRAINED.items()}
        found.append(DatasetComparison(name, results, about, settings, comparison.left_out.get(name, {})))
    return found


def _range(key: str, values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{key} {low:.3g}" if low == high else f"{key} {low:.3g} to {high:.3g} over folds"
