"""The suite: every table of the comparison page in one resumable run of one version of the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import csaligner
from csaligner.checks import InputError
from csaligner.evaluation.score import SCORE
from csaligner.files import recover, write_json, write_text
from csaligner.parsing import parse_json
from csaligner.reporting.comparison import TABLE_KEYS, write_comparison
from csaligner.reporting.summary import CENTROID
from csaligner.run_folder import provenance

from .compare import Budget, Comparison, Measured, Report, averages, compare, rounded
from .folds import Fold, open_folds
from .methods import FREE, TRAINED, check_methods, then_centred
from .ranks import rank_methods, resampled_values
from .run import datasets, introduction
from .sweep import GRIDS, Point, check_grids, sweep, write_points

JSON, PAGE, SWEEP_PAGE = "suite.json", "suite.html", "sweep.html"
STARTED, TASKS = "started.json", "tasks"  # the version of the code; results of finished tasks, kept for more data
LEAST_TRIALS, LEAST_SEEDS = 8, 3
KEYS = (*TABLE_KEYS, "centred_gap/frechet")
SWEEP_KEYS = (SCORE, "mean_recall@1", "mean_mixed_ndcg@10", CENTROID)
# equals moments or cca; an MMD; two further ways to set lambda; needs tokens
LEFT_OUT = ("closed-form start", "energy", "cs-tied", "cs-auto-tuned", "cs-aligner-token")


@dataclass(frozen=True)
class Suite:
    """data: stores and arrays. methods: [] for all but LEFT_OUT. grids: of the sweeps on the data in `swept`, []: of
    all. test_images: of an array, see folds.open_folds. other_commit: resume a run of another version of the code."""

    data: Sequence[Path]
    budget: Budget
    out: Path
    methods: Sequence[str] = ()
    grids: Sequence[str] = tuple(GRIDS)
    swept: Sequence[Path] = ()
    test_images: int | None = None
    other_commit: bool = False


def run_suite(suite: Suite, report: Report) -> Comparison:
    """Compare all methods on every dataset, sweep the grids, and write suite.json, suite.html and sweep.html after each
    dataset. A repeated call resumes, also with more data or folds. Raises InputError before any training."""
    budget = suite.budget
    if budget.trials < LEAST_TRIALS or budget.seeds < LEAST_SEEDS:
        raise InputError(
            f"suite: got trials {budget.trials} and seeds {budget.seeds}, wanted at least {LEAST_TRIALS} and "
            f"{LEAST_SEEDS}; raise --trials and --seeds"
        )
    if budget.settings:
        raise InputError("suite: got settings of an earlier comparison, but it tunes every method; drop --settings")
    names = check_methods(list(suite.methods or (name for name in (*FREE, *TRAINED) if name not in LEFT_OUT)))
    check_grids(suite.grids)
    folds = {path: open_folds(path, suite.test_images) for path in suite.data}
    suite.out.mkdir(parents=True, exist_ok=True)
    recover(suite.out)
    commits = _same_code(suite)
    found, points, done = Comparison([], {}, []), list[Point](), list[Fold]()
    for path, here in folds.items():
        keep = suite.out / TASKS
        found.add(compare(here, names, budget, report, keep))
        if suite.grids and path in (suite.swept or suite.data):
            grids = {name: GRIDS[name] for name in suite.grids}
            points += sweep(here, grids, budget, report, keep, in_turn=True)
        done += here
        _write(suite, commits, found, points, done)
    return found


def _same_code(suite: Suite) -> list[str | None]:
    """Return the commits of this run so far. Raises InputError if another version of the code started it."""
    now = {"commit": provenance(0)["commit"], "code": code_digest()}
    path = suite.out / STARTED
    runs = parse_json(path.read_text(encoding="utf-8")) if path.exists() else []
    if runs and runs[-1]["code"] != now["code"] and not suite.other_commit:
        raise InputError(
            f"suite: {suite.out} was started with the code of commit {runs[-1]['commit']}, and this is other code "
            f"(commit {now['commit']}); give a new folder with --out, or --other-commit to resume anyway"
        )
    if not runs or runs[-1]["code"] != now["code"]:
        runs.append(now)
        write_json(path, runs)
    return [run["commit"] for run in runs]


def code_digest() -> str:
    """Return 16 hex digits of a SHA-256 over the Python files of the package."""
    digest, root = hashlib.sha256(), Path(csaligner.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _write(
    suite: Suite, commits: list[str | None], found: Comparison, points: Sequence[Point], folds: Sequence[Fold]
) -> None:
    ranks = rank_methods(resampled_values(_without_centred(found)))
    budget = suite.budget
    record = {
        "provenance": provenance(budget.seeds - 1) | {"commit": commits[-1]},
        "commits": commits,
        "budget": {
            "trials": budget.trials,
            "inner": budget.inner,
            "trial_images": budget.trial_images,
            "seeds": budget.seeds,
            "base": budget.base.model_dump(mode="json"),
        },
        "score": SCORE,
        "datasets": {name: _about([f for f in folds if f.dataset == name]) for name in found.queries},
        "ranks": [rounded(asdict(rank)) for rank in ranks],
        "best_free": found.best_free,
        "left_out": found.left_out,
        "results": list(_results(found.measured)),
        "settings": _settings(found.measured),
        "differences": [rounded(asdict(d)) for d in found.differences if d.method in methods_of(found)],
        "trials": [rounded(trial) for trial in found.trials],
        "points": [_point(point) for point in points],
    }
    write_text(suite.out / JSON, one_line_per_item(record))
    about = f"{introduction(budget)} All results are of commit {commits[-1]}."
    write_comparison("csaligner compare --suite", about, datasets(found), suite.out / PAGE, ranks)
    if points:
        write_points(points, suite.grids, suite.out / SWEEP_PAGE)


def _without_centred(found: Comparison) -> dict[str, Any]:
    names = methods_of(found)
    return {data: {m: q for m, q in methods.items() if m in names} for data, methods in found.queries.items()}


def methods_of(found: Comparison) -> set[str]:
    """Return the methods, without the rows of centred output."""
    methods = {m.method for m in found.measured}
    return methods - {then_centred(method) for method in methods}


def _about(folds: Sequence[Fold]) -> dict[str, Any]:
    first = folds[0]
    return {
        "folds": len(folds),
        "train_images": len(first.train_and_val.image),
        "test_images": sum(len(fold.test.image) for fold in folds),
        "test_captions": sum(len(fold.test.text) for fold in folds),
        "dims": [first.test.image.shape[1], first.test.text.shape[1]],
    }


def _results(measured: Sequence[Measured]) -> Iterable[dict[str, Any]]:
    """Yield one entry per dataset and method: the metrics of the tables, one value per seed, means over folds; one
    value if all seeds are equal; of centred output, score and centroid distance."""
    by_metric = {key: averages(measured, key) for key in KEYS}
    for dataset, method in dict.fromkeys((m.dataset, m.method) for m in measured):
        centred = method.endswith(then_centred(""))
        metrics = {}
        for key in (SCORE, CENTROID) if centred else KEYS:
            values = by_metric[key].get((dataset, method))
            if values:
                metrics[key] = rounded(values if len(set(values)) > 1 else values[:1])
        yield {"dataset": dataset, "method": method, "metrics": metrics}


def _settings(measured: Sequence[Measured]) -> dict[str, dict[str, list[Mapping[str, float]]]]:
    """Return dataset -> method -> tuned settings, one entry per fold."""
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for m in measured:
        if m.seed == 0 and m.settings and not m.method.endswith(then_centred("")):
            found.setdefault(m.dataset, {}).setdefault(m.method, []).append(rounded(m.settings))
    return found


def _point(point: Point) -> dict[str, Any]:
    means = point.metrics
    return asdict(point) | {"metrics": {key: rounded(list(means[key])) for key in SWEEP_KEYS}}


def one_line_per_item(record: Mapping[str, Any]) -> str:
    """Return JSON with one line per key, and one per item of a list."""
    lines = []
    for key, value in record.items():
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if isinstance(value, list) and value:
            items = (json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in value)
            text = "[\n" + ",\n".join(items) + "\n]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
