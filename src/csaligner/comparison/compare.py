"""Comparison of methods under one budget: tuning, training and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch

from csaligner.config import TrainConfig, load_config
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.clustering import clustering_metrics
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.score import SCORE
from csaligner.types import PairedFeatures

from .differences import FoldQueries, MethodDifference, difference, query_values, resampled_gaps
from .fits import Method, at_most, find_method, fit, tune
from .folds import INNER, Fold
from .methods import BASELINES, REFERENCE, Free, NotApplicable, Trained, check_methods, then_centred
from .result_cache import done_once, task_key

T = TypeVar("T")
UNSELECTED = ("start.kind=auto", "gate=false")  # every objective trains from one start, and its result is kept
CACHE_FORMAT = 3  # of finished tasks
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Budget:
    """Budget of every method. trials: settings tried on validation data; seeds: training runs measured on test data;
    base: adapters, steps, batch size and learning rates; jobs: processes, one thread each; inner: number of a fold's
    inner splits on which a setting is tried, at most folds.INNER; trial_images: most training images of a trial, evenly
    spaced, None: all. settings: tuned settings of an earlier comparison
    (read_settings), which are not tuned again."""

    base: TrainConfig = field(default_factory=lambda: load_config(TrainConfig, None, UNSELECTED))
    trials: int = 12
    seeds: int = 3
    jobs: int = 2
    inner: int = INNER
    trial_images: int | None = None
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """Return the numbers that results depend on."""
        return self.trials, self.inner, self.trial_images, self.seeds


@dataclass(frozen=True)
class Measured:
    """Metrics of one method on one fold with one seed. settings: tuned values."""

    dataset: str
    method: str
    fold: int
    seed: int
    metrics: Mapping[str, float]
    settings: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


def settings_key(dataset: str, method: str, fold: int) -> str:
    """Return the key of tuned settings in Budget.settings."""
    return f"{dataset}/{method}/{fold}"


@dataclass(frozen=True)
class Comparison:
    """measured: one entry per method, fold and seed; a trained method has a second one for its centred output
    (methods.then_centred). left_out: dataset -> skipped method -> reason. trials: all. differences: of every method
    from the best untrained baseline and from InfoNCE, means over seeds, with intervals. best_free: dataset -> the
    untrained baseline with the best score on the test data, in hindsight. queries: dataset -> method -> one entry per
    fold."""

    measured: list[Measured]
    left_out: dict[str, dict[str, str]]
    trials: list[dict[str, Any]]
    differences: list[MethodDifference] = field(default_factory=list)
    best_free: dict[str, str] = field(default_factory=dict)
    queries: dict[str, dict[str, list[FoldQueries]]] = field(default_factory=dict)

    def add(self, more: Comparison) -> None:
        """Add the results on other datasets."""
        self.measured.extend(more.measured)
        self.trials.extend(more.trials)
        self.differences.extend(more.differences)
        self.left_out.update(more.left_out)
        self.best_free.update(more.best_free)
        self.queries.update(more.queries)

    def as_json(self) -> dict[str, Any]:
        return {
            "score": SCORE,
            "best_free": self.best_free,
            "differences": [rounded(asdict(d)) for d in self.differences],
            "measured": [rounded(asdict(m)) for m in self.measured],
            "left_out": self.left_out,
            "trials": self.trials,
        }


def rounded(value: Any) -> Any:
    """Round floats to six digits, which keeps the files of large comparisons small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def compare(
    folds: Sequence[Fold],
    methods: Sequence[str],
    budget: Budget,
    report: Report = lambda done, total, what: None,
    keep: Path | None = None,
) -> Comparison:
    """Run every method on every fold. Settings are chosen on the fold's validation parts; then the method is trained
    on training and validation parts and measured on the test part. keep: a folder for finished tasks; a repeated call
    resumes from it.

    Raises InputError for an unknown method.
    """
    names = check_methods(list(methods))
    tasks = [(fold, name, budget, keep) for fold in folds for name in names]  # methods on a fold share its start
    outcomes = spread_over_processes(
        _run_once, tasks, budget.jobs, lambda done, total: report(done, total, ", ".join(names))
    )
    result = Comparison([], {}, [])
    for (fold, name, *_), outcome in zip(tasks, outcomes, strict=True):
        result.measured.extend(outcome.measured)
        result.trials.extend(outcome.trials)
        for method, values in outcome.queries.items():
            result.queries.setdefault(fold.dataset, {}).setdefault(method, []).append(values)
        if outcome.left_out:
            result.left_out.setdefault(fold.dataset, {})[name] = outcome.left_out
    _compare_pairs(result)
    return result


def _compare_pairs(result: Comparison) -> None:
    """Add best_free and the differences of every method from it and from REFERENCE."""
    scores = averages(result.measured, SCORE)
    for dataset, methods in result.queries.items():
        free = [name for name in BASELINES if name in methods]
        if free:
            result.best_free[dataset] = max(free, key=lambda name: mean(scores[dataset, name]))
        others = dict.fromkeys((*([result.best_free[dataset]] if free else []), REFERENCE))
        for method, ours in methods.items():
            for other in others:
                if other in methods and other != method:
                    result.differences.extend(difference(dataset, method, other, ours, methods[other]))


def spread_over_processes(
    function: Callable[..., T], tasks: Sequence[Sequence[Any]], jobs: int, report: Callable[[int, int], None]
) -> list[T]:
    """Return [function(*task) for task in tasks], computed by `jobs` single-threaded processes (1: this process)."""
    if jobs == 1:
        results = []
        for task in tasks:
            results.append(function(*task))
            report(len(results), len(tasks))
        return results
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = [pool.submit(function, *task) for task in tasks]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done, len(tasks))
        return [future.result() for future in futures]


@dataclass
class _Outcome:
    measured: list[Measured] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    queries: dict[str, FoldQueries] = field(default_factory=dict)
    left_out: str | None = None

    def add_queries(self, fold: Fold, name: str, aligned: Sequence[PairedFeatures]) -> None:
        """aligned: the test part, once per seed."""
        owner, gaps = fold.test.text_to_image.tolist(), resampled_gaps(aligned, fold.number)
        self.queries[name] = FoldQueries(fold.number, owner, query_values(aligned), gaps)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> _Outcome:
        queries = {name: FoldQueries(**q) for name, q in value["queries"].items()}
        return cls([Measured(**m) for m in value["measured"]], value["trials"], queries, value["left_out"])


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run_once(fold: Fold, name: str, budget: Budget, keep: Path | None) -> _Outcome:
    """Return the result of `_run`, cached in `keep`."""
    if keep is None:
        return _run(fold, name, budget)
    known = budget.settings.get(settings_key(fold.dataset, name, fold.number), {})
    base = budget.base.model_dump(mode="json")
    key = task_key(fold, CACHE_FORMAT, name, *budget.numbers, dict(known), base)
    return done_once(keep / f"{name}-{key}.json", lambda: _run(fold, name, budget), asdict, _Outcome.from_json)


def _run(fold: Fold, name: str, budget: Budget) -> _Outcome:
    try:
        return _measured(fold, name, budget)
    except NotApplicable as reason:
        return _Outcome(left_out=str(reason))


def _measured(fold: Fold, name: str, budget: Budget) -> _Outcome:
    """Raises NotApplicable."""
    outcome, method = _Outcome(), find_method(name)
    if isinstance(method, Trained):
        method.check(fold.train_and_val)
    settings = _tuned(fold, name, method, budget, outcome)
    if isinstance(method, Free):
        aligned = fit(method, fold.train_and_val, budget.base, settings, 0)(fold.test)
        metrics = measures(aligned)
        outcome.measured = [
            Measured(fold.dataset, name, fold.number, s, metrics, settings) for s in range(budget.seeds)
        ]
        outcome.add_queries(fold, name, [aligned])
        return outcome
    rows: dict[str, list[PairedFeatures]] = {name: [], then_centred(name): []}
    for seed in range(budget.seeds):
        started = time.perf_counter()
        transform = fit(method, fold.train_and_val, budget.base, settings, seed)
        aligned = transform(fold.test)
        seconds = time.perf_counter() - started
        centred = MeanCentring.fit(transform(fold.train_and_val)).transform(aligned)
        for row, features in zip(rows, (aligned, centred), strict=True):
            rows[row].append(features)
            measured = Measured(fold.dataset, row, fold.number, seed, measures(features), settings, seconds)
            outcome.measured.append(measured)
    for row, found in rows.items():
        outcome.add_queries(fold, row, found)
    return outcome


def _tuned(fold: Fold, name: str, method: Method, budget: Budget, outcome: _Outcome) -> dict[str, float]:
    """Return known or tuned settings, and record the trials."""
    known = budget.settings.get(settings_key(fold.dataset, name, fold.number), {})
    if set(method.space()) == set(known):
        return dict(known)
    about = {"dataset": fold.dataset, "method": name, "fold": fold.number}
    splits = [(at_most(pairs, budget.trial_images), held_out) for pairs, held_out in fold.splits[: budget.inner]]
    return tune(method, splits, budget.base, budget.trials, lambda trial: outcome.trials.append(about | trial))


def measures(features: PairedFeatures) -> dict[str, float]:
    """Compute the metrics of evaluation.evaluate, and clustering/* if the data have categories."""
    return evaluate(features, intervals=False).metrics | clustering_metrics(features)


def averages(measured: Sequence[Measured], metric: str) -> dict[tuple[str, str], list[float]]:
    """(dataset, method) -> one value per seed, the mean over folds."""
    cells: dict[tuple[str, str], dict[int, list[float]]] = {}
    for m in measured:
        if metric in m.metrics:
            cells.setdefault((m.dataset, m.method), {}).setdefault(m.seed, []).append(m.metrics[metric])
    return {key: [mean(values) for _, values in sorted(seeds.items())] for key, seeds in cells.items()}
