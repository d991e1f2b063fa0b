"""Sigma and lambda from random weights, as in the paper: no closed-form start, no gate.

CSALIGNER_SHARED=PATH python benchmarks/random_start.py --store STORE
Resumes: finished runs are kept in --work. Writes benchmarks/results/random_start.json and docs/random_start.svg.

Data: PATH/data/{clip_coco_500,convirt_500,videoclip_100}.npy, (2, N, d) paired features; split s: a permutation by
RandomState(SEED + s), the first fifth (at most 100) are test pairs, as many validation pairs, the others train. STORE:
the store of `csaligner demo` (OpenMoji with the bundled encoders), its own splits. Split and training seed are equal.
Linear adapters, both modalities to 128 dimensions; "text side": mlp for the texts, image vectors unchanged (CLIP and
video alone). STEPS steps of at most 512 images. Every run stores validation and test metrics; settings are chosen on
validation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table_text import title_of
from training_tables import DATA, by_setting

from csaligner.adapters.aligner import align
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_atomically, write_json
from csaligner.paired_features import pair_features
from csaligner.run_folder import provenance
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

SEED, STEPS, BATCH = 400, 100, 512
ARRAYS = ("clip_coco_500", "convirt_500", "videoclip_100")
OPENMOJI = "openmoji"
SIGMAS: dict[str, Any] = {
    "0.2": 0.2,
    "0.3": 0.3,
    "0.5": 0.5,
    "1": 1.0,
    "median": "median",
    "median-cross": "median-cross",
    "0.2 + 0.5 + 1": [0.2, 0.5, 1.0],
}
WEIGHTS = ("0.3", "1", "3", "10")
LAMBDAS: dict[str, Any] = {label: float(label) for label in WEIGHTS}
RISING = {"start": 0.0, "end": 3.0}
LINEAR: dict[str, Any] = {"image_adapter": "linear", "text_adapter": "linear", "dim": 128, "lr": 3e-3}
TEXT_SIDE: dict[str, Any] = {"image_adapter": "identity", "text_adapter": "mlp", "lr": 1e-3}
TEXT_SIDE_WEIGHTS = {"clip_coco_500": ("1",), "videoclip_100": ("1", "3", "10")}
KEPT = {
    "score": "alignment_score",
    "recall": "mean_recall@1",
    "ndcg": "mixed_ndcg@10",
    "ndcg_image": "mixed_ndcg@10/image_query",
    "margin": "gap/pair_margin",
    "gap": "gap/centroid",
    "cs": "gap/cs",
}
Parts = tuple[PairedFeatures, PairedFeatures, PairedFeatures]


def parts_of(name: str, shared: Path, store: Path, seed: int) -> Parts:
    """Return (train, validation, test)."""
    if name == OPENMOJI:
        opened = Store.open(store)
        return opened.features("train"), opened.features("val"), opened.features("test")
    rows = np.load(shared / f"{name}.npy").astype(np.float32)
    order = np.random.RandomState(SEED + seed).permutation(rows.shape[1])
    held = min(100, len(order) // 5)
    test, val, train = (pair_features(*rows[:, r]) for r in np.split(order, (held, 2 * held)))
    return train, val, test


def settings(sigmas: Iterable[str], lambdas: Iterable[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield sigma, lambda and the arguments of CSAligner, InfoNCE alone first."""
    yield "", "0", {"objective": {"terms": {"info_nce": 1.0}}}
    for label, sigma in itertools.product(lambdas, sigmas):
        yield sigma, label, {"weight": LAMBDAS[label], "bandwidth": SIGMAS[sigma]}


def measure(train: PairedFeatures, held: dict[str, PairedFeatures], seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """Train and return KEPT of each held-out part."""
    epochs = max(1, STEPS // -(-len(train.image) // BATCH))
    fixed: dict[str, Any] = {
        "start": {"kind": "random"},
        "epochs": epochs,
        "batch_size": BATCH,
        "seed": seed,
        "verbose": False,
    }
    aligner = CSAligner(evaluate_every=max(1, epochs // 5), **fixed, **given).fit_features(train)
    found = {}
    for name, features in held.items():
        metrics = evaluate(align(aligner.model, features), intervals=False).metrics
        found[name] = {key: round(metrics[metric], 5) for key, metric in KEPT.items()}
    return found


def cells() -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Yield adapters, data, sigma, lambda and arguments."""
    for name in (*ARRAYS, OPENMOJI):
        for sigma, weight, given in settings(SIGMAS, WEIGHTS):
            yield "linear", name, sigma, weight, LINEAR | given
    for name, weights in TEXT_SIDE_WEIGHTS.items():
        for sigma, weight, given in settings(("0.5", "median"), weights):
            yield "text side", name, sigma, weight, TEXT_SIDE | given
    yield "text side", "videoclip_100", "median", "0 to 3", TEXT_SIDE | {"weight": RISING, "bandwidth": "median"}


def run(shared: Path, store: Path, seeds: int, work: Path) -> list[dict[str, Any]]:
    """Measure what `work` lacks and return all records."""
    lines = work.read_text(encoding="utf-8").splitlines() if work.is_file() else []
    keys = ("adapters", "data", "sigma", "weight", "seed")
    known = {tuple(r[k] for k in keys): r for r in map(json.loads, lines)}
    opened = {
        (name, seed): parts_of(name, shared, store, seed) for name in (*ARRAYS, OPENMOJI) for seed in range(seeds)
    }
    records = []
    with work.open("a", encoding="utf-8") as file:
        for adapters, name, sigma, weight, given in cells():
            for seed in range(seeds):
                label = (adapters, name, sigma, weight, seed)
                if label not in known:
                    train, val, test = opened[name, seed]
                    found = measure(train, {"val": val, "test": test}, seed, given)
                    known[label] = dict(zip(keys, label, strict=True)) | found
                    file.write(json.dumps(known[label]) + "\n")
                    file.flush()
                    print(*label, found["val"], flush=True)
                records.append(known[label])
    return records


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw validation score and pair margin of linear adapters, sigma down and lambda across; one column per data."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "csaligner", "svg.fonttype": "none"}
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(DATA))
    for row, (key, factor, form) in enumerate((("score", 100, "{:.1f}"), ("margin", 1, "{:.2f}"))):
        for axes, name in zip(grid[row], DATA, strict=True):
            cells = by_setting(records, adapters="linear", data=name)
            found = np.array(
                [[factor * np.mean([r["val"][key] for r in cells[s, w]]) for w in WEIGHTS] for s in SIGMAS]
            )
            axes.imshow(found, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(found):
                dark = value < (found.min() + found.max()) / 2
                text = form.format(value)
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
            axes.set_xticks(range(len(WEIGHTS)), WEIGHTS, fontsize=8)
            first = name == DATA[0]
            axes.set_yticks(range(len(SIGMAS)), SIGMAS if first else [], fontsize=8)
            axes.set_title(f"{title_of(name)}: {'score' if key == 'score' else 'pair margin'}", fontsize=9)
            axes.set_xlabel("lambda" if row else "", fontsize=8)
        grid[row][0].set_ylabel("sigma", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/random_start.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/random_start.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("docs/random_start.svg"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.parent.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ["CSALIGNER_SHARED"]) / "data"
    records = run(shared, options.store, options.seeds, options.work)
    write_json(
        options.out, {"provenance": provenance(SEED), "steps": STEPS, "seeds": options.seeds, "records": records}
    )
    draw(records, options.figure)


if __name__ == "__main__":
    main()
