"""Learning curves over the number of pairs, captions and batch size, with only the text modality adapted.

    python benchmarks/learning_curves.py --store STORE --out benchmarks/results/learning_curves.json \
        --figure docs/learning_curves.svg

Pairs: a fraction of the training images with their captions; with unpaired rows, half of the remaining images provides
images and the other half texts, so that they come from disjoint items. Captions: maximum number per image. Batch:
images per batch. All runs have the same number of steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from unpaired import KEYS, of_images

from csaligner.adapters.aligner import align
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_atomically, write_json
from csaligner.run_folder import provenance
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

STEPS = 120
BATCH = 512
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
CAPTIONS = (1, 2, 4)
BATCHES = (64, 128, 256, 512)
INFONCE, ALIGNER, UNPAIRED = "InfoNCE", "CS-Aligner", "CS-Aligner with the unpaired rest"
COLOURS = {INFONCE: "#a3408a", ALIGNER: "#00795a", UNPAIRED: "#1f5fa8"}
CURVES = (
    ("mean_recall@1", "R@1"),
    ("mean_mixed_ndcg@10", "nDCG@10, mixed index"),
    ("gap/centroid", "gap"),
    ("gap/cs", "D_CS"),
)


def trained(
    pairs: PairedFeatures, rest: tuple[Tensor, ...], test: PairedFeatures, weight: float, batch: int, seed: int
) -> dict[str, float]:
    """Test metrics after STEPS steps."""
    terms = {"info_nce": 1.0} | ({"cauchy_schwarz": weight} if weight else {})
    epochs = max(1, STEPS // -(-len(pairs.image) // batch))
    aligner = CSAligner(
        start={"kind": "auto"},
        gate=False,
        image_adapter="identity",
        objective={"terms": terms},
        batch_size=batch,
        epochs=epochs,
        evaluate_every=epochs,
        seed=seed,
    )
    images, texts = rest or (None, None)
    metrics = evaluate(align(aligner.fit_features(pairs, images, texts).model, test), intervals=False).metrics
    return {key: metrics[key] for key in KEYS}


def first_captions(features: PairedFeatures, count: int) -> PairedFeatures:
    """At most `count` captions of each image: the first ones."""
    seen: dict[int, int] = {}
    rows = []
    for row, image in enumerate(features.text_to_image.tolist()):
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= count:
            rows.append(row)
    return PairedFeatures(features.image, features.text[rows], features.text_to_image[rows], features.image_ids)


def curve_points(train: PairedFeatures, seed: int) -> Iterator[tuple[str, float, str, PairedFeatures, Any, float, int]]:
    """curve, where on its axis, way, pairs, unpaired rows, weight of D_CS, batch size."""
    order = torch.randperm(len(train.image), generator=torch.Generator().manual_seed(seed))
    for share in SHARES:
        n = round(share * len(order))
        half = (n + len(order)) // 2
        pairs = of_images(train, order[:n])
        yield "pairs", n, INFONCE, pairs, (), 0.0, BATCH
        yield "pairs", n, ALIGNER, pairs, (), 1.0, BATCH
        if n < len(order):
            rest = train.image[order[n:half]], of_images(train, order[half:]).text
            yield "pairs", n, UNPAIRED, pairs, rest, 1.0, BATCH
    for way, weight in ((INFONCE, 0.0), (ALIGNER, 1.0)):
        for count in CAPTIONS:
            yield "captions an image", count, way, first_captions(train, count), (), weight, BATCH
        for batch in BATCHES:
            yield "batch", batch, way, train, (), weight, batch


def draw(records: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["curve"] for r in records))
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.subplots(len(names), len(CURVES))
    for row, curve in enumerate(names):
        for axes, (key, label) in zip(grid[row], CURVES, strict=True):
            for way, colour in COLOURS.items():
                mine = [r for r in records if (r["curve"], r["way"]) == (curve, way)]
                places = sorted({r["at"] for r in mine})
                values = [[r[key] for r in mine if r["at"] == place] for place in places]
                if places:
                    axes.plot(places, [fmean(v) for v in values], ".-", color=colour, label=way)
                    axes.fill_between(places, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2)
            axes.set_xscale("log")
            axes.set_xticks(sorted({r["at"] for r in records if r["curve"] == curve}))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.minorticks_off()
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(curve, fontsize=9)
            axes.set_title(label if row == 0 else "", fontsize=10)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning_curves.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/learning_curves.svg"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    store = Store.open(options.store)
    train, test = store.features("train"), store.features("test")
    about = {"provenance": provenance(options.seeds - 1), "dataset": store.dataset, "steps": STEPS}
    records: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for curve, at, way, pairs, rest, weight, batch in curve_points(train, seed):
            metrics = trained(pairs, rest, test, weight, batch, seed)
            records.append({"curve": curve, "at": at, "way": way, "seed": seed} | metrics)
            print(curve, at, way, seed, {k: round(v, 3) for k, v in metrics.items()}, flush=True)
        write_json(options.out, about | {"records": records})
    draw(records, options.figure)


if __name__ == "__main__":
    main()
