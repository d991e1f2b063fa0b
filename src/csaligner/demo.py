"""Demo: the modality gap of contrastive training, its free remedies and CS-Aligner, with all pairs and with few."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from csaligner.adapters.aligner import align
from csaligner.comparison.differences import FoldQueries, difference, query_values
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.score import MEAN_NDCG, SCORE
from csaligner.paired_features import rows_of
from csaligner.reporting.collect import report_data
from csaligner.reporting.figures import figure_before_after
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import write_report
from csaligner.reporting.tables import write_results_json
from csaligner.selection.fit import Selecting
from csaligner.selection.gate import GateChoice
from csaligner.selection.run import start_of
from csaligner.selection.selection import Selection
from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store

from .config import TrainConfig, build_config
from .pipeline import Run, embed_dataset, measure, train
from .progress import progress
from .run_folder import OURS, REPORT, RESULTS, START, provenance
from .types import PairedFeatures

FIGURE, RESULTS_FEW = "before_after.png", "results_few.json"
NAIVE, PAPER, INFONCE = "InfoNCE from random weights", "CS-Aligner from random weights", "InfoNCE"
FEW = 100  # pairs of the second part
CONTRASTIVE = {"start": {"kind": "random"}, "gate": False}
CLIP_SCALE = {"logit_scale": {"start": 1 / 0.07, "end": 100.0}, "learn_logit_scale": False}  # temperature .07 to .01

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    NAIVE: CONTRASTIVE | {"objective": CLIP_SCALE | {"terms": {"info_nce": 1.0}}},
    PAPER: CONTRASTIVE | {"weight": 1.0, "bandwidth": 0.5, "objective": CLIP_SCALE},
    INFONCE: {"gate": False, "objective": {"terms": {"info_nce": 1.0}}},
    OURS: {},
}


@dataclass(frozen=True)
class Part:
    """Results on one number of training pairs. aligned: test pairs by method, of the last seed; selections: what the
    default chose, by seed."""

    pairs: int
    results: list[MethodResult] = field(default_factory=list)
    aligned: dict[str, PairedFeatures] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)

    @property
    def gain(self) -> GateChoice | None:
        """Choice of the gate with the last seed; None if there were too few pairs to try training."""
        gate = self.selections[-1].gate if self.selections else None
        return gate if gate is not None and gate.gains else None


@dataclass(frozen=True)
class Demo:
    """Results with all training pairs and with few, and the findings in sentences, the most important first."""

    all_pairs: Part
    few_pairs: Part
    findings: list[str]


def demo(out: Path, data: str, seeds: int, *, workers: int, console: Console, quiet: bool = False) -> Demo:
    """Run the demo; writes results.json, results_few.json, report.html and before_after.png in `out`.

    A second call reuses the store and finished runs.
    """
    with progress(console, f"embed {data}", quiet) as update:
        settings = ExtractSettings(workers=workers)
        store = embed_dataset(data, out / f"store-{Path(data).name}", settings=settings, progress=update)
    whole = _with_all_pairs(store, seeds, out, console, quiet)
    few = _with_few_pairs(store, seeds, console, quiet)
    about, findings = (
        provenance(seeds - 1) | {"selection": "; ".join(selection.line for selection in whole.selections)},
        story(whole, few),
    )
    write_results_json(whole.results, out / RESULTS, provenance=about)
    write_results_json(few.results, out / RESULTS_FEW, provenance=about | {"training_pairs": few.pairs})
    shown = {name: whole.aligned[name] for name in (NAIVE, START, OURS)}
    report = report_data(store, _config(OURS, 0), whole.results, shown, about)
    tables = {f"The same with {few.pairs} training pairs": few.results}
    write_report(report.told(findings, tables), out / REPORT)
    figure_before_after([report.maps[0], report.maps[-1]], out / FIGURE)
    return Demo(whole, few, findings)


def story(whole: Part, few: Part) -> list[str]:
    """Return the findings in sentences, the most important first; every difference has a paired interval."""
    naive, centred = _numbers(whole, NAIVE), f"{NAIVE}, then centred"
    ndcg = {name: f"{_numbers(whole, name)[MEAN_NDCG]:.1f} %" for name in (NAIVE, centred, START, OURS)}
    return [
        f"Mixed search reaches an nDCG@10 of {ndcg[OURS]} with csaligner and of {ndcg[NAIVE]} after contrastive "
        f"training from random weights ({_interval(whole, OURS, NAIVE, MEAN_NDCG)}). {_of_training(whole)}",
        f"Contrastive training as in CLIP ({NAIVE}, temperature down to 1/100): gap {naive['gap/centroid'] / 100:.2f}; "
        f"bias of a mixed search towards the query's modality {naive['modality_bias@10']:+.0f} points (captions) and "
        f"{naive['modality_bias@10/image_query']:+.0f} points (images), where 0 is balanced.",
        f"Subtracting each modality's mean, which needs no training: nDCG@10 {ndcg[centred]} "
        f"({_interval(whole, centred, NAIVE, MEAN_NDCG)}).",
        f"The untrained baseline, closed-form maps chosen by cross-validation on the training pairs: {ndcg[START]}.",
        f"{_verdict(whole, OURS, INFONCE)} {_verdict(whole, PAPER, NAIVE)}",
        f"With {few.pairs} training pairs: {_of_training(few)} {_verdict(few, START, INFONCE)} "
        f"{_verdict(few, PAPER, NAIVE)}",
    ]


def _with_all_pairs(store: Store, seeds: int, out: Path, console: Console, quiet: bool) -> Part:
    train_features, test = store.features("train"), store.features("test")
    part = Part(len(train_features.image))
    for seed in range(seeds):
        runs: dict[str, Run] = {}
        for method, config in _configs(seed).items():
            folder = _folder(out, store, method, seed)
            with progress(console, f"{method}, seed {seed}", quiet) as update:
                runs[method] = train(
                    store,
                    config,
                    folder,
                    lambda step, total, values: update(step, total, {"loss/total": values.get("loss/total", math.nan)}),
                )
        start = start_of(_folder(out, store, OURS, seed), train_features, runs[OURS].config)
        _measure(part, (train_features, test), runs | {START: Run(start, runs[OURS].config)}, seed)
    return part


def _with_few_pairs(store: Store, seeds: int, console: Console, quiet: bool) -> Part:
    everything, test = store.features("train"), store.features("test")
    n = len(everything.image)
    part = Part(min(FEW, n // 2))
    for seed in range(seeds):
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: part.pairs]
        pairs = rows_of(everything, drawn.sort().values)
        runs: dict[str, Run] = {}
        with progress(console, f"the same with {part.pairs} pairs, seed {seed}", quiet) as update:
            for done, (name, config) in enumerate({START: _untrained(seed), **_configs(seed)}.items(), 1):
                began = time.perf_counter()
                model, selection = Selecting(config).fit(pairs)
                runs[name] = Run(model, config, seconds=time.perf_counter() - began, selection=selection)
                update(done, len(SETTINGS) + 1, {})
        _measure(part, (pairs, test), runs, seed)
    return part


def _measure(part: Part, features: tuple[PairedFeatures, PairedFeatures], runs: Mapping[str, Run], seed: int) -> None:
    """Add the results of one seed, in the order of the findings. features: training and test pairs."""
    pairs, test = features
    for name in (NAIVE, PAPER, START, INFONCE, OURS):
        run = runs[name]
        aligned = align(run.model, test)
        part.aligned[name] = aligned
        part.results.append(measure(name, seed, aligned, run if name != START else None))
        if name != START:
            centring, centred = MeanCentring.fit(align(run.model, pairs)), f"{name}, then centred"
            part.aligned[centred] = centring.transform(aligned)
            part.results.append(measure(centred, seed, part.aligned[centred]))
    selection = runs[OURS].selection
    if selection is not None:
        part.selections.append(selection)


def _configs(seed: int) -> dict[str, TrainConfig]:
    return {method: _config(method, seed) for method in SETTINGS}


def _untrained(seed: int) -> TrainConfig:
    return build_config(TrainConfig, {"epochs": 0, "seed": seed})


def _folder(out: Path, store: Store, method: str, seed: int) -> Path:
    return out / f"run-{store.dataset}-{method.lower().replace(' ', '-')}-{seed}"


def _config(method: str, seed: int) -> TrainConfig:
    return build_config(TrainConfig, {**SETTINGS[method], "seed": seed})


def _numbers(part: Part, method: str) -> dict[str, float]:
    """Return 100 times the mean of each metric over seeds."""
    rows = [r.metrics for r in part.results if r.name == method]
    return {key: 100 * sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _of_training(part: Part) -> str:
    """Return what training adds to the untrained baseline."""
    if part.gain is None:
        return "These are too few for the gate to measure a gain: CS-Aligner keeps the untrained baseline."
    if part.gain.scale == 0:  # no gain of more than two standard errors
        return "Training did not clearly improve held-out pairs: CS-Aligner keeps the untrained baseline."
    return _verdict(part, OURS, START)


def _verdict(part: Part, ours: str, other: str) -> str:
    """Compare the scores of two methods by a paired interval over the test images, of the last seed."""
    low, high = _difference(part, ours, other, SCORE)[1]
    measured = _interval(part, ours, other, SCORE)
    one, two = ("the untrained baseline" if name == START else name for name in (ours, other))
    if low <= 0 <= high:
        return f"No clear difference between {one} and {two} ({measured})."
    return f"Compared with {two}, {one} is {'better' if low > 0 else 'worse'} ({measured})."


def _interval(part: Part, ours: str, other: str, metric: str) -> str:
    value, (low, high) = _difference(part, ours, other, metric)
    of = " of the score" if metric == SCORE else ""
    return f"{value:+.1f} points{of}, 95 % interval {low:+.1f} to {high:+.1f}"


def _difference(part: Part, ours: str, other: str, metric: str) -> tuple[float, tuple[float, float]]:
    """Return a difference and its paired interval over the test images, in points, of the last seed."""
    sides = [
        [FoldQueries(0, f.text_to_image.tolist(), query_values([f]))] for f in (part.aligned[ours], part.aligned[other])
    ]
    found = next(d for d in difference("test", ours, other, sides[0], sides[1]) if d.metric == metric)
    return 100 * found.value, (100 * found.interval[0], 100 * found.interval[1])
