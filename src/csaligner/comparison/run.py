"""The compare command: from data paths to compare.json and compare.html."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.evaluation.score import SCORE
from csaligner.files import recover, write_json
from csaligner.parsing import parse_json
from csaligner.reporting.comparison import DatasetComparison, Interval, write_comparison
from csaligner.reporting.record import MethodResult
from csaligner.run_folder import provenance
from csaligner.wording import count_of

from .compare import Budget, Comparison, Measured, Report, averages, compare, settings_key
from .differences import MethodDifference
from .fits import find_method
from .folds import open_folds
from .methods import FREE, TRAINED
from .result_cache import UNFINISHED

JSON, PAGE = "compare.json", "compare.html"


def compare_and_write(
    data: Sequence[Path],
    methods: Sequence[str],
    budget: Budget,
    out: Path,
    report: Report,
    test_images: int | None = None,
) -> Comparison:
    """Compare methods on every dataset and write both files to `out`. Raises InputError before any training.

    test_images: of an array, see folds.open_folds. A repeated call resumes after an interruption.
    """
    folds = [fold for path in data for fold in open_folds(path, test_images)]
    if out.is_dir():
        recover(out)
    comparison = compare(folds, methods, budget, report, out / UNFINISHED)
    record = {
        "provenance": provenance(budget.seeds - 1),
        "budget": {
            "trials": budget.trials,
            "inner": budget.inner,
            "trial_images": budget.trial_images,
            "settings_known": bool(budget.settings),
            "seeds": budget.seeds,
            "base": budget.base.model_dump(mode="json"),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON, record | comparison.as_json())
    write_comparison("csaligner compare", introduction(budget), datasets(comparison), out / PAGE)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return comparison


def introduction(budget: Budget) -> str:
    """Return the sentences at the top of the page."""
    selected = f"{count_of(budget.trials, 'setting')} per method tried on validation data and selected by {SCORE}"
    if budget.settings:
        selected = "tuned settings as in an earlier comparison"
    seeds = count_of(budget.seeds, "seed")
    return (
        f"All methods share trainer, adapter and budget: {selected}; {seeds} measured on test data. "
        f"{SCORE}: the mean of R@1 (both directions) and nDCG@10 of a mixed index (caption and image queries). "
        "\u201cThen centred\u201d: the same trained model, each modality minus its training mean; what this does as "
        "well needs no other objective."
    )


def read_settings(path: Path) -> dict[str, dict[str, float]]:
    """Return the tuned settings in a compare.json, for Budget.settings. Raises InputError for any other file."""
    try:
        measured = parse_json(path.read_text(encoding="utf-8"))["measured"]
        return {settings_key(m["dataset"], m["method"], m["fold"]): m["settings"] for m in measured if m["settings"]}
    except OSError as error:
        raise InputError(f"settings: {path} cannot be read ({error.strerror}); give a compare.json") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"settings: {path} is no compare.json; give one written by csaligner compare") from None


def datasets(comparison: Comparison) -> list[DatasetComparison]:
    """Return the contents of the page, per dataset."""
    found = []
    ran = {m.method for m in comparison.measured}
    about = {method: find_method(method).about for method in (*FREE, *TRAINED) if method in ran}
    for name in dict.fromkeys(m.dataset for m in comparison.measured):
        here = [m for m in comparison.measured if m.dataset == name]
        settings = {}
        for method in dict.fromkeys(m.method for m in here):
            chosen = [m.settings for m in here if m.method == method and m.seed == 0]
            settings[method] = ", ".join(_range(key, [s[key] for s in chosen]) for key in chosen[0])
        left_out = comparison.left_out.get(name, {})
        changes = differences_of(comparison.differences, name)
        found.append(DatasetComparison(name, results_of(here), about, settings, left_out, changes))
    return found


def differences_of(differences: Sequence[MethodDifference], dataset: str) -> dict[str, dict[str, Interval]]:
    """Return other -> method -> difference of SCORE of one dataset, with the wider interval: over folds if there are
    several, else over test images."""
    found: dict[str, dict[str, Interval]] = {}
    for d in differences:
        if d.dataset == dataset and d.metric == SCORE:
            found.setdefault(d.other, {})[d.method] = Interval(d.value, *(d.fold_interval or d.interval))
    return found


def results_of(measured: Sequence[Measured]) -> list[MethodResult]:
    """Return one result per method and seed of one dataset, averaged over folds."""
    table = {key: averages(measured, key) for key in dict.fromkeys(key for m in measured for key in m.metrics)}
    results = []
    for name, method in dict.fromkeys((m.dataset, m.method) for m in measured):
        seeds = range(len(table["mean_recall@1"][name, method]))
        for seed in seeds:
            metrics = {k: cells[name, method][seed] for k, cells in table.items() if (name, method) in cells}
            results.append(MethodResult(method, seed, metrics))
    return results


def _range(key: str, values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{key} {low:.3g}" if low == high else f"{key} {low:.3g} to {high:.3g} over folds"
