"""Choice of the gradient fraction of automatic weights, on inner folds of CLIP features.

    python benchmarks/balance.py --features clip_coco_500.npy --out benchmarks/results/balance.json

features: (2, N, d), image and text, row i pairs with row i. A fifth of the pairs (the first test fold of clip_coco.py)
is not used; in the rest, each of three folds holds out a fifth for the reported figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from machine import describe, write

from csaligner import CSAligner

KEYS = (
    "mean_recall@1",
    "mixed_ndcg@10",
    "mixed_ndcg@10/image_query",
    "modality_bias@10",
    "modality_bias@10/image_query",
    "gap/centroid",
    "gap/pair_margin",
    "gap/cs",
    "centred_gap/cs",
    "gap/probe_accuracy",
)
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)


def measure(features: Any, objective: dict[str, Any]) -> dict[str, float]:
    """Return the means over the inner folds."""
    n = features.shape[1]
    kept = np.setdiff1d(np.arange(n), np.random.RandomState(0).permutation(n)[0::5])
    order = np.random.RandomState(1).permutation(kept)
    found = []
    for fold in range(3):
        held, rest = order[fold::5], np.setdiff1d(kept, order[fold::5])
        aligner = CSAligner(start={"kind": "auto"}, gate=False, seed=fold, objective=objective).fit(
            features[0][rest], features[1][rest]
        )
        found.append(aligner.evaluate(features[0][held], features[1][held]))
    return {key: mean(f[key] for f in found) for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    features = np.load(args.features)
    records = [
        {"weight": "0"} | measure(features, {"terms": {"info_nce": 1.0}}),
        {"weight": "1"} | measure(features, {"terms": {"info_nce": 1.0, "cauchy_schwarz": 1.0}}),
    ]
    for fraction in FRACTIONS:
        objective = {"terms": {"info_nce": 1.0, "cauchy_schwarz": "auto"}, "balance": {"fraction": fraction}}
        records.append({"weight": f"auto, fraction {fraction:g}"} | measure(features, objective))
        print(records[-1])
    write(args.out, {"machine": describe(), "records": records})


if __name__ == "__main__":
    main()
