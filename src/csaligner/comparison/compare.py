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

from csaligner.adapters.aligner import align
from csaligner.config import TrainConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.clustering import clustering_metrics
from csaligner.evaluation.evaluate import evaluate
from csaligner.registry import load
from csaligner.types import PairedFeatures

from .folds import Fold
from .methods import FREE, TRAINED, NotApplicable, Trained, check_methods
from .result_cache import done_once, task_key

T = TypeVar("T")
SCORE = "mean_recall@1 + mixed_image_recall@10 - gap/centroid"  # maximised by tuning, on validation data
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Budget:
    """Budget of every method. trials: settings tried on validation data; seeds: training runs measured on test data;
    base: adapters, steps, batch size and learning rates; jobs: processes, one thread each."""

    base: TrainConfig = field(default_factory=TrainConfig)
    trials: int = 12
    seeds: int = 3
    jobs: int = 2


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


@dataclass(frozen=True)
class Comparison:
    """measured: one entry per method, fold and seed. left_out: dataset -> skipped method -> reason. trials: all."""

    measured: list[Measured]
    left_out: dict[str, dict[str, str]]
    trials: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return {
            "score": SCORE,
            "measured": [asdict(m) for m in self.measured],
            "left_out": self.left_out,
            "trials": self.trials,
        }


def score(metrics: Mapping[str, float]) -> float:
    """Return SCORE of `metrics`."""
    return metrics["mean_recall@1"] + metrics["mixed_image_recall@10"] - metrics["gap/centroid"]


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
    tasks = [(fold, name, budget, keep) for name in names for fold in folds]
    outcomes = spread_over_processes(
        _run_once, tasks, budget.jobs, lambda done, total: report(done, total, ", ".join(names))
    )
    result = Comparison([], {}, [])
    for (fold, name, *_), outcome in zip(tasks, outcomes, strict=True):
        result.measured.extend(outcome.measured)
        result.trials.extend(outcome.trials)
        if outcome.left_out:
            result.left_out.setdefault(fold.dataset, {})[name] = outcome.left_out
    return result


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
    left_out: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> _Outcome:
        return cls([Measured(**m) for m in value["measured"]], value["trials"], value["left_out"])


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run_once(fold: Fold, name: str, budget: Budget, keep: Path | None) -> _Outcome:
    """Return the result of `_run`, cached in `keep`."""
    if keep is None:
        return _run(fold, name, budget)
    key = task_key(fold, name, budget.trials, budget.seeds, budget.base.model_dump(mode="json"))
    return done_once(keep / f"{name}-{key}.json", lambda: _run(fold, name, budget), asdict, _Outcome.from_json)


def _run(fold: Fold, name: str, budget: Budget) -> _Outcome:
    try:
        return _measured(fold, name, budget)
    except NotApplicable as reason:
        return _Outcome(left_out=str(reason))


def _measured(fold: Fold, name: str, budget: Budget) -> _Outcome:
    """Raises NotApplicable."""
    outcome = _Outcome()
    if name in FREE:
        transform = FREE[name](fold.train_and_val, budget.base)
        metrics = measures(transform(fold.test))
        outcome.measured = [Measured(fold.dataset, name, fold.number, s, metrics) for s in range(budget.seeds)]
        return outcome
    method: Trained = load("methods", TRAINED, name)
    method.check(fold.train_and_val)
    settings = _tuned(fold, name, method, budget, outcome)
    for seed in range(budget.seeds):
        started = time.perf_counter()
        aligned = _fit_and_align(method, fold.train_and_val, fold.test, budget, settings, seed)
        seconds = time.perf_counter() - started
        measured = Measured(fold.dataset, name, fold.number, seed, measures(aligned), settings, seconds)
        outcome.measured.append(measured)
    return outcome


def _tuned(fold: Fold, name: str, method: Trained, budget: Budget, outcome: _Outcome) -> dict[str, float]:
    """Return the best of `trials` settings on validation data (optuna's seeded TPE); {} if nothing is tuned."""
    space = method.space()
    if not space or budget.trials == 0:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: Any) -> float:
        settings = {key: trial.suggest_float(key, *bounds, log=True) for key, bounds in space.items()}
        value = mean(
            score(evaluate(_fit_and_align(method, train, val, budget, settings, 0), intervals=False).metrics)
            for train, val in fold.splits
        )
        record = {"dataset": fold.dataset, "method": name, "fold": fold.number, "score": value}
        outcome.trials.append(record | settings)
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=budget.trials)
    return dict(study.best_params)


def _fit_and_align(
    method: Trained,
    train: PairedFeatures,
    test: PairedFeatures,
    budget: Budget,
    settings: Mapping[str, float],
    seed: int,
) -> PairedFeatures:
    config = method.config(budget.base, settings, seed)
    return align(CSAligner(config, verbose=False).fit_features(train).model, test)


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
