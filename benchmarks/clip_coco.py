"""Five-fold cross-validation on real CLIP features (shared/data/clip_coco_500.npy), default settings.

python benchmarks/clip_coco.py --features PATH --out benchmarks/results/clip_coco.json [--seeds 3]
--only NAME measures that method only and replaces its records in the file.

Folds: RandomState(0).permutation(500)[fold::5] is the test set of 100 pairs, the other 400 train. All seeds and
methods use the same folds; no setting is selected on the test sets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csaligner.adapters.aligner import Aligner, align
from csaligner.config import TrainConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_json
from csaligner.paired_features import pair_features
from csaligner.reporting.figures import figure_before_after
from csaligner.reporting.record import FeatureMap
from csaligner.run_folder import provenance
from csaligner.types import PairedFeatures

Array = NDArray[np.float32]
Method = Callable[[PairedFeatures, PairedFeatures, int], PairedFeatures]
INFONCE_ONLY = {"terms": {"info_nce": 1.0}}


def trained(**settings: Any) -> Method:
    def method(train: PairedFeatures, test: PairedFeatures, seed: int) -> PairedFeatures:
        return align(CSAligner(seed=seed, **settings).fit_features(train).model, test)

    return method


def centred(train: PairedFeatures, test: PairedFeatures, seed: int) -> PairedFeatures:
    return MeanCentring.fit(train).transform(test)


def start(train: PairedFeatures, test: PairedFeatures, seed: int) -> PairedFeatures:
    return align(Aligner.fit_start(train, TrainConfig()).eval(), test)


METHODS: dict[str, Method] = {
    "raw": lambda train, test, seed: test,
    "mean-centring": centred,
    "closed-form start": start,
    "InfoNCE": trained(objective=INFONCE_ONLY),
    "InfoNCE, scale 100": trained(objective=INFONCE_ONLY | {"logit_scale": 100.0, "learn_logit_scale": False}),
    "CS-Aligner": trained(),
    "CS-Aligner, lambda 2, scale 20": trained(
        objective={
            "terms": {"info_nce": 1.0, "cauchy_schwarz": 2.0},
            "logit_scale": 20.0,
            "learn_logit_scale": False,
        }
    ),
    "CS-Aligner, text side only": trained(image_adapter="identity"),
}


def draw(image: Array, text: Array, order: NDArray[np.int64], path: Path) -> None:
    """Return the test pairs of fold 0, raw and after CSAligner() with default settings."""
    test, train = order[0::5], np.setdiff1d(order, order[0::5])
    aligner = CSAligner().fit(image[train], text[train])
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
    old = json.loads(options.out.read_text(encoding="utf-8")) if options.only else {"records": []}
    records = [r for r in old["records"] if r["method"] != options.only]
    certificate = provenance(options.seeds - 1)
    for name, method in METHODS.items():
        if options.only not in {None, name}:
            continue
        for seed in range(options.seeds):
            folds = []
            started = time.perf_counter()
            for fold in range(5):
                test = order[fold::5]
                train = np.setdiff1d(order, test)
                train_pairs, test_pairs = (pair_features(image[rows], text[rows]) for rows in (train, test))
                folds.append(evaluate(method(train_pairs, test_pairs, seed), intervals=False).metrics)
            seconds = (time.perf_counter() - started) / 5
            means = {key: float(np.mean([f[key] for f in folds])) for key in folds[0]}
            records.append({"method": name, "seed": seed, "seconds_per_fold": seconds} | means)
            print(name, seed, f"{means['mean_recall@1']:.3f} {means['gap/centroid']:.3f}", flush=True)
    if options.only:
        again = old.get("measured_again", {}) | {options.only: certificate}
        write_json(options.out, old | {"measured_again": again, "records": records})
        return
    write_json(options.out, {"provenance": certificate, "records": records})


if __name__ == "__main__":
    main()
