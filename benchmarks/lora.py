"""Adapters alone against adapters with LoRA in MiniLM, on EfficientNet features of OpenMoji.

python benchmarks/lora.py --out benchmarks/results/lora.json [--images 1200] [--epochs 12] [--seeds 2]

About a third of the drawings; split, epochs, batches and objective are the same for both. No setting is selected on
test data.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from csaligner.adapters.aligner import Aligner, align
from csaligner.config import StartConfig, TrainConfig, build_config
from csaligner.datasets.openmoji import OpenMoji
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_json
from csaligner.pipeline import embed_dataset, load_run, train
from csaligner.run_folder import provenance
from csaligner.store.embed import ExtractSettings
from csaligner.store.store import Store
from csaligner.types import Item

LORA_LR = 1e-3


class Part:
    """Evenly spaced drawings of OpenMoji."""

    def __init__(self, images: int) -> None:
        self._whole, self._images = OpenMoji(), images

    @property
    def name(self) -> str:
        return f"{self._whole.name} ({self._images} at even steps)"

    @property
    def attribution(self) -> str:
        return self._whole.attribution

    def items(self) -> Sequence[Item]:
        items = self._whole.items()
        taken = torch.linspace(0, len(items) - 1, min(self._images, len(items)), dtype=torch.float64).round().long()
        return [items[i] for i in taken.tolist()]


def measure(name: str, store: Store, settings: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    config = build_config(TrainConfig, settings | {"start": {"kind": "auto"}, "gate": False, "seed": seed})
    started = time.perf_counter()
    run = train(store, config, folder)
    seconds = time.perf_counter() - started
    heads, features = load_run(folder, store, "test")
    whole = run.lora or run.model
    learnt = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    metrics = evaluate(align(heads, features), intervals=False).metrics
    print(name, seed, f"R@1 {metrics['mean_recall@1']:.3f} in {seconds:.0f} s", flush=True)
    return {"method": name, "seed": seed, "seconds": seconds, "trained_parameters": learnt} | metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lora.json"))
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    base = {"epochs": options.epochs, "batch_size": 256, "evaluate_every": options.epochs, "lr": LORA_LR}
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        store = embed_dataset(Part(options.images), Path(scratch) / "store", settings=ExtractSettings(workers=0))
        start = Aligner.fit_start(store.features("train"), TrainConfig(start=StartConfig(kind="auto"))).eval()
        before = evaluate(align(start, store.features("test")), intervals=False).metrics
        records.append({"method": "closed-form start", "seed": 0} | before)
        for seed in range(options.seeds):
            for name, lora in (("adapters", None), ("adapters + LoRA 8 in MiniLM", {"sides": "text", "rank": 8})):
                settings = base | ({"lora": lora} if lora else {})
                records.append(measure(name, store, settings, seed, Path(scratch) / f"{name} {seed}"))
        counts = {split: list(pair) for split, pair in store.counts.items()}
    write_json(
        options.out,
        {"provenance": provenance(options.seeds - 1), "images_captions": counts, "settings": base, "records": records},
    )


if __name__ == "__main__":
    main()
