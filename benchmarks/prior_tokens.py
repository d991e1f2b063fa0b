"""What a text adapter onto fixed image embeddings gains from hidden states of the text: MLP, prior without and with.

python benchmarks/prior_tokens.py --out benchmarks/results/prior_tokens.json [--seeds 1] [--epochs 20] [--store FOLDER]

1,500 drawings of OpenMoji at even steps; standardised features of EfficientNet-Lite0 are the target, MiniLM encodes the
captions; InfoNCE + D_CS. The priors have 2 layers of width 128. Scores of the test split, paired by image, averaged
over seeds; nothing is chosen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lora import Part
from machine import describe
from token_term import interval

from csaligner.adapters.aligner import align
from csaligner.config import TrainConfig, build_config
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.generation import Projection, frechet_distance
from csaligner.files import write_json
from csaligner.paired_features import first_captions
from csaligner.pipeline import embed_dataset, load_run, train
from csaligner.run_folder import provenance
from csaligner.selection.score import score_per_image
from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store
from csaligner.store.tokens import FOLDER

PRIOR = {"name": "prior", "hidden": 128, "blocks": 2}
ARMS = {  # name -> text adapter, start, whether the store has hidden states
    "MLP": ("mlp", "auto", False),
    "prior, pooled text": (PRIOR, "auto", False),
    "prior, hidden states": (PRIOR, "auto", True),
    "prior, pooled text, random weights": (PRIOR, "random", False),
    "prior, hidden states, random weights": (PRIOR, "random", True),
    "prior, hidden states and noise, random weights": (PRIOR | {"noise": 0}, "random", True),
}
DIMS = 32


def measure(store: Store, arm: str, seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    adapter, start, states = ARMS[arm]
    settings = {"image_adapter": "standardise", "text_adapter": adapter, "start": {"kind": start}, "seed": seed}
    settings |= {"epochs": epochs, "evaluate_every": epochs, "batch_size": 256}
    settings |= {"objective": {"terms": {"info_nce": 1.0, "cauchy_schwarz": 1.0}}}
    hidden = store.path / FOLDER
    aside = hidden.with_name("aside")
    if not states:
        hidden.rename(aside)
    try:
        began = time.process_time()
        train(store, build_config(TrainConfig, settings), folder)
        seconds = time.process_time() - began
        test = align(*load_run(folder, store, "test"))
        target = align(*load_run(folder, store, "train")).image
    finally:
        if not states:
            aside.rename(hidden)
    metrics = evaluate(test, intervals=False).metrics
    project = Projection.fit(target, DIMS)
    rows = first_captions(test.text_to_image, len(test.image))
    found: dict[str, Any] = {
        "frechet": frechet_distance(project(test.image), project(test.text[rows]), force=True),
        "recall@1": metrics["text_to_image_recall@1"],
        "recall@10": metrics["text_to_image_recall@10"],
        "seconds": seconds,
        "scores": score_per_image(test),
    }
    print(arm, seed, {k: round(v, 4) for k, v in found.items() if k != "scores"}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prior_tokens.json"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.store or Path(scratch) / "store"
        store = embed_dataset(Part(options.images), folder, settings=ExtractSettings(workers=0, tokens=16))
        base = None
        for arm in ARMS:
            runs = [
                measure(store, arm, seed, options.epochs, Path(scratch) / f"{arm}-{seed}")
                for seed in range(options.seeds)
            ]
            scores = torch.stack([run.pop("scores") for run in runs]).mean(dim=0)
            base = scores if base is None else base
            means = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
            difference = {"minus_mlp": float((scores - base).mean()), "interval": interval(scores - base)}
            records.append({"arm": arm, "score": float(scores.mean())} | means | difference)
        counts = {split: list(pair) for split, pair in store.counts.items()}
    write_json(
        options.out,
        {
            "provenance": provenance(options.seeds - 1),
            "machine": describe(),
            "settings": {"epochs": options.epochs, "seeds": options.seeds},
            "images_captions": counts,
            "records": records,
        },
    )


if __name__ == "__main__":
    main()
