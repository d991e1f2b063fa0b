"""The token-level term on emoji: InfoNCE + D_CS with and without it, from a closed-form start and random weights.

python benchmarks/token_term.py --out benchmarks/results/token_term.json [--seeds 1] [--epochs 10] [--store FOLDER]

1,500 drawings of OpenMoji at even steps, the bundled encoders, 16 patches of an image and at most 16 words of its
caption (embed --tokens 16).
Weights are compared on the validation split; the best of them above 0 is compared with 0 on the test split, paired by
image, scores averaged over seeds.
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
from torch import Tensor

from csaligner.adapters.aligner import align
from csaligner.config import TrainConfig, build_config
from csaligner.files import write_json
from csaligner.pipeline import embed_dataset, load_run, train
from csaligner.run_folder import provenance
from csaligner.selection.score import score_per_image
from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store

WEIGHTS = (0.0, 0.03, 0.3)
STARTS = ("auto", "random")
RESAMPLES = 2000


def run(
    store: Store, start: str, weight: float, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train once; returns processor seconds and the scores per image of the validation and the test split."""
    terms = {"info_nce": 1.0, "cauchy_schwarz": 1.0} | ({"token_cauchy_schwarz": weight} if weight else {})
    settings = {"start": {"kind": start}, "objective": {"terms": terms}, "gate": False, "epochs": options.epochs}
    settings |= {"seed": seed, "evaluate_every": options.epochs, "lr": 1e-3}
    began = time.process_time()
    train(store, build_config(TrainConfig, settings), folder)
    seconds = time.process_time() - began
    scores = {split: score_per_image(align(*load_run(folder, store, split))) for split in ("val", "test")}
    means = {split: float(values.mean()) for split, values in scores.items()}
    print(start, weight, seed, f"{means['val']:.2f} {means['test']:.2f} {seconds:.0f} s", flush=True)
    return {"seconds": seconds, "scores": scores}


def interval(difference: Tensor) -> list[float]:
    """Return the 95 % interval of the mean, from a bootstrap over images."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(difference), (RESAMPLES, len(difference)), generator=generator)
    return torch.quantile(difference[rows].mean(dim=1), torch.tensor([0.025, 0.975]).double()).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/token_term.json"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = ExtractSettings(workers=0, tokens=16)
        store = embed_dataset(Part(options.images), options.store or Path(scratch) / "store", settings=settings)
        for start in STARTS:
            found: dict[float, list[dict[str, Any]]] = {}
            for weight in WEIGHTS:
                folders = [Path(scratch) / f"{start}-{weight}-{seed}" for seed in range(options.seeds)]
                found[weight] = [run(store, start, weight, seed, options, f) for seed, f in enumerate(folders)]
            scores = {
                weight: {s: torch.stack([r["scores"][s] for r in runs]).mean(dim=0) for s in ("val", "test")}
                for weight, runs in found.items()
            }
            chosen = max(WEIGHTS[1:], key=lambda weight: float(scores[weight]["val"].mean()))
            for weight in WEIGHTS:
                difference = scores[weight]["test"] - scores[0.0]["test"]
                records.append({
                    "start": start,
                    "weight": weight,
                    "val": float(scores[weight]["val"].mean()),
                    "test": float(scores[weight]["test"].mean()),
                    "minus_without": float(difference.mean()),
                    "interval": interval(difference),
                    "seconds": sum(r["seconds"] for r in found[weight]) / len(found[weight]),
                    "chosen": weight == chosen,
                })  # fmt: skip
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
