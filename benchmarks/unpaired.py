"""Effect of unpaired images and texts on retrieval, with only the text modality adapted.

    python benchmarks/unpaired.py --store STORE --out benchmarks/results/unpaired.json

STORE: OpenMoji, Tux Paint and Open Clip Art together. Part 1: a tenth of the training images with their captions
are pairs; half of the rest provides unpaired images and the other half unpaired texts, so that they come from
disjoint items. Part 2, across domains: pairs from Open Clip Art, unpaired images and texts (disjoint items) and the
test set from Tux Paint. Baselines: the same pairs without the unpaired rows, and InfoNCE only. All runs have the
same number of steps. An unpaired row has the weight of a pair in part 1 and three times that weight in part 2, where
unpaired rows and test data share a domain. --part measures one part and keeps the records of the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import align
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_json
from csaligner.run_folder import provenance
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

KEYS = (
    "mean_recall@1",
    "mixed_ndcg@10",
    "mixed_ndcg@10/image_query",
    "mean_mixed_ndcg@10",
    "modality_bias@10",
    "modality_bias@10/image_query",
    "mixed_image_recall@10",
    "gap/centroid",
    "gap/pair_margin",
    "gap/cs",
    "gap/frechet",
    "centred_gap/cs",
    "centred_gap/frechet",
    "gap/probe_accuracy",
)
INFONCE = {"terms": {"info_nce": 1.0}}
STEPS = 400


def of_images(features: PairedFeatures, chosen: Tensor) -> PairedFeatures:
    """Return those images with all their captions."""
    place = torch.full((len(features.image),), -1)
    place[chosen] = torch.arange(len(chosen))
    rows = (place[features.text_to_image] >= 0).nonzero()[:, 0]
    return PairedFeatures(
        features.image[chosen],
        features.text[rows],
        place[features.text_to_image[rows]],
        tuple(features.image_ids[int(i)] for i in chosen),
    )


def settings(pairs: PairedFeatures, seed: int, weight: float, unpaired_weight: float) -> dict[str, Any]:
    """Return the default settings with a fixed image modality, for STEPS steps."""
    per_epoch = max(1, -(-len(pairs.image) // 512))
    objective: dict[str, Any] = {"terms": {"info_nce": 1.0, "cauchy_schwarz": weight}} if weight else INFONCE
    epochs = max(1, STEPS // per_epoch)
    return {
        "image_adapter": "identity",
        "seed": seed,
        "epochs": epochs,
        "evaluate_every": epochs,
        "objective": objective | {"unpaired_weight": unpaired_weight},
    }


def run(
    pairs: PairedFeatures,
    rest: tuple[Tensor, Tensor],
    test: PairedFeatures,
    seed: int,
    weight: float,
    unpaired_weight: float = 1.0,
) -> list[dict[str, Any]]:
    ways: dict[str, tuple[float, bool]] = {
        "InfoNCE, pairs": (0.0, False),
        "CS-Aligner, pairs": (weight, False),
        "CS-Aligner, pairs and unpaired": (weight, True),
    }
    records = []
    for name, (lam, unpaired) in ways.items():
        aligner = CSAligner(start={"kind": "auto"}, gate=False, **settings(pairs, seed, lam, unpaired_weight))
        aligner.fit_features(pairs, *(rest if unpaired else ()))
        metrics = evaluate(align(aligner.model, test), intervals=False).metrics
        records.append({"way": name, "seed": seed, "pairs": len(pairs.image)} | {k: metrics[k] for k in KEYS})
        print(name, seed, {k: round(metrics[k], 3) for k in KEYS}, flush=True)
    return records


def tenth(train: PairedFeatures, test: PairedFeatures, seed: int, weight: float) -> list[dict[str, Any]]:
    order = torch.randperm(len(train.image), generator=torch.Generator().manual_seed(seed))
    n, half = len(order) // 10, (len(order) + len(order) // 10) // 2
    images, texts = train.image[order[n:half]], of_images(train, order[half:]).text
    return run(of_images(train, order[:n]), (images, texts), test, seed, weight)


def shifted(train: PairedFeatures, test: PairedFeatures, seed: int, weight: float) -> list[dict[str, Any]]:
    def source(features: PairedFeatures, name: str) -> Tensor:
        return torch.tensor([i for i, image_id in enumerate(features.image_ids) if image_id.startswith(name)])

    photos = source(train, "tuxpaint")
    photos = photos[torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed))]
    half = len(photos) // 2
    rest = train.image[photos[:half]], of_images(train, photos[half:]).text
    pairs, photos_of_test = of_images(train, source(train, "openclipart")), of_images(test, source(test, "tuxpaint"))
    return run(pairs, rest, photos_of_test, seed, weight, unpaired_weight=3.0)


PARTS = {"a tenth of the pairs": tenth, "across domains": shifted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unpaired.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    store = Store.open(options.store)
    train, test = store.features("train"), store.features("test")
    kept = json.loads(options.out.read_text(encoding="utf-8"))["records"] if options.part else []
    records = [r for r in kept if r["part"] != options.part] + [
        {"part": name} | record
        for name, part in PARTS.items()
        if options.part in {None, name}
        for seed in range(options.seeds)
        for record in part(train, test, seed, options.weight)
    ]
    write_json(options.out, {"provenance": provenance(options.seeds - 1), "weight": options.weight, "records": records})


if __name__ == "__main__":
    main()
