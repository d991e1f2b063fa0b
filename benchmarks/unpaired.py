"""Effect of unpaired images and texts on retrieval, with only the text modality adapted.

    python benchmarks/unpaired.py --store STORE --out benchmarks/results/unpaired.json

STORE: OpenMoji, Tux Paint and Open Clip Art together. Part 1: a tenth of the training images with their captions
are pairs; half of the rest provides unpaired images and the other half unpaired texts, so that they come from
disjoint items. Part 2, across domains: pairs from Open Clip Art, unpaired images and texts (disjoint items) and the
test set from Tux Paint. Baselines: the same pairs without the unpaired rows, and InfoNCE only. All runs have the
same number of steps. An unpaired row has the weight of a pair in part 1 and three times that weight in part 2, where
unpaired rows and test data share a domain. --part measures one part and keeps the records of the others.

Part "few pairs", with CSALIGNER_SHARED=PATH and without a store: the data and splits of benchmarks/defaults.py with
both modalities adapted; N pairs, and unpaired images and texts from disjoint other items. The default (start and gate)
on pairs alone and with the unpaired rows, and from the latter start InfoNCE and CS-Aligner without a gate. Differences
are paired; standard errors are those of a bootstrap over test items. Finished cells are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from defaults import SEED, difference, values
from torch import Tensor

from csaligner.adapters.aligner import align
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_json
from csaligner.paired_features import pair_features
from csaligner.run_folder import provenance
from csaligner.selection.gate import LEAST_IMAGES
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


FEW = "few pairs"
CURVES: Mapping[str, tuple[int, ...]] = {"clip_coco_500": (20, 40, 100, 200), "convirt_500": (20, 40, 100, 200)}
UNPAIRED = (0, 100)  # of each modality
WEIGHTS = {"InfoNCE": 0.0, "CS-Aligner": 1.0}
UNTRAINED, DEFAULT = "untrained", "default"


def few_pairs(name: str, n: int, extra: int, split: int, kept: Path) -> dict[str, Any]:
    """Return the values of each test item by method. extra: unpaired rows of each modality."""
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    rows = np.load(Path(os.environ["CSALIGNER_SHARED"]) / "data" / f"{name}.npy")
    order = np.random.RandomState(SEED + split).permutation(rows.shape[1])
    held, first = 100, 100 + n
    test, train = (pair_features(*rows[:, part]) for part in (order[:held], order[held:first]))
    images, texts = rows[0, order[first : first + extra]], rows[1, order[first + extra : first + 2 * extra]]
    more = (images, texts) if extra else ()
    methods: dict[str, dict[str, Any]] = {UNTRAINED: {"epochs": 0}}
    methods |= {way: {"gate": False, "objective": _terms(weight)} for way, weight in WEIGHTS.items()}
    if n >= LEAST_IMAGES:  # with fewer, the gate does not train
        methods[DEFAULT] = {}
    found = {}
    for way, given in methods.items():
        aligner = CSAligner(verbose=False, seed=split, **given).fit_features(train, *more)
        found[way] = values(align(aligner.model, test)).round(3).tolist()
    found.setdefault(DEFAULT, found[UNTRAINED])
    write_json(kept, found)
    return found


def _terms(weight: float) -> dict[str, Any]:
    return {"terms": {"info_nce": 1.0, "cauchy_schwarz": weight} if weight else {"info_nce": 1.0}}


def curve(splits: int, work: Path) -> list[dict[str, Any]]:
    """Return one record per data set, number of pairs and of unpaired rows: means, and differences of the score to the
    untrained start of the same rows and to that of the pairs alone."""
    records = []
    for name, sizes in CURVES.items():
        for n in sizes:
            alone = None
            for extra in UNPAIRED:
                cells = [few_pairs(name, n, extra, s, work / f"{name}-{n}-{extra}-{s}.json") for s in range(splits)]
                pooled = {way: np.concatenate([np.array(cell[way]) for cell in cells]) for way in cells[0]}
                start = pooled[UNTRAINED]
                alone = start if alone is None else alone
                for way, items in pooled.items():
                    record = {"data": name, "pairs": n, "unpaired": extra, "way": way}
                    record |= {"recall": float(items[:, :2].mean()), "ndcg": float(items[:, 2:].mean())}
                    record |= {"minus start": difference(items.mean(axis=1), start.mean(axis=1))}
                    record |= {"minus pairs alone": difference(items.mean(axis=1), alone.mean(axis=1))}
                    records.append(record)
                    print(record, flush=True)
    return records


PARTS = {"a tenth of the pairs": tenth, "across domains": shifted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="not needed for few pairs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unpaired.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/unpaired"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--part", choices=(*PARTS, FEW))
    options = parser.parse_args()
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.part else {}
    certificate = provenance(options.seeds - 1)
    if options.part in {None, FEW}:
        torch.set_num_threads(1)
        options.work.mkdir(parents=True, exist_ok=True)
        content[FEW] = {
            "provenance": certificate,
            "splits": options.seeds,
            "records": curve(options.seeds, options.work),
        }
    if options.part != FEW:
        store = Store.open(options.store)
        train, test = store.features("train"), store.features("test")
        records = [r for r in content.get("records", []) if r["part"] != options.part] + [
            {"part": name} | record
            for name, part in PARTS.items()
            if options.part in {None, name}
            for seed in range(options.seeds)
            for record in part(train, test, seed, options.weight)
        ]
        content |= {"provenance": certificate, "weight": options.weight, "records": records}
    write_json(options.out, content)


if __name__ == "__main__":
    main()
