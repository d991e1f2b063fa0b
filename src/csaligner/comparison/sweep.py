"""Sensitivity sweep: one training run per grid point, compared with the automatic settings."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from csaligner.adapters.aligner import align
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config, override
from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE, derived_metrics
from csaligner.files import recover, write_json
from csaligner.reporting.sweep import SweepPage, write_sweep
from csaligner.run_folder import provenance

from .compare import Budget, Report, measures, spread_over_processes
from .fits import train
from .folds import Fold, open_folds
from .result_cache import UNFINISHED, done_once, task_key

JSON, PAGE = "sweep.json", "sweep.html"
LAMBDA, SIGMA, SCALE = "objective.terms.cauchy_schwarz", "objective.bandwidth", "objective.logit_scale"
FIXED_SCALE = {"objective.learn_logit_scale": "false"}
HIDDEN = "hidden"  # of both adapters

# name -> axes; two axes make a heat map
GRIDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "bandwidth": {SIGMA: ("0.2", "0.35", "0.5", "0.7", "1.0"), LAMBDA: ("0.1", "0.3", "1", "3", "10")},
    "temperature": {SCALE: ("10", "15", "20", "30", "50"), LAMBDA: ("0.1", "0.3", "1", "3", "10")},
    "batch": {"batch_size": ("64", "128", "256", "512")},
    "adapter": {HIDDEN: ("64", "256", "512", "1024")},
}
AUTO: Mapping[str, Mapping[str, str]] = {
    "lambda auto": {LAMBDA: "auto"},
    "sigma median": {SIGMA: "median"},
    "lambda auto, sigma median": {LAMBDA: "auto", SIGMA: "median"},
}


@dataclass(frozen=True)
class Point:
    """Metrics of one setting on one dataset. grid: name of its grid, or "auto". metrics: means over folds, one entry
    per seed."""

    dataset: str
    grid: str
    settings: Mapping[str, str]
    metrics: Mapping[str, Sequence[float]]

    def mean(self, metric: str) -> float:
        return fmean(self.metrics[metric])

    def means(self) -> dict[str, float]:
        """Return the means over seeds, with derived metrics."""
        found = {key: self.mean(key) for key in self.metrics}
        return found | derived_metrics(found)


def configure(base: TrainConfig, settings: Mapping[str, str], seed: int = 0) -> TrainConfig:
    """Apply settings by dotted name to `base`; a swept logit scale is not learned. Raises InputError."""
    words = dict(settings)
    if SCALE in words:
        words |= FIXED_SCALE
    if HIDDEN in words:
        hidden = words.pop(HIDDEN)
        words |= {f"{side}_adapter.hidden": hidden for side in ("image", "text")}
    data: dict[str, Any] = base.model_dump()
    for key, value in words.items():
        override(data, f"{key}={value}")
    return build_config(TrainConfig, data | {"seed": seed})


def sweep(
    folds: Sequence[Fold],
    grids: Mapping[str, Mapping[str, Sequence[str]]],
    budget: Budget,
    report: Report = lambda done, total, what: None,
    keep: Path | None = None,
    *,
    in_turn: bool = False,
) -> list[Point]:
    """Train every grid point and every automatic setting on every dataset with every seed. keep: a folder for finished
    tasks; a repeated call resumes from it. in_turn: seed s trains on one fold of each dataset, the (s mod folds)-th,
    instead of on all."""
    wanted: list[tuple[str, Mapping[str, str]]] = [
        (name, dict(zip(axes, values, strict=True)))
        for name, axes in grids.items()
        for values in itertools.product(*axes.values())
    ]
    wanted += [("auto", settings) for settings in AUTO.values()]
    for _, settings in wanted:
        configure(budget.base, settings)
    tasks = [
        (fold, configure(budget.base, settings, seed), keep, (name, settings, seed))
        for name, settings in wanted
        for seed in range(budget.seeds)
        for fold in (folds_in_turn(folds, seed) if in_turn else folds)
    ]
    arguments = [task[:3] for task in tasks]
    found = spread_over_processes(_run_once, arguments, budget.jobs, lambda d, t: report(d, t, "sweep"))
    return _gathered([(fold.dataset, *label) for fold, *_, label in tasks], found)


def folds_in_turn(folds: Sequence[Fold], seed: int) -> list[Fold]:
    """Return one fold of every dataset, another one for each seed until all were used."""
    by_dataset: dict[str, list[Fold]] = {}
    for fold in folds:
        by_dataset.setdefault(fold.dataset, []).append(fold)
    return [some[seed % len(some)] for some in by_dataset.values()]


def _gathered(
    labels: Sequence[tuple[str, str, Mapping[str, str], int]], found: Sequence[Mapping[str, float]]
) -> list[Point]:
    """Average over folds, by dataset and setting, one entry per seed."""
    cells: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[int, list[Mapping[str, float]]]] = {}
    for (dataset, grid, settings, seed), metrics in zip(labels, found, strict=True):
        cells.setdefault((dataset, grid, tuple(settings.items())), {}).setdefault(seed, []).append(metrics)
    points = []
    for (dataset, grid, items), seeds in cells.items():
        keys = next(iter(seeds.values()))[0]
        means = {key: [fmean(m[key] for m in folds) for folds in seeds.values()] for key in keys}
        points.append(Point(dataset, grid, dict(items), means))
    return points


def _run_once(fold: Fold, config: TrainConfig, keep: Path | None) -> dict[str, float]:
    """Return the result of `_run`, cached in `keep`."""
    if keep is None:
        return _run(fold, config)
    path = keep / f"{task_key(fold, config.model_dump(mode='json'))}.json"
    return done_once(path, lambda: _run(fold, config), dict, lambda value: {k: float(v) for k, v in value.items()})


def _run(fold: Fold, config: TrainConfig) -> dict[str, float]:
    return measures(align(train(config, fold.train_and_val), fold.test))


def sweep_and_write(data: Sequence[Path], names: Sequence[str], budget: Budget, out: Path, report: Report) -> None:
    """Sweep the named grids on every dataset and write sweep.json and sweep.html to `out`. Raises InputError.

    A repeated call resumes after an interruption.
    """
    check_grids(names)
    folds = [fold for path in data for fold in open_folds(path)]
    if out.is_dir():
        recover(out)
    points = sweep(folds, {name: GRIDS[name] for name in names}, budget, report, out / UNFINISHED)
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "provenance": provenance(budget.seeds - 1),
        "budget": {"seeds": budget.seeds, "base": budget.base.model_dump(mode="json")},
        "score": SCORE,
        "points": [p.__dict__ for p in points],
    }
    write_json(out / JSON, record)
    write_points(points, names, out / PAGE)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def check_grids(names: Sequence[str]) -> None:
    """Raises InputError."""
    for name in names:
        if name not in GRIDS:
            raise InputError(f"grids: got {name!r}, wanted some of {', '.join(GRIDS)}")


def write_points(points: Sequence[Point], names: Sequence[str], path: Path) -> None:
    """Write the page of the named grids."""
    write_sweep([_page(dataset, names, points) for dataset in dict.fromkeys(p.dataset for p in points)], path)


def best(points: Sequence[Point]) -> Point:
    """Return the point with the highest test score; only for comparison with the automatic settings."""
    return max(points, key=lambda p: p.means()[SCORE])


def _page(dataset: str, names: Sequence[str], points: Sequence[Point]) -> SweepPage:
    here = [p for p in points if p.dataset == dataset]
    maps = {}
    for name in names:
        axes = list(GRIDS[name].items())
        rows, columns = (axes[0], axes[1]) if len(axes) == 2 else (("", [""]), axes[0])
        for metric in (SCORE, MEAN_NDCG, MEAN_RECALL, "gap/centroid"):
            values = np.full((len(rows[1]), len(columns[1])), np.nan)
            for p in (p for p in here if p.grid == name):
                i = list(rows[1]).index(p.settings[rows[0]]) if rows[0] else 0
                values[i, list(columns[1]).index(p.settings[columns[0]])] = p.means()[metric]
            maps[name, metric] = (values, list(rows[1]), list(columns[1]), (rows[0], columns[0]))
    grid = [p for p in here if p.grid != "auto"]
    chosen = {"best of the grids": best(grid)} if grid else {}
    chosen |= {name: p for name, settings in AUTO.items() for p in here if dict(p.settings) == dict(settings)}
    table = {name: (p.means(), dict(p.settings)) for name, p in chosen.items()}
    return SweepPage(dataset, maps, table)
