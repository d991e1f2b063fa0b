"""Five-fold cross-validation on real CLIP features (shared/data/clip_coco_500.npy), default settings.

python benchmarks/clip_coco.py --features PATH --out benchmarks/results/clip_coco.json [--seeds 3]
--only NAME measures that method only and replaces its records in the file, but not the differences.

Folds: RandomState(0).permutation(500)[fold::5] is the test set of 100 pairs, the other 400 train. All seeds and
methods use the same folds. Every trained method has a second row, "then centred": the same model, each modality minus
its training mean. "differences" holds paired bootstrap intervals (comparison/differences.py) against the best untrained
baseline and InfoNCE. docs/results.md says where each setting comes from.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csaligner.adapters.aligner import align
from csaligner.comparison.differences import FoldQueries, difference, query_values
from csaligner.estimator import CSAligner
from csaligner.evaluation.baselines import CanonicalCorrelation, MeanCentring, Procrustes, Standardising
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.score import SCORE
from csaligner.files import write_json
from csaligner.paired_features import pair_features
from csaligner.reporting.figures import figure_before_after
from csaligner.reporting.record import FeatureMap
from csaligner.run_folder import provenance
from csaligner.types import PairedFeatures

Array = NDArray[np.float32]
Method = Callable[[PairedFeatures, PairedFeatures, int], dict[str, PairedFeatures]]
BASELINES = ("raw", "mean-centring", "standardising", "Procrustes", "CCA", "moments")
FIXED: dict[str, Any] = {"start": {"kind": "auto"}, "gate": False}  # benchmarks/defaults.py measures the default
INFONCE_ONLY = {"terms": {"info_nce": 1.0}}
LAMBDA_2 = {"terms": {"info_nce": 1.0, "cauchy_schwarz": 2.0}}


def trained(**settings: Any) -> Method:
    """Return {"": aligned test pairs, ", then centred": the same, centred}."""

    def method(train: PairedFeatures, test: PairedFeatures, seed: int) -> dict[str, PairedFeatures]:
        model = CSAligner(seed=seed, verbose=False, **(FIXED | settings)).fit_features(train).model
        aligned = align(model, test)
        return {"": aligned, ", then centred": MeanCentring.fit(align(model, train)).transform(aligned)}

    return method


def free(fit: Callable[[PairedFeatures], Any]) -> Method:
    return lambda train, test, seed: {"": fit(train).transform(test)}


def started(**settings: Any) -> Method:
    """Return the untrained baseline of these settings."""
    return lambda train, test, seed: {
        "": align(CSAligner(epochs=0, verbose=False, **(FIXED | settings)).fit_features(train).model, test)
    }


METHODS: dict[str, Method] = {
    "raw": lambda train, test, seed: {"": test},
    "mean-centring": free(MeanCentring.fit),
    "standardising": free(Standardising.fit),
    "Procrustes": free(Procrustes.fit),
    "CCA": free(CanonicalCorrelation.fit),
    "moments": started(start={"kind": "moments"}),
    "closed-form start": started(),
    "InfoNCE": trained(objective=INFONCE_ONLY),
    "InfoNCE, scale 100": trained(objective=INFONCE_ONLY | {"logit_scale": 100.0, "learn_logit_scale": False}),
    "CS-Aligner": trained(),
    "CS-Aligner, lambda 2, scale 20": trained(objective=LAMBDA_2 | {"logit_scale": 20.0, "learn_logit_scale": False}),
    "CS-Aligner, scale 100": trained(objective={"logit_scale": 100.0, "learn_logit_scale": False}),
    "CS-Aligner, text side only": trained(image_adapter="identity"),
}


def draw(image: Array, text: Array, order: NDArray[np.int64], path: Path) -> None:
    """Return the test pairs of fold 0, raw and after CSAligner() with default settings."""
    test, train = order[0::5], np.setdiff1d(order, order[0::5])
    aligner = CSAligner(**FIXED).fit(image[train], text[train])
    before = FeatureMap("raw CLIP", image[test], text[test])
    after = FeatureMap("CS-Aligner", aligner.transform_image(image[test]), aligner.transform_text(text[test]))
    figure_before_after([before, after], path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/clip_coco.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(METHODS))
    parser.add_argument(
        "--figure", type=Path, help="only write a figure of fold 0 before and after alignment to this path"
    )
    options = parser.parse_args()
    image, text = np.load(options.features)
    order = np.random.RandomState(0).permutation(len(image))
    if options.figure:
        draw(image, text, order, options.figure)
        return
    known: dict[str, Any] = {"records": []}
    if options.only:
        known |= json.loads(options.out.read_text(encoding="utf-8"))
    records = [r for r in known["records"] if not r["method"].startswith(options.only or "")]
    queries: dict[str, list[FoldQueries]] = {}
    certificate = provenance(options.seeds - 1)
    folds = [tuple(pair_features(image[rows], text[rows], rows) for rows in split(order, fold)) for fold in range(5)]
    for name, method in METHODS.items():
        if options.only in {None, name}:
            found, rows = measure(name, method, folds, options.seeds if trains(name) else 1)
            records += found
            queries |= rows
    if options.only:
        again = known.get("measured_again", {}) | {options.only: certificate}
        write_json(options.out, known | {"measured_again": again, "records": records})
        return
    best = max(BASELINES, key=lambda name: next(r[SCORE] for r in records if r["method"] == name))
    differences = [
        asdict(d)
        for other in (best, "InfoNCE")
        for name, ours in queries.items()
        if name != other
        for d in difference("clip_coco_500", name, other, ours, queries[other])
    ]
    write_json(
        options.out, {"provenance": certificate, "best_free": best, "differences": differences, "records": records}
    )


def split(order: NDArray[np.int64], fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of (train, test)."""
    return np.setdiff1d(order, order[fold::5]), order[fold::5]


def trains(name: str) -> bool:
    return name.startswith(("InfoNCE", "CS-Aligner"))


def measure(
    name: str, method: Method, folds: list[Any], seeds: int
) -> tuple[list[dict[str, Any]], dict[str, list[FoldQueries]]]:
    """Return one record per row and seed, means over folds, and the values of all queries by row."""
    records: list[dict[str, Any]] = []
    aligned: dict[str, list[list[PairedFeatures]]] = {}  # row -> fold -> seed
    for seed in range(seeds):
        metrics: dict[str, list[dict[str, float]]] = {}
        began = time.perf_counter()
        for number, (train, test) in enumerate(folds):
            for suffix, features in method(train, test, seed).items():
                metrics.setdefault(name + suffix, []).append(evaluate(features, intervals=False).metrics)
                aligned.setdefault(name + suffix, [[] for _ in folds])[number].append(features)
        seconds = (time.perf_counter() - began) / len(folds)
        for row, of_folds in metrics.items():
            means = {key: float(np.mean([f[key] for f in of_folds])) for key in of_folds[0]}
            records.append({"method": row, "seed": seed, "seconds_per_fold": seconds} | means)
            print(row, seed, f"{100 * means[SCORE]:.1f} {means['gap/centroid']:.3f}", flush=True)
    queries = {
        row: [
            FoldQueries(number, test.text_to_image.tolist(), query_values(features))
            for number, (features, (_, test)) in enumerate(zip(of_folds, folds, strict=True))
        ]
        for row, of_folds in aligned.items()
    }
    return records, queries


if __name__ == "__main__":
    main()
