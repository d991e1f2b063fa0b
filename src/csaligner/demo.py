"""Demo: embed a dataset, train InfoNCE and CS-Aligner with the same budget, and report the comparison."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from csaligner.adapters.aligner import align
from csaligner.evaluation.baselines import MeanCentring
from csaligner.reporting.collect import report_data
from csaligner.reporting.figures import figure_before_after
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import write_report
from csaligner.reporting.tables import write_results_json
from csaligner.selection.run import start_of
from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store

from .config import ObjectiveConfig, TrainConfig
from .pipeline import Run, baselines, embed_dataset, measure, train
from .progress import progress
from .run_folder import OURS, REPORT, RESULTS, provenance
from .types import PairedFeatures

INFONCE = "InfoNCE"
CENTRED = "{}, then centred"  # the same model, each modality minus its training mean
FIGURE = "before_after.png"


def demo(
    out: Path, data: str, seeds: int, *, workers: int, console: Console, quiet: bool = False
) -> list[MethodResult]:
    """Run the demo and return its results; writes results.json, report.html and before_after.png in `out`.

    A second call reuses the store and finished runs.
    """
    with progress(console, f"embed {data}", quiet) as update:
        settings = ExtractSettings(workers=workers)
        store = embed_dataset(data, out / f"store-{Path(data).name}", settings=settings, progress=update)
    configs = {INFONCE: _config(infonce_only=True), OURS: _config(infonce_only=False)}
    test, train_features = store.features("test"), store.features("train")
    results: list[MethodResult] = []
    last: dict[str, PairedFeatures] = {}
    about = provenance(seeds - 1)
    for seed in range(seeds):
        for method, config in configs.items():
            run = _train(store, method, config.model_copy(update={"seed": seed}), out, console, quiet)
            if method == INFONCE:
                start = align(start_of(_folder(store, method, seed, out), train_features, config), test)
                results += baselines(train_features, test, seed, start)
            last[method] = align(run.model, test)
            results.append(measure(method, seed, last[method], run))
            centring = MeanCentring.fit(align(run.model, train_features))
            results.append(measure(CENTRED.format(method), seed, centring.transform(last[method])))
    write_results_json(results, out / RESULTS, provenance=about)
    if run.selection is not None:
        about |= {"selection": run.selection.line}
        if not quiet:
            console.print(run.selection.line, highlight=False)
    report = report_data(store, configs[OURS], results, last, about)
    write_report(report, out / REPORT)
    figure_before_after(report.maps, out / FIGURE)
    return results


def _config(*, infonce_only: bool) -> TrainConfig:
    """Return the default settings, or InfoNCE alone from the same chosen start, without the gate."""
    default = TrainConfig()
    if not infonce_only:
        return default
    objective = default.objective.model_dump() | {"terms": {"info_nce": 1.0}}
    return default.model_copy(update={"objective": ObjectiveConfig.model_validate(objective), "gate": False})


def _folder(store: Store, method: str, seed: int, out: Path) -> Path:
    return out / f"run-{store.dataset}-{method.lower()}-{seed}"


def _train(store: Store, method: str, config: TrainConfig, out: Path, console: Console, quiet: bool) -> Run:
    with progress(console, f"{method}, seed {config.seed}", quiet) as update:
        return train(
            store,
            config,
            _folder(store, method, config.seed, out),
            lambda step, total, values: update(step, total, {"loss/total": values.get("loss/total", math.nan)}),
        )
