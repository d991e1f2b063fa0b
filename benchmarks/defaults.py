"""The default against every free baseline and the default of version 0.2, by data set and number of pairs.

CSALIGNER_SHARED=PATH python benchmarks/defaults.py [--quick] [--splits 3]
Resumes: finished cells are kept in --work. Writes benchmarks/results/defaults.json and docs/defaults.svg.

Data: PATH/data/{clip_coco_500,convirt_500,videoclip_100}.npy, (2, N, d) paired features. Split s: a permutation by
RandomState(SEED + s); the first rows are the test pairs, the next N train. Families and constants of the default were
chosen on the seeds 100 to 103; these are others. "free": the best of the six baselines by mean score, in hindsight.
Differences are paired; their standard error is that of a bootstrap over the test items, pooled over splits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from table_text import title_of

from csaligner.adapters.aligner import align
from csaligner.adapters.start import fit_starts
from csaligner.config import StartConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.baselines import CanonicalCorrelation, MeanCentring, Procrustes, Standardising
from csaligner.evaluation.mixed_search import mixed_search_per_query
from csaligner.evaluation.retrieval import retrieval_per_query
from csaligner.files import write_json
from csaligner.paired_features import pair_features
from csaligner.run_folder import provenance
from csaligner.selection.start import apply_starts
from csaligner.types import PairedFeatures

SEED = 200
DATA = {
    "clip_coco_500": (20, 50, 100, 200, 400),
    "convirt_500": (20, 50, 100, 200, 400),
    "videoclip_100": (20, 50, 80),
}
OLD: dict[str, Any] = {"start": {"kind": "auto"}, "gate": False}
TEXT_ONLY: dict[str, Any] = {"image_adapter": "identity"}
MEASURES = ("image_to_text_recall@1", "text_to_image_recall@1", "ndcg_image_query", "ndcg_text_query")
Array = NDArray[np.float64]
Method = Callable[[PairedFeatures, PairedFeatures], tuple[PairedFeatures, str]]


def free(fit: Callable[[PairedFeatures], Any]) -> Method:
    return lambda train, test: (fit(train).transform(test), "")


def moments(train: PairedFeatures, test: PairedFeatures) -> tuple[PairedFeatures, str]:
    return apply_starts(fit_starts(train, StartConfig(kind="moments")), test), ""


def fitted(**settings: Any) -> Method:
    def method(train: PairedFeatures, test: PairedFeatures) -> tuple[PairedFeatures, str]:
        aligner = CSAligner(verbose=False, **settings).fit_features(train)
        return align(aligner.model, test), aligner.selection_.line if aligner.selection_ else ""

    return method


FREE: Mapping[str, Method] = {
    "raw": lambda train, test: (test, ""),
    "mean-centring": free(MeanCentring.fit),
    "standardising": free(Standardising.fit),
    "moments": moments,
    "CCA": free(CanonicalCorrelation.fit),
    "Procrustes": free(Procrustes.fit),
}
METHODS: Mapping[str, Method] = {
    **FREE,
    "old default": fitted(**OLD),
    "default": fitted(),
    "text side only, old default": fitted(**OLD, **TEXT_ONLY),
    "text side only": fitted(**TEXT_ONLY),
    "text side only, prefer captions": fitted(**TEXT_ONLY, start={"prefer": "captions"}),
}


def values(features: PairedFeatures) -> Array:
    """Return MEASURES of each test item, (N, 4), in points."""
    recall, mixed = retrieval_per_query(features), mixed_search_per_query(features)
    found = (
        recall["image_to_text"]["recall@1"],
        recall["text_to_image"]["recall@1"],
        mixed["mixed_ndcg@10/image_query"],
        mixed["mixed_ndcg@10"],
    )
    return 100 * np.stack([column.double().numpy() for column in found], axis=1)


def cell(features: Array, n: int, split: int, work: Path, name: str) -> dict[str, Any]:
    """Measure every method on one split; finished methods are read from `work`."""
    path = work / f"{name}-{n}-{split}.json"
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    order = np.random.RandomState(SEED + split).permutation(features.shape[1])
    held = min(100, len(order) - n)
    test, train = (pair_features(*features[:, rows]) for rows in (order[:held], order[held : held + n]))
    for method, run in METHODS.items():
        if method not in done:
            began = time.process_time()
            aligned, line = run(train, test)
            seconds = time.process_time() - began
            done[method] = {"values": values(aligned).round(3).tolist(), "line": line, "seconds": round(seconds, 2)}
            write_json(path, done)
    return done


def difference(ours: Array, theirs: Array) -> dict[str, float]:
    """Return the mean and the bootstrapped standard error of the paired difference over items (n,)."""
    gains = ours - theirs
    draws = np.random.RandomState(0).randint(len(gains), size=(2000, len(gains)))
    return {"mean": float(gains.mean()), "error": float(gains[draws].mean(axis=1).std())}


def summary(name: str, n: int, splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of every method and the differences to the best free baseline in hindsight."""
    pooled = {m: np.concatenate([np.array(split[m]["values"]) for split in splits]) for m in METHODS}
    best = max(FREE, key=lambda m: float(pooled[m].mean()))
    rows = {}
    for method, items in pooled.items():
        rows[method] = dict(zip(MEASURES, items.mean(axis=0).round(2).tolist(), strict=True))
        rows[method] |= {"score": round(float(items.mean()), 2)}
        rows[method] |= {
            "score - free": difference(items.mean(axis=1), pooled[best].mean(axis=1)),
            "recall@1 - free": difference(items[:, :2].mean(axis=1), pooled[best][:, :2].mean(axis=1)),
            "ndcg - free": difference(items[:, 2:].mean(axis=1), pooled[best][:, 2:].mean(axis=1)),
            "seconds": round(float(np.mean([split[method]["seconds"] for split in splits])), 2),
            "lines": [split[method]["line"] for split in splits if split[method]["line"]],
        }
    tests = len(pooled["raw"]) // len(splits)
    return {"data": name, "pairs": n, "splits": len(splits), "test": tests, "free": best, "methods": rows}


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Draw score against number of pairs: best free baseline, old default, default; one panel per data set."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "csaligner"
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(c["data"] for c in cells))
    figure, panels = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.0), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        here = [c for c in cells if c["data"] == name]
        x = [c["pairs"] for c in here]
        for label, colour, of in (
            ("best free baseline", "#777777", lambda c: c["free"]),
            ("old default", "#c2571a", lambda c: "old default"),
            ("default", "#00796b", lambda c: "default"),
        ):
            panel.plot(x, [c["methods"][of(c)]["score"] for c in here], "o-", color=colour, label=label, markersize=3)
        panel.set(title=title_of(name), xlabel="training pairs", xscale="log", xticks=x, xticklabels=x)
        panel.minorticks_off()
    panels[0][0].set_ylabel("score")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/defaults.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/defaults.svg"))
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one split, the smallest and largest N, no files in docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ["CSALIGNER_SHARED"]) / "data"
    options.work.mkdir(parents=True, exist_ok=True)
    cells = []
    for name, sizes in DATA.items():
        features = np.load(shared / f"{name}.npy")
        for n in (sizes[0], sizes[-1]) if options.quick else sizes:
            splits = [cell(features, n, s, options.work, name) for s in range(1 if options.quick else options.splits)]
            cells.append(summary(name, n, splits))
            shown = {m: cells[-1]["methods"][m]["score - free"] for m in ("old default", "default")}
            print(name, n, {m: f"{d['mean']:+.1f} +- {d['error']:.1f}" for m, d in shown.items()}, flush=True)
    if options.quick:
        return
    write_json(options.out, {"provenance": provenance(SEED), "cells": cells})
    draw(cells, options.figure)


if __name__ == "__main__":
    main()
