"""Alignment and uniformity of the two modalities during training with InfoNCE, with and without D_CS.

    python benchmarks/mechanism.py --store STORE --out benchmarks/results/mechanism.json --figure docs/mechanism.svg

Validation metrics after every epoch of both objectives from the same start: the cosine of pairs (alignment) and the
uniformity (log mean exp(-2 d^2)) within images, within texts and across. InfoNCE's second term lowers the
uniformity across modalities, which pushes them apart; the cross term of D_CS raises it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig, build_config
from csaligner.files import write_atomically, write_json
from csaligner.pipeline import validate
from csaligner.run_folder import provenance
from csaligner.store.store import Store
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Trainer

CURVES = {
    "gap/paired_cosine": "cosine of pairs",
    "uniformity/cross": "uniformity, across",
    "uniformity/image": "uniformity, images",
    "uniformity/text": "uniformity, texts",
    "gap/cs": "D_CS",
    "mean_mixed_ndcg@10": "nDCG@10, mixed index",
}
OBJECTIVES: dict[str, dict[str, float]] = {
    "InfoNCE": {"info_nce": 1.0},
    "InfoNCE + D_CS": {"info_nce": 1.0, "cauchy_schwarz": 1.0},
}
COLOURS = {"InfoNCE": "#a3408a", "InfoNCE + D_CS": "#00795a"}


def history(store: Store, terms: dict[str, float], seed: int, start: str) -> list[dict[str, float]]:
    """Return validation metrics before the first step and after every epoch."""
    data = TrainConfig().model_dump() | {"objective": {"terms": terms}, "seed": seed, "evaluate_every": 1}
    config = build_config(TrainConfig, data | {"start": {"kind": start}, "gate": False, "epochs": 40})
    train, val = store.features("train"), store.features("val")
    torch.manual_seed(seed)
    model = Aligner.fit_start(train, config)
    first = validate(model.eval(), val)
    sampler = PairSampler(train, config.batch_size, config.captions, config.seed)
    state = Trainer(model, sampler, config, hooks=Hooks(lambda m: validate(m, val))).fit()
    rows = [{"step": 0.0} | {key: first[key] for key in CURVES}]
    return rows + [{"step": h["step"]} | {key: h[f"val/{key}"] for key in CURVES} for h in state.history]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for name in OBJECTIVES:
            histories = [run["history"] for run in runs if run["objective"] == name]
            steps = [h["step"] for h in histories[0]]
            values = [[h[i][key] for h in histories] for i in range(len(steps))]
            axes.plot(steps, [fmean(v) for v in values], color=COLOURS[name], label=name)
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=COLOURS[name], alpha=0.2)
        axes.set_title(label, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("steps", fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mechanism.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/mechanism.svg"))
    parser.add_argument("--start", default="auto", help="start.kind of the adapters")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    store = Store.open(options.store)
    runs = [
        {"objective": name, "seed": seed, "history": history(store, terms, seed, options.start)}
        for name, terms in OBJECTIVES.items()
        for seed in range(options.seeds)
    ]
    record = {"provenance": provenance(options.seeds - 1), "dataset": store.dataset, "start": options.start}
    write_json(options.out, record | {"runs": runs})
    draw(runs, options.figure)


if __name__ == "__main__":
    main()
